"""Traces that are made up, and recorded ones through policies: the commands, their numbers, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from terminal import folded

from headrace import LLM, OptionError, SamplingParams
from headrace.engine.bandwidth_model import hardware
from headrace.engine.planning import replays
from headrace.engine.policies.protocol import Shape
from headrace.engine.policies.replay.replay import Replayed
from headrace.engine.policies.residents import Counts
from headrace.engine.terminal.trace import replay_plot
from headrace.engine.traces import reader, synthetic

Run = Any
MACHINE = "rtx-4090,ddr5-5600-2ch"


@pytest.mark.parametrize("kind", synthetic.KINDS)
def test_made_up_ids_are_different_and_as_skewed_as_said(kind: str) -> None:
    drawn = list(synthetic.draw(kind, layers=3, experts=32, top_k=4, tokens=3000, seed=1))
    ids = np.concatenate(drawn)
    assert ids.shape == (3000, 3, 4)
    assert all(len(set(row)) == 4 for row in ids[:200].reshape(-1, 4).tolist())
    assert ids.min() == 0
    assert ids.max() == 31
    shares = np.sort(np.bincount(ids[:, 1].ravel(), minlength=32) / ids[:, 1].size)[::-1]
    assert (shares[:3].sum() > 0.25) == (kind == "zipf"), shares[:3]
    again = np.concatenate(list(synthetic.draw(kind, layers=3, experts=32, top_k=4, tokens=3000, seed=1)))
    assert np.array_equal(ids, again)


def test_topics_stay_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one topic experts are as skewed as zipf's, over all of them they are not; pieces go on where one ended."""
    monkeypatch.setattr(synthetic, "STAY", 500)
    monkeypatch.setattr(synthetic, "AT_ONCE", 64 * 2 * 40)
    ids = np.concatenate(list(synthetic.draw("topics", layers=2, experts=64, top_k=4, tokens=4000, seed=2)))
    assert len(ids) == 4000

    def hottest(part: Any) -> float:
        counts = np.sort(np.bincount(part[:, 0].ravel(), minlength=64))[::-1]
        return float(counts[:4].sum() / counts.sum())

    parts = [hottest(ids[n : n + 100]) for n in range(0, 4000, 100)]
    assert np.median(parts) > hottest(ids) * 1.3


def test_a_trace_is_made_up_and_replayed(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "made.trace"
    status, out, err = run("trace", "make", "Qwen3-30B-A3B", "-o", str(path), "--tokens", "40", "--kind", "zipf",
                           "--expert-format", "q4_0")  # fmt: skip
    assert (status, out) == (0, ""), err
    trace = reader.read(path)
    assert trace.header.model == "Qwen3-30B-A3B, made up: zipf"
    assert trace.header.expert_bytes == [2654208] * 48
    assert (len(trace), trace.generated.all(), trace.damage) == (40, True, "")
    names = "uniform,lru,next-layer,split,belady"
    status, out, err = run("trace", "replay", str(path), "--policy", names, "--vram", "4GB,25%", "--json", "--hardware",
                           MACHINE)  # fmt: skip
    assert status == 0, err
    rows = json.loads(out)["rows"]
    assert [(row["policy"], row["budget"]) for row in rows[:6:5]] == [("uniform", 4 * 10**9), ("uniform", 4076863488)]
    for row in rows:
        assert row["hits"] + row["early"] + row["fetched"] + row["on_cpu"] == 40 * 48 * 8, row
        assert row["tok_s"] > 0
    best = {row["budget"]: row["hits"] for row in rows if row["policy"] == "belady"}
    assert all(row["hits"] <= best[row["budget"]] for row in rows)
    status, out, err = run("trace", "replay", str(path), "--hardware", MACHINE, "--vram", "10%")
    assert status == 0, err
    assert "40 tokens in 40 passes, 48 layers of 128 experts" in out
    assert "of best" in out
    assert "tok/s" in out


def test_passes_are_as_they_were_recorded(tmp_path: Path, run: Run) -> None:
    """Two sequences: tokens of a pass together, prompts only where they are asked for."""
    path = tmp_path / "run.trace"
    with LLM("demo", trace=path, max_sequences=2) as llm:
        llm.generate(["In the beginning", "Behold,"], SamplingParams(max_new_tokens=9, ignore_eos=True))
        experts = llm.spec.layers[0].ffn
    trace = reader.read(path)
    machine = hardware.parse(MACHINE)
    decoded, all_ = replays.of_trace(trace, machine), replays.of_trace(trace, machine, with_prompts=True)
    assert decoded.choices.tokens == int(trace.generated.sum())
    assert all_.choices.tokens == len(trace) > decoded.choices.tokens
    assert decoded.choices.passes == len(set(trace.passes[trace.generated].tolist())) < decoded.choices.tokens
    (row,) = decoded.rows(["all-ram"], [0])
    together = 0
    for number in set(trace.passes[trace.generated].tolist()):
        tokens = np.flatnonzero(trace.generated & (trace.passes == number))
        together += sum(len(set(layer[tokens].ravel().tolist()) - {-1}) for layer in trace.ids)
    assert row.counts.on_cpu == together
    assert row.counts.cpu_bytes == together * decoded.shape.expert_bytes[0]
    assert decoded.shape.experts[0] == experts.experts
    status, out, err = run("trace", "replay", str(path), "--vram", "50%", "--with-prompts")
    assert status == 0, err
    assert f"{len(trace)} tokens in" in out


def test_a_bigger_cache_is_useless_where_all_are_chosen_equally_often(tmp_path: Path, run: Run) -> None:
    """A second GPU's 24 GB for a model of 600 GB: few hits where routing is uniform, many where topics stay."""
    gained = {}
    for kind in ("uniform", "zipf"):
        path = tmp_path / kind
        assert run("trace", "make", "Qwen3-30B-A3B", "-o", str(path), "--tokens", "150", "--kind", kind)[0] == 0
        found = replays.of_trace(reader.read(path), hardware.parse(MACHINE))
        four = int(0.04 * found.shape.nbytes)
        none, some = found.rows(["frequency"], [0, four])
        assert none.tokens_per_s
        assert some.tokens_per_s
        gained[kind] = some.counts.hit_rate, some.tokens_per_s / none.tokens_per_s
    assert gained["uniform"][0] < 0.1
    assert gained["zipf"][0] > 2 * gained["uniform"][0]
    assert 1 < gained["uniform"][1] < gained["zipf"][1]


def replayed(run: Run, path: Path, *options: object) -> dict[str, Any]:
    """The object of --json."""
    status, out, err = run("trace", "replay", path, "--json", *options)
    assert status == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def test_auto_says_which_policy_is_the_best_and_why(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "made.trace"
    made = ("trace", "make", "Qwen3-30B-A3B", "-o", path, "--kind", "zipf", "--tokens", "60")
    assert run(*made, "--expert-format", "q4_0")[0] == 0
    options = ("--policy", "auto", "--vram", "1GB,25%", "--hardware", MACHINE)
    found = replayed(run, path, *options)
    assert [one["budget"] for one in found["auto"]] == [10**9, 4076863488]
    for one in found["auto"]:
        rows = {row["policy"]: row for row in found["rows"] if row["budget"] == one["budget"]}
        assert one["compared"]["chosen"]["policy"] == one["choice"]
        assert one["compared"]["chosen"]["tok_s"] == rows[one["choice"]]["tok_s"]
        assert one["compared"]["all_ram"]["tok_s"] == rows["all-ram"]["tok_s"]
        assert one["gain"] == pytest.approx(rows[one["choice"]]["tok_s"] / rows["all-ram"]["tok_s"] - 1)
        assert one["choice"] != "belady" == one["compared"]["optimum"]["policy"]
        assert rows["belady"]["tokens"] == 30
    status, out, err = run("trace", "replay", path, *options)
    assert status == 0, err
    for one in found["auto"]:
        assert all(reason in out for reason in one["reasons"])
    assert f"auto for 1.00 GB: {found['auto'][0]['choice']}" in out
    for wrong, said in (
        (["--policy", "lru,auto"], "--policy is lru,auto, and auto compares all that there are: give it alone"),
        (["--policy", "auto"], "policy 'auto' goes by tokens/s: that takes rates of a CPU"),
    ):
        status, _, err = run("trace", "replay", path, *wrong)
        assert (status, said in err) == (1, True), err


def test_a_second_gpu_of_the_command(tmp_path: Path, run: Run) -> None:
    """The article's machine: with uniform routing half a token a second for 24 of the 571 GB of Kimi K2's experts."""
    path, box = tmp_path / "made.trace", tmp_path / "box.json"
    gpu = {"memory_gb": 24, "bandwidth_gbs": 935, "sustained_gbs": 935, "pcie": "4.0x16"}
    box.write_text(json.dumps({"gpus": [gpu, gpu], "cpu": {"bandwidth_gbs": 409, "sustained_gbs": 409}}))
    assert run("trace", "make", "Kimi-K2", "-o", path, "--kind", "uniform", "--tokens", "60", "--expert-format",
               "q4_0")[0] == 0  # fmt: skip
    asked = ("--policy", "all-ram,second-gpu", "--vram", "0GB", "--hardware", box, "--hold-out", "--model", "simple")
    none, some = replayed(run, path, *asked, "--dense", "5.76GB")["rows"]
    assert none["tokens"] == 30
    assert some["store_rate"] == pytest.approx(0.042, abs=0.004)
    assert 0.4 < some["tok_s"] - none["tok_s"] < 0.8
    read = none["cpu_bytes"] / 30
    assert none["tok_s"] == pytest.approx(1 / (read / 409e9 + 5.76e9 / 935e9))
    less = replayed(run, path, *asked, "--dense", "5.76GB", "--second-vram", "12GB")["rows"][1]
    assert less["store_rate"] == pytest.approx(0.021, abs=0.003)
    assert replayed(run, path, *asked)["rows"][0]["tok_s"] == pytest.approx(409e9 / read)
    status, out, _ = run("trace", "replay", path, *asked)
    assert status == 0
    assert "GPU 2" in out
    for wrong, said in (
        (["--second-vram", "x"], "--second-vram has 'x'; give memory or shares"),
        (["--dense", "x"], "--dense has 'x'; give memory or shares"),
        (["--second-vram", "8GB", "--hardware", MACHINE], "--second-vram needs two GPUs, and rtx-4090"),
        (["--policy", "second-gpu"], "policy 'second-gpu' needs the memory of a second GPU: give --second-vram"),
    ):
        status, _, err = run("trace", "replay", path, *wrong)
        assert (status, said in err) == (1, True), err


def test_what_is_learned_from_one_half_is_tried_on_the_other(tmp_path: Path, run: Run) -> None:
    """By chance some experts of a short uniform trace are hot; in its other half they are not."""
    path = tmp_path / "made.trace"
    assert run("trace", "make", "Qwen3-30B-A3B", "-o", path, "--kind", "uniform", "--tokens", "60")[0] == 0
    asked = ("--policy", "frequency", "--vram", "5%")
    (seen,), (unseen,) = (replayed(run, path, *asked, *more)["rows"] for more in ([], ["--hold-out"]))
    assert (seen["tokens"], unseen["tokens"]) == (60, 30)
    assert seen["hit_rate"] > 0.08
    assert unseen["hit_rate"] == pytest.approx(0.05, abs=0.01)


def test_what_cannot_be_replayed_is_said(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "made.trace"
    assert run("trace", "make", "Qwen3-30B-A3B", "-o", str(path), "--tokens", "3")[0] == 0
    for options, said in (
        (["--policy", "mru"], "there is no policy 'mru': take one of all-ram, first-layers"),
        (["--policy", " , "], "--policy names no policy"),
        (["--vram", "8XB"], "--vram has '8XB'; give memory or shares"),
        (["--policy", "split"], "policy 'split' needs rates of link and CPU"),
    ):
        status, _, err = run("trace", "replay", str(path), *options)
        assert (status, said in err) == (1, True), err
    status, _, err = run("trace", "make", "Qwen3-30B-A3B", "-o", str(path), "--tokens", "0")
    assert "--tokens is 0" in err
    assert status == 1
    with LLM("demo", trace=tmp_path / "one") as llm:
        llm.generate(["In"], SamplingParams(max_new_tokens=1))
    with pytest.raises(OptionError, match="no generated token: add --with-prompts"):
        replays.of_trace(reader.read(tmp_path / "one"), None)


def test_budgets() -> None:
    shape = Shape((4,), (10**9,))
    assert replays.budgets_of("8GB, 1.5,25%", shape) == [8 * 10**9, 15 * 10**8, 10**9]
    assert replays.budgets_of("512MB,0.5 tb,2g", shape) == [512 * 10**6, 5 * 10**11, 2 * 10**9]
    assert replays.budgets_of(None, shape) == [4 * 10**8, 10**9, 2 * 10**9]
    for wrong in ("", "x", "8GB,", "-1GB"):
        with pytest.raises(OptionError, match="--vram has"):
            replays.budgets_of(wrong, shape)


def test_graphs_answer_a_step_later(run: Run, tmp_path: Path) -> None:
    """As the engine does where steps are graphs: fewer hits for who moves, the same for who does not, and the ceiling
    stays."""
    path = tmp_path / "made.trace"
    assert run("trace", "make", "Qwen3-30B-A3B", "-o", str(path), "--tokens", "40", "--kind", "topics")[0] == 0
    names = "uniform,lru,belady"
    plain, late = (
        {row["policy"]: row for row in replayed(run, path, "--policy", names, "--vram", "25%", *more)["rows"]}
        for more in ([], ["--graphs"])
    )
    assert late["lru"]["hits"] < plain["lru"]["hits"]
    assert (late["lru"]["fetched"], late["lru"]["admitted"] > 0) == (0, True)
    assert [late[name]["hits"] for name in ("uniform", "belady")] == [
        plain[name]["hits"] for name in ("uniform", "belady")
    ]


def row_of(policy: str, budget: int, hits: int, seconds: float | None) -> Replayed:
    counts = Counts(hits=hits, on_cpu=10 - hits)
    return Replayed(policy=policy, budget=budget, passes=5, tokens=5, counts=counts, seconds=seconds)


def test_curves_are_by_policy_and_rising_size() -> None:
    rows = [row_of("lru", 30, 6, 2.0), row_of("belady", 30, 8, 1.0), row_of("lru", 10, 1, 5.0)]
    lru, best = replay_plot.curves(rows)
    assert (lru.policy, lru.budgets, lru.hits, lru.tok_s) == ("lru", (10, 30), (0.1, 0.6), (1.0, 2.5))
    assert (best.policy, best.budgets, best.hits, best.tok_s) == ("belady", (30,), (0.8,), (5.0,))
    (untimed,) = replay_plot.curves([row_of("lru", 10, 1, None), row_of("lru", 20, 1, 1.0)])
    assert untimed.tok_s is None


def test_a_picture_of_policies(run: Run, tmp_path: Path) -> None:
    """Eight sizes where none is named, and the optimum in any case."""
    pytest.importorskip("matplotlib")
    path, picture = tmp_path / "made.trace", tmp_path / "policies.svg"
    assert run("trace", "make", "Qwen3-30B-A3B", "-o", str(path), "--tokens", "3")[0] == 0
    status, out, err = run("trace", "replay", path, "--policy", "uniform", "--json", "--plot", picture)
    assert status == 0, err
    rows = json.loads(out)["rows"]
    assert [row["policy"] for row in rows] == ["uniform", "belady"] * 8
    whole = sum(reader.read(path).header.expert_bytes) * 128
    assert sorted({round(row["budget"] / whole, 3) for row in rows}) == [*replays.CURVE]
    assert "</svg>" in picture.read_text()
    picture.unlink()
    status, out, err = run("trace", "replay", path, "--policy", "lru,all-ram", "--vram", "1GB,2GB", "--plot", picture,
                           "--hardware", MACHINE)  # fmt: skip
    assert status == 0, err
    assert out.count("all-ram") == out.count("belady") - 1 == 2, "the title names it too"
    assert picture.is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--plot", "x.pdf"], "give a name that ends in .png or .svg"),
        (["--plot", "nowhere/x.png"], "there is no directory"),
        (["--plot", "x.png", "--vram", "8GB"], "--plot draws curves over the size of the memory: give several to"),
        (["--plot", "x.png", "--vram", "10%,10%"], "give several to --vram"),
    ],
)
def test_pictures_of_policies_that_cannot_be(
    options: list[str], message: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    assert run("trace", "make", "Qwen3-30B-A3B", "-o", "made.trace", "--tokens", "3")[0] == 0
    status, out, err = run("trace", "replay", "made.trace", *options)
    assert (status, out) == (1, "")
    assert message in folded(err)
    assert not (tmp_path / "x.png").exists()
