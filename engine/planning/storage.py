"""The bytes of a model: by group, by layer, and of one expert; of an architecture in formats that it is to have.

In files and in memory they differ by what the engine packs in another way. Where there are headers they win
(`of_headers.py`). Nothing here knows a device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...loaders.architecture.architecture import Architecture, Layer, Part
from ...loaders.quants.by_format import NOTHING, ByFormat
from ...loaders.quants.encodings import F32
from ...loaders.quants.quant import Place, Quant, place_of
from ...loaders.quants.quant import outside as beside


@dataclass(frozen=True, kw_only=True)
class LayerBytes:
    """One layer in memory, by format: what every token reads, of it the shared expert and the matrices behind the mixer
    (`Layer.behind`), and one routed expert (a mean where a file's differ)."""

    common_in: ByFormat
    shared_in: ByFormat = NOTHING
    behind_in: ByFormat = NOTHING
    expert_in: ByFormat = NOTHING
    experts: int = 0

    @property
    def common(self) -> int:
        return round(self.common_in.total)

    @property
    def shared(self) -> int:
        return round(self.shared_in.total)

    @property
    def expert(self) -> float:
        return self.expert_in.total

    @property
    def routed(self) -> int:
        return round(self.expert * self.experts)


@dataclass(frozen=True, kw_only=True)
class Storage:
    """All bytes of a model. `groups`: in its files; the rest in memory, as the engine packs it. `outside`: what every
    token reads outside of layers, the head included; `row`: the one row of the embedding that a token reads; `held`:
    embedding and other tables whole. `quant`, `expert_format`, `dense_format`: for people, what most bytes are in."""

    groups: dict[str, int]
    layers: tuple[LayerBytes, ...]
    outside_in: ByFormat
    head_in: ByFormat
    row_in: ByFormat
    held: int
    quant: str
    expert_format: str
    dense_format: str
    from_headers: bool = False
    counted: int | None = None  # parameters in the files; None where weights are packed several to an element
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Bytes of the text model in its files; what `left_out` names comes on top in a download."""
        return sum(self.groups.values())

    @property
    def in_memory(self) -> int:
        """Bytes of the text model in memory."""
        return self.common + self.routed + self.held

    @property
    def outside(self) -> int:
        return round(self.outside_in.total)

    @property
    def head(self) -> int:
        return round(self.head_in.total)

    @property
    def rows(self) -> int:
        return round(self.row_in.total)

    @property
    def routed(self) -> int:
        return sum(layer.routed for layer in self.layers)

    @property
    def common(self) -> int:
        """Bytes that every token reads in full."""
        return self.outside + sum(layer.common for layer in self.layers)

    @property
    def routed_by_layer(self) -> tuple[int, ...]:
        return tuple(layer.routed for layer in self.layers)

    @property
    def experts_by_layer(self) -> tuple[int, ...]:
        """How many routed experts each layer has."""
        return tuple(layer.experts for layer in self.layers)

    def common_on(self, tier: str, layers: Sequence[str], outside: str) -> int:
        """Bytes that every token reads on a tier; `layers`, `outside`: the tiers of theirs."""
        here = sum(layer.common for layer, at in zip(self.layers, layers, strict=True) if at == tier)
        return here + (self.outside if outside == tier else 0)


def computed(model: Architecture, quant: Quant) -> Storage:
    """The bytes of an architecture in these formats."""
    groups: Counter[str] = Counter()
    layers = tuple(_layer(layer, quant, place_of(model, i), groups) for i, layer in enumerate(model.layers))
    place, outside = beside(model), [ByFormat.of([(F32.name, 4 * model.hidden)])]
    groups["norms"] += 4 * model.hidden
    table = model.head if model.tied_head else model.embedding
    held = [] if model.tied_head else [model.embedding]
    tables = [part for part in model.lookup if part.plain]  # others stay in their files
    for part in (*model.extra, model.head, *model.lookup, *held):
        groups[part.group] += quant.stored_bytes(part, place)
    outside += [quant.in_memory(part, place) for part in model.extra]
    head = quant.in_memory(model.head, place)
    encoding = quant.encoding(table, place)
    return Storage(
        groups={g: size for g, size in groups.items() if size},
        layers=layers,
        outside_in=ByFormat.sum([*outside, head]),
        head_in=head,
        row_in=ByFormat.of(
            [(encoding.name, encoding.bytes(1, model.hidden)), (F32.name, _rows_of_tables(model, tables))]
        ),
        held=round(sum(quant.in_memory(part, place).total for part in (*held, *tables))),
        quant=quant.name,
        expert_format=quant.experts.name,
        dense_format=quant.dense.name,
    )


def _rows_of_tables(model: Architecture, tables: Sequence[Part]) -> int:
    """Bytes that a token reads of tables that have a row for each."""
    return sum(4 * part.cols * (part.rows // model.vocab) for part in tables)


def _layer(layer: Layer, quant: Quant, place: Place, groups: Counter[str]) -> LayerBytes:
    for part in layer.parts:
        groups[part.group] += quant.stored_bytes(part, place)
    common = ByFormat.sum(quant.in_memory(part, place) for part in layer.parts)
    shared = ByFormat.sum(quant.in_memory(part, place) for part in layer.parts if part.group == "shared")
    behind = ByFormat.sum(quant.in_memory(part, place) for part in layer.behind)
    experts = layer.experts
    if experts is None:
        return LayerBytes(common_in=common, shared_in=shared, behind_in=behind)
    groups["experts"] += quant.stored_expert_bytes(experts, place) * experts.count
    one = quant.expert_in_memory(experts, place)
    return LayerBytes(common_in=common, shared_in=shared, behind_in=behind, expert_in=one, experts=experts.count)
