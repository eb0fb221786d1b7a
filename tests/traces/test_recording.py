"""What is recorded is what was chosen, whatever way a pass takes: on the CPU in one call, layer by layer, beside a GPU,
as a graph."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stand_in_gpu
from routing import LENGTH, PARAMS, PROMPTS, Row, Watch, load_demo, run, split_layers

from headrace import LLM, OptionError, SamplingParams
from headrace.engine.cuda_graphs import signals
from headrace.engine.cuda_graphs.signals import VARIANTS, Trial
from headrace.engine.planning import routing_trace
from headrace.engine.traces import reader, recorder
from headrace.engine.traces.layout import MAGIC
from headrace.engine.traces.reader import Trace
from headrace.loaders import model_source

Run = Callable[..., tuple[int, str, str]]
Rows = dict[tuple[int, int], list[Row]]  # by layer and position


def rows_of(trace: Trace) -> Rows:
    """As `Watch.rows`, weights in steps."""
    found: defaultdict[tuple[int, int], list[Row]] = defaultdict(list)
    steps = trace.choices >> trace.header.id_bits
    for layer, ids, weights in zip(trace.header.layers, trace.ids, steps, strict=True):
        for place, chosen, weight in zip(trace.positions.tolist(), ids.tolist(), weights.tolist(), strict=True):
            if chosen[0] >= 0:
                found[layer, place].append((tuple(chosen), tuple(weight)))
    return {key: sorted(rows) for key, rows in found.items()}


def expected(watch: Watch, trace: Trace) -> Rows:
    """What backends were asked for, weights in steps of the trace."""
    step = trace.header.most_weight / trace.header.steps
    return {
        key: sorted((ids, tuple(round(weight / step) for weight in weights)) for ids, weights in rows)
        for key, rows in watch.rows.items()
    }


def check(trace: Trace, watch: Watch, llm: LLM) -> None:
    assert (trace.damage, trace.lost) == ("", 0)
    assert rows_of(trace) == expected(watch, trace)
    passes = llm.ledger.passes
    assert Counter(trace.passes.tolist()) == Counter({one.index: one.tokens for one in passes})
    for one in passes:
        assert set(trace.sequences[trace.passes == one.index].tolist()) == set(one.sequences)
    assert np.array_equal(trace.generated, trace.positions >= LENGTH)
    for sequence, params in zip(np.unique(trace.sequences), PARAMS, strict=True):
        places = trace.positions[trace.sequences == sequence]
        assert places.tolist() == list(range(LENGTH + params.max_new_tokens - 1)), "each once, in its order"


@pytest.mark.parametrize("kernels", ["cpu", "reference"])
def test_of_one_call(kernels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"dtype": "float32"} if kernels == "reference" else {}
    twin = load_demo(kernels=kernels, **options)
    with load_demo(kernels=kernels, trace=tmp_path / "t", **options) as llm:
        said = run(llm)
    watch = Watch(monkeypatch)
    twin.parts.decoder.choose = lambda layer, choice: choice
    assert run(twin) == said, "recording changes no token"
    check(reader.read(tmp_path / "t"), watch, llm)


def test_of_layers_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load_demo(trace=tmp_path / "t") as llm:
        llm.parts.decoder.choose = lambda layer, choice: choice
        watch = Watch(monkeypatch)
        run(llm)
    check(reader.read(tmp_path / "t"), watch, llm)


@pytest.mark.parametrize("options", [{"cpu_moe": True}, {"n_cpu_moe": 3}, {"cpu_moe": True, "stream_from": 2}])
def test_beside_a_gpu(options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load_demo(device="simulated", trace=tmp_path / "t", **options) as llm:
        watch = Watch(monkeypatch)
        run(llm)
    check(reader.read(tmp_path / "t"), watch, llm)


@pytest.mark.parametrize("layers", ["all in RAM", "three in RAM", "each split"])
def test_of_graphs(layers: str, library: str, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "probe", lambda *_: {name: Trial(name=name, us=5.0) for name in VARIANTS})
    gpu = stand_in_gpu.install(monkeypatch, library)
    named: dict[str, dict[str, Any]] = {"all in RAM": {"cpu_moe": True}, "three in RAM": {"n_cpu_moe": 3}}
    options = named.get(layers) or split_layers(tmp_path)
    with load_demo(device="simulated", handoff="memop", trace=tmp_path / "t", **options) as llm:
        watch, before = Watch(monkeypatch), gpu.recorders[0].replays
        run(llm)
        assert gpu.recorders[0].replays > before, "decode steps are graphs"
    check(reader.read(tmp_path / "t"), watch, llm)


def test_the_header_says_which_model(tmp_path: Path) -> None:
    with load_demo(trace=tmp_path / "t") as llm:
        run(llm)
    header = reader.read(tmp_path / "t").header
    assert (header.model, header.family) == ("demo", llm.spec.family)
    assert (header.experts, header.top_k) == (llm.spec.moe.experts, llm.spec.moe.top_k)
    assert header.layers == [i for i, is_moe in enumerate(llm.spec.is_moe) if is_moe]
    assert header.digest == recorder.digest(llm.spec, llm.parts.weights)
    routers = [layer.router for layer in llm.parts.weights.layers if layer.router is not None]
    routers[-1].data.view(-1)[0] += 1
    assert header.digest != recorder.digest(llm.spec, llm.parts.weights), "another router, another model"


def test_a_prompts_tokens_that_were_known_are_not_there(tmp_path: Path) -> None:
    few = SamplingParams(max_new_tokens=2, ignore_eos=True)
    long = [*PROMPTS[0], *PROMPTS[1], *PROMPTS[2]]
    with load_demo(trace=tmp_path / "t") as llm:
        llm.generate([long], few)
        llm.generate([long], few)
    trace = reader.read(tmp_path / "t")
    first, second = np.unique(trace.sequences)
    assert trace.positions[trace.sequences == first].tolist() == list(range(61))
    again = trace.positions[trace.sequences == second].tolist()
    assert again == list(range(again[0], 61))
    assert again[0] > 0, "pages of the cache"


def test_a_trace_that_cannot_be_written_is_refused_before_the_load(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot write the trace"):
        LLM("no/such/model", trace=tmp_path / "no" / "t")


# ---- commands


def test_record_and_stats(tmp_path: Path, run: Run) -> None:
    prompts, path = tmp_path / "prompts.txt", tmp_path / "run.trace"
    prompts.write_text("In the beginning\n\nAnd it came to pass\n")
    more = ["-n", "12", "--ignore-eos", "--max-context", "96", "--no-measure"]
    status, out, err = run("trace", "record", "demo", "--prompts", prompts, "-o", path, *more)
    assert (status, out) == (0, "")
    assert "22 generated" in err
    trace = reader.read(path)
    assert len(np.unique(trace.sequences)) == 2
    status, out, _ = run("trace", "stats", path)
    assert status == 0
    assert "22 generated, of 2 sequences" in out
    status, out, _ = run("trace", "stats", path, "--json")
    found = json.loads(out)
    assert (found["model"], found["damage"]) == ("demo", None)
    assert [one["layer"] for one in found["stats"]["layers"]] == trace.header.layers
    path.write_bytes(path.read_bytes()[:-30])
    status, out, _ = run("trace", "stats", path)
    assert status == 1
    assert "was stopped" in out


def test_generate_and_bench_record_too(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "t"
    more = ["--no-measure", "--trace", path]
    assert run("generate", "demo", "Behold,", "-n", "3", "--ignore-eos", *more)[0] == 0
    found = reader.read(path)
    assert (found.damage, int(found.generated.sum())) == ("", 2)
    tests, earlier = ["-p", "8", "-n", "4", "-r", "1"], path.read_bytes()
    status, _, err = run("bench", "demo", *tests, *more)
    assert status == 1
    assert "there is a file already; remove it" in err
    assert path.read_bytes() == earlier
    path.unlink()
    assert run("bench", "demo", *tests, *more)[0] == 0
    assert reader.read(path).damage == ""
    assert len(reader.read(path)) > 12
    status, _, err = run("bench", "demo", *tests, "--placement", "cpu,cpu-moe", *more)
    assert status == 1
    assert "give one placement" in err


@pytest.mark.parametrize(("text", "said"), [(None, "cannot read"), ("\n \n", "has no prompt")])
def test_prompts_that_are_none(text: str | None, said: str, tmp_path: Path, run: Run) -> None:
    path = tmp_path / "prompts.txt"
    if text is not None:
        path.write_text(text)
    status, _, err = run("trace", "record", "demo", "--prompts", path, "-o", tmp_path / "t")
    assert status == 1
    assert said in err


def test_a_plan_takes_different_experts_from_it(tmp_path: Path) -> None:
    with load_demo(trace=tmp_path / "t") as llm:
        run(llm)
    trace = reader.read(tmp_path / "t")
    distinct = routing_trace.load(tmp_path / "t", model_source.find("demo").described.architecture)
    first = trace.header.layers[0]
    runs = [trace.ids[0, i : i + 4] for i in range(0, len(trace) - 3, 4)]
    assert distinct(first, 4) == pytest.approx(np.mean([len(np.unique(one)) for one in runs]))
    last = (trace.ids[-1][:, 0] >= 0).sum()
    assert distinct(trace.header.layers[-1], 10_000) == len(np.unique(trace.ids[-1])) - 1, f"all {last} that were there"
    assert routing_trace.RECORDED == MAGIC
