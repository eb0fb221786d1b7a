"""GGUF models by name: a quantisation or a file of a repository, in a folder, in the cache; what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_hub import FakeHub
from refusals import refused
from tiny_gguf import packed, small, write_gguf
from tiny_hub import NEEDED, content, fetch, marks, noise, refusal

from headrace import HubError
from headrace.errors import SeveralModels
from headrace.loaders import model_source
from headrace.loaders.files.gguf_models import models, quant_of
from headrace.loaders.hub.locate import locate
from headrace.loaders.hub.names import HubName, parse

PARTS = [f"Q8_0/m-Q8_0-0000{part}-of-00003.gguf" for part in (1, 2, 3)]
QUANTS = {
    "m-Q4_K_M.gguf": noise(1, 3000), "m-UD-Q4_K_XL.gguf": noise(2, 3100),
    **{part: noise(number, 2000) for number, part in enumerate(PARTS, 6)},
    "mmproj-m-f16.gguf": noise(4, 10), "imatrix.gguf": noise(5, 10), "README.md": b"x", "config.json": b"{}",
}  # fmt: skip


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("org/name", HubName(repo="org/name")),
        ("name", HubName(repo="name")),
        ("org/name:Q4_K_M", HubName(repo="org/name", quant="Q4_K_M")),
        ("hf.co/org/name:q4_k_m", HubName(repo="org/name", quant="q4_k_m")),
        ("huggingface.co/org/name", HubName(repo="org/name")),
        ("https://huggingface.co/org/name/", HubName(repo="org/name")),
        ("https://huggingface.co/org/name/tree/main", HubName(repo="org/name")),
        ("org/name/m.gguf", HubName(repo="org/name", file="m.gguf")),
        ("org/name/a/b/m.GGUF", HubName(repo="org/name", file="a/b/m.GGUF")),
        ("https://huggingface.co/org/name/blob/main/a/m.gguf", HubName(repo="org/name", file="a/m.gguf")),
        ("https://hf.co/org/name/resolve/main/m.gguf?download=true", HubName(repo="org/name", file="m.gguf")),
    ],
)
def test_what_a_name_says(written: str, meant: HubName) -> None:
    assert parse(written) == meant
    assert parse(str(meant)) == meant


@pytest.mark.parametrize("written", ["a/b/c", "org/name/model.safetensors", "org/name:Q4_0/m.gguf", "a/b/blob/dev/m"])
def test_names_of_no_model(written: str) -> None:
    with refused(HubError, repr(written), "org/name:Q4_K_M", "org/name/file.gguf"):
        parse(written)
    with refused(HubError, "org/name:Q4_K_M"):
        locate(written)


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("Qwen3-30B-A3B-Q4_K_M.gguf", "Q4_K_M"),
        ("mixtral-8x7b-v0.1.q4_k_m.gguf", "Q4_K_M"),
        ("Qwen3-30B-A3B-UD-Q2_K_XL.gguf", "UD-Q2_K_XL"),
        ("Model.i1-IQ3_XXS.gguf", "IQ3_XXS"),
        ("Q6_K/model-00001-of-00002.gguf", "Q6_K"),
        ("Q5_K_M/x-Q5_K_M-00001-of-00002.gguf", "Q5_K_M"),
        ("x-Q4_0_4_8.gguf", "Q4_0_4_8"),
        ("x-TQ1_0.gguf", "TQ1_0"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("x-MXFP4_MOE.gguf", "MXFP4_MOE"),
        ("BF16/x-BF16-00001-of-00002.gguf", "BF16"),
        ("x-Q8_0_imatrix.gguf", "Q8_0"),
        ("x-from-F16-Q3_K_S.gguf", "Q3_K_S"),
        ("QwQ-32B.gguf", ""),
    ],
)
def test_the_quantisation_in_a_file_name(name: str, quant: str) -> None:
    assert quant_of(name) == quant


def test_models_among_files() -> None:
    """Split ones are one model of all parts, missing ones counted; nothing that lies beside a model."""
    found = models({name: len(data) for name, data in QUANTS.items()})
    assert [(model.name, model.nbytes) for model in found] == [
        ("m-Q4_K_M.gguf", 3000), ("m-UD-Q4_K_XL.gguf", 3100), (PARTS[0], 6000)
    ]  # fmt: skip
    assert found[2].files == tuple(PARTS)
    assert models({PARTS[1]: 7})[0].files == tuple(PARTS)
    assert models({"m-00000-of-00000.gguf": 1})[0].files == ("m-00000-of-00000.gguf",)


# On the hub


@pytest.mark.parametrize(
    ("asked", "files"),
    [
        ("org/m:Q4_K_M", ["m-Q4_K_M.gguf"]),
        ("org/m:q4_k_m", ["m-Q4_K_M.gguf"]),
        ("org/m:q4-k-m", ["m-Q4_K_M.gguf"]),
        ("hf.co/org/m:Q4_K_XL", ["m-UD-Q4_K_XL.gguf"]),
        ("org/m:UD-Q4_K_XL", ["m-UD-Q4_K_XL.gguf"]),
        ("org/m/m-Q4_K_M.gguf", ["m-Q4_K_M.gguf"]),
        ("org/m:Q8_0", PARTS),
        (f"org/m/{PARTS[0]}", PARTS),
        (f"org/m/{PARTS[2]}", PARTS),
    ],
)
def test_what_is_named_is_fetched_and_nothing_else(hub: FakeHub, cache: Path, asked: str, files: list[str]) -> None:
    hub.add("org/m", QUANTS)
    found = fetch(cache, asked)
    snapshot = next((cache / "models--org--m" / "snapshots").iterdir())
    assert found == snapshot / files[0]
    assert content(snapshot) == marks({name: QUANTS[name] for name in files})
    assert set(hub.sent) == {*files}
    hub.forget()
    assert fetch(cache, asked) == fetch(cache, asked, offline=True) == found
    assert not hub.sent


def test_several_are_listed_with_their_sizes(hub: FakeHub, cache: Path) -> None:
    repo = hub.add("org/m", QUANTS)
    repo.claimed = {"m-Q4_K_M.gguf": 18_560_000_000, **dict.fromkeys(PARTS, 10_830_000_000)}
    for find in (fetch, lambda cache, name: model_source.find(name, cache_dir=cache)):
        for asked in ("org/m", "org/m:latest"):
            with refused(
                SeveralModels, "org/m has 3 GGUF models (GB): UD-Q4_K_XL 0.000, Q4_K_M 18.6, Q8_0 32.5;",
                "headrace generate org/m:Q4_K_M",
            ):  # fmt: skip
                find(cache, asked)
        with refused(HubError, "org/m has no GGUF model of 'Q5_K_M'; there are (GB) UD-Q4_K_XL 0.000, Q4_K_M 18.6"):
            find(cache, "org/m:Q5_K_M")
    assert not hub.sent


def test_models_of_one_quantisation_are_told_by_their_files(hub: FakeHub, cache: Path) -> None:
    hub.add("org/two", {"a-Q4_0.gguf": b"x", "b-Q4_0.gguf": b"x", "b-Q8_0.gguf": b"x"})
    said = refusal(cache, "org/two:Q4_0")
    assert "2 GGUF models of Q4_0 (GB): a-Q4_0.gguf 0.000, b-Q4_0.gguf 0.000; name one" in said
    assert "headrace generate org/two/b-Q4_0.gguf" in said


def test_a_long_list_leaves_room_for_what_to_do(hub: FakeHub, cache: Path) -> None:
    """A message has 300 characters on the command line, its middle goes first."""
    hub.add("somebody-with-a-long-name/A-Model-With-A-Long-Name-GGUF", {f"m-IQ{n}_XXS.gguf": b"x" for n in range(40)})
    said = refusal(cache, "somebody-with-a-long-name/A-Model-With-A-Long-Name-GGUF")
    assert len(said) <= 290
    assert "more (headrace inspect lists all); name one: headrace generate somebody" in said


def test_one_model_needs_no_name(hub: FakeHub, cache: Path) -> None:
    hub.add("org/one", {"only.gguf": noise(7, 99), "mmproj.gguf": b"x"})
    assert fetch(cache, "org/one").name == "only.gguf"
    assert fetch(cache, "org/one", offline=True).name == "only.gguf"


def test_safetensors_come_first_unless_a_file_is_named(hub: FakeHub, cache: Path) -> None:
    hub.add("org/both", {**NEEDED, "m-Q4_0.gguf": b"x"})
    assert fetch(cache, "org/both").is_dir()
    assert fetch(cache, "org/both:Q4_0").name == "m-Q4_0.gguf"
    assert fetch(cache, "org/both", offline=True).is_dir()
    assert fetch(cache, "org/both/m-Q4_0.gguf", offline=True).name == "m-Q4_0.gguf"


def test_the_index_of_the_original_hides_no_gguf(hub: FakeHub, cache: Path) -> None:
    index = NEEDED["model.safetensors.index.json"]
    hub.add("org/m", {"config.json": b"{}", "model.safetensors.index.json": index, "m-Q4_0.gguf": b"x"})
    assert fetch(cache, "org/m").name == "m-Q4_0.gguf"


def test_a_quantisation_of_what_has_none(hub: FakeHub, cache: Path) -> None:
    hub.add("org/plain", NEEDED)
    assert "org/plain has no GGUF model, so none of 'Q4_0': give org/plain" in refusal(cache, "org/plain:Q4_0")


def test_parts_that_the_repo_or_the_cache_lacks(hub: FakeHub, cache: Path) -> None:
    hub.add("org/cut", {PARTS[0]: b"a", PARTS[2]: b"c"})
    assert f"a part of org/cut names files that the repo does not have: {PARTS[1]} is" in refusal(cache, "org/cut")
    hub.add("org/m", QUANTS)
    first = fetch(cache, "org/m:Q8_0")
    first.with_name(PARTS[2].split("/")[1]).unlink()
    assert f"org/m is not complete in the cache {cache}: {PARTS[2]} is missing" in refusal(
        cache, "org/m:Q8_0", offline=True
    )
    assert fetch(cache, "org/m:Q8_0") == first
    said = refusal(cache, "org/m:Q4_K_M", offline=True)
    assert "org/m in the cache has no GGUF model of 'Q4_K_M'; there are (GB) Q8_0 0.0" in said


def test_what_is_missing_is_said_by_name(hub: FakeHub, cache: Path) -> None:
    hub.add("org/m", QUANTS)
    assert "org/m has no file gone.gguf; its GGUF models: m-Q4_K_M.gguf" in refusal(cache, "org/m/gone.gguf")
    assert "org/none is not in the cache" in refusal(cache, "org/none:Q4_0", offline=True)
    hub.add("org/data", {"README.md": b"x"})
    assert "org/data has no config.json and no GGUF model" in refusal(cache, "org/data")


def test_a_plan_reads_the_header_of_what_is_named(hub: FakeHub, cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    written = write_gguf(path)
    metadata, tensors = small()
    hub.add(
        "org/m",
        {
            "q/m-Q8_0.gguf": path.read_bytes(),
            "m-F32.gguf": packed(list(metadata.items()), tensors),
            "config.json": b"{}",
        },
    )
    for asked in ("org/m:q8_0", "hf.co/org/m:Q8_0", "org/m/q/m-Q8_0.gguf"):
        source = model_source.find(asked, cache_dir=cache)
        assert source.name == "org/m/q/m-Q8_0.gguf"
        assert [(t.name, t.nbytes) for t in source.tensors or ()] == written
    assert model_source.find("org/m:F32", cache_dir=cache).name == "org/m/m-F32.gguf"
    fetch(cache, "org/m:Q8_0")
    hub.forget()
    offline = model_source.find("org/m:q8_0", cache_dir=cache, offline=True)
    assert (offline.name, offline.notes[0]) == ("org/m/q/m-Q8_0.gguf", "from the cache")
    assert model_source.find("org/m", cache_dir=cache, offline=True).name == offline.name
    assert not hub.requests


def test_the_error_has_how_each_is_named(hub: FakeHub, cache: Path) -> None:
    hub.add("org/m", QUANTS)
    with pytest.raises(SeveralModels) as caught:
        fetch(cache, "org/m")
    assert caught.value.choices == (("org/m:Q4_K_M", 3000), ("org/m:UD-Q4_K_XL", 3100), ("org/m:Q8_0", 6000))


# On this machine


def test_a_folder_with_one_model_is_that_model(tmp_path: Path) -> None:
    inner = tmp_path / "Q8_0"
    inner.mkdir()
    for part in PARTS:
        (tmp_path / part).write_bytes(b"GGUF")
    (tmp_path / "mmproj.gguf").write_bytes(b"GGUF")
    assert locate(str(tmp_path)) == locate(str(inner)) == tmp_path / PARTS[0]
    assert locate(str(tmp_path / PARTS[1])) == tmp_path / PARTS[0]
    (tmp_path / "config.json").write_text("{}")
    assert locate(str(tmp_path)) == tmp_path / PARTS[0], "a config alone runs nothing"
    (tmp_path / "model.safetensors").write_text("x")
    assert locate(str(tmp_path)) == tmp_path
    assert locate(f"{tmp_path}:Q8_0") == tmp_path / PARTS[0]


def test_a_folder_with_several_lists_them(tmp_path: Path) -> None:
    for name in ("m-Q4_K_M.gguf", "m-Q8_0.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    for find in (locate, model_source.find):
        with refused(
            SeveralModels, f"{tmp_path} has 2 GGUF models (GB): Q4_K_M 0.000, Q8_0 0.000; name one: headrace generate "
            f"{tmp_path}/m-Q4_K_M.gguf",
        ):  # fmt: skip
            find(str(tmp_path))
    assert locate(f"{tmp_path}:q8_0") == tmp_path / "m-Q8_0.gguf"
    with refused(HubError, "no GGUF model of 'Q2_K'"):
        locate(f"{tmp_path}:Q2_K")


def test_a_folder_of_the_hubs_cache(hub: FakeHub, cache: Path) -> None:
    hub.add("org/m", QUANTS)
    found = fetch(cache, "org/m:Q8_0")
    assert locate(str(cache / "models--org--m")) == found


def test_a_file_by_another_name_is_itself(tmp_path: Path) -> None:
    """As in ollama's store."""
    (tmp_path / "sha256-0123").write_bytes(b"GGUF" + b"\0" * 20)
    assert locate(str(tmp_path / "sha256-0123")) == tmp_path / "sha256-0123"
