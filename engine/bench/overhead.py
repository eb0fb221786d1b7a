"""What a decode step costs besides the bytes it reads: calls, parallel regions, norms, scheduling, sampling.

Learned with the engine itself, on random models that read the same bytes and are cut differently:

    layer   (time of MANY layers - time of FEW layers, each as many times wider) / (MANY - FEW)
            with one token and with BATCH; with a prompt of PROMPT those ops alone that read next to nothing
    shared  (time with a shared expert in place of one routed expert - time without) / MANY
    pass    time of a pass outside of the decoder's forward, less that of its logits
    logit   time to take memory for logits, write them, and find the largest, a logit
    row     (the same time as of `pass` with BATCH sequences - that with one) / (BATCH - 1)

A layer reads ten megabytes: where the caches keep the code of a step, it takes less than in a model of real size.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from ... import kernels
from ...kernels import FORMATS
from ...kernels.context import Context
from ...kernels.decoder_layer import Router
from ...kernels.packed import Matrix
from ..config import SamplingParams
from ..llm import LLM
from ..measure.other_load import alone
from ..measure.quiet_samples import Pace, Sample, best, steady
from ..model.kv_cache import PAGE
from .random_weights import random_llm

MANY, FEW = 12, 3
WIDTH = 768  # of an expert where layers are many
BATCH, PROMPT = 4, 128
TOKENS, ROUNDS = 8, 12
LOGITS = 1 << 17
RUNS = (("many", 1), ("few", 1), ("shared", 1), ("many", BATCH), ("few", BATCH))
HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 2048, 32, 8, 128  # of a prompt's layer
ROUTED = 128  # experts that its router scores
BASE: dict[str, Any] = {
    "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 1024, "num_experts": 16, "norm_topk_prob": False,
    "head_dim": 64, "num_key_value_heads": 2, "vocab_size": 32768, "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False, "use_sliding_window": False,
    "decoder_sparse_step": 1, "mlp_only_layers": [], "torch_dtype": "bfloat16",
}  # fmt: skip


@dataclass(frozen=True)
class Overhead:
    """Seconds: of a layer with one token and with several, of its shared expert, of a pass, of a logit, of a sequence
    but the first."""

    layer_s: float
    layer_batch: dict[str, float]
    shared_s: float
    pass_s: float
    logit_s: float
    row_s: float


def shapes(many: int, few: int, width: int) -> dict[str, dict[str, Any]]:
    """The three configs; `width` is that of an expert where layers are many. Read per token: the same bytes of experts
    and of attention in all of them."""

    def shape(layers: int, top_k: int, **more: Any) -> dict[str, Any]:
        wider = many // layers
        sizes = {"moe_intermediate_size": wider * width, "num_attention_heads": 4 * wider}
        return {**BASE, **sizes, "num_hidden_layers": layers, "num_experts_per_tok": top_k, **more}

    plain = {"model_type": "qwen3_moe", "attention_bias": False}
    shared = {"model_type": "qwen2_moe", "shared_expert_intermediate_size": width}
    return {"many": shape(many, 8, **plain), "few": shape(few, 8, **plain), "shared": shape(many, 7, **shared)}


def measure(context: Context, many: int = MANY, few: int = FEW, width: int = WIDTH, rounds: int = ROUNDS) -> Overhead:
    """Measures this engine on this machine in this context; takes some seconds and 0.8 GB."""
    assert many % few == 0, f"{many} layers are no multiple of {few}"
    models = {name: _model(context, config) for name, config in shapes(many, few, width).items()}
    typical, outside = _steps(context, models, rounds)
    layer = {n: max(0.0, (typical["many", n] - typical["few", n]) / (many - few)) for n in (1, BATCH)}
    logit_s = _logit_seconds(context, 4 * rounds)
    of_pass = {n: around - n * logit_s * BASE["vocab_size"] for n, around in outside.items()}
    return Overhead(
        layer_s=layer[1],
        layer_batch={str(BATCH): layer[BATCH], str(PROMPT): layer[1] + _prompt_seconds(context, 4 * rounds)},
        shared_s=max(0.0, (typical["shared", 1] - typical["many", 1]) / many),
        pass_s=max(0.0, of_pass[1]),
        logit_s=logit_s,
        row_s=max(0.0, (of_pass[BATCH] - of_pass[1]) / (BATCH - 1)),
    )


def _steps(
    context: Context, models: dict[str, LLM], rounds: int
) -> tuple[dict[tuple[str, int], float], dict[int, float]]:
    """Medians of what ran undisturbed: seconds of a pass by model and tokens, and of a step of so many sequences
    outside of the forward pass."""
    steps: dict[tuple[str, int], list[Sample]] = {run: [] for run in RUNS}
    outside: dict[int, list[Sample]] = {1: [], BATCH: []}
    pace = Pace(context)

    def one_round() -> None:  # in turns, so that a slow moment does not hit one of them alone
        for name, batch in RUNS:
            pace()
            found = _decode(models[name], batch)
            now = pace.since_before()
            steps[name, batch] += [Sample(step, now) for step, _ in found]
            outside[batch] += [Sample(around, now) for _, around in found]

    def forget() -> None:
        for batch, samples in outside.items():
            del samples[-TOKENS * sum(one == batch for _, one in RUNS) :]
        for samples in steps.values():
            del samples[-TOKENS:]

    one_round()
    forget()
    alone(rounds, one_round, forget)
    best_s = best([one.pace_s for samples in steps.values() for one in samples])
    typical = {run: statistics.median(steady(samples, best_s)) for run, samples in steps.items()}
    return typical, {batch: statistics.median(steady(samples, best_s)) for batch, samples in outside.items()}


def _model(context: Context, config: dict[str, Any]) -> LLM:
    """A model that is measured: nothing is predicted of it, which would be said to whoever measures, and drafted."""
    llm = random_llm(
        config,
        layers=config["num_hidden_layers"],
        expert_format="q4_0",
        dense_format="q4_0",
        max_context=64,
        max_sequences=BATCH,
        threads=context.threads,
        cpu_activations=context.activations,
        speculate="off",
    )
    llm.predictions.use_profile(None)
    return llm


def _decode(llm: LLM, batch: int) -> list[tuple[float, float]]:
    """Of every decode step with so many sequences: seconds, and those outside of the forward pass."""
    inside: list[float] = []
    forward = llm.parts.decoder.forward

    def timed(inputs: Any, *rest: Any) -> Any:
        start = time.perf_counter()
        logits = forward(inputs, *rest)
        inside.append(time.perf_counter() - start)
        return logits

    llm.parts.decoder.forward = timed  # type: ignore[method-assign,assignment]
    params = SamplingParams(max_new_tokens=TOKENS + 1, ignore_eos=True)
    try:
        with llm.ledger.recording() as passes:
            llm.generate([[1 + i] for i in range(batch)], params)
    finally:
        llm.parts.decoder.forward = forward  # type: ignore[method-assign]
    pairs = zip(passes, inside, strict=True)
    return [(p.measured_s, p.measured_s - s) for p, s in pairs if p.phase == "decode"]


def _prompt_seconds(context: Context, rounds: int) -> float:
    """Median of the seconds that norms, rope with the writing of keys and values, and a router take with PROMPT tokens.
    Matrices, attention and experts are timed with many tokens by themselves."""
    ops, tokens = kernels.load("cpu", context), PROMPT
    x_TD, y_TD, weight_D = torch.ones(tokens, HIDDEN), torch.ones(tokens, HIDDEN), torch.ones(HIDDEN)
    qkv_TR = torch.ones(tokens, (HEADS + 2 * KV_HEADS) * HEAD_DIM)
    k_PGBd, v_PGBd = torch.zeros(2, tokens // PAGE, KV_HEADS, PAGE, HEAD_DIM, dtype=torch.bfloat16)
    cos_Pr, slots = torch.ones(tokens, HEAD_DIM // 2), torch.arange(tokens)
    table = torch.zeros(ROUTED, 2 * HIDDEN, dtype=torch.uint8)
    matrix = Matrix(FORMATS["bf16"], ROUTED, HIDDEN, table)
    router = Router(matrix=matrix, top_k=8, scoring="softmax", renormalise=False)
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        ops.add_rmsnorm_(x_TD, y_TD, weight_D, 1e-6)
        ops.place_qkv_(qkv_TR, k_PGBd, v_PGBd, slots, cos_Pr, cos_Pr, slots.int(), None, None, 1e-6, None)
        ops.add_rmsnorm_(x_TD, y_TD, weight_D, 1e-6)
        ops.route(x_TD, router)
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def _logit_seconds(context: Context, rounds: int) -> float:
    """Median of the seconds that a logit takes which is written and looked at."""
    ops = kernels.load("cpu", context)
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        ops.argmax(torch.empty(1, LOGITS).fill_(1.0))
        found.append((time.perf_counter() - start) / LOGITS)
    return statistics.median(found)
