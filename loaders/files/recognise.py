"""What a file or a folder is, where it is not what it was taken for: by first bytes, and by what lies beside it.

A remedy that is guessed from the first symptom sends people the wrong way. So before a file is called damaged, its
first bytes are looked at; before a folder is called no model, its files.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable
from pathlib import Path

from ...errors import brief, listed, visible
from .. import regular

FIRST, ENOUGH = 512, 64  # bytes that tell, and that tell of zeros
PARTIAL = (".incomplete", ".part", ".partial", ".crdownload", ".aria2", ".tmp", ".download", ".!qB")
HALVES = ".cache/huggingface/download/*.incomplete"  # of a download into a folder
POINTER = "is a git LFS pointer, not the file itself: run git lfs pull in its folder"
PICKLE = "is a pickle, as torch writes it: get the safetensors version"
OLD_GGML = "is a model in llama.cpp's format of before GGUF: get a GGUF version"
MAGICS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", POINTER),
    (b"version https://hawser", POINTER),
    (b"# xet version", "is a pointer of git-xet, not the file itself: download it from the hub"),
    (b"/annex/objects/", "is a pointer of git-annex, not the file itself: run git annex get in its folder"),
    (b"\x1f\x8b", "is packed by gzip: unpack it with gunzip"),
    (b"\x28\xb5\x2f\xfd", "is packed by zstd: unpack it with unzstd"),
    (b"\xfd7zXZ\x00", "is packed by xz: unpack it with unxz"),
    (b"BZh", "is packed by bzip2: unpack it with bunzip2"),
    (b"\x04\x22\x4d\x18", "is packed by lz4: unpack it with unlz4"),
    (b"7z\xbc\xaf", "is a 7z archive: unpack it"),
    (b"Rar!", "is a rar archive: unpack it"),
    (b"\x80\x02", PICKLE),
    (b"\x80\x03", PICKLE),
    (b"\x80\x04", PICKLE),
    (b"\x80\x05", PICKLE),
    (b"GGUF", "is a GGUF file: give its own path in place of the folder's"),
    (b"FUGG", "is a big-endian GGUF file: get the little-endian one, or turn it with gguf-convert-endian"),
    *((magic, OLD_GGML) for magic in (b"ggml", b"ggjt", b"lmgg", b"tjgg", b"fmgg")),
    (b"\x89HDF", "is an HDF5 file, as Keras writes it: get the safetensors version"),
    (b"\x93NUMPY", "is a numpy array: get the safetensors version"),
)
PAGE = (b"<!doctype", b"<html", b"<head", b"<body", b"<script", b"<!--", b"<?xml")
AGAIN = "check the network and the address, then download it again"
LONGEST_BASE = 200  # characters of an adapter's model in a message
SIDES = ("config", "generation_config", "tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_")
TORCH = "which can run code: get the safetensors version"
# Files by which a folder shows what it is: pattern, what it is.
KINDS: tuple[tuple[str, str], ...] = (
    ("model_index.json", "it is a diffusion pipeline, no language model"),
    ("weights*.npz", "it is an old MLX model: get the original safetensors"),
    ("*.gguf", "there are GGUF files: give one by its path"),
    ("*.onnx", "it is an ONNX model: get the safetensors version"),
    ("onnx/*.onnx", "it is an ONNX model: get the safetensors version"),
    ("openvino_model*.xml", "it is an OpenVINO model: get the safetensors version"),
    ("mlc-chat-config.json", "it is an MLC model: get the safetensors version"),
    ("rank*.engine", "it is a TensorRT engine: get the safetensors version"),
    ("tf_model.h5", "it is a TensorFlow model: get the safetensors version"),
    ("flax_model.msgpack", "it is a Flax model: get the safetensors version"),
    ("*.nemo", "it is a NeMo model: convert it to the layout of transformers"),
    (
        "zero_to_fp32.py",
        "it is a checkpoint of DeepSpeed: zero_to_fp32.py . OUT --safe_serialization writes safetensors",
    ),
    ("*.distcp", "it is a distributed checkpoint of torch: load it where it was trained, and save_pretrained"),
    ("pytorch_model*.bin", f"there are torch files (.bin), {TORCH}"),
    ("*.bin", f"there are .bin files, {TORCH}"),
    ("*.pt", f"there are torch files (.pt), {TORCH}"),
    ("*.pth", f"there are torch files (.pth), {TORCH}"),
    ("*.ckpt", f"there are torch files (.ckpt), {TORCH}"),
)
ARCHIVES = ("*.zip", "*.tar", "*.tar.*", "*.tgz", "*.7z", "*.rar")


def explain(first: bytes, name: str | Path = "") -> str | None:
    """What a file that begins with these bytes is, and what to do; None if that is not known. name: its own, since a
    file that is what its ending says needs no word."""
    ending = Path(name).suffix.lower()
    for magic, what in MAGICS:
        if first.startswith(magic) and not (magic == b"GGUF" and ending == ".gguf"):
            return what
    if first.startswith(b"PK\x03\x04"):
        return _zip(first)
    if first[257:262] == b"ustar":
        return "is a tar archive: unpack it"
    if first.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(PAGE):
        if b"<Error" in first:
            return f"is an error that a server sent instead of the file: {AGAIN}"
        return f"is a web page, as a proxy or a login page sends it: {AGAIN}"
    if ending != ".safetensors" and first[8:9] == b"{" and int.from_bytes(first[:8], "little") < 1 << 27:
        return "is a safetensors file: give it the ending .safetensors"
    if len(first) >= ENOUGH and not any(first):
        return "holds nothing but zeros: the download reserved room for it and did not fill it; download it again"
    return _text(first, ending) if first else "is empty (0 bytes): download it again"


def _zip(first: bytes) -> str:
    """What a zip archive is, by the name of its first file."""
    if b".npy" in first:
        return "is an archive of numpy arrays: get the safetensors version"
    return (
        PICKLE
        if b".pkl" in first
        else "is a zip archive: unpack it; if it is a torch file, get the safetensors version"
    )


def _text(first: bytes, ending: str) -> str | None:
    """What a text is that stands where something else should; None if it is no text."""
    text = first.decode("utf-8", "ignore").lstrip("\ufeff").strip()
    if not re.fullmatch(rb"[\t\n\r -~\x80-\xff]{4,}", first) or len(text) < len(first) // 4:
        return None
    if text[:1] not in ("{", "["):
        return f"is a text that begins with {brief(text, 40)}: {AGAIN}"
    return (
        None
        if ending == ".json"
        else f"is JSON, perhaps an answer that says what went wrong ({brief(text, 40)}): {AGAIN}"
    )


def is_named(path: Path) -> bool:
    """Whether a file of that name is there, be it a link to nothing, which is an error and no missing file."""
    return path.is_file() or path.is_symlink()


def what_is(path: Path) -> str | None:
    """The same of a file that is there, or says why it is not: a link to nothing, a download that was cut off."""
    if path.is_symlink() and not path.exists():
        target = path.readlink()
        return f"is a link to {target}, which is gone: download the model again, or copy it with its links followed"
    try:
        with regular.opened(path) as file:
            first = file.read(FIRST)
    except OSError:
        return None
    if found := explain(first, path):
        return found
    partial = begun(path)
    return None if partial is None else f"was not downloaded to its end ({partial} is beside it): finish the download"


def begun(path: Path) -> str | None:
    """The name of a download of this file that was begun and is not finished, if it lies beside it."""
    beside = path.parent.glob(f"{glob.escape(path.name)}*")
    return next((p.name for p in beside if p.name.endswith(PARTIAL)), None)


def what_folder(directory: Path) -> str:
    """What a folder is that holds no model of the kind that was looked for; "" if its files do not tell."""
    adapter = directory / "adapter_config.json"
    if adapter.is_file():
        base = _value(adapter, "base_model_name_or_path")
        of = f" of {visible(base)}" if isinstance(base, str) and 0 < len(base) <= LONGEST_BASE else ""
        return f"it is an adapter{of}: merge it into its model and give that"
    unfinished = _named(directory, [*(f"*{ending}" for ending in PARTIAL), HALVES])
    if unfinished:
        return f"a download in it is not finished ({unfinished[0]}): finish it"
    for pattern, what in KINDS:
        if _named(directory, [pattern]):
            return what
    return _contents(directory)


def _contents(directory: Path) -> str:
    """What is in a folder that shows no kind."""
    if archives := _named(directory, ARCHIVES):
        return f"there is an archive ({archives[0]}): unpack it"
    inner = [place.parent for depth in ("*", "*/*") for place in sorted(directory.glob(f"{depth}/config.json"))]
    if inner:
        return f"there are models in folders inside of it: give one, as {inner[0]}"
    if weights := sorted(directory.glob("*/*.safetensors")):
        return f"there are weights in {weights[0].parent}: put them beside config.json"
    names = sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))
    if not names:
        return "it is empty"
    if all(name.startswith(SIDES) for name in names):
        return "there are only config and tokenizer files: get the weights (*.safetensors), too"
    if _named(directory, ["*.safetensors"]):
        here = "config.json" in names  # then something else is wrong
        return "" if here else "there are weights: get config.json and the tokenizer files of the same model, too"
    return f"there is only {listed(names, 3)}: get the whole model"


def _named(directory: Path, patterns: Iterable[str]) -> list[str]:
    return sorted(p.name for pattern in patterns for p in directory.glob(pattern))


def _value(path: Path, key: str) -> object:
    try:
        return json.loads(regular.text(path)).get(key)
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
