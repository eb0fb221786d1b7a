"""Which kernels of a GPU a step of a whole model takes, and how long each: where a decode step's time goes.

    python benchmarks/gpu_profile.py [--placement gpu] [--format q4_0] [--layers N] [--batches 1 4] [--prompts 4096]

torch's profiler watches the device while the model of `gpu_models.py` decodes by graphs, and while it takes a prompt.
Launches of one kernel with one grid are one row: how many a step has, microseconds of each, and of the step. What is
left of a step's span are gaps, in which the device did nothing. The profiler costs every launch something, so that a
step takes longer here than in `gpu_models.py`; shares are what counts. A part of `gpu_suite.py`, and a program.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gpu_child import Keep, nobody
from gpu_models import MODEL, Setup, Tests, setups

LAYERS = 12  # enough for every kind of layer, and little to load
STEPS = 8  # that are watched
SHOWN = 24  # kernels of a test on the screen
DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")  # kinds of events of a trace that take the device's time

Event = dict[str, Any]


def measure(
    device: str, chosen: list[Setup], tests: Tests, model: str = MODEL, layers: int = LAYERS, keep: Keep = nobody
) -> dict[str, Any]:
    """By setup and test the rows of a step; `keep` gets the same after every test."""
    found: dict[str, Any] = {"model": model, "layers": layers, "setups": {}}
    for setup in chosen:
        steps = found["setups"][setup.name] = {}
        for test, step in _steps(device, setup, tests, model, layers):
            steps[test] = step
            keep(found)
    return found


def _steps(device: str, setup: Setup, tests: Tests, model: str, layers: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each test's name and rows, of a model that is loaded for them."""
    from headrace.engine.bench.random_weights import random_llm

    most = max((*tests.prompts, tests.depth + STEPS + 2))
    with random_llm(
        model, layers=layers, device=device, placement=setup.placement, expert_format=setup.format,
        handoff=setup.handoff, max_context=most + 64, max_sequences=max((*tests.batches, 1)), prefill_chunk=most,
    ) as llm:  # fmt: skip
        for batch in tests.batches:
            prompts = [_prompt(llm, tests.depth, f"{n} of {batch}") for n in range(batch)]
            yield f"tg batch {batch}", rows(_replays(_watched(llm, prompts, STEPS + 1)))
        for tokens in tests.prompts:
            _watched(llm, [_prompt(llm, tokens, "before")], 1)
            yield f"pp{tokens}", rows([on_device(_watched(llm, [_prompt(llm, tokens, "now")], 1))])


def _prompt(llm: Any, tokens: int, seed: str) -> list[int]:
    numbers = random.Random(seed)
    return [numbers.randrange(llm.spec.vocab) for _ in range(tokens)]


def _watched(llm: Any, prompts: list[list[int]], new: int) -> list[Event]:
    """The profiler's events while sequences generate, once they have done so before."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from headrace import SamplingParams

    params = SamplingParams(max_new_tokens=new, ignore_eos=True)
    if new > 1:
        llm.generate(prompts, params)
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as seen:
        llm.generate(prompts, params)
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(path))
        return list(json.loads(path.read_text())["traceEvents"])


def on_device(events: Iterable[Event]) -> list[Event]:
    """What took the device's time, in its order."""
    return sorted((e for e in events if e.get("cat") in DEVICE), key=lambda e: float(e["ts"]))


def _replays(events: list[Event]) -> list[list[Event]]:
    """The device's events of each launch of a graph."""
    launched = [e["args"]["correlation"] for e in events if "GraphLaunch" in e.get("name", "")]
    by_launch: dict[int, list[Event]] = {number: [] for number in launched}
    for event in on_device(events):
        if (number := event["args"].get("correlation")) in by_launch:
            by_launch[number].append(event)
    return [found for found in by_launch.values() if found]


def rows(steps: list[list[Event]]) -> dict[str, Any]:
    """Medians over steps: the span in milliseconds, what of it the device was at work, and each kernel's row, the
    costliest first."""
    if not steps:
        return {"problem": "no graph was launched"}
    by_kernel: dict[str, list[float]] = defaultdict(list)
    for event in (event for step in steps for event in step):
        by_kernel[_label(event)].append(float(event["dur"]))
    kernels = [
        {"kernel": name, "count": len(took) / len(steps), "us": statistics.median(took),
         "us_of_a_step": sum(took) / len(steps)}
        for name, took in by_kernel.items()
    ]  # fmt: skip
    return {
        "steps": len(steps),
        "span_ms": statistics.median(_span(step) for step in steps) / 1e3,
        "busy_ms": statistics.median(sum(float(event["dur"]) for event in step) for step in steps) / 1e3,
        "kernels": sorted(kernels, key=lambda row: -float(str(row["us_of_a_step"]))),
    }


def _label(event: Event) -> str:
    grid = event["args"].get("grid")
    shape = "" if grid is None else f" {'x'.join(map(str, grid))} of {event['args']['block'][0]}"
    return f"{event['name'][:60]}{shape}"


def _span(step: list[Event]) -> float:
    return max(float(e["ts"]) + float(e["dur"]) for e in step) - min(float(e["ts"]) for e in step)


def failures(found: dict[str, Any]) -> list[str]:
    """Tests of which nothing was seen."""
    each = ((f"{setup}, {test}", step) for setup, steps in found["setups"].items() for test, step in steps.items())
    return [f"{name}: {step['problem']}" for name, step in each if "problem" in step]


def show(found: dict[str, Any]) -> list[str]:
    """Lines for the screen: the costliest kernels of each test."""
    lines = []
    for setup, steps in found["setups"].items():
        for test, step in steps.items():
            lines += [] if "problem" in step else _lines(f"{setup}, {found['layers']} layers, {test}", step)
    return lines


def _lines(name: str, step: dict[str, Any]) -> list[str]:
    kernels = step["kernels"]
    launches = sum(row["count"] for row in kernels)
    return [
        f"{name}: {step['span_ms']:.3f} ms, at work {step['busy_ms']:.3f}, {launches:.0f} launches",
        *(f"  {row['count']:6.1f} x {row['us']:8.2f} us = {row['us_of_a_step']:9.1f} us  {row['kernel']}"
          for row in kernels[:SHOWN]),
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", default=MODEL, help="a name of the catalogue, a hub id or a config.json")
    parser.add_argument("--placement", default="gpu")
    parser.add_argument("--format", default="q4_0", help="of the experts")
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 4])
    parser.add_argument("--prompts", type=int, nargs="*", default=[4096])
    parser.add_argument("--json", type=Path, help="where the result goes")
    args = parser.parse_args()
    handoff = setups()["models"][0].handoff
    setup = Setup(placement=args.placement, format=args.format, handoff=handoff)
    tests = Tests(prompts=tuple(args.prompts), batches=tuple(args.batches))
    found = measure(args.device, [setup], tests, args.model, args.layers)
    print("\n".join([*show(found), *failures(found)]))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if failures(found) else 0


if __name__ == "__main__":
    raise SystemExit(main())
