"""Whole-model parts of `vs_peers.py`: decode and prefill beside llama.cpp, and our batch of 8 against a batch of 1.

Both engines run the same GGUF file, of random weights, which is written once to bench-data/ and kept; one file after
the other, so that two models are in memory at a time. Without llama.cpp our side is measured alone. Knows how to run
both engines, not what is printed of it.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gguf_model
from interleave import Rates, Sides, take_turns
from peer_llama import Llama

from headrace import LLM, SamplingParams
from headrace.engine.bench.random_weights import RandomSampler, random_llm
from headrace.engine.ledger.pass_bytes import KV
from headrace.engine.ledger.passes import CPU_DRAM
from headrace.kernels.context import ISA, THREADS
from headrace.kernels.isa import available_isas
from headrace.loaders.architecture import catalogue

DATA = Path(__file__).parent.parent / "bench-data"
SHAPE = "Qwen3-30B-A3B"
LOWER_ISA = "avx512"
SHORT, LONG, NEW, BATCH = 16, 512, 48, 8  # tokens of the prompts, tokens that are decoded, sequences
OURS, THEIRS = "headrace", "llama_cpp"
SMALLEST_VOCABULARY = 129_280  # ids that every shape has: of DeepSeek

# the prompt and how many tokens to decode -> seconds until the first token, then of each further one
TokenTimes = Callable[[list[int], int], list[float]]


def config_of(layers: int) -> dict[str, Any]:
    return {**catalogue.find(SHAPE).config, "num_hidden_layers": layers}


def prompt(length: int, seed: object) -> list[int]:
    """Random token ids, the same for the same seed."""
    rng = random.Random(str(seed))
    vocab = min(config_of(1)["vocab_size"], SMALLEST_VOCABULARY)
    return [rng.randrange(vocab) for _ in range(length)]


def random_model(layers: int) -> LLM:
    """Our engine with random weights of its own: q4_0 for experts and dense matrices, bf16 for the embedding."""
    formats = {"expert_format": "q4_0", "dense_format": "q4_0"}
    return random_llm(config_of(layers), max_context=1024, max_sequences=BATCH, **formats)


def our_model(path: Path) -> LLM:
    """Our engine on a GGUF file; it goes on with random tokens, as noise has no text to go on with."""
    return LLM(path, max_context=1024, max_sequences=BATCH, sampler=RandomSampler())


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


def measure(layers: int, rounds: int, parts: set[str], llama: Llama | None) -> Measured:
    """The parts among decode, prefill and batch; rates by part and recipe, as decode_q4_k_m_tok_s."""
    measured = Measured(facts={"bytes_per_token": {}})
    for recipe in gguf_model.RECIPES:
        own = parts if recipe == gguf_model.RECIPES[0] else parts - {"batch"}
        if own:
            path = gguf_file(layers, recipe)
            print(f"{path.name}, both engines" if llama else path.name, flush=True)
            with our_model(path) as llm:
                if llama is not None and own - {"batch"}:
                    llama.load(path, THREADS)
                _one_file(measured, recipe.lower(), llm, llama, rounds, own)
                measured.facts["bytes_per_token"][f"{THEIRS}_{recipe.lower()}"] = gguf_model.bytes_per_token(
                    config_of(layers), recipe
                )
            if llama is not None:
                llama.call("free")
            gc.collect()  # the engine refers to itself: its weights go now
    return measured


def _one_file(measured: Measured, name: str, llm: LLM, llama: Llama | None, rounds: int, parts: set[str]) -> None:
    """The parts on one file, which both have loaded."""
    measured.facts["bytes_per_token"][f"{OURS}_{name}"] = our_bytes_per_token(llm)
    sides = {OURS: our_token_times(llm), **({THEIRS: llama.token_times} if llama is not None else {})}
    if "decode" in parts:
        print("decode, tokens a second", flush=True)
        rates = take_turns({side: decode_rate(times) for side, times in sides.items()}, rounds)
        measured.rates[f"decode_{name}_tok_s"] = rates
    if "prefill" in parts:
        print(f"prefill of {LONG} tokens, tokens a second", flush=True)
        measured.rates[f"prefill512_{name}_tok_s"] = _prefill(llm, sides, rounds)
        measured.facts["distinct_experts_a_layer_in_prefill512"] = _distinct_experts(llm)
    if "batch" in parts:
        print("decode of our batches, tokens a second", flush=True)
        batches = {f"batch{n}": batch_rate(llm, n) for n in (1, BATCH)}
        measured.rates["batch_tok_s"] = take_turns(batches, rounds)


def _prefill(llm: LLM, sides: dict[str, TokenTimes], rounds: int) -> Rates:
    measures: Sides = {name: prefill_rate(times) for name, times in sides.items()}
    lower = f"{OURS}_{LOWER_ISA}"
    if LOWER_ISA in available_isas() and ISA != LOWER_ISA:
        measures[lower] = prefill_rate(sides[OURS], llm, LOWER_ISA)
    rates = take_turns(measures, rounds)
    if ISA == LOWER_ISA:
        rates[lower] = rates[OURS]
    return rates


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
