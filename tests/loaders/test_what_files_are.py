"""What a file or a folder is that is not what it was taken for: named, with a remedy that is true of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from refusals import refused
from safetensors.torch import load_file, save_file

from headrace import LLM, CheckpointError, ConfigError, HeadraceError, HubError
from headrace.loaders import model_source
from headrace.loaders.files import recognise
from headrace.loaders.weights.checkpoint import LoadOptions, open_directory

Make = Callable[..., Path]


def split(directory: Path) -> list[Path]:
    """Two shards of model.safetensors with their index."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    paths = [directory / f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    where = {}
    for i, path in enumerate(paths):
        some = dict(list(tensors.items())[i::2])
        save_file(some, path)
        where.update(dict.fromkeys(some, path.name))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return paths


# ---- files

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 4294967296\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (POINTER, "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "error that a server sent"),
        (b"Entry not found", "begins with 'Entry not found'"),
        (b"Invalid username or password.\n", "begins with 'Invalid username"),
        (b'{"error": "Repository not found"}', "is JSON"),
        (b"PK\x03\x04" + bytes(60), "zip"),
        (b"PK\x03\x04" + bytes(26) + b"archive/data.pkl", "pickle"),
        (b"PK\x03\x04" + bytes(26) + b"w.npy", "numpy"),
        (b"model/".ljust(257, b"\0") + b"ustar" + bytes(60), "tar archive"),
        (b"BZh91AY&SY" + bytes(60), "bunzip2"),
        (b"\x80\x05\x95" + bytes(60), "pickle"),
        (b"# xet version 0\nfilesize = 44\n", "git-xet"),
        (b"\x80\x02}q\x00" + bytes(60), "pickle"),
        (b"\x1f\x8b\x08" + bytes(60), "gunzip"),
        (b"GGUF\x03\0\0\0" + bytes(60), "GGUF"),
        (bytes(4096), "zeros"),
        (b"", "is empty"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_that_is_something_else_is_named(file: str, content: bytes, said: str, make: Make, talker: Path) -> None:
    directory = make()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(talker / name, directory / name)
    (directory / file).write_bytes(content)
    if file.endswith(".json") and said == "is JSON":
        said = "answer of a server" if file == "config.json" else "tokenizer"
    with pytest.raises(HeadraceError, match=said) as caught:
        LLM(str(directory), kernels="reference")
    assert str(directory / file) in str(caught.value)


def test_a_safetensors_file_with_another_ending(make: Make) -> None:
    first = (make() / "model.safetensors").read_bytes()[:64]
    assert "give it the ending .safetensors" in str(recognise.explain(first, "model.gguf"))
    assert recognise.explain(first, "model.safetensors") is None


FILES = ["model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("file", FILES)
def test_a_link_to_nothing_is_named(file: str, make: Make, talker: Path) -> None:
    """As a cache has it whose blobs were removed; a file that may be left out is not taken for one that was."""
    directory = make()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(talker / name, directory / name)
    (directory / file).unlink()
    (directory / file).symlink_to("../blobs/gone")
    with pytest.raises(HeadraceError, match=f"{file} is a link to ../blobs/gone, which is gone"):
        LLM(str(directory), kernels="reference")


@pytest.mark.parametrize(
    "content", [b'{"a": ', b"\x00\x01\x02\x03" * 9, "{ \u00e9".encode(), b'\x10\0\0\0\0\0\0\0{"a":']
)
def test_what_is_merely_damaged_is_called_nothing_else(content: bytes) -> None:
    assert recognise.explain(content, "config.json" if content[:1] == b"{" else "model.safetensors") is None


def test_a_download_that_was_cut_off_is_seen(make: Make) -> None:
    shards = split(directory := make())
    shards[1].rename(directory / f"{shards[1].name}.incomplete")
    with refused(CheckpointError, "1 of 2 shards", ".incomplete was begun: finish the download"):
        open_directory(directory, LoadOptions())


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"adapter_config.json": '{"base_model_name_or_path": "org/base"}', "adapter_model.safetensors": ""},
         "it is an adapter of org/base: merge"),
        ({"model_index.json": "{}"}, "diffusion"),
        ({"config.json": "{}", "pytorch_model.bin": "x"}, "safetensors version"),
        ({"config.json": "{}", "tokenizer.json": "{}"}, "only config and tokenizer files"),
        ({"weights.00.npz": "x"}, "MLX"),
        ({"a.gguf": "x", "b.gguf": "x"}, "GGUF files"),
        ({"model.onnx": "x"}, "ONNX"),
        ({"model.safetensors.part": "x"}, "is not finished"),
        ({".cache/huggingface/download/ab.incomplete": "x", "README.md": "x"}, "is not finished"),
        ({"onnx/model.onnx": "x"}, "ONNX"),
        ({"openvino_model.xml": "x", "openvino_model.bin": "x"}, "OpenVINO"),
        ({"zero_to_fp32.py": "x", "global_step5/x.pt": "x"}, "DeepSpeed"),
        ({"__0_0.distcp": "x"}, "distributed checkpoint"),
        ({"model.nemo": "x"}, "NeMo"),
        ({"model.tar.gz": "x"}, "archive (model.tar.gz): unpack"),
        ({"config.json": "{}", "parts/a.safetensors": "x"}, "parts: put them beside config.json"),
        ({"model.safetensors": "x"}, "get config.json and the tokenizer"),
        ({"README.md": "x", ".gitattributes": "x"}, "there is only README.md"),
        ({}, "it is empty"),
    ],
)  # fmt: skip
def test_a_folder_says_what_it_is(files: dict[str, str], said: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert said in recognise.what_folder(tmp_path)


def test_a_conversion_that_is_cut_off_says_of_what_it_is(make: Make, tmp_path: Path, run: Any) -> None:
    status, _, err = run("convert", make(), tmp_path / "packed")
    assert status == 0, err
    file = tmp_path / "packed" / "headrace.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with refused(CheckpointError, "is truncated", "it is a conversion of model: convert that again"):
        open_directory(tmp_path / "packed", LoadOptions())


def test_an_adapter_folder_is_no_model(make: Make) -> None:
    directory = make()
    (directory / "model.safetensors").unlink()
    (directory / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    with refused(CheckpointError, "it is an adapter of org/base"):
        open_directory(directory, LoadOptions())


# ---- folders with a model in them


def test_a_folder_with_one_model_in_it_is_that_model(make: Make, tmp_path: Path) -> None:
    outer = make().rename(tmp_path / "inner").parent
    with LLM(str(outer), kernels="reference", max_context=64) as llm:
        assert llm.notes == (f"the model is in {outer / 'inner'}",)
    shutil.copytree(outer / "inner", outer / "other")
    with refused(HubError, "models in folders inside", "inner"):
        LLM(str(outer), kernels="reference")


def test_a_folder_of_a_hubs_cache_is_its_main_snapshot(make: Make, tmp_path: Path) -> None:
    cache = tmp_path / "models--org--name"
    for name in ("refs", "blobs", "snapshots/old"):
        (cache / name).mkdir(parents=True)
    shutil.move(make(), cache / "snapshots" / "abc")
    (cache / "snapshots" / "old" / "config.json").write_text("{}")
    (cache / "refs" / "main").write_text("abc")
    with LLM(str(cache), kernels="reference", max_context=64) as llm:
        assert llm.notes == (f"the model is in {cache / 'snapshots' / 'abc'}",)
    source = model_source.find(str(cache))
    assert source.tensors
    assert source.notes == (f"the model is in {cache / 'snapshots' / 'abc'}",)
    (cache / "refs" / "main").unlink()
    shutil.copy(cache / "snapshots" / "abc" / "model.safetensors", cache / "snapshots" / "old")
    for find, kind in ((LLM, HubError), (model_source.find, ConfigError)):
        with refused(kind, "models in folders inside"):
            find(str(cache))


def test_a_folder_beside_the_model_that_has_no_weights_is_none(make: Make, tmp_path: Path) -> None:
    (outer := tmp_path / "outer").mkdir()
    shutil.move(make(), outer / "deep" / "model")
    (outer / "deep" / "tokenizer").mkdir()
    (outer / "deep" / "tokenizer" / "config.json").write_text("{}")
    with LLM(str(outer), kernels="reference", max_context=64) as llm:
        assert llm.notes == (f"the model is in {outer / 'deep' / 'model'}",)
