"""`Quant`: the encoding of every tensor of a model, by group, with those that differ by layer or name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..architecture.architecture import Architecture, Experts, Layer, Part
from .by_format import ByFormat
from .encodings import F32, Encoding, expert_layout

ROLES = ("experts", "dense", "head", "embed")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tensor stands: its layer (None: outside of layers) of so many, experts of a layer that has some, query
    heads to a key-value head, whether the layer is recurrent."""

    layer: int | None
    layers: int
    experts: int = 0
    shared_by: float = 1.0
    recurrent: bool = False


# The encoding of a tensor that differs from those of its group; None: it does not.
Special = Callable[[Part, Place], Encoding | None]


def role_of(group: str) -> str:
    """The one of `ROLES` that a group of `architecture.GROUPS` belongs to."""
    return {"experts": "experts", "head": "head", "embedding": "embed", "tables": "embed"}.get(group, "dense")


@dataclass(frozen=True, kw_only=True)
class Quant:
    """The encoding of each group: routed experts; attention, shared and dense parts; head; embedding. `special`: of
    tensors that differ; `label`: what all of it is called; `notes`: how it was read where that is not plain."""

    experts: Encoding
    dense: Encoding
    head: Encoding
    embed: Encoding
    special: Special | None = None
    label: str = ""
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Short enough for a table."""
        both = self.experts.name if self.experts == self.dense else f"{self.experts.name} / {self.dense.name}"
        return self.label or both

    def of(self, group: str) -> Encoding:
        """The encoding of a group of `architecture.GROUPS`."""
        found: Encoding = getattr(self, role_of(group))
        return found

    def encoding(self, part: Part, place: Place) -> Encoding:
        """The encoding of one tensor; of smaller blocks where its rows are no multiple of those that were wanted."""
        is_vector = part.plain and (part.rows == 1 or part.group != "router")
        found = self.special(part, place) if self.special and not is_vector else None
        return (found or (F32 if part.plain else self.of(part.group))).fitting(part.cols)

    def in_memory(self, part: Part, place: Place) -> ByFormat:
        """One tensor as the engine packs it."""
        encoding = self.encoding(part, place)
        return ByFormat.of([(encoding.name, encoding.bytes(part.rows, part.cols))])

    def stored_bytes(self, part: Part, place: Place) -> int:
        """Bytes of one tensor in a file."""
        return self.encoding(part, place).stored_bytes(part.rows, part.cols)

    def expert_in_memory(self, experts: Experts, place: Place) -> ByFormat:
        """One expert of a layer as the engine packs it, with the padding of its block."""
        encodings = [self.encoding(part, place) for part in experts.parts() if not part.plain]
        layout = expert_layout(encodings, experts.hidden, experts.width, experts.bias)
        if layout is None:
            return ByFormat.sum(self.in_memory(part, place) for part in experts.parts())
        return ByFormat.of(layout.bytes_by_format)

    def stored_expert_bytes(self, experts: Experts, place: Place) -> int:
        """Bytes of one expert of a layer in a file."""
        return sum(self.stored_bytes(part, place) for part in experts.parts())


def place_of(model: Architecture, index: int) -> Place:
    """The place of a layer's tensors."""
    layer = model.layers[index]
    return Place(
        layer=index,
        layers=len(model.layers),
        experts=_experts(model),
        shared_by=_shared_by(layer),
        recurrent=layer.mixer is not None and layer.mixer.state > 0,
    )


def outside(model: Architecture) -> Place:
    """The place of tensors outside of layers."""
    return Place(layer=None, layers=len(model.layers), experts=_experts(model))


def _experts(model: Architecture) -> int:
    return next((layer.experts.count for layer in model.layers if layer.experts), 0)


def _shared_by(layer: Layer) -> float:
    rows = {part.name: part.rows for part in layer.parts}
    return rows.get("attn_q", 1) / rows.get("attn_k", rows.get("attn_q", 1))
