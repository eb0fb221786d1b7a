"""What `--deterministic` costs: prefill and decode with it against without, in turns of two models in memory.

    prefill   seconds of a prompt's passes: no matrix tiles, no keys that are made of latents
    decode    seconds of a median step of some sequences together: experts with few tokens take no tiles anyway

python benchmarks/deterministic_cost.py [MODEL] [--layers 6] [--prompt 512] [--batch 8] [--rounds 7] [--json FILE]

MODEL is a name of the catalogue, and runs with random weights. Both thresholds of tiles are those of this machine: it
is measured before, if it was not. Nothing else may compute meanwhile.
"""

from __future__ import annotations

import argparse
import random
import statistics
from typing import Any

import result_file

from headrace import LLM, SamplingParams
from headrace.engine.bench.passport import passport
from headrace.engine.bench.random_weights import random_llm
from headrace.kernels.context import Context

WHAT = "deterministic-cost"
NEW = 24  # tokens of each sequence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="Qwen3-30B-A3B")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--format", default="q4_0", help="of all weights")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a prompt")
    parser.add_argument("--batch", type=int, default=8, help="sequences that decode together")
    parser.add_argument("--rounds", type=int, default=7)
    result_file.add_option(parser, WHAT)
    args = parser.parse_args()
    options: dict[str, Any] = {
        "expert_format": args.format, "dense_format": args.format, "max_sequences": args.batch, "speculate": "off",
        "max_context": args.prompt + 2 * NEW,
    }  # fmt: skip
    with (
        random_llm(args.model, layers=args.layers, **options) as plain,
        random_llm(args.model, layers=args.layers, deterministic=True, **options) as fixed,
    ):
        found = measure(plain, fixed, args.prompt, args.batch, args.rounds)
        tiles = plain.parts.context.tile_tokens
    for name, value in found.items():
        print(f"{name:10} {value}")
    result_file.write(
        args.json,
        WHAT,
        {"passport": passport(Context()), "model": args.model, "layers": args.layers, "format": args.format,
         "prompt": args.prompt, "batch": args.batch, "tiles_from": tiles, **found},
    )  # fmt: skip


def measure(plain: LLM, fixed: LLM, prompt: int, batch: int, rounds: int) -> dict[str, Any]:
    """By part the ratios of seconds, deterministic over plain, in turns that change places: median, least and most."""
    ratios: dict[str, list[float]] = {"prefill": [], "decode": []}
    for number in range(rounds + 1):
        took = {}
        for llm in (plain, fixed) if number % 2 else (fixed, plain):
            took[llm is fixed] = seconds(llm, prompt, batch, number)
        if number:  # the first round warms up
            for part, found in ratios.items():
                found.append(took[True][part] / took[False][part])
    return {
        part: {"ratio": round(statistics.median(found), 4), "least": round(min(found), 4), "most": round(max(found), 4)}
        for part, found in ratios.items()
    }


def seconds(llm: LLM, prompt: int, batch: int, seed: int) -> dict[str, float]:
    """Of a new prompt's passes together, and of the median decode step of a batch of short ones."""
    source = random.Random(seed)
    long = [source.randrange(llm.spec.vocab) for _ in range(prompt)]
    short = [[source.randrange(llm.spec.vocab) for _ in range(4)] for _ in range(batch)]
    (one,) = llm.generate([long], SamplingParams(max_new_tokens=1, ignore_eos=True))
    many = llm.generate(short, SamplingParams(max_new_tokens=NEW, ignore_eos=True))
    return {
        "prefill": sum(done.measured_s for done in one.ledger if done.phase != "decode"),
        "decode": statistics.median(done.measured_s for done in many[0].ledger if done.phase == "decode"),
    }


if __name__ == "__main__":
    main()
