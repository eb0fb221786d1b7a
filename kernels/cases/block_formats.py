"""Cases of the block formats beyond the basic ones: what is particular to codes and scales, and formats side by side.

The basic formats prove shapes, schedules and tiles (`all.py`); here every format is packed, unpacked and multiplied,
with rows that end in a part of a group, and mixed as files mix them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Generator

from ..blocks.ggml import FILE_BLOCKS
from ..decoder_layer import AttentionBlock, Layer
from ..formats import FORMATS, ExpertLayout, Format
from ..packed import Stacked
from .all import experts_case_of, linear_case
from .case import BASIC, Case, Inputs, Source, normal
from .layers import WIDTH, layers_difference, layers_inputs

MORE = tuple(form for form in FORMATS.values() if form not in BASIC)
MIXES = (("q4_k", "q4_k", "q6_k"), ("q5_k", "q4_k", "q5_0"), ("iq4_xs", "iq4_xs", "q8_0"), ("mxfp4", "mxfp4", "bf16"))


def whole_blocks(cols: int, *formats: Format) -> int:
    """The columns that a row of all these formats can have, from `cols` on."""
    block = max(form.block for form in formats)
    return -(-cols // block) * block


def repack_cases() -> Iterator[Case]:
    for name in FILE_BLOCKS:
        form = FORMATS[name]
        for rows, cols in ((1, 32), (7, 288), (33, 768), (40, 2048)):

            def build(
                g: Generator,
                source: Source,
                form: Format = form,
                rows: int = rows,
                cols: int = whole_blocks(cols, form),
            ) -> Inputs:
                size = cols // FILE_BLOCKS[form.name].weights * FILE_BLOCKS[form.name].bytes
                data = torch.randint(256, (rows, size), generator=g, dtype=torch.uint8)
                return {"data": data, "format": form, "cols": cols}

            yield Case(
                op="repack",
                name=f"{name} {rows}x{whole_blocks(cols, form)}",
                build=build,
                call=lambda ops, i: [ops.repack(i["data"], i["format"], i["cols"])],
            )


def unpack_cases() -> Iterator[Case]:
    for form in MORE:
        for rows, cols in ((1, 32), (33, 160), (7, 768)):

            def build(
                g: Generator,
                source: Source,
                form: Format = form,
                rows: int = rows,
                cols: int = whole_blocks(cols, form),
            ) -> Inputs:
                ids = torch.randint(rows, (5,), generator=g)
                values = normal(g, rows, cols) * torch.logspace(-4, 2, rows).unsqueeze(1)
                return {"matrix": source.matrix(form, rows, cols), "ids": ids, "values": values, "format": form}

            name = f"{form.name} {rows}x{whole_blocks(cols, form)}"
            yield Case(op="dequantize", name=name, build=build, call=lambda ops, i: [ops.dequantize(i["matrix"])])
            yield Case(op="embed", name=name, build=build, call=lambda ops, i: [ops.embed(i["matrix"], i["ids"], 1.7)])
            yield Case(
                op="quantize", name=name, build=build, call=lambda ops, i: [ops.quantize(i["values"], i["format"])]
            )


def linear_cases() -> Iterator[Case]:
    shapes = ((1, 1, 32), (3, 7, 96), (5, 33, 160), (17, 33, 768), (4, 64, 2048), (70, 40, 544))
    for form in MORE:
        for number, (T, R, C) in enumerate(shapes):
            yield linear_case(form, T, R, whole_blocks(C, form), bias=number % 2 == 1, exact=False)
        yield linear_case(form, 2, 9, whole_blocks(800, form), bias=False, exact=True)


def layout_of(gate: str, up: str, down: str, hidden: int, width: int) -> ExpertLayout:
    """Experts of these formats, their sizes rounded up to whole blocks."""
    forms = FORMATS[gate], FORMATS[up], FORMATS[down]
    return ExpertLayout(
        format=forms[0], up_format=forms[1], down_format=forms[2], hidden=whole_blocks(hidden, *forms[:2]),
        width=whole_blocks(width, forms[2]),
    )  # fmt: skip


def experts_cases() -> Iterator[Case]:
    for gate, up, down in [*((form.name,) * 3 for form in MORE), *MIXES]:
        yield experts_case_of(layout_of(gate, up, down, 160, 96), 8, 1, 2)
        yield experts_case_of(layout_of(gate, up, down, 544, 768), 4, 5, 2)
        yield experts_case_of(layout_of(gate, up, down, 96, 160), 6, 40, 3, "crowded")
    for form in MORE:
        yield experts_case_of(layout_of(form.name, form.name, form.name, 2048, 768), 128, 1, 8, bench=True)
        yield experts_case_of(layout_of(form.name, form.name, form.name, 2048, 768), 128, 512, 8, bench=True)


def _stacked(source: Source, cols: int, *parts: tuple[str, int]) -> Stacked:
    return Stacked(tuple(source.matrix(FORMATS[name], rows, cols) for name, rows in parts))


def mixed_layers_cases() -> Iterator[Case]:
    """q, k and v of two formats, gate and up of a shared expert of two, experts of three."""

    def mixed(g: Generator, source: Source, layer: Layer, index: int) -> Layer:
        block = layer.block
        assert isinstance(block, AttentionBlock)
        heads, groups, d = block.heads, block.k_PGBd.shape[1], block.k_PGBd.shape[3]
        qkv = _stacked(source, 96, ("q5_1", (heads + groups) * d), ("q5_0", groups * d))
        mlp = layer.mlp and replace(layer.mlp, gate_up=_stacked(source, 96, ("q5_1", WIDTH), ("iq4_nl", WIDTH)))
        return replace(layer, block=replace(block, qkv=qkv, native={}), mlp=mlp)

    def build(g: Generator, source: Source) -> Inputs:
        return layers_inputs(g, source, FORMATS["q5_1"], ["dense", "gated"], [5, 1], [3, 40], "", mixed)

    yield Case(op="layers", name="formats mixed", build=build, call=layers_difference)


BLOCK_CASES = [
    case for maker in (repack_cases, unpack_cases, linear_cases, experts_cases, mixed_layers_cases) for case in maker()
]
