"""Weight files that are missing, damaged or of another model: named, with what to do, from their headers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from refusals import edit_json, read, refused
from safetensors.torch import load_file, save_file

from headrace import LLM, CheckpointError, OptionError
from headrace.kernels import load
from headrace.loaders.files import safetensors
from headrace.loaders.weights import checkpoint as loading
from headrace.loaders.weights import converted
from headrace.loaders.weights.checkpoint import LoadOptions, open_directory

Checkpoints = Callable[[str], Path]
Make = Callable[..., Path]
INDEX = "model.safetensors.index.json"
EXPERT = "model.layers.0.mlp.experts.3.up_proj.weight"


def edit_weights(directory: Path, **changes: torch.Tensor | None) -> None:
    """Replaces (None: removes) tensors of model.safetensors."""
    path = directory / "model.safetensors"
    tensors = {**load_file(path), **changes}
    save_file({k: v for k, v in tensors.items() if v is not None}, path, metadata={"format": "pt"})


def shard(directory: Path) -> dict[str, str]:
    """Splits model.safetensors into two shards with an index; the index's map."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    where = {}
    for i, half in enumerate(halves):
        file = f"model-{i + 1:05}-of-00002.safetensors"
        save_file({n: tensors[n] for n in half}, directory / file)
        where.update(dict.fromkeys(half, file))
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return where


# ---- shards and index


def test_missing_shard(make: Make) -> None:
    shard(directory := make())
    (directory / "model-00002-of-00002.safetensors").unlink()
    with refused(CheckpointError, "1 of 2 shards", "model-00002-of-00002.safetensors", "download"):
        read(directory)


def test_truncated_shard(make: Make) -> None:
    shard(directory := make())
    path = directory / "model-00001-of-00002.safetensors"
    size = path.stat().st_size
    os.truncate(path, size - 100)
    with refused(CheckpointError, path.name, f"{size - 100} bytes", f"ends at {size}", "download"):
        read(directory)


def test_index_names_a_tensor_that_no_shard_has(make: Make) -> None:
    directory = make()
    edit_weights(directory, **{"model.norm.weight": None})
    where = shard(directory)
    edit_json(directory / INDEX, weight_map={**where, "model.norm.weight": "model-00001-of-00002.safetensors"})
    with refused(CheckpointError, "lacks 1 of the 80 tensors", "model.norm.weight", "download"):
        read(directory)


def test_a_tensor_in_two_shards_is_taken_from_where_the_index_says(make: Make) -> None:
    where = shard(directory := make())
    other = directory / "model-00002-of-00002.safetensors"
    first = sorted(where)[0]
    save_file({**load_file(other), first: torch.zeros(1)}, other)
    assert open_directory(directory, LoadOptions()).entries[first].path.name == where[first]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"weight_map": 5}', '{"weight_map": {"a": ["x"]}}', '{"weight_map": {"a": 5}}',
             '{"weight_map": {"a": "../../etc/passwd"}}', "[" * 100_000]
)  # fmt: skip
def test_damaged_index(text: str, make: Make) -> None:
    """Beside files that are not the whole model; where one is, it stands for them (test_weight_files.py)."""
    shard(directory := make())
    (directory / "model-00002-of-00002.safetensors").unlink()
    (directory / INDEX).write_text(text)
    with refused(CheckpointError, INDEX, "download"):
        read(directory)


def test_no_weights_at_all(make: Make) -> None:
    directory = make()
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(b"x")
    with refused(CheckpointError, "no weights in safetensors files", ".bin", "safetensors version"):
        read(directory)


# ---- a file's header


def raw_file(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file with any header, true or not."""
    blob = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(blob) if length is None else length).to_bytes(8, "little") + blob + data)
    return path


def entry(start: int, stop: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize("content", [b"", b"\x01\x02\x03", b"\0" * 7])
def test_file_shorter_than_its_first_number(content: bytes, tmp_path: Path) -> None:
    (path := tmp_path / "model.safetensors").write_bytes(content)
    with refused(CheckpointError, str(path), f"{len(content)} bytes", "download"):
        safetensors.read_header(path)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, ["'a'", "'b'", "overlap"]),
        ({"a": entry(0, 8, [3])}, ["'a'", "bytes 0 to 8", "F32 [3] takes 12"]),
        ({"a": entry(0, 8, [2]), "b": entry(8, 808, [200])}, ["truncated", "'b'"]),
        ({"a": entry(-8, 0, [2])}, ["'a'", "bytes -8 to 0"]),
        ({"a": entry(8, 0, [2])}, ["'a'", "bytes 8 to 0"]),
        ({"a": entry(0, 8, [-1, -2])}, ["'a'", "[-1, -2]"]),
        ({"a": entry(0, 8, [2], "F3")}, ["'a'", "F3", "BF16"]),
        ({"a": {"dtype": "F32"}}, ["'a'", "unreadable"]),
        ({"a": 5}, ["'a'", "unreadable"]),
        ({"a": entry(0, 8, [None])}, ["'a'", "unreadable"]),  # type: ignore[list-item]
        ([], ["list"]),
        ("text", ["str"]),
        (b"{ no json", ["damaged header"]),
        (b"\xff\xfe\xfd{}", ["damaged header"]),
        (b"[" * 100_000, ["damaged header"]),
        (b"", ["damaged header"]),
    ],
)
def test_header_that_lies(header: Any, said: list[str], tmp_path: Path) -> None:
    path = raw_file(tmp_path / "model.safetensors", header, bytes(16))
    with refused(CheckpointError, str(path), "download", *said):
        safetensors.read_header(path)


@pytest.mark.parametrize("length", [17, 1 << 40, (1 << 64) - 1])
def test_header_longer_than_the_file(length: int, tmp_path: Path) -> None:
    path = raw_file(tmp_path / "model.safetensors", b"{}", bytes(14), length)
    with refused(CheckpointError, str(path), "24 bytes", "download"):
        safetensors.read_header(path)


def test_file_that_shrinks_while_it_is_read(make: Make) -> None:
    directory = make()
    found = open_directory(directory, LoadOptions())
    os.truncate(directory / "model.safetensors", 5000)
    with refused(CheckpointError, "model.safetensors", "ended inside tensor", "replaced"):
        loading.load_weights(found, load("reference"))


# ---- tensors against config


def test_missing_tensor(make: Make) -> None:
    edit_weights(directory := make(), **{EXPERT: None})
    with refused(CheckpointError, EXPERT, "lacks 1 of the", "incomplete"):
        read(directory)


def test_left_over_tensor(make: Make) -> None:
    edit_weights(directory := make(), **{"model.layers.0.mlp.surprise.weight": torch.zeros(2)})
    with refused(CheckpointError, "model.layers.0.mlp.surprise.weight", "1 tensors", "Qwen3MoeForCausalLM"):
        read(directory)


def test_wrong_shape(make: Make) -> None:
    edit_weights(directory := make(), **{EXPERT: torch.zeros(64, 32)})
    with refused(CheckpointError, EXPERT, "[64, 32]", "[32, 64]", "config"):
        read(directory)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.int8, "I8"), (torch.uint8, "U8"), (torch.float8_e4m3fn, "F8_E4M3"), (torch.float64, "F64")],
)
def test_weights_of_a_type_that_cannot_be_read(dtype: torch.dtype, name: str, make: Make) -> None:
    edit_weights(directory := make(), **{EXPERT: torch.zeros(32, 64).to(dtype)})
    with refused(CheckpointError, EXPERT, f"type {name}", "F32, F16 and BF16", "unquantised"):
        read(directory)


@pytest.mark.parametrize(("option", "format"), [("expert_format", "q4_0"), ("dense_format", "q8_0")])
def test_format_whose_blocks_do_not_fit(option: str, format: str, tmp_path: Path) -> None:
    tiny.build("mixtral", tmp_path, hidden_size=72, num_attention_heads=6, num_key_value_heads=3)
    flag = "--" + option.replace("_", "-")
    with refused(OptionError, flag, format, "72", "32", "bf16"):
        read(tmp_path, **{option: format})


# ---- converted directories


@pytest.fixture
def packed(make: Make, tmp_path: Path) -> Path:
    with LLM(str(make()), kernels="reference", expert_format="q4_0") as llm:
        converted.save(
            llm.parts.checkpoint.directory, tmp_path / "packed", llm.parts.weights, llm.parts.checkpoint.formats
        )
    return tmp_path / "packed"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", ["damaged"]),
        ("[]", ["damaged"]),
        ('{"version": 1}', ["damaged", "formats"]),
        ('{"version": 1, "formats": {"experts": "q9", "dense": "f32", "embed": "f32"}}', ["damaged", "q9"]),
        ('{"version": 2, "formats": {"experts": "q9"}}', ["version 2", "reads 1"]),
    ],
)
def test_damaged_manifest(text: str, said: list[str], packed: Path) -> None:
    (packed / "headrace.json").write_text(text)
    with refused(CheckpointError, "headrace.json", "convert", *said):
        read(packed)


def test_packed_weights_of_another_shape_or_type(packed: Path) -> None:
    path = packed / "headrace.safetensors"
    tensors = load_file(path)
    for wrong in (tensors["layers.0.router"].float(), tensors["layers.0.router"][1:]):
        save_file({**tensors, "layers.0.router": wrong}, path)
        with refused(CheckpointError, "headrace.safetensors", "'layers.0.router'", "convert"):
            read(packed)


def test_converting_over_something_else(packed: Path, tmp_path: Path) -> None:
    (file := tmp_path / "file").write_text("x")
    for to, said in ((tmp_path / "model", "other files"), (file, "is a file")):
        with refused(OptionError, str(to), said, "new"):
            converted.check_destination(to)
    for to in (packed, tmp_path / "new"):
        converted.check_destination(to)
    (packed / "headrace.json").unlink()  # as what was ended before it was whole
    converted.check_destination(packed)
    (packed / "notes.txt").write_text("x")
    with refused(OptionError, "other files"):
        converted.check_destination(packed)


def test_converting_into_itself(packed: Path) -> None:
    with LLM(str(packed), kernels="reference") as llm, refused(OptionError, "into itself", str(packed)):
        converted.save(packed, packed, llm.parts.weights, llm.parts.checkpoint.formats)


def test_converting_onto_a_disk_without_room(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before a byte is written; and where the disk fills up meanwhile, nothing stays that fills it."""
    usage = shutil.disk_usage(tmp_path)
    with LLM(str(packed), kernels="reference") as llm:
        save = partial(converted.save, packed, tmp_path / "to", llm.parts.weights, llm.parts.checkpoint.formats)
        monkeypatch.setattr(converted.shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with refused(OptionError, "0.000 GB are free", "make room"):
            save()
        assert not (tmp_path / "to" / "headrace.safetensors").exists()
        monkeypatch.undo()

        def fills_up(path: Path, *_: object) -> None:
            path.write_bytes(b"x")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(converted.safetensors, "write", fills_up)
        with refused(CheckpointError, "No space left on device", "a disk with room"):
            save()
        assert not (tmp_path / "to" / "headrace.safetensors").exists()
        monkeypatch.undo()
        save()
    assert (tmp_path / "to" / "headrace.json").exists()
