"""headrace beside llama.cpp on one GGUF file of a real shape, in turns: decode behind texts, and a prompt.

    python benchmarks/vs_llama_shapes.py [--shape Qwen3.6-35B-A3B] [--layers 12] [--recipe Q4_K_M]
                                         [--depths 16,8192,32768] [--fill computed|copied] [--rounds 5]
                                         [--llama-python PYTHON] [--json [FILE]]

decode    one sequence behind so many tokens, median of 32 tokens, which are random on both sides
prompt    512 tokens, until the first token is chosen
cache     bf16 here, f16 there, and f32 for states on both sides
fill      computed: texts are. copied: only how many keys there are is true, what they hold is random here and copies of
          the first 512 tokens there; no time of a step goes by that, and 32,768 tokens take seconds instead of minutes

The file has random weights, is written once to bench-data/ and kept; both have it in memory. Every ratio is the median
over rounds of ours / theirs in the same round, higher is better.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf_model
import gguf_shapes
import peer_llama
import result_file
import torch
import whole_model
from interleave import Rates, Strangers, medians, ratio, significant, take_turns
from peer_llama import Llama
from torch import Tensor

from headrace import LLM, SamplingParams
from headrace.engine.bench.passport import passport
from headrace.engine.bench.random_weights import RandomSampler
from headrace.kernels.context import THREADS, Context
from headrace.kernels.decoder_layer import Places, Stack
from headrace.kernels.passes.tally import Tally
from headrace.loaders.architecture import catalogue

OURS, THEIRS = whole_model.OURS, whole_model.THEIRS
NEW, PROMPT = 32, 512  # tokens
COMPUTED, COPIED = "computed", "copied"
SPARE = 4096  # of the context, for what is written behind a text in all rounds


def file_of(shape: str, layers: int, recipe: str) -> Path:
    """The file, written if it is not there yet."""
    config = {**catalogue.find(shape).config, "num_hidden_layers": layers}
    path = whole_model.DATA / f"{shape.lower()}-{layers}-{recipe}.gguf"
    if not path.is_file():
        print(f"writing {path.name} ...", flush=True)
        gguf_model.write(path, config, recipe)
    return path


def ours_behind(llm: LLM, ids: list[int]) -> Callable[[int], float]:
    """Tokens a second behind a text, whose pages are taken over from the run before."""
    times = whole_model.our_token_times(llm)
    return lambda turn: 1 / statistics.median(times(ids, NEW)[1:])


@contextlib.contextmanager
def without_layers(llm: LLM) -> Iterator[None]:
    """Passes compute no layers inside, so that a text takes its pages at once; their content is random behind it."""
    decoder, stand_in = llm.parts.decoder, copy.copy(llm.parts.decoder.ops)
    stand_in.layers = _no_layers  # type: ignore[method-assign]
    kept, decoder.ops = decoder.ops, stand_in
    try:
        yield
    finally:
        decoder.ops = kept
    for kind in range(len(decoder.cache.windows) + 1):
        for memory in decoder.cache.memories(kind):
            memory.copy_(torch.randn(memory.shape[1:]))


def _no_layers(
    x_TD: Tensor, stack: Stack, places: Places, rows_R: Tensor | None = None, tally: Tally | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    x_RD = x_TD if rows_R is None else x_TD[rows_R]
    return x_RD, torch.zeros_like(x_RD), torch.zeros(len(stack.layers), dtype=torch.int32)


def measure(llm: LLM, llama: Llama | None, depths: list[int], rounds: int, fill: str) -> dict[str, Rates]:
    """Rates by what was measured and side, tokens a second."""
    found: dict[str, Rates] = {}
    for depth in depths:
        print(f"decode behind {depth} tokens", flush=True)
        ids = whole_model.prompt(depth, ("behind", depth))
        sides, is_copied = {OURS: ours_behind(llm, ids)}, fill == COPIED and depth > PROMPT
        if llama is not None:
            llama.call("fill_with_copies" if is_copied else "fill", ids=ids)
            sides[THEIRS] = lambda turn: 1 / statistics.median(llama.times_behind(NEW))
        with without_layers(llm) if is_copied else contextlib.nullcontext():
            llm.generate([ids], SamplingParams(max_new_tokens=1, ignore_eos=True))
        found[f"decode_behind_{depth}_tok_s"] = take_turns(sides, rounds)
    print(f"prompt of {PROMPT} tokens", flush=True)
    both = {OURS: whole_model.our_token_times(llm), **({THEIRS: llama.token_times} if llama is not None else {})}
    found[f"prompt_{PROMPT}_tok_s"] = take_turns(
        {side: whole_model.prefill_rate(times) for side, times in both.items()}, rounds
    )
    return found


def run(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    strangers, start, of_peer = Strangers(), time.perf_counter(), 0.0
    depths = [int(one) for one in args.depths.split(",")]
    path, context = file_of(args.shape, args.layers, args.recipe), max(*depths, PROMPT) + SPARE
    llama = Llama(args.llama_python) if peer_llama.available(args.llama_python) else None
    with LLM(path, max_context=context, max_sequences=2, sampler=RandomSampler(), speculate="off") as llm:
        if llama is not None:
            llama.load(path, THREADS, context, copies=args.fill == COPIED)
        rates = measure(llm, llama, depths, args.rounds, args.fill)
        read = whole_model.our_bytes_per_token(llm)
    result: dict[str, Any] = {
        "shape": args.shape, "layers": args.layers, "recipe": args.recipe, "fill": args.fill,
        "bytes_per_token_without_cache": read,
        "medians": {what: medians(both) for what, both in rates.items()},
        "ratios": {what: ratio(both, OURS, THEIRS) for what, both in rates.items()},
        "rounds": {what: {side: [significant(v) for v in many] for side, many in both.items()}
                   for what, both in rates.items()},
    }  # fmt: skip
    if llama is not None:
        result["llama_cpp_build"] = llama.call("build")
        of_peer = llama.cpu_s / (time.perf_counter() - start)
        llama.close()
    result["cores_used_by_others"] = round(max(0.0, strangers.cores() - of_peer), 2)
    return {**result, "passport": passport(Context())}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shape", default="Qwen3.6-35B-A3B", help="of the catalogue; of " + ", ".join(gguf_shapes.ARCHS)
    )
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--recipe", default="Q4_K_M", choices=gguf_model.RECIPES)
    parser.add_argument("--depths", default="16,8192,32768", help="tokens, with commas between")
    parser.add_argument("--fill", choices=(COMPUTED, COPIED), default=COMPUTED, help="how texts come into the caches")
    parser.add_argument("--rounds", type=int, default=5)
    peer_llama.add_option(parser)
    result_file.add_option(parser, "llama-SHAPE")
    return parser.parse_args()


def main() -> None:
    args = options()
    result = run(args)
    for what, both in result["medians"].items():
        said = ", ".join(f"{side} {rate:.4g}" for side, rate in both.items())
        print(f"{what}: {said}; ratio {result['ratios'][what]}")
    result_file.write(args.json, f"llama-{result_file.slug(args.shape)}", result)


if __name__ == "__main__":
    main()
