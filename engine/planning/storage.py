"""The bytes of a model: by group, by layer, and of one expert; from an architecture and formats, or from headers.

Headers win where there are any: then the sum of all groups is the sum of the file's tensors to the byte. Nothing here
knows a device.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ...errors import CheckpointError
from ...loaders.architecture.architecture import Architecture, Layer
from ...loaders.architecture.tensor_names import LEFT_OUT, place
from ...loaders.files.gguf_header import TYPES, is_unknown
from ...loaders.files.headers import Stored
from ...loaders.quants.quant import Place, Quant, place_of
from ...loaders.quants.quant import outside as beside

# Types of which a tensor's shape counts the weights: plain ones, and blocks of GGUF.
WHOLE = {"F64", "F32", "F16", "BF16"} | {name for name, block, _ in TYPES.values() if block > 1}


@dataclass(frozen=True, kw_only=True)
class LayerBytes:
    """One layer: what every token reads, of it the shared expert, and the routed experts."""

    common: int
    shared: int
    expert: float = 0.0  # one routed expert; a mean where the file's differ
    experts: int = 0

    @property
    def routed(self) -> int:
        return round(self.expert * self.experts)


@dataclass(frozen=True, kw_only=True)
class Storage:
    """All bytes of a model. `outside`: what every token reads outside of layers, the head included; `rows`: the
    one row of the embedding that a token reads; `held`: embedding and other tables whole."""

    groups: dict[str, int]
    layers: tuple[LayerBytes, ...]
    outside: int
    head: int
    rows: int
    held: int
    quant: str
    expert_format: str
    dense_format: str
    from_headers: bool = False
    counted: int | None = None  # parameters in the files; None where weights are packed several to an element
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Bytes of the text model; what `left_out` names comes on top in a download."""
        return sum(self.groups.values())

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
    place, outside = beside(model), 4 * model.hidden
    groups["norms"] += outside
    for part in model.extra:
        size = quant.bytes(part, place)
        groups[part.group] += size
        outside += size
    head = quant.bytes(model.head, place)
    groups["head"] += head
    embedding = 0 if model.tied_head else quant.bytes(model.embedding, place)
    tables = sum(quant.bytes(part, place) for part in model.lookup)
    groups.update({"embedding": embedding, "tables": tables})
    row = quant.encoding(model.head if model.tied_head else model.embedding, place).bytes(1, model.hidden)
    return Storage(
        groups={g: size for g, size in groups.items() if size},
        layers=layers,
        outside=outside + head,
        head=head,
        rows=row,
        held=embedding + tables,
        quant=quant.name,
        expert_format=quant.experts.name,
        dense_format=quant.dense.name,
    )


def _layer(layer: Layer, quant: Quant, place: Place, groups: Counter[str]) -> LayerBytes:
    common = shared = 0
    for part in layer.parts:
        size = quant.bytes(part, place)
        groups[part.group] += size
        common += size
        shared += size if part.group == "shared" else 0
    experts = layer.experts
    if experts is None:
        return LayerBytes(common=common, shared=shared)
    one = quant.expert_bytes(experts, place)
    groups["experts"] += one * experts.count
    return LayerBytes(common=common, shared=shared, expert=one, experts=experts.count)


def of_headers(model: Architecture, tensors: Iterable[Stored], source: str) -> Storage:
    """The bytes of the tensors of a checkpoint; raises CheckpointError if they are not those of its config."""
    groups: Counter[str] = Counter()
    left: Counter[str] = Counter()
    per_layer: list[Counter[str]] = [Counter() for _ in model.layers]
    kinds: dict[str, Counter[str]] = {"experts": Counter(), "dense": Counter()}
    outside = counted = 0
    packed = False
    for tensor in tensors:
        layer, group = place(tensor.name, len(model.layers))
        if group in LEFT_OUT:
            left[group] += tensor.nbytes
            continue
        groups[group] += tensor.nbytes
        counted += math.prod(tensor.shape)
        packed |= tensor.dtype not in WHOLE and not is_unknown(tensor.dtype)
        kinds["experts" if group == "experts" else "dense"][tensor.dtype] += tensor.nbytes
        if layer is not None:
            per_layer[layer][group] += tensor.nbytes
        elif group not in ("embedding", "tables", "head"):
            outside += tensor.nbytes
    head, held = _head(model, groups)
    layers = tuple(_stored_layer(i, model, sizes, source) for i, sizes in enumerate(per_layer))
    names = {role: _main(found) for role, found in kinds.items()}
    return Storage(
        groups=dict(groups),
        layers=layers,
        outside=outside + head,
        head=head,
        rows=round(held / model.vocab) if held else round(head / model.vocab),
        held=held,
        quant=" / ".join(dict.fromkeys(names.values())),
        expert_format=names["experts"],
        dense_format=names["dense"],
        from_headers=True,
        counted=None if packed else counted,
        left_out=dict(left),
    )


def _head(model: Architecture, groups: Counter[str]) -> tuple[int, int]:
    """Bytes of the head, and of tables of which a token reads rows. A head that is the embedding is read whole."""
    tables = groups["tables"]
    if groups["head"]:
        return groups["head"], groups["embedding"] + tables
    groups["head"] = groups.pop("embedding", 0)
    return groups["head"], tables


def _stored_layer(index: int, model: Architecture, sizes: Counter[str], source: str) -> LayerBytes:
    experts = model.layers[index].experts
    routed = sizes.pop("experts", 0)
    if (experts is None) != (routed == 0) or not (sizes or routed):
        has = "has" if routed else "has no"
        raise CheckpointError(
            f"{source}: layer {index} {has} routed experts, its config says otherwise: config and weights do not "
            "belong together"
        )
    count = experts.count if experts else 0
    common = sum(sizes.values())
    return LayerBytes(common=common, shared=sizes["shared"], expert=routed / count if count else 0.0, experts=count)


def _main(found: Counter[str]) -> str:
    """The type that most bytes have."""
    return found.most_common(1)[0][0].lower() if found else "none"
