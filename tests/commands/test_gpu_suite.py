"""The parts of `benchmarks/gpu_suite.py` that need no GPU: what it says without one, its checks, its rows' bytes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from busy import HANG_S

pytest.importorskip("triton", reason="the GPU kernels need Triton", exc_type=ImportError)
import gpu_handoff
import gpu_measure
import gpu_models
import gpu_rows
import gpu_same
import gpu_suite

from headrace import MemoryNeeded
from headrace.engine.bandwidth_model.profile import Profile, hardware_key, load_profile
from headrace.engine.bench import calibrate
from headrace.engine.cuda_graphs import signals
from headrace.kernels import FORMATS, gpu
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu_suite.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANG_S)
    assert done.returncode == 2
    assert "measures kernels on an NVIDIA GPU" in done.stderr
    assert "make test" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_checkout_is_enough() -> None:
    """Where headrace is not installed, importing `gpu_suite` makes the kernels importable, without the extension."""
    code = f"""
import sys
sys.meta_path = [f for f in sys.meta_path if "ScikitBuild" not in type(f).__name__]
sys.path.insert(0, {str(BENCHMARKS)!r})
import gpu_suite
from headrace.kernels import load
print(load("gpu").__file__, "headrace.kernels._cpu" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=HANG_S)
    assert done.stdout.split() == [
        str(BENCHMARKS.parent / "src/headrace/kernels/gpu/__init__.py"),
        "False",
    ]


def test_a_view_stays_a_view_on_the_device() -> None:
    heads = torch.arange(60.0).view(3, 5, 4)[:, 1:3]
    assert torch.equal(gpu_suite.to(heads, CPU), heads)
    assert gpu_suite.to([heads], torch.device("meta"))[0].stride() == heads.stride() == (20, 4, 1)


def test_a_block_moves_with_all_its_parts() -> None:
    inputs = next(c for c in CASES if c.op == "attention_block").inputs()
    block, places = (gpu_suite.to(inputs[name], torch.device("meta")) for name in ("block", "places"))
    moved = (block.pre_norm, block.qkv.data, block.router.matrix.data, block.k_PGBd, places.slots_T)
    assert {tensor.device.type for tensor in moved} == {"meta"}
    assert block.qkv.format == inputs["block"].qkv.format


def test_real_shapes_are_among_the_cases() -> None:
    names = [f"{c.op} {c.name}" for c in gpu_suite.chosen_cases("") if c.bench]
    assert sorted(names) == sorted(gpu_suite.LARGE)


def test_checks_find_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = [c for c in CASES if c.name in ("q4_0 3x7x96 bias", "5x160") and c.op in ("linear", "rmsnorm", "silu_mul")]
    assert len(chosen) == 3
    assert gpu_suite.checks(gpu, CPU, chosen) == {"cases": 3, "failures": []}  # type: ignore[arg-type]
    wrong = SimpleNamespace(
        linear=lambda x, w, b: gpu.linear(x, w, b) * 1.05, rmsnorm=gpu.rmsnorm, silu_mul=lambda x: 1 / 0
    )
    failures = gpu_suite.checks(wrong, CPU, chosen)["failures"]  # type: ignore[arg-type]
    assert [text.split(":")[0].split(",")[0] for text in failures] == ["silu_mul 5x160", "linear q4_0 3x7x96 bias"]
    assert "WRONG" in capsys.readouterr().out


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
    assert [line.split()[0] for line in lines] == ["hand-off"] * 3 + ["pinned"]


def test_without_a_driver_the_hand_off_says_why() -> None:
    found = gpu_handoff.measure(0, "libno-such-driver.so.1")
    assert "no NVIDIA driver" in found["memop"]["problem"]
    assert "no hand-off between GPU and CPU works here" in found["problem"]
    assert len(gpu_handoff.show(found)) == 4
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


def test_placements_are_held_against_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a simulated GPU all ways say the same; a placement that computes something else is found."""
    tiny = {**catalogue.find("Qwen3-30B-A3B").config, "hidden_size": 64, "num_experts": 8, "head_dim": 16,
            "num_attention_heads": 4, "num_key_value_heads": 2, "moe_intermediate_size": 32, "intermediate_size": 64,
            "vocab_size": 1024}  # fmt: skip
    monkeypatch.setattr(gpu_same, "SHAPE", tiny)
    monkeypatch.setattr(gpu_same, "STEPS", 12)
    found = gpu_same.measure("simulated")
    assert set(found["tokens"]) == set(found["logits"]) == set(gpu_same.WAYS)
    assert gpu_same.failures(found) == []
    assert 0 < gpu_same.allowed(2) < 0.05
    assert gpu_same.show(found)[0].endswith("0 wrong")


def test_a_way_that_fails_costs_no_other() -> None:
    """Whatever was raised: Triton's errors share no base with torch's."""

    def run(options: dict[str, Any]) -> int:
        if options.get("placement") == "gpu":
            raise AssertionError("int32, not float32")
        return 7

    found = gpu_same.by_way(run)
    assert found.pop("all on the GPU") == "AssertionError: int32, not float32"
    assert set(found.values()) == {7}


def test_what_is_not_the_same_is_named() -> None:
    assert gpu_same.differs([1, 2, 3], [1, 2, 4]) == 2
    assert gpu_same.differs([1, 2], [1, 2]) is None
    first = torch.ones(3, 4)
    assert gpu_same.distance(first, first * torch.tensor([[1.5], [1.1], [1.0]])) == pytest.approx(0.1)
    found = {"tokens": {"a": None, "b": 7, "c": "DeviceError: gone"}, "logits": {"a": 0.0, "b": 0.2, "c": float("nan")},
             "allowed": 0.1}  # fmt: skip
    assert gpu_same.failures(found) == [
        "demo, b: another token at step 7", "demo, c: DeviceError: gone",
        "Qwen3-30B-A3B, b: logits off by 20.00%", "Qwen3-30B-A3B, c: logits off by nan%",
    ]  # fmt: skip
    assert len(gpu_same.show(found)) == 5
    assert gpu_same.show({"skipped": "not built"}) == ["same: not built"]
    assert gpu_same.failures({"skipped": "not built"}) == []


def test_a_line_of_the_table_says_what_was_not_reached() -> None:
    row = {"row": "attention", "us": 14.0, "share": 0.7, "bound": "bytes", "wanted": 0.75}
    assert gpu_suite.show(row).endswith("70.0% of copy  wanted 75%: NOT REACHED")
    assert gpu_suite.show({**row, "share": 0.8}).endswith("wanted 75%")


FEW = gpu_models.Tests(prompts=(5, 9), batches=(1, 2), new=3, depth=4, rounds=1)


def test_every_setup_of_the_models_runs(built: Any, tmp_path: Path) -> None:
    """The same code with RAM in the GPU's part and a tiny shape: a line for the load and for every test, its bytes."""
    model = str(built.directory("qwen3_moe") / "config.json")
    placements = []
    for number, setup in enumerate(gpu_models.setups(handoff="eager", small_card=0.002)):
        into = tmp_path / f"{number}.jsonl"
        gpu_models.run(setup, FEW, "simulated", model, None, into)
        loaded, *rows = map(json.loads, into.read_text().splitlines())
        placements.append(loaded["placement"])
        assert loaded["layers"] == loaded["whole_layers"]
        assert loaded["handoff"]["name"] == "eager"
        assert [(row["test"], row["batch"]) for row in rows] == [("pp5", 1), ("pp9", 1), ("tg3", 1), ("tg3", 2)]
        assert all(row["ms"] > 0 and row["peak_ram_gb"] > 0 for row in rows)
        assert all(row["tiers"]["time_ms"]["gpu_hbm"] > 0 for row in rows)
        assert all(row["residual_ms"] is None and row["tiers"]["cause"] is None for row in rows), "no rates"
        told = gpu_models.show(setup.name, {"rows": rows})
        assert sum("ms with the clock on: " in line for line in told) == len(rows)
        in_ram = [row["bytes_per_token"].get("cpu_dram", {}).get("experts", 0) for row in rows]
        assert all(in_ram) if loaded["pinned"] else not any(in_ram)
    assert placements[:3] == ["gpu", "gpu", "cpu-moe"]
    assert placements[3].startswith("n-cpu-moe=")


def test_a_setup_that_fails_costs_no_other(built: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """In processes of their own: one ends well, one has no such hand-off, for one there is no time."""
    model = str(built.directory("qwen3_moe") / "config.json")
    works, fails = (gpu_models.Setup(placement="cpu-moe", format="bf16", handoff=name) for name in ("eager", "memop"))
    found = gpu_models.measure("simulated", model=model, layers=1, tests=FEW, chosen=[works, fails], seconds=300)
    assert len(found["setups"][works.name]["rows"]) == 4
    assert "take handoff 'eager'" in found["setups"][fails.name]["problem"]
    assert gpu_models.problems(found) == [f"{fails.name}: {found['setups'][fails.name]['problem']}"]
    late = gpu_models.measure("simulated", model=model, chosen=[works], seconds=0)
    assert "not run" in late["setups"][works.name]["problem"]
    out = capsys.readouterr().out
    assert "tg3" in out
    assert "FAILED" in out
