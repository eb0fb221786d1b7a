"""`headrace plan` counts a model's own layer that drafts: its bytes as the engine has them, its seconds, its gains."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mtp_gguf
import pytest
from mtp_models import LIKE, layer_tensors
from mtp_runs import opened
from terminal import folded

from headrace import OptionError
from headrace.engine.bandwidth_model.machine_file import parse
from headrace.engine.memory import mtp_rows
from headrace.engine.memory.kv_budget import PageBytes
from headrace.engine.memory.required import MTP
from headrace.engine.model.kv_cache import PAGE
from headrace.engine.placement.placement import Tier
from headrace.engine.planning.options import Options
from headrace.engine.planning.own_layer import drafting
from headrace.engine.planning.plan import Plan, make
from headrace.kernels.formats import KV_BF16
from headrace.loaders import model_source
from headrace.loaders.gguf_weights.open_gguf import open_gguf
from headrace.loaders.spec import ModelSpec
from headrace.loaders.weights.checkpoint import open_directory
from headrace.loaders.weights.chosen_formats import LoadOptions
from headrace.loaders.weights.mtp.asked import MtpAsked

Run = Callable[..., tuple[int, str, str]]
Checkpoints = Callable[[str], Path]
With = Callable[..., Path]
MACHINE = "ddr5-6000-2ch, 64gb, 16cores"
CONTEXT, BATCH = 64, 3


def planned(path: Path, how: str = "mtp", machine: str = MACHINE, **options: object) -> Plan:
    more = {"context": CONTEXT, "prompt": 32, "batch": BATCH, **options}
    return make(model_source.find(str(path)), parse(machine), Options(speculate=how, **more))  # type: ignore[arg-type]


@pytest.mark.parametrize("way", ["in it", "beside it", "in a shard"])
@pytest.mark.parametrize("variant", LIKE)
def test_bytes_are_those_of_the_engine(variant: str, way: str, with_mtp: With) -> None:
    path = with_mtp(variant, way)
    engine = open_directory(path, LoadOptions(mtp=MtpAsked(must=True)))
    found = planned(path)
    assert found.own_drafts is not None
    assert found.own_drafts.weights == mtp_rows.weight_bytes(engine.spec, engine.formats)
    assert found.own_drafts.waiting == mtp_rows.nbytes(engine.spec, BATCH)
    assert found.own_drafts.cache == page_bytes(engine.spec) * CONTEXT // PAGE * BATCH
    assert found.best is not None
    needed = found.best.memory["ram"].needed
    assert needed["MTP layer"] == found.own_drafts.weights
    without = planned(path, "off")
    assert without.best is not None
    assert without.own_drafts is None
    assert without.best.memory["ram"].total + found.demand.own(True) == found.best.memory["ram"].total


def page_bytes(spec: ModelSpec) -> int:
    """Of a page of the layer's cache, as the engine counts it."""
    return PageBytes(spec, KV_BF16, 32).page - PageBytes(replace(spec, mtp=None), KV_BF16, 32).page


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("variant", ["qwen3_next", "glm4_moe", "deepseek_v3"])
def test_bytes_of_gguf_are_those_of_the_engine(
    variant: str, apart: bool, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    path, own = tmp_path / "model.gguf", tmp_path / "mtp.gguf"
    tensors = layer_tensors(variant, checkpoints(variant))
    mtp_gguf.write(variant, checkpoints(variant), tensors, path, own if apart else None)
    file = own if apart else None
    if apart:
        with pytest.raises(OptionError, match="has no layer for multi-token prediction"):
            planned(path)
        with pytest.raises(OptionError, match=r"for multi-token prediction; .*model.gguf holds none"):
            planned(path, mtp=path)
    engine = open_gguf(path, LoadOptions(mtp=MtpAsked(must=True, file=file)))
    found = planned(path, mtp=file)
    assert found.own_drafts is not None
    assert found.own_drafts.weights == mtp_rows.weight_bytes(engine.spec, engine.formats)


@pytest.mark.parametrize("variant", ["qwen3_next", "deepseek_v3", "glm4_moe"])
def test_bytes_of_a_file_of_its_own_are_those_of_the_engine(
    variant: str, checkpoints: Checkpoints, with_mtp: With, tmp_path: Path, run: Run
) -> None:
    path, file = checkpoints(variant), tmp_path / "own.safetensors"
    shutil.copy(with_mtp(variant, "beside it") / "mtp.safetensors", file)
    engine = open_directory(path, LoadOptions(mtp=MtpAsked(must=True, file=file)))
    found = planned(path, mtp=file)
    assert found.own_drafts is not None
    assert found.own_drafts.weights == mtp_rows.weight_bytes(engine.spec, engine.formats)
    said = run("plan", path, "--hardware", MACHINE, "--speculate", "mtp", "--mtp", file, "--json")
    assert json.loads(said[1])["own_drafts"]["weights"] == found.own_drafts.weights


def test_a_file_that_cannot_hold_it_is_refused(checkpoints: Checkpoints, tmp_path: Path, run: Run) -> None:
    path, other = checkpoints("qwen3_moe"), tmp_path / "other.gguf"
    other.write_bytes(b"GGUF" + bytes(60))

    def refused(*said: object) -> str:
        status, _, err = run("plan", *said)
        assert status != 0
        return folded(err)

    where = ("--hardware", MACHINE, "--mtp")
    assert "none.safetensors, which is no file" in refused(path, *where, tmp_path / "none.safetensors")
    assert "is of safetensors: give its layer as safetensors, too" in refused(path, *where, other)
    assert "has no headers to set it beside" in refused("Qwen3-30B-A3B", "--quant", "q4_0", *where, other)
    assert "and --speculate is 'off': give --speculate mtp, or leave --mtp out" in refused(
        path, *where, other, "--speculate", "off"
    )


def test_fewer_rows_make_a_guess_cheaper_and_gain_more(run: Run) -> None:
    """Of a large vocabulary; the best number of rows is said."""
    model = ("plan", "Qwen3.6-35B-A3B", "--hardware", "ddr5-6000-2ch, 64gb, 16cores", "--quant", "q4_0",
             "--speculate", "mtp")  # fmt: skip
    of = {how: json.loads(run(*model, "--draft-vocabulary", how, "--json")[1])["own_drafts"] for how in ("auto", "all")}
    assert of["all"]["rows"] == 248_320
    assert of["auto"]["rows"] < 248_320
    assert of["auto"]["token_s"] < of["all"]["token_s"]
    for few, every in zip(of["auto"]["gains"], of["all"]["gains"], strict=True):
        assert few["gain"] >= every["gain"]
    assert of["auto"]["gains"][-1]["gain"] > of["all"]["gains"][-1]["gain"]
    assert [way["rows"] for way in of["auto"]["ways"]] == [8192, 16384, 32768, 65536, 131_072, 248_320]
    assert f"chosen among the first {of['auto']['rows']} tokens" in folded(run(*model)[1])


def test_a_loaded_model_has_what_the_plan_says(with_mtp: With) -> None:
    path = with_mtp("qwen3_next", "in it")
    found = planned(path)
    with opened(path, kernels="reference") as llm:
        assert found.own_drafts is not None
        assert llm.parts.memory_plan.memory[Tier.CPU].needed[MTP] == found.own_drafts.weights
        assert llm.parts.weights.mtp is not None
        assert llm.parts.weights.mtp.nbytes == found.own_drafts.weights


def test_by_itself_it_is_counted_as_the_engine_would_load_it(with_mtp: With, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of a model in the CPU's caches, and not beside a GPU."""
    path = with_mtp("qwen3_moe", "in it")
    assert planned(path, "auto").own_drafts is None
    monkeypatch.setattr(drafting, "IN_CACHES", 0)
    assert planned(path, "auto").own_drafts is not None
    beside = planned(path, "auto", "rtx-3090, ddr5-6000-2ch, 64gb, 16cores", placement="cpu-moe")
    assert beside.own_drafts is None
    asked = planned(path, "mtp", "rtx-3090, ddr5-6000-2ch, 64gb, 16cores", placement="cpu-moe")
    assert asked.own_drafts is not None
    assert asked.best is not None
    assert asked.best.memory["vram"].needed["MTP layer"] == asked.own_drafts.weights


def test_a_draft_costs_the_layer_and_the_head_and_gains_less_than_one_for_nothing(run: Run) -> None:
    status, out, err = run("plan", "DeepSeek-V3", "--hardware", "ddr5-6000-12ch, 768gb, 64cores", "--quant", "q4_0",
                           "--speculate", "mtp", "--json")  # fmt: skip
    assert status == 0, err
    found = json.loads(out)
    own, free = found["own_drafts"], found["drafts"]
    assert 5e9 < own["weights"] < 9e9  # 256 experts of 44 million weights, 4.5 bits each
    assert 0 < own["token_s"] < 0.2 / found["decode_tok_s"]  # of 61 layers
    for mine, theirs in zip(own["gains"], free, strict=True):
        assert mine["gain"] <= theirs["gain"]
    assert own["gains"][-1]["gain"] > 1


def test_a_line_says_so(with_mtp: With, run: Run) -> None:
    path = with_mtp("qwen3_moe", "in it")
    text = folded(run("plan", path, "--hardware", MACHINE, "--speculate", "mtp")[1])
    assert "the model's own layer (" in text
    assert " ms a drafted token, chosen among all tokens, " in text
    assert ") gains: " in text


def test_what_is_not_there_is_refused(checkpoints: Checkpoints, run: Run) -> None:
    status, _, err = run("plan", checkpoints("qwen3_moe"), "--hardware", MACHINE, "--speculate", "mtp")
    assert status != 0
    assert "has no layer for multi-token prediction" in folded(err)
    status, _, err = run("plan", checkpoints("qwen3_moe"), "--hardware", MACHINE, "--speculate", "often")
    assert status != 0
    assert "a plan knows auto, off, lookup, mtp" in folded(err)
