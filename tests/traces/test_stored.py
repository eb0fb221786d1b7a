"""Traces that are kept for a model in the user's cache: recorded, found again, listed, dropped if they are too many."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace import LLM, OptionError, SamplingParams
from headrace.engine.planning import best_policy, replays
from headrace.engine.policies import registry
from headrace.engine.policies.protocol import Shape
from headrace.engine.policies.replay.replay import Rates
from headrace.engine.traces import reader, recorder, stored
from headrace.engine.traces.layout import Columns, Header, pack_choices
from headrace.engine.traces.writer import Writer

Run = Any


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache of this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def written(path: Path, digest: str = "ab" * 32, model: str = "m", tokens: int = 3) -> Path:
    """A small whole trace."""
    header = Header(
        model=model, family="f", digest=digest, formats={"experts": "q4_0", "dense": "bf16"}, layers=[0],
        expert_bytes=[10], experts=4, top_k=1, most_weight=1.0, version="0",
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    writer: Writer[Columns] = Writer(path, header, lambda many: many[0], most_waiting=1 << 30)
    numbers, ids = np.arange(tokens, dtype=np.uint32), np.zeros((1, tokens, 1), np.int32)
    choices = pack_choices(header, ids, np.ones(ids.shape, np.float32))
    writer.put(Columns(numbers, numbers, numbers, np.ones(tokens, np.uint8), choices), tokens, choices.nbytes)
    writer.close()
    return path


def test_a_model_finds_its_trace_again_whatever_its_formats(run: Run, tmp_path: Path) -> None:
    """Recorded without a file's name; the model's hash is that of another format too."""
    (prompts := tmp_path / "prompts").write_text("Behold,\nIn the beginning\n")
    status, out, err = run("trace", "record", "demo", "--prompts", prompts, "-n", "6", "--expert-format", "q4_0")
    assert (status, out) == (0, ""), err
    with LLM("demo", expert_format="q8_0") as llm:
        digest, parts = recorder.digest(llm.spec, llm.parts.weights), llm.parts
        name = llm.name
    path = stored.stored_trace(digest)
    assert path is not None
    assert str(path) in err
    assert [one.name for one in path.parent.iterdir()] == [f"{digest[:16]}.trace"]
    trace = reader.read(path)
    assert (trace.header.formats["experts"], trace.header.model, trace.damage) == ("q4_0", name, "")
    assert parts.checkpoint.formats.experts.name == "q8_0"
    # The engine's way to a policy, in its own formats and rates.
    shape = Shape((trace.header.experts,) * len(trace.header.layers), (999,) * len(trace.header.layers))
    found = replays.of_run(trace, shape, Rates(cpu=1e9, link=1e9, gpu=1e10), fetched=[0, 1])
    best = best_policy.choose(found, shape.nbytes // 4)
    assert registry.make(best.choice, found.known).name == best.choice
    assert found.shape.expert_bytes[0] == 999
    with pytest.raises(OptionError, match=r"the trace is of .* experts, the model has 1 of 2: record it"):
        replays.of_run(trace, Shape((2,), (1,)), None)


def test_a_named_file_is_kept_only_if_asked_for(run: Run, tmp_path: Path) -> None:
    (prompts := tmp_path / "prompts").write_text("Behold,\n")
    file = tmp_path / "run.trace"
    assert run("trace", "record", "demo", "--prompts", prompts, "-n", "3", "-o", file)[0] == 0
    assert stored.kept() == []
    file.unlink()
    assert run("trace", "record", "demo", "--prompts", prompts, "-n", "3", "-o", file, "--store")[0] == 0
    (one,) = stored.kept()
    assert one.path.read_bytes() == file.read_bytes()
    assert len(list(stored.folder().iterdir())) == 1


def test_the_newest_is_a_models_trace(tmp_path: Path) -> None:
    for tokens in (3, 5):
        stored.keep(written(tmp_path / "a", tokens=tokens), move=True)
    assert not (tmp_path / "a").exists()
    path = stored.stored_trace("ab" * 32)
    assert path is not None
    assert reader.glance(path)[1] == len(reader.read(path)) == 5
    assert stored.stored_trace("ab" * 8 + "0" * 48) is None, "a name that begins alike is another model's"
    assert stored.stored_trace("cd" * 32) is None
    assert stored.stored_trace("") is None


def test_what_is_damaged_is_not_found_and_said(tmp_path: Path) -> None:
    path = stored.keep(written(tmp_path / "a"), move=False)
    assert stored.advice("cd" * 32, "m").startswith("the trace that is kept for m is of other weights, or of another")
    assert stored.advice("ab" * 32, "other") == (
        "no trace is kept for other: headrace trace record MODEL --prompts FILE"
    )  # fmt: skip
    path.write_bytes(path.read_bytes()[:-5])
    assert stored.stored_trace("ab" * 32) is None
    assert stored.advice("ab" * 32, "m").startswith("the trace that is kept for m is damaged: headrace trace record")
    path.write_bytes(b"no trace")
    assert stored.stored_trace("ab" * 32) is None
    assert [one.header for one in stored.kept()] == [None]


def test_what_cannot_be_kept_is_refused(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(OptionError, match="cannot be kept for a model: it was made up; record one"):
        stored.keep(written(tmp_path / "a", digest=""), move=False)
    cut = written(tmp_path / "b")
    cut.write_bytes(cut.read_bytes()[:-1])
    with pytest.raises(OptionError, match="it has no end; record one"):
        stored.keep(cut, move=False)
    cache.write_text("a file where a folder is to be")
    with pytest.raises(OptionError, match=r"cannot keep a trace in .*set XDG_CACHE_HOME .*or name a file with -o"):
        stored.new_file()


def test_the_oldest_go_where_they_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for two; what was just recorded stays even where it alone is more."""
    size = written(tmp_path / "a").stat().st_size
    monkeypatch.setattr(stored, "MOST_BYTES", 2 * size + 20)
    for age, digest in enumerate(("11" * 32, "22" * 32, "33" * 32)):
        path = stored.keep(written(tmp_path / "a", digest=digest), move=True)
        os.utime(path, (1000 + age, 1000 + age))
    assert [one.path.name[:2] for one in stored.kept()] == ["33", "22"]
    monkeypatch.setattr(stored, "MOST_BYTES", 1)
    newest = stored.keep(written(tmp_path / "a", digest="44" * 32), move=True)
    assert [one.path for one in stored.kept()] == [newest]


def test_they_are_listed(run: Run, tmp_path: Path) -> None:
    assert run("trace", "list")[1] == "no trace is kept: headrace trace record MODEL --prompts FILE\n"
    path = stored.keep(written(tmp_path / "a", model="Some-Model"), move=True)
    written(stored.folder() / "odd.trace", digest="cd" * 32)
    status, out, _ = run("trace", "list")
    assert status == 0
    assert f"2 traces are kept in {stored.folder()}" in out
    assert "of 1.00 GB at most" in out
    assert "Some-Model" in out
    assert "odd.trace: its name is not its model's hash: delete it" in out
    found = json.loads(run("trace", "list", "--json")[1])
    assert found["folder"] == str(stored.folder())
    (good,) = (one for one in found["traces"] if one["problem"] is None)
    assert (good["path"], good["tokens"], good["header"]["model"]) == (str(path), 3, "Some-Model")


def test_doctor_says_whether_a_model_has_one(run: Run, tmp_path: Path) -> None:
    from headrace.engine.terminal.doctor import kept_traces

    assert kept_traces.lines(None) == []
    with LLM("demo", trace=tmp_path / "run.trace") as llm:
        llm.generate(["In"], SamplingParams(max_new_tokens=3))
        none = f"no trace is kept for {llm.name}: headrace trace record MODEL --prompts FILE"
        assert kept_traces.lines(llm) == [none]
    path = stored.keep(tmp_path / "run.trace", move=True)
    assert kept_traces.lines(llm)[1:] == [f"this model's trace: {path}"]
    assert kept_traces.lines(None)[0].startswith("1 trace is kept in")
