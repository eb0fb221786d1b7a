"""Whole-model parts of `vs_peers.py`: decode and prefill against llama.cpp, and our batch of 8 against a batch of 1.

Our side makes its random weights in memory, llama.cpp's files are written once to bench-data/ and kept. All that take
part in a comparison are in memory at the same time. Without llama.cpp our side is measured alone. Knows how to run both
engines, not what is printed of it.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gguf_model
from interleave import Rates, Sides, take_turns

from headrace import LLM, SamplingParams
from headrace.engine.bench.random_weights import random_llm
from headrace.engine.ledger.pass_bytes import KV
from headrace.engine.ledger.passes import CPU_DRAM
from headrace.kernels.context import ISA, THREADS
from headrace.kernels.isa import available_isas
from headrace.loaders.architecture import catalogue

DATA = Path(__file__).parent.parent / "bench-data"
SHAPE = "Qwen3-30B-A3B"
LOWER_ISA = "avx512"
SHORT, LONG, NEW, BATCH = 16, 512, 48, 8  # tokens of the prompts, tokens that are decoded, sequences
OURS = "headrace"

# the prompt and how many tokens to decode -> seconds until the first token, then of each further one
TokenTimes = Callable[[list[int], int], list[float]]


def config_of(layers: int) -> dict[str, Any]:
    return {**catalogue.find(SHAPE).config, "num_hidden_layers": layers}


def prompt(length: int, seed: object) -> list[int]:
    """Random token ids, the same for the same seed."""
    rng = random.Random(str(seed))
    vocab = config_of(1)["vocab_size"]
    return [rng.randrange(vocab) for _ in range(length)]


def our_model(layers: int) -> LLM:
    """Our engine with random weights: q4_0 for experts and dense matrices, bf16 for the embedding."""
    formats = {"expert_format": "q4_0", "dense_format": "q4_0"}
    return random_llm(config_of(layers), max_context=1024, max_sequences=BATCH, **formats)


def gguf_file(layers: int, recipe: str) -> Path:
    """The GGUF file of a recipe, written if it is not there yet."""
    path = DATA / f"{SHAPE.lower()}-{layers}-{recipe}.gguf"
    if not path.is_file():
        print(f"writing {path.name} ...", flush=True)
        gguf_model.write(path, config_of(layers), recipe)
    return path


@dataclass
class Measured:
    """Rates per part and side (tokens a second), and facts that explain them."""

    rates: dict[str, Rates] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def our_token_times(llm: LLM) -> TokenTimes:
    """From outside, as for the others: all that happens between two tokens counts."""

    def times(tokens: list[int], count: int) -> list[float]:
        found, start = [], time.perf_counter()
        for _ in llm.stream(tokens, SamplingParams(max_new_tokens=count + 1, ignore_eos=True)):
            now = time.perf_counter()
            found.append(now - start)
            start = now
        return found

    return times


def decode_rate(times: TokenTimes) -> Callable[[int], float]:
    return lambda turn: 1 / statistics.median(times(prompt(SHORT, turn), NEW)[1:])


def prefill_rate(times: TokenTimes, llm: LLM | None = None, isa: str | None = None) -> Callable[[int], float]:
    """Prompts differ between instruction sets, or the second would find the keys of the first in the cache."""

    def rate(turn: int) -> float:
        if llm is not None and isa is not None:
            llm.parts.ops.context = replace(llm.parts.context, isa=isa)
        try:
            return LONG / times(prompt(LONG, (turn, isa)), 0)[0]
        finally:
            if llm is not None:
                llm.parts.ops.context = llm.parts.context

    return rate


def batch_rate(llm: LLM, size: int) -> Callable[[int], float]:
    """Tokens a second of all sequences together while all of them decode."""

    def rate(turn: int) -> float:
        prompts = [prompt(SHORT, (turn, size, i)) for i in range(size)]
        with llm.ledger.recording() as passes:
            llm.generate(prompts, SamplingParams(max_new_tokens=NEW + 1, ignore_eos=True))
        steps = [p for p in passes if p.phase == "decode" and p.tokens == size]
        return size / statistics.median(p.measured_s for p in steps)

    return rate


def measure(layers: int, rounds: int, parts: set[str], with_llama: bool) -> Measured:
    """The parts among decode, prefill and batch."""
    llm = our_model(layers)
    peers = _llama_models(layers) if with_llama and parts & {"decode", "prefill"} else {}
    sides = {OURS: our_token_times(llm), **{name: model.token_times for name, model in peers.items()}}
    measured = Measured(facts=_facts(llm, layers))
    try:
        if "decode" in parts:
            print("decode, tokens a second", flush=True)
            rates = take_turns({name: decode_rate(times) for name, times in sides.items()}, rounds)
            measured.rates["decode_tok_s"] = rates
        if "prefill" in parts:
            print(f"prefill of {LONG} tokens, tokens a second", flush=True)
            measured.rates["prefill512_tok_s"] = _prefill(llm, sides, rounds)
            measured.facts["distinct_experts_a_layer_in_prefill512"] = _distinct_experts(llm)
        if "batch" in parts:
            print("decode of our batches, tokens a second", flush=True)
            batches = {f"batch{n}": batch_rate(llm, n) for n in (1, BATCH)}
            measured.rates["batch_tok_s"] = take_turns(batches, rounds)
    finally:
        for model in peers.values():
            model.close()
        llm.close()
    return measured


def _llama_models(layers: int) -> dict[str, Any]:
    from peer_llama import LlamaModel

    return {
        f"llama_cpp_{recipe.lower()}": LlamaModel(gguf_file(layers, recipe), THREADS) for recipe in gguf_model.RECIPES
    }


def _prefill(llm: LLM, sides: dict[str, TokenTimes], rounds: int) -> Rates:
    measures: Sides = {name: prefill_rate(times) for name, times in sides.items()}
    lower = f"{OURS}_{LOWER_ISA}"
    if LOWER_ISA in available_isas() and ISA != LOWER_ISA:
        measures[lower] = prefill_rate(sides[OURS], llm, LOWER_ISA)
    rates = take_turns(measures, rounds)
    if ISA == LOWER_ISA:
        rates[lower] = rates[OURS]
    return rates


def _facts(llm: LLM, layers: int) -> dict[str, Any]:
    config = config_of(layers)
    theirs = {f"llama_cpp_{r.lower()}": gguf_model.bytes_per_token(config, r) for r in gguf_model.RECIPES}
    return {"bytes_per_token": {OURS: our_bytes_per_token(llm), **theirs}}


def our_bytes_per_token(llm: LLM) -> int:
    """Bytes of weights that decoding one token reads, as the ledger counts them."""
    llm.generate([prompt(SHORT, "bytes")], SamplingParams(max_new_tokens=2, ignore_eos=True))
    read = llm.ledger.last.bytes[CPU_DRAM]
    return sum(size for group, size in read.items() if group != KV)


def _distinct_experts(llm: LLM) -> float:
    """Of the last prefill: how many experts of a layer its tokens went to, the mean over layers."""
    bank = next(layer.experts for layer in llm.parts.weights.layers if layer.experts is not None)
    last = next(p for p in reversed(llm.ledger.passes) if p.phase == "prefill")
    return round(last.bytes[CPU_DRAM]["experts"] / bank.layout.bytes / len(llm.spec.layers), 1)
