"""What recording a trace costs a decode step, in turns with steps that are not recorded: medians of steps, their ratio.

python benchmarks/recording_cost.py [MODEL] [--layers 6] [--new 48] [--rounds 11] [--json FILE]

MODEL is a name of the catalogue, and runs with random weights. The bar is 2 %. Nothing else may compute meanwhile.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import result_file

from headrace import LLM, SamplingParams
from headrace.engine.bench.passport import passport
from headrace.engine.bench.random_weights import random_llm
from headrace.kernels.context import Context

WHAT = "recording-cost"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="Qwen3-30B-A3B")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--new", type=int, default=48, help="tokens of each turn")
    parser.add_argument("--rounds", type=int, default=11)
    result_file.add_option(parser, WHAT)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {
            "expert_format": "q4_0",
            "dense_format": "q4_0",
            "max_context": 256,
            "no_measure": True,
        }
        with random_llm(args.model, layers=args.layers, trace=Path(folder) / "run.trace", **options) as llm:
            found = measure(llm, args.new, args.rounds)
    for name, value in found.items():
        print(f"{name:24} {value}")
    result_file.write(
        args.json, WHAT, {"passport": passport(Context()), "model": args.model, "layers": args.layers, **found}
    )


def measure(llm: LLM, new: int, rounds: int) -> dict[str, Any]:
    """Of each round the median step recorded over the median step that was not, in turns that change places."""
    books, ratios, plain = llm.loop.books, [], []
    recorder = books.recorder
    step(llm, new)
    for number in range(rounds):
        took = {}
        for is_on in (True, False) if number % 2 else (False, True):
            books.recorder = recorder if is_on else None
            took[is_on] = step(llm, new)
        plain.append(took[False])
        ratios.append(took[True] / took[False])
    books.recorder = recorder
    return {
        "step_ms": round(statistics.median(plain) * 1e3, 4),
        "recorded_over_plain": round(statistics.median(ratios), 4),
        "least": round(min(ratios), 4),
        "most": round(max(ratios), 4),
    }


def step(llm: LLM, new: int) -> float:
    """Seconds of the median decode step."""
    (done,) = llm.generate([[5, 6, 7]], SamplingParams(max_new_tokens=new, ignore_eos=True))
    return statistics.median(one.measured_s for one in done.ledger if one.phase == "decode")


if __name__ == "__main__":
    main()
