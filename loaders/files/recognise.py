"""What a file or a folder is, where it is not what it was taken for: by first bytes, and by what lies beside it.

A remedy that is guessed from the first symptom sends people the wrong way. So before a file is called damaged, its
first bytes are looked at; before a folder is called no model, its files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

FIRST, ENOUGH = 512, 64  # bytes that tell, and that tell of zeros
PARTIAL = (".incomplete", ".part", ".partial", ".crdownload", ".aria2", ".tmp", ".download")
MAGICS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "is a git LFS pointer, not the file itself: run git lfs pull in its folder"),
    (b"version https://hawser", "is a git LFS pointer, not the file itself: run git lfs pull in its folder"),
    (b"PK\x03\x04", "is a zip archive: unpack it; if it is a torch file, get the safetensors version"),
    (b"\x1f\x8b", "is packed by gzip: unpack it with gunzip"),
    (b"\x28\xb5\x2f\xfd", "is packed by zstd: unpack it with unzstd"),
    (b"\xfd7zXZ\x00", "is packed by xz: unpack it with unxz"),
    (b"7z\xbc\xaf", "is a 7z archive: unpack it"),
    (b"\x80\x02", "is a pickle, as torch writes it: get the safetensors version"),
    (b"\x80\x03", "is a pickle, as torch writes it: get the safetensors version"),
    (b"\x80\x04", "is a pickle, as torch writes it: get the safetensors version"),
    (b"GGUF", "is a GGUF file: give it the ending .gguf, and to headrace plan by its own name"),
    (b"FUGG", "is a big-endian GGUF file: get the little-endian one, or turn it with gguf-convert-endian"),
    (b"ggml", "is a model in llama.cpp's format of before GGUF: get a GGUF version"),
    (b"ggjt", "is a model in llama.cpp's format of before GGUF: get a GGUF version"),
    (b"\x89HDF", "is an HDF5 file, as Keras writes it: get the safetensors version"),
    (b"\x93NUMPY", "is a numpy array: get the safetensors version"),
)
WRITTEN = ((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body"), "is a web page, as a proxy or a login page sends it")
SIDES = ("config", "generation_config", "tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_")
# Files by which a folder shows what it is: pattern, what it is.
KINDS: tuple[tuple[str, str], ...] = (
    ("model_index.json", "it is a diffusion pipeline, no language model"),
    ("weights*.npz", "it is an old MLX model: get the original safetensors"),
    ("*.gguf", "there are GGUF files: headrace plan takes one by its name; they cannot be run yet"),
    ("*.onnx", "it is an ONNX model: get the safetensors version"),
    ("tf_model.h5", "it is a TensorFlow model: get the safetensors version"),
    ("flax_model.msgpack", "it is a Flax model: get the safetensors version"),
    ("pytorch_model*.bin", "there are torch files (.bin), which can run code: get the safetensors version"),
    ("*.bin", "there are .bin files, which can run code: get the safetensors version"),
    ("*.pt", "there are torch files (.pt), which can run code: get the safetensors version"),
    ("*.pth", "there are torch files (.pth), which can run code: get the safetensors version"),
    ("*.ckpt", "there are torch files (.ckpt), which can run code: get the safetensors version"),
)


def explain(first: bytes, name: str | Path = "") -> str | None:
    """What a file that begins with these bytes is, and what to do; None if that is not known. name: its own, since a
    file that is what its ending says needs no word."""
    ending = Path(name).suffix.lower()
    for magic, what in MAGICS:
        if first.startswith(magic) and not (magic == b"GGUF" and ending == ".gguf"):
            return what
    if first.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(WRITTEN[0]):
        return f"{WRITTEN[1]}: check the network and the address, then download it again"
    if ending != ".json" and first.lstrip()[:1] == b"{":
        return "is JSON, perhaps an answer that says what went wrong: look into it, then download it again"
    if ending != ".safetensors" and first[8:9] == b"{" and int.from_bytes(first[:8], "little") < 1 << 27:
        return "is a safetensors file: give it the ending .safetensors"
    if len(first) >= ENOUGH and not any(first):
        return "holds nothing but zeros: the download reserved room for it and did not fill it; download it again"
    return None if first else "is empty (0 bytes): download it again"


def what_is(path: Path) -> str | None:
    """The same of a file that is there, or says why it is not: a link to nothing, a download that was cut off."""
    if path.is_symlink() and not path.exists():
        target = path.readlink()
        return f"is a link to {target}, which is gone: download the model again, or copy it with its links followed"
    try:
        with path.open("rb") as file:
            first = file.read(FIRST)
    except OSError:
        return None
    if found := explain(first, path):
        return found
    partial = next((p.name for p in path.parent.glob(f"{path.name}*") if p.name.endswith(PARTIAL)), None)
    return None if partial is None else f"was not downloaded to its end ({partial} is beside it): finish the download"


def what_folder(directory: Path) -> str:
    """What a folder is that holds no model of the kind that was looked for; "" if its files do not tell."""
    adapter = directory / "adapter_config.json"
    if adapter.is_file():
        base = _value(adapter, "base_model_name_or_path")
        return f"it is an adapter{f' of {base}' if base else ''}: merge it into its model and give that"
    unfinished = _named(directory, [f"*{ending}" for ending in PARTIAL])
    if unfinished:
        return f"a download in it is not finished ({unfinished[0]}): finish it"
    for pattern, what in KINDS:
        if _named(directory, [pattern]):
            return what
    inner = [place.parent for place in sorted(directory.glob("*/config.json"))]
    if inner:
        return f"there are models in folders inside of it: give one, as {inner[0]}"
    names = sorted(p.name for p in directory.iterdir())
    if not names:
        return "it is empty"
    if all(name.startswith(SIDES) for name in names):
        return "there are only config and tokenizer files: get the weights (*.safetensors), too"
    return ""


def _named(directory: Path, patterns: Iterable[str]) -> list[str]:
    return sorted(p.name for pattern in patterns for p in directory.glob(pattern))


def _value(path: Path, key: str) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8")).get(key)
    except (OSError, ValueError, AttributeError):
        return None
