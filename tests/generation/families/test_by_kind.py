"""Layers whose attention differs by their kind: values narrower than keys, numbers of heads and ropes of each kind's
own, gates of each head, limits of each layer's own. However a pass is cut, computed and shared, the logits are those of
transformers. Windows are of 5 to 8 tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import tiny
import torch
from family_runs import GREEDY, Checkpoints, Oracle, check_fused, check_greedy, load, prompt

from headrace import SamplingParams
from headrace.engine.model.kv_cache import KeysAndValues

VARIANTS = ("mimo_v2_flash", "mimo_v2_flash-bias", "step3p5", "laguna", "laguna-values")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kernels", ["reference", "cpu"])
def test_greedy_tokens_over_48_steps(variant: str, kernels: str, checkpoints: Checkpoints, oracle: Oracle) -> None:
    check_greedy(variant, kernels, checkpoints, oracle)


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_layers_at_once_are_their_ops(variant: str, checkpoints: Checkpoints) -> None:
    check_fused(checkpoints(variant))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_beginning_that_was_computed_before_changes_nothing(
    variant: str, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    """In RAM, and by another process from the disk."""
    ids, folder = prompt(90, 7), tmp_path / "kv"
    with load(checkpoints(variant)) as llm:
        fresh = llm.generate([ids], GREEDY)[0].token_ids
    with load(checkpoints(variant), kv_disk=str(folder)) as llm:
        llm.generate([ids[:70]], SamplingParams(max_new_tokens=4, ignore_eos=True))
        again = llm.generate([ids], GREEDY)[0]
        assert (again.token_ids, again.reused_tokens) == (fresh, 64)
    with load(checkpoints(variant), kv_disk=str(folder)) as llm:
        later = llm.generate([ids], GREEDY)[0]
        assert (later.token_ids, later.reused_tokens) == (fresh, 64)


def test_a_cache_holds_values_as_wide_as_they_are(checkpoints: Checkpoints) -> None:
    """Two heads of keys in layers that see everything, four over a window: 24 numbers a key, 20 a value."""
    with load(checkpoints("mimo_v2_flash")) as llm:
        caches = llm.parts.decoder.cache.layers
        assert all(isinstance(one, KeysAndValues) for one in caches)
        assert [(one.k.shape[1::2], one.v.shape[1::2]) for one in caches if isinstance(one, KeysAndValues)] == [
            ((groups, 24), (groups, 20)) for groups in (2, 4, 4, 2)
        ]
        assert llm.spec.kv_elements_per_token == (2 + 4 + 4 + 2) * (24 + 20)


def test_each_layer_is_clamped_by_its_own_limit(checkpoints: Checkpoints) -> None:
    """Of experts, and of the MLP beside them; and behind the sigmoid: limits in front of it say something else."""
    with load(checkpoints("step3p5")) as llm:
        layers = llm.spec.layers
        assert [layer.ffn.activation.limit for layer in layers] == [0.5, float("inf"), 0.3, float("inf"), 0.2]
        assert [mlp.activation.limit for layer in llm.parts.decoder.weights.layers if (mlp := layer.mlp)] == [
            0.5, float("inf"), float("inf"), float("inf"), 0.25,
        ]  # fmt: skip
        assert all(layer.ffn.activation.late for layer in layers)


def test_layers_for_further_tokens_are_left_out(tmp_path: Path) -> None:
    """As releases store them: beside the decoder's layers, or behind the last."""
    for variant, names in (
        ("mimo_v2_flash", ["model.mtp.layers.0.self_attn.q_proj.weight", "model.mtp.layers.0.enorm.weight"]),
        ("step3p5", ["model.layers.5.self_attn.q_proj.weight", "model.layers.5.eh_proj.weight",
                     "model.layers.5.transformer.shared_head.norm.weight"]),
    ):  # fmt: skip
        tiny.build(variant, tmp_path / variant)
        path = tmp_path / variant / "model.safetensors"
        extra = {name: torch.ones(4, 4) for name in names}
        safetensors.torch.save_file(safetensors.torch.load_file(path) | extra, path)
        with load(tmp_path / variant, kernels="reference") as llm:
            assert any(f"{len(names)} tensors are read over" in note for note in llm.notes)
            assert any("multi-token prediction" in note for note in llm.notes)
