"""Whole models on a GPU: a Qwen3-30B-A3B of random weights under several placements, decode and prefill.

    python benchmarks/gpu_models.py [--device cuda|simulated] [--model NAME|config.json] [--layers N] [--json FILE]

Three parts of `gpu_suite.py` (`setups`), and a program that runs them all. Every setup runs in a process of its own,
which is killed when its time is over, so that a setup that hangs costs no other; what it had measured is kept, and what
there was no time for is named. Rates are medians over rounds by the ledger's passes, bytes a token are those that the
ledger counted, predicted is what the model says where it can say something. One more round has the clock of the tiers
on: milliseconds by tier, what ran side by side, what the GPU waited for, and the part that differs most from its
prediction. Needs headrace as it is installed, with its C++ extension; without, it says so. `--device simulated` runs
the same code with RAM in the GPU's part, which shows that it works and no speed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import gpu_child
from gpu_child import Keep, nobody
from graph_steps import GraphSteps

MODEL = "Qwen3-30B-A3B"
SECONDS, SETUP_SECONDS = 115.0, 75.0  # of a part, and of a setup of it
SMALL_CARD = 12.0  # GB that "auto" may take: about half of the model in q4_0


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A placement ("half": the experts of the first half of the layers in RAM), the experts' format, the hand-off, and
    whether a prompt copies experts early, before they are chosen."""

    placement: str
    format: str
    handoff: str = "eager"
    vram_limit: float | None = None
    early: bool = True

    @property
    def name(self) -> str:
        limit = "" if self.vram_limit is None else f", {self.vram_limit:g} GB"
        return f"{self.placement} {self.format}{limit}, {self.handoff}{'' if self.early else ', none early'}"


@dataclass(frozen=True, kw_only=True)
class Tests:
    """What is run of every setup; prompts and depth in tokens, `new` tokens a sequence."""

    prompts: tuple[int, ...] = (512, 4096)
    batches: tuple[int, ...] = (1, 4)
    new: int = 24
    depth: int = 64
    rounds: int = 1

    def named(self, name: str) -> Tests:
        """Those whose name contains `name`: "pp512" for a prompt, "tg24 batch 4" for a decode."""
        prompts = tuple(n for n in self.prompts if name in f"pp{n}")
        batches = tuple(n for n in self.batches if name in f"tg{self.new} batch {n}")
        if not prompts and not batches:
            every = [f"pp{n}" for n in self.prompts] + [f"tg{self.new} batch {n}" for n in self.batches]
            raise ValueError(f"no test is called '{name}': take a part of {', '.join(every)}")
        return replace(self, prompts=prompts, batches=batches)


def setups(handoff: str = "memop", small_card: float = SMALL_CARD) -> dict[str, list[Setup]]:
    """By part of the suite, what is most wanted first: the two ends by graphs, and what a graph must be faster than;
    the same with larger weights, by hand, and without copies of experts before they are chosen; other placements."""
    return {
        "models": [
            Setup(placement="cpu-moe", format="q4_0", handoff=handoff),
            Setup(placement="gpu", format="q4_0", handoff=handoff),
            Setup(placement="cpu-moe", format="q4_0"),
        ],
        "variants": [
            Setup(placement="gpu", format="bf16", handoff=handoff),
            Setup(placement="gpu", format="q4_0"),
            Setup(placement="cpu-moe", format="q4_0", early=False),
        ],
        "placements": [
            Setup(placement="half", format="q4_0"),
            Setup(placement="auto", format="q4_0", vram_limit=small_card),
            Setup(placement="gpu", format="bf16"),
        ],
    }


def named(chosen: list[Setup], name: str) -> list[Setup]:
    """Setups whose name contains `name`."""
    found = [setup for setup in chosen if name in setup.name]
    if not found:
        raise ValueError(f"no setup is called '{name}': take a part of {'; '.join(one.name for one in chosen)}")
    return found


def run(setup: Setup, tests: Tests, device: str, model: str, layers: int | None, keep: Keep) -> None:
    """Loads one setup and reports the load and then every test."""
    from headrace.engine.bench import bench
    from headrace.engine.bench.grid import Grid
    from headrace.engine.bench.random_weights import random_llm

    grid = Grid(
        prompt=tests.prompts or (0,), new=(tests.new if tests.batches else 0,), batch=tests.batches or (1,),
        depth=(tests.depth,), rounds=tests.rounds,
    )  # fmt: skip
    placement, start = setup.placement, time.perf_counter()
    if placement == "half":
        placement = f"n-cpu-moe={_layers(model, layers) // 2}"
    with random_llm(
        model, layers=layers, device=device, placement=placement, expert_format=setup.format, handoff=setup.handoff,
        vram_limit=setup.vram_limit, **bench.room(grid),
        prefill_chunk=max(tests.prompts, default=512),
    ) as llm:  # fmt: skip
        if not setup.early:
            tiered: Any = llm.parts.decoder.experts
            tiered.offload = replace(tiered.offload, prefetch_share=None)
        keep(_loaded(llm, time.perf_counter() - start))
        steps = GraphSteps(llm)
        for row in bench.run(llm, grid, setup.placement):
            rate = row.tok_s / row.batch
            predicted = None if row.predicted_tok_s is None else 1e3 * row.batch / row.predicted_tok_s
            keep({
                "test": row.test, "batch": row.batch, "tok_s": row.tok_s, "rounds": row.rounds, "ms": 1e3 / rate,
                "predicted_ms": predicted, "residual_ms": None if predicted is None else 1e3 / rate - predicted,
                "tiers": None if row.tiers is None else _of_a_step(asdict(row.tiers), row.batch),
                "bytes_per_token": row.bytes_per_token, "graph_steps": steps.count, **_peaks(llm.parts.main.is_cuda),
            })  # fmt: skip
            steps.count = 0


def _layers(model: str, layers: int | None) -> int:
    """Layers that will run."""
    from headrace.loaders.weights import imagined
    from headrace.loaders.weights.checkpoint import LoadOptions

    whole = len(imagined.imagine(model, LoadOptions()).spec.layers)
    return whole if layers is None else min(layers, whole)


def _loaded(llm: Any, seconds: float) -> dict[str, Any]:
    """What the start-up table says, in short."""
    from headrace.engine.bench.random_weights import whole_spec

    report = None if llm.parts.expert_arena is None else llm.parts.expert_arena.report
    return {
        "load_s": seconds,
        "layers": len(llm.spec.layers),
        "whole_layers": len(whole_spec(llm).layers),
        "placement": llm.parts.placement.name,
        "handoff": asdict(llm.parts.signal_choice) if llm.parts.signal_choice else None,
        "needs": {tier.value: memory.needed for tier, memory in llm.parts.memory_plan.memory.items()},
        "pinned": None if report is None else asdict(report),
    }


def _peaks(is_cuda: bool) -> dict[str, float]:
    """Most memory that was taken so far, in GB. Of RAM what Linux says of this process: the maximum that getrusage has
    begins with what the parent took."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    found = {"peak_ram_gb": peak * 1024 / 1e9}
    if is_cuda:
        import torch

        found["peak_vram_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def _of_a_step(per_token: dict[str, Any], batch: int) -> dict[str, Any]:
    """Milliseconds of a token as those of a step of so many sequences, like the row's own."""

    def scaled(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: batch * one for name, one in value.items()}
        return batch * value if isinstance(value, float) else value

    return {name: scaled(value) for name, value in per_token.items()}


def measure(
    device: str,
    *,
    model: str = MODEL,
    layers: int | None = None,
    tests: Tests | None = None,
    chosen: list[Setup] | None = None,
    seconds: float = SECONDS,
    keep: Keep = nobody,
) -> dict[str, Any]:
    """All setups: rows by name, and what went wrong; {"skipped": why} where the extension is missing. `keep` gets the
    same after every row."""
    try:
        from headrace.engine.bench import bench  # noqa: F401
    except ImportError as error:
        return {"skipped": f"headrace is not installed with its C++ extension ({error}): pip install ."}
    end = time.perf_counter() + seconds
    found: dict[str, Any] = {"model": model, "device": device, "setups": {}}
    every = [setup for part in setups().values() for setup in part] if chosen is None else chosen
    for setup in every:
        one = found["setups"][setup.name] = {"graphs": setup.handoff != "eager", "loaded": {}, "rows": []}
        left = min(end - time.perf_counter(), SETUP_SECONDS)
        if left < 1:
            one["problem"] = f"not run: the {seconds:g} s of this part were over"
        else:
            task = {"setup": asdict(setup), "tests": asdict(tests or Tests()), "device": device, "model": model,
                    "layers": layers}  # fmt: skip
            one |= _child(task, left, one, lambda: keep(found))
        keep(found)
        print("\n".join(lines(setup.name, one)), flush=True)
    return found


def _child(task: dict[str, Any], seconds: float, into: dict[str, Any], changed: Callable[[], None]) -> dict[str, Any]:
    """One setup in a process of its own: fills `into` as it goes; what went wrong."""

    def add(value: Any) -> None:
        if into["loaded"]:
            into["rows"].append(value)
        else:
            into["loaded"] = value
        changed()

    return gpu_child.run([sys.executable, str(Path(__file__).resolve()), "--task", json.dumps(task)], add, seconds)


def lines(name: str, found: dict[str, Any]) -> list[str]:
    """Lines for the screen."""
    told = []
    for row in found.get("rows", []):
        parts = ", ".join(f"{tier} {groups['total'] / 1e6:.1f} MB" for tier, groups in row["bytes_per_token"].items())
        predicted = "-" if row["predicted_ms"] is None else f"{row['predicted_ms']:.2f}"
        told.append(
            f"  {name:28} {row['test']:7} batch {row['batch']:<3} {row['tok_s']:9.1f} tok/s  {row['ms']:8.2f} ms, "
            f"predicted {predicted}  {parts}"
        )
        told += _tier_lines(row.get("tiers"))
    if "problem" in found:
        told.append(f"  {name:28} FAILED: {found['problem']}")
    return told


def _tier_lines(tiers: dict[str, Any] | None) -> list[str]:
    """Where the time went, of the round with the clock on."""
    if tiers is None:
        return []
    predicted = tiers["predicted_time_ms"] or {}
    parts = [f"{tier} {ms:.2f}" + (f" ({predicted[tier]:.2f})" if tier in predicted else "")
             for tier, ms in tiers["time_ms"].items()]  # fmt: skip
    parts += [f"side by side {tiers['overlap_ms']:.2f}", f"idle {tiers['idle_ms']:.2f}"]
    waits = "".join(f", GPU waits {ms:.2f} for {tier}" for tier, ms in tiers["wait_ms"].items())
    cause = "" if tiers["cause"] is None else f"; differs most: {tiers['cause']}"
    return [f"    {tiers['measured_ms']:.2f} ms with the clock on: {', '.join(parts)}{waits}{cause}"]


def show(found: dict[str, Any]) -> list[str]:
    """A line for the screen, behind those of the setups."""
    return [f"{found['model']}: {len(found['setups'])} setups"]


def failures(found: dict[str, Any]) -> list[str]:
    """Setups that did not end well, and decodes by graphs in which no graph ran."""
    wrong = []
    for name, one in found.get("setups", {}).items():
        if "problem" in one:
            wrong.append(f"{name}: {one['problem']}")
        by_hand = [row for row in one["rows"] if row["test"].startswith("tg") and not row["graph_steps"]]
        if by_hand and one["graphs"]:
            wrong.append(f"{name}: no graph ran in {by_hand[0]['test']} with a batch of {by_hand[0]['batch']}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or simulated")
    parser.add_argument("--model", default=MODEL, help="a name of the catalogue, a hub id or a config.json")
    parser.add_argument("--layers", type=int, help="so many layers only")
    parser.add_argument("--seconds", type=float, default=3 * SECONDS, help="time of all setups together")
    parser.add_argument("--json", type=Path, help="where the result goes")
    parser.add_argument("--task", help=argparse.SUPPRESS)  # one setup, in a child
    parser.add_argument("--report", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        task = json.loads(args.task)
        setup, tests = Setup(**task.pop("setup")), task.pop("tests")
        tests = Tests(**{name: tuple(value) if isinstance(value, list) else value for name, value in tests.items()})
        run(setup, tests, **task, keep=gpu_child.reporter(args.report))
        return 0
    found = measure(args.device, model=args.model, layers=args.layers, seconds=args.seconds)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    print(found.get("skipped", ""))
    return 1 if failures(found) or "skipped" in found else 0


if __name__ == "__main__":
    sys.exit(main())
