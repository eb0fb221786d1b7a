"""How the time of one decoded token divides: every C++ op by its shape, and all that is not an op.

    python benchmarks/profile_decode.py [--layers 12] [--tokens 96] [--batch 1] [--json [FILE]]

Qwen3-30B-A3B cut to --layers, q4_0, random weights, as in `vs_peers.py`. A clock goes around every function of the
extension while sequences decode; a pass minus its ops is Python and torch. The layers are one op, which keeps the time
of its parts itself (`cpu.take_part_seconds`). The clocks themselves cost about 0.2 us a call, which counts as Python.
Medians over passes of each pass's own division.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import result_file
import torch
import whole_model

from headrace import LLM, SamplingParams
from headrace.engine.bench.passport import passport
from headrace.kernels import _cpu, cpu

OPS = ("embed", "add_rmsnorm", "rmsnorm", "linear", "layers", "argmax")
WEIGHT = 4  # argument of the extension's linear
OTHER, BETWEEN = "Python, torch", "layers: between parts"

Times = dict[str, float]


def label(op: str, args: tuple[Any, ...]) -> str:
    return f"linear {args[WEIGHT].rows} x {args[WEIGHT].cols}" if op == "linear" else op


@contextmanager
def clocks(times: Times) -> Iterator[None]:
    """Adds the seconds of every op call to `times` under its label."""

    def timed(op: str, function: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any, **named: Any) -> None:
            start = time.perf_counter()
            function(*args, **named)
            seconds = time.perf_counter() - start
            if op != "layers":
                times[label(op, args)] += seconds
                return
            parts = {f"layers: {name}": value for name, value in cpu.take_part_seconds().items() if value}
            for name, value in {**parts, BETWEEN: seconds - sum(parts.values())}.items():
                times[name] += value

        return call

    cpu.take_part_seconds()  # what was there before
    before = {op: getattr(_cpu, op) for op in OPS}
    for op, function in before.items():
        setattr(_cpu, op, timed(op, function))
    try:
        yield
    finally:
        for op, function in before.items():
            setattr(_cpu, op, function)


def passes(llm: LLM, batch: int, tokens: int) -> list[Times]:
    """The division of each decode pass, in seconds: from the end of the pass before to its own."""
    found: list[Times] = []
    times: Times = defaultdict(float)
    step, last = llm.loop.step, time.perf_counter()

    def watched() -> None:
        nonlocal last
        times.clear()
        step()
        now = time.perf_counter()
        if llm.ledger.last.phase == "decode":
            found.append({**times, OTHER: now - last - sum(times.values())})
        last = now

    llm.loop.step = watched  # type: ignore[method-assign]
    prompts = [whole_model.prompt(whole_model.SHORT, (7, i)) for i in range(batch)]
    with clocks(times):
        llm.generate(prompts, SamplingParams(max_new_tokens=tokens + 1, ignore_eos=True))
    return found


def profile(llm: LLM, batch: int, tokens: int) -> dict[str, Any]:
    found = passes(llm, batch, tokens)[4:]
    totals = [sum(one.values()) for one in found]
    divided = [{name: value / sum(one.values()) for name, value in one.items()} for one in found]
    shares = {name: statistics.median(one[name] for one in divided) for name in found[0]}
    micros = {name: statistics.median(one[name] for one in found) * 1e6 for name in found[0]}
    return {"pass_us": round(statistics.median(totals) * 1e6, 1),
            "us": {name: round(value, 1) for name, value in micros.items()},
            "shares": {name: round(value, 4) for name, value in shares.items()}}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="how the time of one decoded token divides")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--batch", type=int, default=1)
    result_file.add_option(parser, "profile-decode")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with whole_model.random_model(args.layers) as llm:
        result = {"shape": whole_model.SHAPE, "layers": args.layers, "batch": args.batch,
                  **profile(llm, args.batch, args.tokens), "passport": passport(llm.parts.context)}  # fmt: skip
    for name, share in sorted(result["shares"].items(), key=lambda item: -item[1]):
        print(f"{name:24} {result['us'][name]:10.1f} us {share * 100:6.1f} %")
    print(f"{'a pass':24} {result['pass_us']:10.1f} us")
    print(json.dumps({k: v for k, v in result.items() if k != "us"}))
    result_file.write(args.json, "profile-decode", result)


if __name__ == "__main__":
    main()
