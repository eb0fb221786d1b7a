"""Two builds of headrace, each in an environment of its own, on the same random model in turns.

    python benchmarks/two_builds.py MODEL --other PYTHON [--layers 3] [--prompt 512] [--new 24] [--rounds 7]
                                    [--threads 1] [--clock cpu]

MODEL is whatever `headrace bench --random-weights` takes; experts in q4_k, all else in q8_0. PYTHON runs the other
build. Both processes live all the time, and one waits while the other computes: a round is a prompt and new tokens by
each, the first one is not counted, and who comes first changes. Medians over rounds of seconds of the prompt and of a
decode step, and of their ratios. --clock cpu: processor time of the one thread that computes, where the machine is not
quiet: it leaves out when others had the core, not what they did to caches and memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}
PHASES = ("decode", "prefill")
Times = dict[str, float]  # phase -> seconds


class Side:
    """The process of one build."""

    def __init__(self, python: str, arguments: list[str]) -> None:
        self.process = subprocess.Popen(
            [python, __file__, *arguments, "--child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.answer()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a side ended with status {self.process.wait()}")
        return json.loads(line)

    def round(self, number: int) -> Times:
        assert self.process.stdin is not None
        print(number, file=self.process.stdin, flush=True)
        return dict(self.answer())


def serve(options: argparse.Namespace) -> None:
    """A side: reads numbers of rounds, answers with the times of each."""
    import torch

    from headrace import SamplingParams
    from headrace.engine.bench.random_weights import random_llm

    llm = random_llm(
        options.model, layers=options.layers, expert_format="q4_k", dense_format="q8_0", max_sequences=1,
        max_context=options.prompt + options.new + 8, threads=options.threads,
    )  # fmt: skip
    clock, step, forward = CLOCKS[options.clock], llm.loop.step, llm.parts.decoder.forward
    found: dict[str, list[float]] = {phase: [] for phase in PHASES}
    tokens = 0

    def watched_forward(inputs: Any, *rest: Any) -> Any:
        nonlocal tokens
        tokens = len(inputs.ids_T)
        return forward(inputs, *rest)

    def watched_step() -> None:
        start = clock()
        step()
        found["decode" if tokens == 1 else "prefill"].append(clock() - start)

    llm.parts.decoder.forward, llm.loop.step = watched_forward, watched_step  # type: ignore[method-assign,assignment]
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        generator = torch.Generator().manual_seed(int(line))
        prompt = torch.randint(3, 1000, (options.prompt,), generator=generator).tolist()
        llm.generate([prompt], SamplingParams(max_new_tokens=options.new, ignore_eos=True))
        times = {"decode": statistics.median(found["decode"]), "prefill": sum(found["prefill"])}
        print(json.dumps(times), flush=True)
        for many in found.values():
            many.clear()


def compare(options: argparse.Namespace) -> None:
    arguments = [argument for argument in sys.argv[1:] if argument != "--child"]
    sides = {"here": Side(sys.executable, arguments), "other": Side(options.other, arguments)}
    rounds: dict[str, list[Times]] = {name: [] for name in sides}
    for number in range(options.rounds + 1):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            times = sides[name].round(number)
            if number:
                rounds[name].append(times)
    for phase in PHASES:
        here, other = ([times[phase] for times in rounds[name]] for name in ("here", "other"))
        ratios = sorted(a / b for a, b in zip(other, here, strict=True))
        middle = statistics.median(other), statistics.median(here), statistics.median(ratios)
        print(
            f"{phase}: other {1e3 * middle[0]:.2f} ms, here {1e3 * middle[1]:.2f} ms; other / here {middle[2]:.3f} "
            f"({ratios[0]:.3f} to {ratios[-1]:.3f}), load {os.getloadavg()[0]:.1f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--other", required=True, help="the interpreter of the other build")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=list(CLOCKS), default="cpu")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    serve(options) if options.child else compare(options)


if __name__ == "__main__":
    main()
