"""The parts of `benchmarks/gpu_suite.py` as far as they need no GPU: checks, rows and their bytes, questions, ways,
setups. How the suite runs them stands in `test_gpu_suite_runs.py`."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from busy import HANG_S

pytest.importorskip("triton", reason="the GPU kernels need Triton", exc_type=ImportError)
import gpu_checks
import gpu_handoff
import gpu_measure
import gpu_micro
import gpu_profile
import gpu_rows
import gpu_same
import gpu_table
import stand_in_gpu
import team_pauses

from headrace import MemoryNeeded
from headrace.engine.bandwidth_model.profile import Profile, hardware_key, load_profile
from headrace.engine.bench import calibrate
from headrace.engine.cuda_graphs import saved_trials, signals, verify
from headrace.kernels import FORMATS, gpu, reference
from headrace.kernels.cases.all import CASES
from headrace.kernels.context import Context
from headrace.loaders.architecture import catalogue

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CPU = torch.device("cpu")
TINY = gpu_rows.Model(
    hidden=64, width=32, experts=8, top_k=2, heads=4, kv_heads=2, head_dim=16, vocabulary=100
)  # fmt: skip


@pytest.fixture
def source() -> gpu_rows.GpuSource:
    return gpu_rows.GpuSource(torch.Generator().manual_seed(3))


def test_a_view_stays_a_view_on_the_device() -> None:
    heads = torch.arange(60.0).view(3, 5, 4)[:, 1:3]
    assert torch.equal(gpu_checks.to(heads, CPU), heads)
    assert gpu_checks.to([heads], torch.device("meta"))[0].stride() == heads.stride() == (20, 4, 1)


def test_a_block_moves_with_all_its_parts() -> None:
    inputs = next(c for c in CASES if c.op == "attention_block").inputs()
    block, places = (gpu_checks.to(inputs[name], torch.device("meta")) for name in ("block", "places"))
    moved = (block.pre_norm, block.qkv.parts[0].data, block.router.matrix.data, block.k_PGBd, places.slots_T)
    assert {tensor.device.type for tensor in moved} == {"meta"}
    assert block.qkv.parts[0].format == inputs["block"].qkv.parts[0].format


def test_real_shapes_are_among_the_cases() -> None:
    names = [f"{c.op} {c.name}" for c in gpu_checks.named("") if c.bench]
    assert sorted(names) == sorted(gpu_checks.LARGE)
    more = gpu_checks.named("families")
    assert sorted(f"{c.op} {c.name}" for c in more if c.bench) == sorted(gpu_checks.LARGE_OF_FAMILIES)
    assert {"route", "experts", "attention", "delta_rule", "short_conv", "rotate_", "linear_by_head"} <= {
        c.op for c in more if not c.bench
    }


def test_checks_find_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = [c for c in CASES if c.name in ("q4_0 3x7x96 bias", "5x160") and c.op in ("linear", "rmsnorm", "glu")]
    assert len(chosen) == 3
    assert gpu_checks.checks(gpu, CPU, chosen) == {"cases": 3, "of": 3, "failures": []}  # type: ignore[arg-type]
    wrong = SimpleNamespace(linear=lambda x, w, b: gpu.linear(x, w, b) * 1.05, rmsnorm=gpu.rmsnorm, glu=lambda x: 1 / 0)
    kept: list[Any] = []
    failures = gpu_checks.checks(wrong, CPU, chosen, kept.append)["failures"]  # type: ignore[arg-type]
    assert [text.split(":")[0].split(",")[0] for text in failures] == ["glu 5x160", "linear q4_0 3x7x96 bias"]
    assert "WRONG" in capsys.readouterr().out
    assert [one["cases"] for one in kept] == [2, 3], "a report for each case that is wrong"


def test_activations_of_one_token_may_be_rounded_to_bf16() -> None:
    """On tensor cores, as those of several."""
    chosen = [c for c in CASES if c.op == "linear" and not c.bench and c.name.startswith(("bf16 1x", "q4_0 1x"))]
    assert chosen
    rounding = SimpleNamespace(linear=lambda x, w, b: reference.linear(x.bfloat16().float(), w, b))
    assert gpu_checks.checks(rounding, CPU, chosen)["failures"] == []  # type: ignore[arg-type]


def test_rows_count_what_must_be_read(source: gpu_rows.GpuSource) -> None:
    """Bytes by hand: q4_0 rows of 64 are 16 + 32 bytes, of 32 they are 16 + 16."""
    expert = 2 * 32 * 48 + 64 * 32
    rows = list(gpu_rows.expert_rows(gpu, source, TINY, FORMATS["q4_0"], [1, 512]))  # type: ignore[arg-type]
    assert [row.bytes for row in rows] == [2 * expert, 8 * expert]
    assert [row.flops for row in rows] == [6 * 2 * 64 * 32, 512 * 6 * 2 * 64 * 32]
    assert [row.bound for row in rows] == ["bytes", "flops"]
    linear = next(gpu_rows.linear_rows(gpu, source, TINY, FORMATS["q4_0"]))  # type: ignore[arg-type]
    assert linear.bytes == 8 * 16 * 48
    decode, prompt = gpu_rows.attention_rows(gpu, source, TINY, [70], 40, cold=0)  # type: ignore[arg-type]
    assert decode.bytes == 2 * 70 * 2 * 16 * 2
    assert prompt.flops == 4 * (40 * 41 // 2) * 4 * 16


def test_calls_of_a_row_run(source: gpu_rows.GpuSource) -> None:
    for row in (
        *gpu_rows.expert_rows(gpu, source, TINY, FORMATS["q8_0"], [1, 4]),  # type: ignore[arg-type]
        *gpu_rows.attention_rows(gpu, source, TINY, [70], 40, cold=0),  # type: ignore[arg-type]
        *gpu_rows.small_rows(gpu, source, TINY),  # type: ignore[arg-type]
    ):
        row.calls[0]()


def test_a_group_without_weights_and_a_row_that_fails_cost_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is raised while weights are made ends its group alone; what was found is reported after every row."""

    def timed(row: gpu_rows.Row, ceilings: Any, rounds: int) -> dict[str, Any]:
        if row.name == "experts b":
            raise ValueError("Pointer argument cannot be accessed")
        return {"row": row.name, "us": 1.0}

    def broken() -> Iterator[gpu_rows.Row]:
        yield gpu_rows.Row(name="experts c", calls=[])
        raise torch.OutOfMemoryError("no room for a bank")

    monkeypatch.setattr(gpu_table, "Ceilings", lambda device: None)
    monkeypatch.setattr(gpu_table, "timed", timed)
    groups = [
        gpu_rows.Group("experts", lambda: iter([gpu_rows.Row(name=f"experts {n}", calls=[]) for n in "ab"])),
        gpu_rows.Group("experts", broken),
        gpu_rows.Group("argmax", lambda: iter([gpu_rows.Row(name="argmax", calls=[])])),
    ]
    kept: list[int] = []
    found = gpu_table.table(groups, CPU, 1, "", lambda one: kept.append(len(one["rows"])))
    assert kept == [1, 2, 3, 4, 5]
    assert gpu_table.failures(found) == [
        "experts b: ValueError: Pointer argument cannot be accessed", "experts: OutOfMemoryError: no room for a bank",
    ]  # fmt: skip
    assert "raise ValueError" in "\n".join(found["rows"][1]["traceback"])


def test_groups_that_hold_no_wanted_row_are_not_made(source: gpu_rows.GpuSource) -> None:
    """A name that begins as rows of one kind leaves the others out; any other may be anywhere."""
    every = list(gpu_rows.groups(gpu, source, TINY, None))  # type: ignore[arg-type]
    assert [g.name for g in every if g.may_have("experts bf16")] == ["experts bf16"]
    assert [g.name for g in every if g.may_have("attention 4/2 heads")] == ["attention"]
    assert len([g for g in every if g.may_have("16 tokens")]) == len(every) == 8
    row = next(iter(every[0].rows()))
    assert row.name.startswith(every[0].name)
    assert every[0].may_have(row.name)


# Questions


def test_questions_are_answered_each_by_itself() -> None:
    """Without a GPU those that need one say so, each in a process of its own, and cost no other."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    kept: list[list[str]] = []
    found = gpu_micro.measure(["across", "eager"], lambda found: kept.append(list(found)), HANG_S)
    assert kept == [["across"], ["across", "eager"]]
    assert all("CUDA" in line or "driver" in line for line in gpu_micro.failures(found)), found
    assert [line.split(":")[0] for line in gpu_micro.failures(found)] == ["across", "eager"]
    assert "Traceback" in "\n".join(found["eager"]["stderr"])


def test_a_question_that_ends_its_process_costs_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that answers nothing and dies, or hangs, is answered by that; those behind it are asked again."""
    program = tmp_path / "questions.py"
    program.write_text(
        "import json, os, sys, time\n"
        "*names, _, fd = sys.argv[1:]\n"
        "for name in names:\n"
        "    if name == 'dies':\n"
        "        sys.exit('the context is broken')\n"
        "    if name == 'hangs':\n"
        "        time.sleep(3600)\n"
        "    os.write(int(fd), json.dumps({name: {'right': True}}).encode() + b'\\n')\n"
    )
    monkeypatch.setattr(gpu_micro, "__file__", str(program))
    found = gpu_micro.measure(["one", "dies", "two", "hangs", "three"], seconds=3.0)
    assert [name for name, answer in found.items() if answer == {"right": True}] == ["one", "two", "three"]
    assert found["dies"]["problem"] == "the context is broken"
    assert found["hangs"]["problem"].startswith("killed after")


def test_what_needs_no_gpu_is_answered_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_micro, "TAKEN", 64 << 20)
    found = gpu_micro.memory()
    assert found["taken_gib"] == 64 / 1024
    assert 0 < found["with_it_gib"]["MemAvailable"] <= found["before_gib"]["MemTotal"]
    took = team_pauses.measure(Context(threads=2), 3)
    table = team_pauses.table(took)["sides"]
    assert set(table) == {"in a step", "asleep"}
    assert all(row["median_us"] > 0 for row in table["asleep"].values())
    assert table["asleep"][400]["slept"] > 0


def test_kernels_of_the_questions_are_right() -> None:
    x, host = torch.arange(32.0), torch.full((32,), 2.0)
    gpu_micro.add_one[(1,)](x, N=32)
    gpu_micro.add_host[(2,)](host, x, N=16)
    assert torch.equal(x, torch.arange(32.0) + 3)


def test_a_dependent_launch_is_compiled() -> None:
    """The kernel waits for the one before it, and lets the next one begin; in a process without the interpreter."""
    code = """
import gpu_micro
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
source = ASTSource(gpu_micro.add_one_early, {"x_ptr": "*fp32", "N": "constexpr"}, {"N": 2048})
text = compile(source, target=GPUTarget("cuda", 90, 32), options={"launch_pdl": True}).asm["ptx"]
print(text.count("griddepcontrol.wait"), text.count("griddepcontrol.launch_dependents"))
"""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**env, "PYTHONPATH": str(BENCHMARKS)}, capture_output=True, text=True,
        check=False, timeout=HANG_S,
    )  # fmt: skip
    assert done.stdout.split() == ["1", "1"], done.stderr


def test_the_hand_off_is_measured_through_a_driver(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a driver without a GPU: every way has a time, one is chosen, memory is pinned; and the lines say so."""
    monkeypatch.setattr(gpu_handoff, "LAYERS", 4)
    monkeypatch.setattr(signals, "probe", partial(signals.probe, stage=HANG_S))
    found = gpu_handoff.measure(0, library)
    assert all(found[name]["us"] > 0 for name in ("memop", "hostfunc", "eager")), found
    assert found["choice"]["name"] in ("memop", "hostfunc")
    attributes = {"mem_ops_64": 1, "host_register": 1, "host_pointer_is_device_pointer": 0}
    assert found["driver"] == {"cuda": (13, 1), **attributes}
    assert found["pinning"]["pinned"] == found["pinning"]["bytes"] == 256 << 20
    lines = gpu_handoff.show(found)
    assert [line.split()[0] for line in lines] == ["hand-off"] * 4 + ["pinned"]


def test_without_a_driver_the_hand_off_says_why() -> None:
    found = gpu_handoff.measure(0, "libno-such-driver.so.1")
    assert "no NVIDIA driver" in found["memop"]["problem"]
    assert "no hand-off between GPU and CPU works here" in found["problem"]
    assert len(gpu_handoff.show(found)) == 5
    assert gpu_handoff.show({"skipped": "not built"}) == ["hand-off: not built"]


def test_the_machine_is_measured_and_kept(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates alone and together are in the result, and in the profile that the models' part finds."""
    both = {"experts q4_0": 2e9, "gpu0 h2d pinned": 4e9, "experts q4_0 alone": 3e9, "gpu0 h2d pinned alone": 5e9}
    pair = {"experts q4_0 + gpu0 h2d pinned": both}
    made = dataclasses.replace(
        profile, key=hardware_key(Context()), copies={"gpu0 hbm": 7e9}, together=pair, notes=["a note"]
    )

    def measured(context: Context, quick: bool) -> Profile:
        torch.set_num_threads(1)
        return made

    monkeypatch.setattr(calibrate, "measure", measured)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    found = gpu_measure.measure()
    assert torch.get_num_threads() == 3
    torch.set_num_threads(threads)
    assert json.loads(json.dumps(found))["together"] == pair
    assert load_profile(Context()) == made
    lines = "\n".join(gpu_measure.show(found))
    for words in ("10.0 q4_0", "7.0 gpu0 hbm", "experts q4_0 2.0 of 3.0 alone", "a note"):
        assert words in lines


def test_a_machine_that_cannot_be_measured_says_why(
    profile: Profile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(context: Context, quick: bool) -> Profile:
        raise MemoryNeeded("close something")

    monkeypatch.setattr(calibrate, "measure", refused)
    assert gpu_measure.measure() == {"problem": "close something"}
    assert gpu_measure.show({"problem": "close something"}) == ["measure: close something"]
    assert gpu_measure.show({"skipped": "not built"}) == ["measure: not built"]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(calibrate, "measure", lambda context, quick: profile)
    found = gpu_measure.measure()
    assert "not saved: Not a directory" in found["problem"]
    assert found["stream"] == 1e10


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shape and an answer that take no time."""
    config = {**catalogue.find("Qwen3-30B-A3B").config, "hidden_size": 64, "num_experts": 8, "head_dim": 16,
              "num_attention_heads": 4, "num_key_value_heads": 2, "moe_intermediate_size": 32,
              "intermediate_size": 64, "vocab_size": 1024}  # fmt: skip
    monkeypatch.setattr(gpu_same, "SHAPE", config)
    monkeypatch.setattr(gpu_same, "STEPS", 12)


def test_placements_are_held_against_each_other(tiny: None) -> None:
    """On a simulated GPU all ways say the same, and those that are to be graphs fail, since none ran."""
    kept: list[int] = []
    found = gpu_same.measure("simulated", keep=lambda found: kept.append(len(found["tokens"]) + len(found["logits"])))
    assert set(found["tokens"]) == set(gpu_same.WAYS)
    assert set(found["logits"]) == {way for way in gpu_same.WAYS if not gpu_same.by_graphs(way)}
    assert kept == list(range(1, 14))
    wrong = gpu_same.failures(found)
    assert [line.split(":")[0] for line in wrong] == [f"demo, {way}" for way in gpu_same.WAYS if "graphs" in way]
    assert all("no graph ran (eager, " in line for line in wrong)
    assert 0 < gpu_same.allowed(2) < 0.05
    assert gpu_same.show(found)[0].endswith("3 wrong")


def test_graphs_that_ran_are_counted(tiny: None, library: str, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a driver without a GPU, with steps that are faster as graphs; then with those that are slower."""
    stand_in_gpu.install(monkeypatch, library)
    works = {name: signals.Trial(name=name, us=5.0 + (name == "spin")) for name in signals.VARIANTS}
    monkeypatch.setattr(signals, "probe", lambda *_: works)
    times = itertools.cycle([0.004, 0.003])
    monkeypatch.setattr(verify, "_seconds", lambda step, number: (step(number), next(times))[1])
    found = gpu_same.measure("simulated", name="in RAM, graphs")
    assert found["graph_steps"] == {"experts in RAM, graphs": 11}
    assert gpu_same.failures(found) == []
    found["graph_steps"]["experts in RAM, graphs"] = 4
    assert gpu_same.failures(found) == ["demo, experts in RAM, graphs: 4 of 11 steps were graphs"]
    saved_trials.path().unlink(missing_ok=True)
    slower = itertools.cycle([0.003, 0.004])
    monkeypatch.setattr(verify, "_seconds", lambda step, number: (step(number), next(slower))[1])
    found = gpu_same.measure("simulated", name="in RAM, graphs")
    assert "no graph ran (eager, memop was tried, and as a graph it is no faster" in gpu_same.failures(found)[0]


def test_a_way_that_fails_costs_no_other() -> None:
    """Whatever was raised: Triton's errors share no base with torch's."""

    def run(options: dict[str, Any]) -> int:
        if options.get("placement") == "gpu":
            raise AssertionError("int32, not float32")
        return 7

    found = dict(gpu_same.each_way(gpu_same.WAYS, run))
    assert found.pop("all on the GPU") == found.pop("all on the GPU, graphs") == "AssertionError: int32, not float32"
    assert set(found.values()) == {7}


def test_another_token_is_weighed_on_the_cpu() -> None:
    """Behind the demo's prompt: at step 9 two tokens are 0.002 logits apart, at step 5 the second is far behind."""
    first = [272, 260, 291, 482, 12, 270, 260, 291, 567, 83]
    assert gpu_same.parting(first, first) is None
    near, far = gpu_same.parting(first, [*first[:9], 272]), gpu_same.parting(first, [*first[:5], 391, *first[6:]])
    assert near is not None
    assert (near["step"], near["near_tie"]) == (9, True)
    assert far is not None
    assert (far["step"], far["near_tie"]) == (5, False)
    assert far["lead"] > 1


def traced(ts: float, dur: float, name: str, correlation: int, cat: str = "kernel", **args: Any) -> dict[str, Any]:
    return {"cat": cat, "name": name, "ts": ts, "dur": dur, "args": {"correlation": correlation, **args}}


def test_a_profile_has_the_kernels_of_each_launch_of_a_graph() -> None:
    """Two launches of a graph, out of order, beside a kernel that no graph launched and an event of the host."""
    shape = {"grid": [4, 1, 1], "block": [64, 1, 1]}
    events = [traced(0, 5, "cudaGraphLaunch", 1, "cuda_runtime"), traced(50, 5, "cudaGraphLaunch", 2, "cuda_runtime"),
              traced(60, 3.0, "_down", 2, **shape), traced(10, 1.0, "_down", 1, **shape), traced(8, 2.0, "_route", 1),
              traced(13, 4.0, "Memcpy DtoH", 1, "gpu_memcpy"), traced(70, 9.0, "_route", 7),
              {"ph": "M", "name": "process_name"}]  # fmt: skip
    found = gpu_profile.rows(gpu_profile._replays(events))
    assert (found["steps"], found["span_ms"], found["busy_ms"]) == (2, pytest.approx(0.006), pytest.approx(0.005))
    assert found["kernels"][0] == {"kernel": "_down 4x1x1 of 64", "count": 1.0, "us": 2.0, "us_of_a_step": 2.0}
    assert [row["count"] for row in found["kernels"]] == [1.0, 0.5, 0.5]
    whole = {"layers": 3, "setups": {"gpu": {"tg": found, "pp": gpu_profile.rows([])}}}
    assert gpu_profile.failures(whole) == ["gpu, pp: no graph was launched"]
    assert gpu_profile.show(whole)[0] == "gpu, 3 layers, tg: 0.006 ms, at work 0.005, 2 launches"


def test_what_is_not_the_same_is_named() -> None:
    assert gpu_same.differs([1, 2, 3], [1, 2, 4]) == 2
    assert gpu_same.differs([1, 2], [1, 2]) is None
    first = torch.ones(3, 4)
    assert gpu_same.distance(first, first * torch.tensor([[1.5], [1.1], [1.0]])) == pytest.approx(0.1)
    parted = {"step": 7, "lead": 1.5, "allowed": 0.25, "near_tie": False}
    tokens = {"a": None, "b": parted, "c": "DeviceError: gone", "d": {**parted, "lead": 0.1, "near_tie": True}}
    found = {"tokens": tokens, "logits": {"a": 0.0, "b": 0.2, "c": float("nan")},
             "allowed": 0.1, "graph_steps": {"a": 63, "b": "", "c": ""}}  # fmt: skip
    assert gpu_same.failures(found) == [
        "demo, b: another token at step 7, +1.500 logits apart, where roundings explain 0.250",
        "demo, c: DeviceError: gone", "demo, b: no graph ran",
        "Qwen3-30B-A3B, b: logits off by 20.00%", "Qwen3-30B-A3B, c: logits off by nan%",
    ]  # fmt: skip
    assert len(gpu_same.show(found)) == 6
    assert gpu_same.show({"skipped": "not built"}) == ["same: not built"]
    assert gpu_same.failures({"skipped": "not built"}) == []
    with pytest.raises(ValueError, match="no way is called 'tape': take a part of all on the GPU;"):
        gpu_same.chosen("tape")


def test_a_line_of_the_table_says_what_was_not_reached() -> None:
    row = {"row": "attention", "us": 14.0, "share": 0.7, "bound": "bytes", "wanted": 0.75}
    assert gpu_table.line(row).endswith("70.0% of copy  wanted 75%: NOT REACHED")
    assert gpu_table.line({**row, "share": 0.8}).endswith("wanted 75%")
