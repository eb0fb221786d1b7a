"""Experts of every stored form are read from the file as loading reads them: the same logits, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf_files
import pytest
import torch

from headrace import LLM
from headrace.engine.experts.disk.disk_cache import DiskCache
from headrace.loaders.weights import converted

PROMPT = [5, 11, 3, 70, 29, 8, 8, 14, 101, 33, 2, 9]
Checkpoints = Callable[[str], Path]
# Each expert apart, all fused, fused and turned with biases, by turns, with shared experts, groups and dense layers,
# with weights of what they take, without gates.
VARIANTS = ("qwen3_moe", "qwen2_moe", "mixtral", "granitemoe", "gpt_oss", "deepseek_v3", "qwen3_next", "llama4_text",
            "granitemoehybrid", "nemotron_h")  # fmt: skip


def same(model: Path, **options: object) -> DiskCache:
    """The cache of a model that says the same with its experts on the disk."""
    with LLM(model, device="cpu", max_context=64, **options) as llm:
        expected = llm.logits(PROMPT)
        said = llm.generate([PROMPT], {"max_new_tokens": 8, "ignore_eos": True})[0].token_ids
    with LLM(model, placement="disk", expert_cache="25%", max_context=64, **options) as llm:
        assert torch.equal(llm.logits(PROMPT), expected)
        assert llm.generate([PROMPT], {"max_new_tokens": 8, "ignore_eos": True})[0].token_ids == said
        assert llm.parts.weights.layers[-1].experts is not None
        cache = llm.parts.expert_cache
        assert isinstance(cache, DiskCache)
        assert cache.counts.choices
        return cache


@pytest.mark.parametrize(
    ("variant", "kind"), [*((v, k) for v in VARIANTS for k in ("native", "bf16")), ("qwen3_moe", "q4_0")]
)
def test_safetensors(variant: str, kind: str, checkpoints: Checkpoints) -> None:
    cache = same(checkpoints(variant), expert_format=kind)
    straight = kind == "native" and variant not in ("gpt_oss", "llama4_text")
    assert cache.files.is_straight == straight
    assert any("converted after" in note for note in cache.notes) != straight


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
def test_gguf(kind: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    config, tensors = gguf_files.read(checkpoints("qwen3_moe"))
    roles = dict.fromkeys(("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"), kind)
    stored = {} if kind == "F32" else gguf_files.quantised(tensors, gguf_files.by_role(**roles))
    gguf_files.write(tmp_path / "m.gguf", config, tensors, stored)
    cache = same(tmp_path / "m.gguf")
    assert cache.files.is_straight == (kind != "Q8_0")


def test_a_split_file(checkpoints: Checkpoints, tmp_path: Path) -> None:
    config, tensors = gguf_files.read(checkpoints("qwen3_moe"))
    for number in range(2):
        part = {name: values for i, (name, values) in enumerate(tensors.items()) if i % 2 == number}
        gguf_files.write(tmp_path / f"m-{number + 1:05d}-of-00002.gguf", config, part, split=(number, 2, len(tensors)))
    assert len(same(tmp_path / "m-00001-of-00002.gguf").files.stored.files) == 2


@pytest.mark.parametrize(("variant", "experts"), [("qwen3_moe", "q4_0"), ("gpt_oss", "bf16")])
def test_a_converted_directory(variant: str, experts: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    """One run of bytes an expert, biases and all."""
    with LLM(checkpoints(variant), expert_format=experts) as llm:
        source = llm.parts.checkpoint
        converted.save(source.directory, tmp_path / "packed", llm.parts.weights, source.formats)
    cache = same(tmp_path / "packed")
    assert cache.files.is_straight
    assert all(len(parts) == 1 for layer in cache.files.stored.parts for parts in layer)
    assert cache.files.read_bytes == [layout.bytes for layout in cache.files.layouts]


def test_plain_kernels(checkpoints: Checkpoints) -> None:
    """Whose sums have another order: the same text."""
    with LLM(checkpoints("qwen3_moe"), device="cpu", kernels="reference") as llm:
        said = llm.generate([PROMPT], {"max_new_tokens": 12, "ignore_eos": True})[0].token_ids
    with LLM(checkpoints("qwen3_moe"), placement="disk", expert_cache="25%", kernels="reference") as llm:
        assert llm.generate([PROMPT], {"max_new_tokens": 12, "ignore_eos": True})[0].token_ids == said
