"""Cases of attention that differs by the kind of a layer: blocks and decoders whose values are narrower than keys and
scaled, whose heads have one gate each, by a sigmoid or a softplus; SwiGLU whose limit comes behind the sigmoid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from torch import Generator

from ...decoder_layer import AttentionBlock, Layer
from ...formats import FORMATS, KV_BF16, KV_Q8_0, ExpertLayout, KVFormat
from ...packed import Stacked
from ...recipes import Activation
from ..all import experts_case_of
from ..attention import HEAD, PAGE, G, N, block_difference, paged
from ..case import Case, Inputs, Source, normal
from ..families import glu_cases
from ..layers import layers_difference, layers_inputs

LATE = Activation(limit=0.75, late=True)
VALUES = {KV_BF16: 16, KV_Q8_0: 64}  # numbers of a value, by the format of the cache


def narrow(g: Generator, source: Source, block: AttentionBlock, D: int, per_head: bool, soft: bool) -> AttentionBlock:
    """The block with values of another width, a gate, and on the way a window with sinks."""
    form, value = block.qkv.parts[0].format, block.v_PGBd.shape[3]
    return replace(
        block, qkv=Stacked((source.matrix(form, (N + G) * HEAD + G * value, D),)), qkv_bias=None, clip=None,
        o=source.matrix(form, D, N * value), gate=source.matrix(form, N if per_head else N * value, D), soft=soft,
        v_scale=0.7, window=6 if per_head else None, sinks_N=normal(g, N) if per_head else None, native={},
    )  # fmt: skip


def narrow_cases() -> Iterator[Case]:
    """Blocks and a decoder: the same bits as from their parts."""

    def build(g: Generator, source: Source, new: list[int], old: list[int], rows: str, kv: KVFormat) -> Inputs:
        cache = paged(g, [n + o for n, o in zip(new, old, strict=True)], G, PAGE, HEAD, kv, v_dim=VALUES[kv])
        i = layers_inputs(g, source, FORMATS["q8_0"], ["dense", "shared", "moe"], new, old, rows, layer_of, cache)
        return {**i, "block": i["stack"].layers[1].block, "update": normal(g, sum(new), 96)}

    def layer_of(g: Generator, source: Source, layer: Layer, index: int) -> Layer:
        assert isinstance(layer.block, AttentionBlock)
        bank = layer.bank
        if bank is not None:
            bank = source.bank(replace(bank.layout, activation=LATE), bank.experts)
        block = narrow(g, source, layer.block, 96, per_head=index > 0, soft=index < 2)
        return replace(layer, block=block, bank=bank, mlp=layer.mlp and replace(layer.mlp, activation=LATE))

    for op, call in (("attention_block", block_difference), ("layers", layers_difference)):
        for new, old, rows in (([1], [40], ""), ([37, 5], [3, 0], "few rows"), ([9], [20], "no rows")):
            for kv in VALUES:
                name = f"{kv.name} values of {VALUES[kv]}, gates new {new} after {old}{rows and ' ' + rows}"
                yield Case(op=op, name=name, build=partial(build, new=new, old=old, rows=rows, kv=kv), call=call)


def experts_cases() -> Iterator[Case]:
    for name in ("f32", "bf16", "q8_0", "q4_k"):
        for T, kind in ((21, ""), (1, "partly elsewhere")):
            layout = ExpertLayout(format=FORMATS[name], hidden=256, width=256, activation=LATE)
            yield experts_case_of(layout, 5, T, 2, kind)


MAKERS: tuple[Callable[[], Iterator[Case]], ...] = (narrow_cases, partial(glu_cases, (LATE,)), experts_cases)
KIND_CASES = [case for maker in MAKERS for case in maker()]
