"""Cases of `layers`, a whole decoder in one op: layers of every kind one after the other, held to the op's parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from torch import Generator, Tensor

from .. import Ops
from ..decoder_layer import Block, Layer, Stack, compose_layers
from ..formats import FORMATS, ExpertLayout, Format
from ..packed import Mlp, Stacked
from ..recipes import SQUARED_RELU, SWIGLU
from .attention import EXPERTS, PAGE, cache_of, kept, own_cache, places_of, random_block, rows_of
from .case import BASIC, Case, Inputs, Source, normal

WIDTH = 64


def random_layer(g: Generator, source: Source, form: Format, D: int, cache: Inputs, kind: str) -> Layer:
    """A layer with attention, of a kind as `layer_of` says."""
    caches = {name: cache[name].clone() for name in ("k", "v")}
    block = random_block(g, source, form, D, {**cache, **caches}, "first" if kind == "dense" else "")
    return layer_of(g, source, form, block, kind)


def layer_of(g: Generator, source: Source, form: Format, block: Block, kind: str) -> Layer:
    """dense, moe, shared (experts and a shared MLP) or gated (the same behind a gate), behind a block; ungated: experts
    without gates, and a shared MLP without one, if that stands there; nothing: the block alone."""
    D, how = len(block.pre_norm), SQUARED_RELU if "ungated" in kind else SWIGLU
    layout = ExpertLayout(format=form, hidden=D, width=WIDTH, activation=how)
    rows = (2 if how.gated else 1) * WIDTH
    mlp = Mlp(gate_up=Stacked((source.matrix(form, rows, D),)), down=source.matrix(form, D, WIDTH), activation=how)
    return Layer(
        block=block,
        bank=None if kind in ("dense", "nothing") else source.bank(layout, EXPERTS),
        mlp=None if kind in ("moe", "nothing", "ungated") else mlp,
        shared_gate=source.matrix(FORMATS["f32"], 1, D) if kind == "gated" else None,
    )


Change = Callable[[Generator, Source, Layer, int], Layer]  # of a layer by its number


def layers_inputs(
    g: Generator, source: Source, form: Format, kinds: list[str], new: list[int], old: list[int], rows: str,
    change: Change | None = None, cache: Inputs | None = None,
) -> Inputs:  # fmt: skip
    """A decoder of layers of these kinds, changed if that is said."""
    D, T = 96, sum(new)
    cache = cache or cache_of(g, [n + o for n, o in zip(new, old, strict=True)])
    layers = [random_layer(g, source, form, D, cache, kind) for kind in kinds]
    if change is not None:
        layers = [change(g, source, layer, i) for i, layer in enumerate(layers)]
    places = places_of(new, old, cache["tables"], PAGE)
    return {"x": normal(g, T, D), "stack": Stack(layers=tuple(layers)), "places": places, "rows": rows_of(rows, T)}


def changed_layers_case(name: str, form: Format, change: Change, new: list[int], old: list[int]) -> Case:
    """Layers of three kinds that are changed, of which few rows go on."""

    def build(g: Generator, source: Source) -> Inputs:
        return layers_inputs(g, source, form, ["dense", "moe", "shared"], new, old, "few rows", change)

    return Case(op="layers", name=name, build=build, call=layers_difference)


def layers_difference(ops: Ops, i: Inputs) -> list[Tensor]:
    """All that the op gives and changes, less what its parts do, of the same backend."""

    def run(layers: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> list[Tensor]:
        blocks = [own_cache(layer.block) for layer in i["stack"].layers]
        both = zip(i["stack"].layers, blocks, strict=True)
        stack = Stack(layers=tuple(replace(layer, block=block) for layer, block in both))
        x, update, distinct = layers(i["x"].clone(), stack, i["places"], i["rows"])
        caches = [cache for block in blocks for cache in kept(block)]
        return [x, *([update] if len(x) else []), distinct, *caches]

    return [a - b for a, b in zip(run(ops.layers), run(partial(compose_layers, ops)), strict=True)]


def layers_cases() -> Iterator[Case]:
    """The same bits as from its parts, so the difference is zero."""

    def case(form: Format, kinds: str, new: list[int], old: list[int], rows: str = "") -> Case:
        return Case(
            op="layers",
            name=f"{form.name} {kinds} new {new} after {old}{' ' + rows if rows else ''}",
            build=lambda g, source: layers_inputs(g, source, form, kinds.split(), new, old, rows),
            call=layers_difference,
        )

    for form in BASIC:
        yield case(form, "dense moe shared gated", [1], [40])
        yield case(form, "moe gated moe", [37, 5], [3, 0], "few rows")
    yield case(FORMATS["q4_0"], "shared dense", [3, 1], [0, 70])
    yield case(FORMATS["q8_0"], "gated moe", [9], [20], "no rows")
