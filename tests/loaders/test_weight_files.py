"""Which files are the model: whatever lies beside them, and however they are called."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fake_hub import FakeHub
from refusals import refused
from safetensors.torch import load_file, save_file

from headrace import CheckpointError
from headrace.kernels import load
from headrace.loaders.files import weight_files
from headrace.loaders.hub.locate import locate
from headrace.loaders.weights.checkpoint import Checkpoint, LoadOptions, load_weights, open_directory

Make = Callable[..., Path]
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def split(directory: Path, names: list[str]) -> dict[str, str]:
    """Deals model.safetensors out over files of these names; the file of each tensor."""
    tensors = load_file(directory / SINGLE)
    (directory / SINGLE).unlink()
    where = {}
    for i, name in enumerate(names):
        (directory / name).parent.mkdir(exist_ok=True)
        some = dict(list(tensors.items())[i :: len(names)])
        save_file(some, directory / name)
        where.update(dict.fromkeys(some, name))
    return where


def write_index(directory: Path, where: dict[str, str], name: str = INDEX) -> None:
    (directory / name).write_text(json.dumps({"weight_map": where}))


def opened(directory: Path) -> Checkpoint:
    return open_directory(directory, LoadOptions())


def is_same(directory: Path, original: Path) -> bool:
    """Whether the weights are those of the original, to the byte."""
    one, other = (load_weights(opened(path), load("reference")).named() for path in (directory, original))
    return one.keys() == other.keys() and all(
        torch.equal(one[n].view(torch.uint8), other[n].view(torch.uint8)) for n in one
    )


@pytest.mark.parametrize(
    "names",
    [
        ["model-00001-of-000002.safetensors", "model-00002-of-000002.safetensors"],  # as DeepSeek-V3
        ["model-00000-of-00002.safetensors", "model-00001-of-00002.safetensors"],  # as MiniMax-M2
        ["model-001-of-002.safetensors", "model-002-of-002.safetensors"],
        ["model_00001_of_00002.safetensors", "model_00002_of_00002.safetensors"],
        ["model-00001-of-00002.fp16.safetensors", "model-00002-of-00002.fp16.safetensors"],
        ["model.fp32.safetensors"],
        ["embedding.safetensors", "layers.safetensors", "rest.safetensors"],
    ],
)  # fmt: skip
def test_any_names_will_do(names: list[str], make: Make, checkpoints: Callable[[str], Path]) -> None:
    split(directory := make(), names)
    assert is_same(directory, original := checkpoints("qwen3_moe"))
    assert len(weight_files.headers_of(directory)) == len(weight_files.headers_of(original))


# ---- files that do not agree


def damaged_index(directory: Path) -> str:
    (directory / INDEX).write_text("{")
    return f"{INDEX} cannot be read: {SINGLE} is read instead"


def pointer_for_an_index(directory: Path) -> str:
    split(directory, SHARDS)
    (directory / INDEX).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 4\n")
    return f"{INDEX} cannot be read: {SHARDS[0]} and 1 more are read instead"


def unfinished_merge(directory: Path) -> str:
    whole = (directory / SINGLE).read_bytes()
    split(directory, SHARDS)
    (directory / SINGLE).write_bytes(whole[:-10])
    return f"{SINGLE} cannot be read: {SHARDS[0]} and 1 more are read instead"


def half_of_it_beside_the_whole(directory: Path) -> str:
    split(directory, SHARDS)
    shutil.copy(directory / SHARDS[0], directory / SINGLE)
    return f"{SINGLE} lacks 40 tensors of the model: {SHARDS[0]} and 1 more are read instead"


def index_of_other_places(directory: Path) -> str:
    where = split(directory, SHARDS)
    other = next(name for name in SHARDS if name != where["model.norm.weight"])
    write_index(directory, {**where, "model.norm.weight": other})
    return f"1 tensors, as model.norm.weight, lie in other files than {INDEX} says"


def shard_under_another_name(directory: Path) -> str:
    write_index(directory, split(directory, SHARDS))
    (directory / SHARDS[1]).rename(directory / "second.safetensors")
    return "all 2 safetensors files are read as one model"


def index_of_a_part(directory: Path) -> str:
    where = split(directory, ["most.safetensors", "more.safetensors"])
    write_index(directory, {name: file for name, file in where.items() if file == "most.safetensors"})
    return "all 2 safetensors files are read as one model"


def two_indices(directory: Path) -> str:
    write_index(directory, {"a": "gone.safetensors"})
    write_index(directory, split(directory, SHARDS), other := "model.safetensors.index.bf16.json")
    return f"{INDEX} names files that are not there: the files of {other} are read instead"


@pytest.mark.parametrize(
    "layout",
    [
        damaged_index, pointer_for_an_index, unfinished_merge, half_of_it_beside_the_whole, index_of_other_places,
        shard_under_another_name, index_of_a_part, two_indices,
    ],
)  # fmt: skip
def test_headers_say_what_is_whole(
    layout: Callable[[Path], str], make: Make, checkpoints: Callable[[str], Path]
) -> None:
    said = layout(directory := make())
    assert opened(directory).notes == (said,)
    assert is_same(directory, checkpoints("qwen3_moe"))


def consolidated_beside_shards(directory: Path) -> None:
    shutil.copy(directory / SINGLE, directory / "consolidated.safetensors")
    split(directory, SHARDS)


def index_of_a_folder(directory: Path) -> None:
    write_index(directory, split(directory, [f"parts/{name}" for name in SHARDS]))


def index_of_torch_files(directory: Path) -> None:
    write_index(directory, {"a": "pytorch_model-00001-of-00002.bin"}, "pytorch_model.bin.index.json")


def other_models_beside_it(directory: Path) -> None:
    save_file({"a": torch.ones(1)}, directory / "adapter_model.safetensors")
    (directory / "older.safetensors").symlink_to("gone")


@pytest.mark.parametrize(
    "layout", [consolidated_beside_shards, index_of_a_folder, index_of_torch_files, other_models_beside_it]
)
def test_what_lies_beside_the_model_is_no_matter(
    layout: Callable[[Path], None], make: Make, checkpoints: Callable[[str], Path]
) -> None:
    layout(directory := make())
    assert opened(directory).notes == ()
    assert is_same(directory, checkpoints("qwen3_moe"))


# ---- what is not whole


def test_a_shard_too_few_is_named(make: Make) -> None:
    split(directory := make(), [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)])
    (directory / "model-00002-of-00003.safetensors").unlink()
    with refused(CheckpointError, "has 2 of 3 shards, as model-00001-of-00003.safetensors: finish the download"):
        opened(directory)
    assert weight_files.headers_of(directory) == [], "a plan then computes bytes from the config"


def test_the_first_candidate_says_what_is_wrong(make: Make) -> None:
    directory = make()
    os.truncate(directory / SINGLE, 5000)
    save_file({"a": torch.ones(1)}, directory / "other.safetensors")
    with refused(CheckpointError, f"{directory / SINGLE} is truncated"):
        opened(directory)


def test_tensors_twice_and_no_index_to_choose(make: Make) -> None:
    split(directory := make(), SHARDS)
    save_file({**load_file(directory / SHARDS[0]), "model.norm.weight": torch.zeros(64)}, directory / SHARDS[0])
    with refused(CheckpointError, "several sets of weights", *SHARDS):
        opened(directory)


def test_a_plan_takes_no_part_for_the_whole(make: Make) -> None:
    write_index(directory := make(), split(directory, [*SHARDS, "extra.safetensors"]))
    (directory / SHARDS[0]).unlink()
    assert weight_files.headers_of(directory) == []


# ---- on a hub


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["model.safetensors.index.fp16.json", "model.fp16-00001-of-00001.safetensors", "x.bin"], 2),
        ([INDEX, SINGLE], 1),  # the index names files that are not there
        ([*SHARDS, "consolidated.safetensors"], 2),
    ],
)
def test_the_same_files_are_fetched_from_a_hub(names: list[str], wanted: int, hub: FakeHub, tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"a": "model.fp16-00001-of-00001.safetensors"}}).encode()
    hub.add("org/named", {"config.json": b"{}", **{name: index if "index" in name else b"x" for name in names}})
    directory = locate("org/named", cache_dir=tmp_path / "cache", show_progress=False)
    assert len([path for path in directory.iterdir() if "model" in path.name and path.name != INDEX]) == wanted
    assert locate("org/named", cache_dir=tmp_path / "cache", offline=True) == directory
