"""Models of the newer families with all layers computed by the Triton kernels, in the interpreter: prompts in chunks,
one of them a single token, and for some decode steps of two sequences. Tiny models of two layers, and products of
few tokens by tiles, where a GPU takes them one by one: the interpreter takes its time for each program."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import tiny

pytest.importorskip("triton", reason="the GPU kernels need Triton", exc_type=ImportError)
from family_runs import prompt

from headrace import LLM, SamplingParams

TOLERANCE = 1e-4  # as against transformers; a state that every token changes magnifies rounding, of either side
# Every kind of mixer and of router once; the window is of 8 tokens. Layers without a rotation, and with norms behind
# it; chunks of 8, and queries whose temperature goes by their position; values narrower
# than keys; gates of each head; norms of each part's own, and keys that serve as values.
MODELS: dict[str, dict[str, Any]] = {
    "gpt_oss": {},
    "deepseek_v2-groups": {},
    "deepseek_v3-bias": {},
    "qwen3_5_moe_text": {"layer_types": ["linear_attention", "full_attention"]},
    "exaone_moe": {
        "layer_types": ["sliding_attention", "full_attention"], "mlp_layer_types": ["dense", "sparse"],
    },
    "hunyuan_v1_moe": {},
    "llama4_text": {"no_rope_layers": [1, 0], "floor_scale": 4},
    "phimoe": {},
    "mistral4": {},
    "mimo_v2_flash": {
        "layer_types": ["full_attention", "sliding_attention"], "mlp_layer_types": ["dense", "sparse"],
    },
    "step3p5": {"layer_types": ["full_attention", "sliding_attention"], "mlp_layer_types": ["dense", "sparse"]},
    "laguna": {
        "layer_types": ["sliding_attention", "full_attention"], "mlp_layer_types": ["dense", "sparse"],
        "num_attention_heads_per_layer": [6, 4],
    },
    "gemma4_text": {"layer_types": ["sliding_attention", "full_attention"]},
}  # fmt: skip


# Those whose steps have more of a sequence than pages: a window's own pool, a latent, a state, keys that are values.
TOGETHER = ("gpt_oss", "deepseek_v3-bias", "qwen3_5_moe_text", "gemma4_text")


@pytest.mark.usefixtures("whole_model")
@pytest.mark.parametrize("variant", MODELS)
def test_logits_and_tokens_are_those_of_the_reference(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("headrace.kernels.gpu.linear"), "FEW", 1)
    tiny.build(variant, tmp_path, num_hidden_layers=2, **MODELS[variant])
    options: dict[str, Any] = dict(dtype="float32", kernels="reference", max_context=64, max_sequences=2)
    ids, steps = prompt(12, 1), variant in TOGETHER
    prompts, params = [ids[:9], ids[4:5]][not steps :], SamplingParams(max_new_tokens=1 + steps, ignore_eos=True)
    with LLM(str(tmp_path), prefill_chunk=11, **options) as plain:
        wanted, said = plain.logits(ids), plain.generate(prompts, params)
    with LLM(str(tmp_path), prefill_chunk=11, device="simulated:gpu", placement="gpu", **options) as on_gpu:
        assert on_gpu.parts.main.backend == "gpu"
        found, told = on_gpu.logits(ids), on_gpu.generate(prompts, params)
        assert set(on_gpu.ledger.passes[-1].bytes) == {"d2h", "gpu_hbm", "h2d"}, "something was left to the CPU"
    assert wanted.abs().max() > 1, "logits near zero would hide mistakes"
    assert (found - wanted).abs().max() < TOLERANCE * (2 if variant.startswith("qwen3_5") else 1)
    assert [one.token_ids for one in told] == [one.token_ids for one in said]
