"""Some layers of a model, one after the other, with their weights and caches: what runs where layers are dealt out.

Residual streams come in and go out with everything added, so that whoever runs the layers behind needs no more than a
row of each token. The bits are those of one call of all layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...errors import DeviceError
from ...kernels import Ops
from ...kernels.blocks import cache_rows
from ...kernels.decoder_layer import Layer, Places, Stack
from ...kernels.formats import KV_FORMATS, KVFormat
from ...kernels.packed import ExpertBank
from ...kernels.passes.tally import Tally
from ...kernels.residual.streams import added
from ...loaders.spec import LatentSpec, LayerSpec, ModelSpec
from ...loaders.weights.model_weights import LayerWeights, ModelWeights
from ..ledger.pass_bytes import DENSE, EXPERTS, KV, Span, cache_sizes, layer_dense_bytes
from ..ledger.passes import CPU_DRAM, Bytes
from ..ledger.windows import PAGE, Window
from .kv_cache import KeysAndValues, KVCache, Latents, LayerCache, States
from .prepare import make_stack

Run = tuple[int, int]  # layers [first, last)
MOST_PAGES = (1 << 31) // PAGE  # and the most slots and tokens of context


class CacheLost(DeviceError):
    """What sequences had in the cache is gone; their tokens have to be computed anew."""


def _count(found: Any, what: str, least: int = 0) -> int:
    """What a message says of a cache: its rows have numbers of 32 bits."""
    if type(found) is not int or not least <= found <= MOST_PAGES:
        raise ValueError(f"{what}: {str(found)[:40]}")
    return found


def row_width(spec: ModelSpec) -> int:
    """Numbers of a token's residual streams between two layers."""
    return spec.hidden * (1 if spec.streams is None else spec.streams.count)


def widened(spec: ModelSpec, x_TX: Tensor) -> Tensor:
    """Rows as layers take them: several streams have a weight each behind them, of what is to be added to them yet."""
    if spec.streams is None:
        return x_TX
    return torch.cat([x_TX, x_TX.new_zeros(len(x_TX), spec.streams.count)], dim=1)


def runs(spec: ModelSpec) -> list[Run]:
    """The shortest runs of layers that can be apart: a layer that sees the keys which another one chose goes with it,
    and a layer without a mixer with the one before."""
    firsts = [i for i, layer in enumerate(spec.layers) if i == 0 or not _goes_on(layer)]
    return list(zip(firsts, [*firsts[1:], len(spec.layers)], strict=True))


def _goes_on(layer: LayerSpec) -> bool:
    mixer = layer.mixer
    return mixer is None or (isinstance(mixer, LatentSpec) and mixer.indexer is not None and mixer.index_key == 0)


class Room:
    """Of caches: the pages of layers that see everything, slots of recurrent states, and pools of windows with their
    pages. context: the longest of a sequence."""

    def __init__(
        self, pages: int, format: KVFormat, slots: int, windows: Sequence[tuple[Window, int]], context: int
    ) -> None:
        self.pages, self.format, self.slots, self.windows, self.context = pages, format, slots, tuple(windows), context

    def as_json(self) -> dict[str, Any]:
        """As it goes over the wire."""
        windows = [[window.length, window.in_chunks, pages] for window, pages in self.windows]
        return {
            "pages": self.pages, "format": self.format.name, "slots": self.slots, "windows": windows,
            "context": self.context,
        }  # fmt: skip

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> Room:
        """That of a message. Raises KeyError, TypeError, ValueError."""
        windows = [
            (Window(_count(length, "a window", 1), bool(chunks)), _count(pages, "pages of a window"))
            for length, chunks, pages in said["windows"]
        ]
        pages, slots, context = _count(said["pages"], "pages"), _count(said["slots"], "slots"), said["context"]
        return cls(pages, KV_FORMATS[said["format"]], slots, windows, _count(context, "context", 1))

    def cache(self, spec: ModelSpec, place: torch.device | None = None) -> KVCache:
        """Those of a model, or of a part of one."""
        return KVCache(spec, self.pages, self.format, place, self.slots, self.windows)


def part_of(spec: ModelSpec, first: int, last: int) -> ModelSpec:
    """The model of these layers alone."""
    return replace(spec, layers=spec.layers[first:last])


def sizes(spec: ModelSpec, weights: ModelWeights, room: Room) -> list[int]:
    """By layer the bytes of its weights and its cache; weights: also on the meta device."""
    caches = room.cache(spec, torch.device("meta")).layers
    return [
        sum(part.nbytes for _, part in layer.parts()) + cache_bytes(cache)
        for layer, cache in zip(weights.layers, caches, strict=True)
    ]


def cache_bytes(cache: LayerCache) -> int:
    """Of one layer."""
    if isinstance(cache, KeysAndValues):
        return sum(cache_rows.memory(one).nbytes for one in (cache.k, cache.v)) + cache.index.nbytes
    if isinstance(cache, Latents):
        return cache_rows.memory(cache.rows).nbytes + cache.keys.nbytes
    return sum(one.nbytes for one in cache.parts) if isinstance(cache, States) else 0


class Segment:
    """Layers [first, last) of a model: weights of the whole, of which these layers' are here."""

    def __init__(self, spec: ModelSpec, weights: ModelWeights, ops: Ops, room: Room, run: Run) -> None:
        self.first, self.last = run
        self.is_end = self.last == len(spec.layers)
        self.whole, self.spec, self.ops = spec, part_of(spec, *run), ops
        self.whole_weights = weights
        self.weights = replace(weights, layers=weights.layers[self.first : self.last], tables={})
        self.cache = room.cache(self.spec)
        put = lambda one: one  # noqa: E731
        self.stack: Stack = make_stack(self.spec, self.weights, self.cache, room.context, put, first=self.first)
        self.sizes = cache_sizes(self.spec, room.format)
        self.dense = [layer_dense_bytes(layer) for layer in self.weights.layers]
        self.experts = [_expert_bytes(layer) for layer in self.stack.layers]

    @property
    def nbytes(self) -> int:
        """Of weights and caches."""
        layers = zip(self.weights.layers, self.cache.layers, strict=True)
        return sum(_layer_bytes(layer) + cache_bytes(cache) for layer, cache in layers)

    def run(
        self, x_TX: Tensor, places: Places, rows_R: Tensor | None, tally: Tally | None = None
    ) -> tuple[Tensor, Tensor]:
        """Streams [T, X] in, which may be overwritten; streams out, behind the model's last layer of rows R alone
        (None: of all); and of each layer how many different experts were chosen, int32."""
        rows_R = rows_R if self.is_end else None
        x_TX = widened(self.whole, x_TX)
        x_TX, update_TD, distinct_L = self.ops.layers(x_TX, self.stack, places, rows_R, tally)
        return self._closed(x_TX, update_TD), distinct_L

    def _closed(self, x_TX: Tensor, update_TD: Tensor) -> Tensor:
        """Streams with what the last layer made: as the next one would add it up, and ready for that."""
        spec = self.whole
        if spec.streams is None:
            if len(x_TX):
                ones, nothing = torch.ones(spec.hidden), torch.zeros(spec.hidden)
                if spec.layernorms:
                    self.ops.add_layernorm_(x_TX, update_TD, ones, nothing, spec.norm_eps, spec.residual_scale)
                else:
                    self.ops.add_rmsnorm_(x_TX, update_TD, ones, spec.norm_eps, spec.residual_scale)
            return x_TX
        if not len(x_TX):
            return x_TX[:, : row_width(spec)]
        return added(self.ops, x_TX, update_TD, spec.streams.count).flatten(1)

    def read(self, spans: Sequence[Span], logits: bool, distinct: Sequence[int]) -> Bytes:
        """Bytes that a pass reads. logits: whether any are wanted."""
        goes_on = logits or not self.is_end
        dense = sum(self.dense)
        if not goes_on:
            last = self.weights.layers[-1]
            dense -= self.dense[-1] - sum(part.nbytes for part in last.keeping())
        experts = sum(count * size for count, size in zip(distinct, self.experts, strict=True))
        kv = self.sizes.moved(spans, goes_on)
        return {CPU_DRAM: {name: size for name, size in ((DENSE, dense), (KV, kv), (EXPERTS, experts)) if size}}


def _layer_bytes(layer: LayerWeights) -> int:
    return sum(part.nbytes for _, part in layer.parts())


def _expert_bytes(layer: Layer) -> int:
    return layer.bank.layout.bytes if isinstance(layer.bank, ExpertBank) else 0
