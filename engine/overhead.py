"""What a decode step costs besides the bytes it reads: calls, parallel regions, norms, scheduling, sampling.

Learned with the engine itself, on random models that read the same bytes and are cut differently:

    layer   (time of MANY layers - time of FEW layers, each as many times wider) / (MANY - FEW)
    shared  (time with a shared expert in place of one routed expert - time without) / MANY
    pass    time of a pass outside of the decoder's forward

A model that lies in the caches would do with less: there the code of a step is not driven out by weights.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

from .config import SamplingParams
from .machine import cpu_kernels
from .random_model import RandomLLM

MANY, FEW = 24, 6
TOKENS, ROUNDS = 24, 3
BASE: dict[str, Any] = {
    "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 1024, "num_experts": 16, "norm_topk_prob": False,
    "head_dim": 64, "num_key_value_heads": 2, "vocab_size": 4096, "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False, "use_sliding_window": False,
    "decoder_sparse_step": 1, "mlp_only_layers": [], "torch_dtype": "bfloat16",
}  # fmt: skip


@dataclass(frozen=True)
class Overhead:
    """Seconds: of a layer, of the shared expert of a layer, of a pass."""

    layer_s: float
    shared_s: float
    pass_s: float


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


def measure(many: int = MANY, few: int = FEW, width: int = 256, rounds: int = ROUNDS) -> Overhead:
    """Measures this engine on this machine with the threads that are set; takes some seconds and 0.7 GB."""
    assert many % few == 0, f"{many} layers are no multiple of {few}"
    models = {name: _model(config) for name, config in shapes(many, few, width).items()}
    steps: dict[str, list[float]] = {name: [] for name in models}
    outside: list[float] = []
    for turn in range(rounds + 1):  # in turns, so that a slow moment does not hit one of them alone
        for name, llm in models.items():
            step, around = _decode(llm)
            if turn:
                steps[name].append(step)
                outside.append(around)
    typical = {name: statistics.median(found) for name, found in steps.items()}
    return Overhead(
        layer_s=max(0.0, (typical["many"] - typical["few"]) / (many - few)),
        shared_s=max(0.0, (typical["shared"] - typical["many"]) / many),
        pass_s=statistics.median(outside),
    )


def _model(config: dict[str, Any]) -> RandomLLM:
    return RandomLLM(
        config,
        layers=config["num_hidden_layers"],
        expert_format="q4_0",
        dense_format="q4_0",
        max_context=64,
        max_sequences=1,
        threads=cpu_kernels().threads(),
        cpu_activations=cpu_kernels().activations(),  # as it is: it holds for the whole process
    )


def _decode(llm: RandomLLM) -> tuple[float, float]:
    """Medians over decode steps: seconds of one, and of them outside of the forward pass."""
    inside: list[float] = []
    forward = llm.decoder.forward

    def timed(inputs: Any) -> Any:
        start = time.perf_counter()
        logits = forward(inputs)
        inside.append(time.perf_counter() - start)
        return logits

    llm.decoder.forward = timed  # type: ignore[method-assign]
    try:
        passes = llm.generate([[1]], SamplingParams(max_new_tokens=TOKENS + 1, ignore_eos=True))[0].ledger
    finally:
        llm.decoder.forward = forward  # type: ignore[method-assign]
    pairs = [(p.measured_s, p.measured_s - s) for p, s in zip(passes, inside, strict=True) if p.phase == "decode"]
    return statistics.median(s for s, _ in pairs), statistics.median(around for _, around in pairs)
