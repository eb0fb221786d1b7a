"""Finding models on a hub (of this machine), in the cache and in directories: what is fetched, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from fake_hub import FakeHub, commit_of
from huggingface_hub import constants
from tiny_hub import FIRST, MODEL, NEEDED, SECOND, UNNEEDED, content, fetch, marks, noise, refusal

from headrace.errors import HubError
from headrace.loaders.hub import download
from headrace.loaders.hub import locate as loader
from headrace.loaders.hub.locate import locate

# What is fetched


def test_only_the_needed_files_come(hub: FakeHub, cache: Path) -> None:
    directory = fetch(cache)
    assert content(directory) == marks(NEEDED)
    assert hub.sent == {name: len(data) for name, data in NEEDED.items()}
    assert not list(cache.rglob("*.incomplete"))


def test_a_second_call_fetches_nothing(hub: FakeHub, cache: Path) -> None:
    directory = fetch(cache)
    hub.forget()
    assert fetch(cache) == directory
    assert hub.sent.total() == 0
    assert dict(hub.requests) == {"GET api": 1}


def test_the_cache_is_the_one_of_other_tools(hub: FakeHub, cache: Path) -> None:
    """The library finds what we fetched, and we take what it has fetched."""
    from huggingface_hub import hf_hub_download, snapshot_download

    first = hf_hub_download(MODEL, FIRST, cache_dir=cache, endpoint=hub.endpoint)
    hub.forget()
    directory = fetch(cache)
    assert hub.sent[FIRST] == 0
    assert Path(first) == directory / FIRST
    assert Path(snapshot_download(MODEL, cache_dir=cache, local_files_only=True)) == directory


def test_one_file_of_weights(hub: FakeHub, cache: Path) -> None:
    files = {"config.json": b"{}", "model.safetensors": noise(5, 1000), "model.fp16.safetensors": b"x"}
    hub.add("legacy-name", files)
    del files["model.fp16.safetensors"]
    assert content(fetch(cache, "legacy-name")) == marks(files)


def test_our_own_layout_comes_without_the_original(hub: FakeHub, cache: Path) -> None:
    ours = {"config.json": b"{}", "headrace.json": b"{}", "headrace-00001.safetensors": noise(6, 1000)}
    hub.add("org/converted", {**NEEDED, **ours, **UNNEEDED})
    directory = fetch(cache, "org/converted")
    wanted = {name: data for name, data in {**NEEDED, **ours}.items() if not name.startswith("model")}
    assert content(directory) == marks(wanted)


def test_older_tokenizer_files_come_when_there_is_no_other(hub: FakeHub, cache: Path) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"x", "tokenizer.model": b"sp", "merges.txt": b"m"}
    hub.add("org/old", files)
    assert content(fetch(cache, "org/old")) == marks(files)


@pytest.mark.parametrize(
    ("names", "there"),
    [
        (["pytorch_model.bin"], "PyTorch pickles (.bin, .pth): convert them with transformers"),
        (["model-00001-of-00002.safetensors"], "a part of its shards (model-00001-of-00002.safetensors is there)"),
        (["README.md"], "no weights at all (2 other files): check the name"),
    ],
)
def test_other_formats_are_refused_before_the_first_byte(
    hub: FakeHub, cache: Path, names: list[str], there: str
) -> None:
    hub.add("org/other", {"config.json": b"{}", **dict.fromkeys(names, b"x")})
    said = refusal(cache, "org/other")
    assert "org/other has neither model.safetensors nor model.safetensors.index.json" in said
    assert there in said
    assert hub.sent.total() == 0


@pytest.mark.parametrize(
    "names", [["consolidated.safetensors"], ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"]]
)
def test_weights_by_other_names_come_too(hub: FakeHub, cache: Path, names: list[str]) -> None:
    files = {"config.json": b"{}", **dict.fromkeys(names, b"x")}
    hub.add("org/named", files)
    assert content(fetch(cache, "org/named")) == marks(files)


def test_a_repo_that_is_no_model(hub: FakeHub, cache: Path) -> None:
    hub.add("org/data", {"model.safetensors": b"x"})
    assert "org/data has no config.json" in refusal(cache, "org/data")


@pytest.mark.parametrize("index", [b"{", b"[]", b'{"weight_map": 3}', b'{"weight_map": {"a": ["x"]}}'])
def test_a_damaged_index(hub: FakeHub, cache: Path, index: bytes) -> None:
    hub.add("org/bad", {"config.json": b"{}", "model.safetensors.index.json": index})
    assert "model.safetensors.index.json of org/bad is not an index of shards" in refusal(cache, "org/bad")


def test_an_index_that_names_missing_or_foreign_files(hub: FakeHub, cache: Path) -> None:
    index = json.dumps({"weight_map": {"a": "gone.safetensors", "b": "../../escape"}}).encode()
    hub.add("org/bad", {"config.json": b"{}", "model.safetensors.index.json": index})
    assert "names files that the repo does not have: ../../escape, gone.safetensors are missing" in refusal(
        cache, "org/bad"
    )


# Revisions


def test_revisions(hub: FakeHub, cache: Path) -> None:
    other = {**NEEDED, "config.json": b'{"branch": 1}'}
    hub.add(MODEL, other, "feature/x")
    main = fetch(cache)
    hub.forget()
    branch = fetch(cache, revision="feature/x")
    assert hub.sent == {"config.json": 13}, "what both have in common is fetched once"
    assert (branch / "config.json").read_bytes() == b'{"branch": 1}'
    assert fetch(cache, revision=commit_of(other)) == branch
    assert fetch(cache, revision="feature/x", offline=True) == branch
    assert fetch(cache, revision=commit_of(other), offline=True) == branch
    assert fetch(cache, offline=True) == main


def test_a_branch_that_moves_on_is_followed(hub: FakeHub, cache: Path) -> None:
    fetch(cache)
    hub.add(MODEL, {**NEEDED, "config.json": b"{ }"})
    assert (fetch(cache) / "config.json").read_bytes() == b"{ }"
    assert (fetch(cache, offline=True) / "config.json").read_bytes() == b"{ }"


# The cache alone


def test_offline_asks_nobody(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = fetch(cache)
    hub.forget()
    assert fetch(cache, offline=True) == directory
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch(cache) == directory
    assert hub.requests.total() == 0


def test_offline_without_a_copy(hub: FakeHub, cache: Path) -> None:
    said = refusal(cache, offline=True)
    assert f"{MODEL} is not in the cache {cache}: run once without --offline" in said
    assert "at revision 'v1' is not in the cache" in refusal(cache, offline=True, revision="v1")
    assert hub.requests.total() == 0


def test_offline_with_half_a_copy(hub: FakeHub, cache: Path) -> None:
    directory = fetch(cache)
    (directory / SECOND).unlink()
    said = refusal(cache, offline=True)
    assert f"{MODEL} is not complete in the cache {cache}: {SECOND} is missing" in said
    (directory / "model.safetensors.index.json").unlink()
    assert "model.safetensors is missing" in refusal(cache, offline=True)


# Room on the disk


def disk_with(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    usage = shutil.disk_usage("/")._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)


def test_a_full_disk_is_noticed_before_the_shards(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk_with(monkeypatch, 2_000_000_000)
    hub.repos[MODEL].claimed[FIRST] = 7_500_000_000
    said = refusal(cache)
    assert f"{MODEL} needs 7.503 GB more on disk" in said
    assert "has 2.000 GB free: make room, or put the cache on another disk with HF_HOME" in said
    assert set(hub.sent) == {"model.safetensors.index.json"}


def test_what_is_here_already_needs_no_room(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.cuts[FIRST] = (400_000, download.ATTEMPTS)
    refusal(cache)
    disk_with(monkeypatch, sum(map(len, NEEDED.values())) - 100_000)
    assert content(fetch(cache)) == marks(NEEDED)
    disk_with(monkeypatch, 0)
    assert content(fetch(cache)) == marks(NEEDED)


# Local models


def test_the_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert loader.DEMO_DIRECTORY.parts[-2:] == ("demo", "model")
    monkeypatch.setattr(loader, "DEMO_DIRECTORY", tmp_path)
    with pytest.raises(HubError, match=r"the demo model is not at .*: install headrace again"):
        locate("demo")
    (tmp_path / "config.json").write_text("{}")
    assert locate("demo") == tmp_path


def test_a_directory_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate(str(tmp_path / "org" / "name")) == tmp_path / "org" / "name"
    assert locate("org/name") == Path("org/name")
    assert locate("./org/name") == Path("org/name")
    assert locate("~/org/name") == tmp_path / "org" / "name"
    with pytest.raises(HubError, match="revision 'v1' was asked for, but 'org/name' is a local model"):
        locate("org/name", revision="v1")


def test_a_directory_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"has no config\.json: it is empty; if you mean a model on the hub"):
        locate(str(tmp_path))


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(HubError, match=r"model\.safetensors' is a file: give the directory that holds it"):
        locate(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("model", ["./gone", "../gone", "/gone/x", "~/gone", "~nobody-here/x", "C:\\models\\x", ""])
def test_paths_that_lead_nowhere(model: str) -> None:
    with pytest.raises(HubError, match=r"there is no directory.*check the path"):
        locate(model)


@pytest.mark.parametrize("model", ["org/na me", "org/--x", "x" * 300])
def test_names_that_are_none(model: str) -> None:
    with pytest.raises(HubError, match=r"is neither a directory here nor a name on the hub \(org/name\)"):
        locate(model)
