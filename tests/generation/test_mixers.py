"""Layers that look at other tokens in other ways than full attention: what they keep, what a pass reads of it, and that
sequences do not disturb each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from family_runs import prompt

from headrace import LLM, SamplingParams
from headrace.engine.bandwidth_model.flop_counts import intensity
from headrace.engine.bench.random_weights import random_llm
from headrace.engine.generation.schedule.state_slots import StateSlots
from headrace.engine.ledger.pass_bytes import CacheSizes, cache_sizes
from headrace.engine.model.kv_cache import PAGE, States
from headrace.kernels import FORMATS, Ops, reference
from headrace.kernels.cases.case import RandomSource
from headrace.kernels.cases.mixers import latent_block
from headrace.kernels.context import Context
from headrace.kernels.cpu import CpuOps
from headrace.kernels.decoder_layer import compose, compose_layers
from headrace.kernels.formats import KV_F32
from headrace.kernels.isa import available_isas
from headrace.kernels.mixers import LatentBlock
from headrace.kernels.packed import Matrix
from headrace.loaders.architecture.mixers import mla

Checkpoints = Callable[[str], Path]
FEW = SamplingParams(max_new_tokens=6, ignore_eos=True)
NEW_KINDS = [
    "gpt_oss", "deepseek_v2", "deepseek_v3", "qwen3_next", "qwen3_5_moe_text", "deepseek_v32", "glm_moe_dsa",
    "kimi_linear", "bailing_hybrid", "lfm2_moe", "granitemoehybrid", "granitemoehybrid-groups",
    "nemotron_h", "nemotron_h-mlp",
]  # fmt: skip


def load(path: Path, **options: object) -> LLM:
    return LLM(str(path), kernels="reference", dtype="float32", **options)


def test_a_window_is_read_as_far_as_it_reaches() -> None:
    """A layer of 10 bytes a token that sees all, and one of 6 that sees 8; two sequences."""
    cache = CacheSizes(layers=((6, (8, None)), (10, (None, None))), state=0)
    spans = [(1, 30), (4, 20)]
    written = 5 * 16
    assert cache.moved(spans, logits=True) == written + 10 * 50 + 6 * (8 + 11)
    assert cache.moved(spans, logits=False) == written + 6 * (8 + 11), "the last layer does not attend"
    assert cache.moved([(3, 5)], logits=True) == 3 * 16 + 5 * 16, "a window that nobody reaches"


def test_a_state_is_read_and_written_by_each_sequence() -> None:
    cache = CacheSizes(layers=((0, (None, None)), (4, (None, None))), state=100)
    assert cache.moved([(1, 9), (1, 1)], logits=True) == 2 * 4 + 4 * 10 + 2 * 2 * 100


@pytest.mark.parametrize("variant", NEW_KINDS)
def test_cache_bytes_are_those_of_the_tensors(variant: str, checkpoints: Checkpoints) -> None:
    with load(checkpoints(variant), max_context=64, max_sequences=2) as llm:
        cache, sizes = llm.parts.decoder.cache, cache_sizes(llm.spec, KV_F32)
        by_slot: list[torch.Tensor] = []
        paged: list[torch.Tensor] = []
        for layer in cache.layers:
            if isinstance(layer, States):
                by_slot.extend(layer.parts)
            elif layer is not None:
                paged.extend(part for part in vars(layer).values() if isinstance(part, torch.Tensor))
        assert sum(tensor.nbytes for tensor in paged) == sizes.token * PAGE * cache.pages
        assert sum(tensor.nbytes for tensor in by_slot) == StateSlots.count(2) * sizes.state


@pytest.mark.parametrize("variant", NEW_KINDS)
def test_the_same_prompt_again_gives_the_same(variant: str, checkpoints: Checkpoints) -> None:
    """With pages taken over, or with a slot that another sequence had."""
    ids = prompt(70, 3)
    with load(checkpoints(variant), max_context=128, max_sequences=2) as llm:
        first, other = (llm.generate([one], FEW)[0].token_ids for one in (ids, prompt(40, 4)))
        assert llm.generate([ids], FEW)[0].token_ids == first
        assert llm.generate([[*ids[:64], *prompt(9, 5)]], FEW)[0].token_ids != first
        assert llm.generate([prompt(40, 4), ids], FEW)[1].token_ids == first
        assert llm.generate([prompt(40, 4)], FEW)[0].token_ids == other


@pytest.mark.parametrize("variant", ["deepseek_v32", "glm_moe_dsa", "bailing_hybrid"])
def test_other_mixers_beside_a_gpu(variant: str, checkpoints: Checkpoints) -> None:
    """What plays its part has keys that are chosen, states with decays by key, and gates."""
    prompts, options = [prompt(70, 3), prompt(9, 4)], dict(max_context=128, max_sequences=2, prefill_chunk=48)
    path = checkpoints(variant)
    with load(path, **options) as plain, load(path, device="simulated", n_cpu_moe=2, **options) as split:
        wanted, found = ([one.token_ids for one in llm.generate(prompts, FEW)] for llm in (plain, split))
        assert found == wanted


@pytest.mark.parametrize("variant", ["qwen3_next", "lfm2_moe", "granitemoehybrid", "nemotron_h"])
@pytest.mark.parametrize("where", [{"cpu_moe": True}, {"n_cpu_moe": 2}, {"placement": "gpu"}], ids=str)
def test_states_beside_a_gpu(where: dict[str, object], variant: str, checkpoints: Checkpoints) -> None:
    """What plays its part has slots and kept copies of states, to which slots and pieces of a prompt come by a copy."""
    prompts = [prompt(70, 3), prompt(9, 4)]
    options = dict(max_context=128, max_sequences=2, prefill_chunk=48)
    with (
        load(checkpoints(variant), **options) as plain,
        load(checkpoints(variant), device="simulated", **where, **options) as split,
    ):
        for prompts in ([prompt(70, 3), prompt(9, 4)], [[*prompt(70, 3)[:64], *prompt(5, 6)]]):
            wanted, found = ([one.token_ids for one in llm.generate(prompts, FEW)] for llm in (plain, split))
            assert found == wanted
        kept = split.parts.decoder.cache
        assert isinstance(kept.layers[0], States)
        for llm in (plain, split):
            assert llm.ledger.passes[-6].tokens == 5, "a kept state was taken over"


def test_recurrent_layers_alone_keep_no_keys(checkpoints: Checkpoints) -> None:
    """As a model that is cut to its first layers has them."""
    with random_llm(str(checkpoints("qwen3_next")), layers=2, max_sequences=2) as llm:
        assert llm.parts.decoder.cache.sizes.token == 0
        assert len(llm.generate([prompt(9, 15)], FEW)[0].token_ids) == 6


# ---- latents, or keys and values that are made of them


def a_latent_block(form: str, dtype: torch.dtype, context: int, pages: int) -> LatentBlock:
    """Of six heads, with latents of 64 numbers in a cache of some type, whose pages are all written."""
    g = torch.Generator().manual_seed(7)
    block = latent_block(g, RandomSource(g), FORMATS[form], [context], low=False)
    rows = torch.randn(pages, 1, 16, block.rows_P1Bl.shape[3], generator=g)
    return dataclasses.replace(block, rows_P1Bl=rows.to(dtype))


# Of all values' norm. Keys, values and the projection are rounded to the cache's type, to half of 2^-8 of each at most;
# latents to int8 where values have block formats, as what is attended is on the other way: 2^-7 of a block's largest.
@pytest.mark.parametrize(
    ("form", "dtype", "most"),
    [("f32", torch.float32, 2**-20), ("bf16", torch.bfloat16, 2**-8), ("q8_0", torch.bfloat16, 2**-6)],
)
@pytest.mark.parametrize(("new", "context"), [(40, 40), (33, 100), (1, 70)])
def test_both_ways_of_latent_attention_see_the_same(
    form: str, dtype: torch.dtype, most: float, new: int, context: int
) -> None:
    block = a_latent_block(form, dtype, context, 8)
    tables = torch.tensor([[7, 2, 5, 0, 1, 3, 6]], dtype=torch.int32)
    starts, contexts = torch.tensor([0, new], dtype=torch.int32), torch.tensor([context], dtype=torch.int32)
    q = torch.randn(new, block.heads, block.q.rows // block.heads, generator=torch.Generator().manual_seed(8))
    for ops in (reference, *(CpuOps(Context(isa=isa)) for isa in available_isas())):
        direct = block._attend_latents(cast(Ops, ops), q, block.rows_P1Bl, (tables, starts, contexts))
        made = block._attend_made(cast(Ops, ops), q, tables, context)
        assert (made - direct).norm() <= most * direct.norm()


def test_keys_are_made_where_that_takes_fewer_operations() -> None:
    """Of DeepSeek's shape: a pair costs 256 products in place of 1024, a token of the context 512 x 256 for a head."""
    block = dataclasses.replace(
        a_latent_block("f32", torch.float32, 16, 1),
        heads=2,
        kv_a_norm=torch.ones(512),
        k_up=Matrix.empty(FORMATS["f32"], 2 * 512, 128),
        v_up=Matrix.empty(FORMATS["f32"], 2 * 128, 512),
    )
    assert not block.makes_keys(1, 1)
    assert not block.makes_keys(1, 100_000), "a decode step never"
    assert not block.makes_keys(51, 51)
    assert block.makes_keys(52, 52), "as many as pay for turning the projection over"
    assert block.makes_keys(512, 100_000)
    assert not block.makes_keys(170, 100_000), "171 tokens share what is made of each of the others"
    assert block.makes_keys(172, 100_000)
    mixer = mla(96, block.heads, None, block.rank, nope=128, rope=16, v=128)
    for context in (30, 52, 300, 5000):
        for queries in range(1, context + 1, 7):
            is_less = intensity(mixer, queries, context) < intensity(mixer)
            assert is_less == block.makes_keys(queries, context), "predictions go by the same rule"


# ---- all layers in one call


class PartByPart(CpuOps):
    """The C++ kernels, called one by one."""

    def attention_block(self, x_TD: Any, update_TD: Any, block: Any, places: Any, rows_R: Any = None) -> Any:
        return compose(self, x_TD, update_TD, block, places, rows_R)

    def layers(self, x_TD: Any, stack: Any, places: Any, rows_R: Any = None, tally: Any = None) -> Any:
        return compose_layers(self, x_TD, stack, places, rows_R, tally)


def with_cpu(path: Path, ops: type[CpuOps], isa: str) -> LLM:
    """In chunks of 24 tokens; `ops` in place of the engine's own."""
    llm = LLM(str(path), kernels="cpu", dtype="bfloat16", max_context=160, max_sequences=2, prefill_chunk=24)
    llm.parts.decoder.ops = ops(dataclasses.replace(llm.parts.context, isa=isa))
    return llm


def everything(llm: LLM) -> list[Any]:
    """What a model says to prompts alone and together, to one whose beginning it knows, and its logits of one."""
    long = prompt(70, 11)
    asked = [[prompt(40, 12), long, [5]], [[*long[:64], *prompt(9, 13)]], [long]]
    found: list[Any] = [[one.token_ids for one in llm.generate(prompts, FEW)] for prompts in asked]
    return [*found, llm.logits(prompt(30, 14))]


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("variant", NEW_KINDS)
def test_one_call_gives_what_its_parts_give(variant: str, isa: str, checkpoints: Checkpoints) -> None:
    """Bit for bit: prompts in chunks, steps of several sequences, states and pages that are taken over."""
    with with_cpu(checkpoints(variant), CpuOps, isa) as fused, with_cpu(checkpoints(variant), PartByPart, isa) as parts:
        *answers, logits = everything(fused)
        *wanted, wanted_logits = everything(parts)
    assert answers == wanted
    assert torch.equal(logits, wanted_logits)


@pytest.mark.parametrize("variant", NEW_KINDS)
def test_a_pass_is_one_call(variant: str, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its layers are; of Python's ops nothing runs but what is before and behind them."""
    called: list[str] = []

    def watched(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def spy(self: CpuOps, *args: Any, **more: Any) -> Any:
            called.append(name)
            return own(self, *args, **more)

        return spy

    for name in [name for name in vars(Ops) if not name.startswith("_")]:
        monkeypatch.setattr(CpuOps, name, watched(name, getattr(CpuOps, name)))
    with LLM(str(checkpoints(variant)), kernels="cpu", max_context=64) as llm:
        called.clear()
        steps = len(llm.generate([prompt(9, 15)], FEW)[0].ledger)
        assert called == ["embed", "layers", "add_rmsnorm_", "linear", "argmax"] * steps
