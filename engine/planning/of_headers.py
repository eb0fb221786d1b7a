"""The bytes of a checkpoint by its headers: the sum of all groups is the sum of the file's tensors to the byte, and
what is in memory what the engine allocates for them, for the models that it runs.

Of quantised safetensors a weight's codes, scales and zero points are the packed rows that they become. What no kernel
computes with is counted in memory as in the file.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ...errors import CheckpointError
from ...kernels import FORMATS, Format
from ...kernels.formats import EXPERT_ALIGN, align_up
from ...loaders.architecture.architecture import Architecture, Layer
from ...loaders.architecture.tensor_names import LEFT_OUT, place
from ...loaders.families.quantisation import Quantisation
from ...loaders.files.gguf_header import TYPES, is_unknown
from ...loaders.files.headers import Stored
from ...loaders.quants import in_memory, packed_weights
from ...loaders.quants.by_format import ByFormat
from .storage import LayerBytes, Storage

# Types of which a tensor's shape counts the weights: plain ones, and blocks of GGUF.
WHOLE = {"F64", "F32", "F16", "BF16"} | {name for name, block, _ in TYPES.values() if block > 1}
TABLES = ("embedding", "tables")  # of which a token reads rows
TABLE = "tid2eid"  # of names: which experts a token has
DOWN, BIAS = " down", " biases"  # of experts: what lies last in their blocks
TURNS = "rope_freqs.weight"  # of GGUF: what rotates, which the engine works out from the config
TURNED = FORMATS["bf16"]  # of columns that become rows: no block format is turned as it is


@dataclass
class _Sums:
    """What was read of the tensors so far. groups: of the file; by_group: outside of layers, in memory."""

    layers: list[dict[str, list[tuple[str, float]]]]
    groups: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    by_group: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    types: dict[str, Counter[str]] = field(default_factory=lambda: {"experts": Counter(), "dense": Counter()})
    elements: int = 0

    def add(self, tensor: Stored, held: Iterable[tuple[str, float]]) -> None:
        """held: its formats and bytes in memory."""
        layer, group = place(tensor.name, len(self.layers))
        if group in LEFT_OUT:
            self.left_out[group] += tensor.nbytes
            return
        self.groups[group] += tensor.nbytes
        self.elements += math.prod(tensor.shape)
        self.types["experts" if group == "experts" else "dense"][tensor.dtype] += tensor.nbytes
        there = self.by_group if layer is None or group == "tables" else self.layers[layer]
        where = group + _last_of_expert(tensor.name) if group == "experts" else group
        there.setdefault(where, []).extend(held)

    def main_type(self, role: str) -> str:
        """The type that most bytes have."""
        found = self.types[role]
        return found.most_common(1)[0][0].lower() if found else "none"


def _is_packed(tensor: Stored) -> bool:
    """Whether its shape does not count its weights."""
    is_known = tensor.dtype in WHOLE or tensor.dtype.lower() in FORMATS or is_unknown(tensor.dtype)
    return not is_known and not _has_numbers(tensor)


def _has_numbers(tensor: Stored) -> bool:
    """Whether it is a table of whole numbers, which are float32 in memory."""
    return TABLE in tensor.name


def _stays_in_its_file(tensor: Stored, layers: int) -> bool:
    """Whether it is a table of which rows are read where they lie."""
    return place(tensor.name, layers)[1] == "tables" and not _has_numbers(tensor)


def _last_of_expert(name: str) -> str:
    """Where in an expert's block a tensor lies: its biases behind its down, that behind the rest."""
    return BIAS if name.endswith("bias") else DOWN if "down" in name or ".w2." in name else ""


def _in_memory(
    tensor: Stored, shape: tuple[int, ...], format: Format | None, turned: int
) -> Iterator[tuple[str, float]]:
    """Formats and bytes in memory of a tensor that stands for weights of a shape; None: as in the file. turned: rows
    that are stored the other way round."""
    if format is None:
        yield tensor.dtype.lower(), tensor.nbytes
        return
    *rows, cols = shape or (1,)
    turned = turned if format.is_block else 0
    if turned:
        yield TURNED.name, turned * TURNED.row_bytes(cols)
    yield format.name, (math.prod(rows) - turned) * format.row_bytes(cols)


def _as_weights(tensors: Sequence[Stored], how: Quantisation | None) -> tuple[dict[str, Stored], set[str]]:
    """The tensors by name as weights, and the names of those that are part of another one."""
    found = packed_weights.find(tensors, how) if how is not None else packed_weights.Found()
    return {tensor.name: found.weights.get(tensor.name, tensor) for tensor in tensors}, found.parts


def of_headers(model: Architecture, tensors: Iterable[Stored], source: str, how: Quantisation | None = None) -> Storage:
    """The bytes of the tensors of a checkpoint; raises CheckpointError if they are not those of its config. how: the
    weights are quantised, and can be run."""
    tensors = list(tensors)
    is_packed = any(_is_packed(tensor) for tensor in tensors)
    by_name, parts = _as_weights(tensors, how)
    weights = [tensor for name, tensor in by_name.items() if name not in parts]
    is_known = not any(_is_packed(tensor) for tensor in weights)
    formats = in_memory.of_tensors(weights, len(model.layers)) if is_known else {}
    sums, turned = _Sums(layers=[{} for _ in model.layers]), in_memory.turned_rows(weights)
    for tensor in tensors:
        name, shape = tensor.name, by_name[tensor.name].shape
        is_none = name == TURNS or (is_known and name in parts) or _stays_in_its_file(tensor, len(model.layers))
        format = FORMATS["f32"] if _has_numbers(tensor) else formats.get(name)
        own = () if is_none else _in_memory(tensor, shape, format, turned.get(name, 0))
        sums.add(tensor, own)
    if not sums.groups["head"]:  # a head that is the embedding is read whole
        sums.groups["head"] = sums.groups.pop("embedding", 0)
        sums.by_group["head"] = sums.by_group.pop("embedding", [])
    head = ByFormat.of(sums.by_group.get("head", []))
    held = ByFormat.of(pair for group in TABLES for pair in sums.by_group.get(group, []))
    outside = ByFormat.of(pair for group, found in sums.by_group.items() if group not in TABLES for pair in found)
    experts, dense = sums.main_type("experts"), sums.main_type("dense")
    return Storage(
        groups=dict(sums.groups),
        layers=tuple(_layer(i, model, found, formats != {}, source) for i, found in enumerate(sums.layers)),
        outside_in=outside,
        head_in=head,
        row_in=(held if held.parts else head).times(1 / model.vocab),
        held=round(held.total),
        quant=" / ".join(dict.fromkeys((experts, dense))),
        expert_format=experts,
        dense_format=dense,
        from_headers=True,
        counted=None if is_packed else sums.elements,
        left_out=dict(sums.left_out),
    )


def _layer(
    index: int, model: Architecture, found: dict[str, list[tuple[str, float]]], is_aligned: bool, source: str
) -> LayerBytes:
    experts = model.layers[index].experts
    parts = [found.pop("experts" + part, []) for part in ("", DOWN, BIAS)]
    routed, biases = ByFormat.of(pair for part in parts[:2] for pair in part), sum(size for _, size in parts[2])
    if (experts is None) != (not routed.parts) or not (found or routed.parts):
        has = "has" if routed.parts else "has no"
        raise CheckpointError(
            f"{source}: layer {index} {has} routed experts, its config says otherwise: config and weights do not "
            "belong together"
        )
    count = experts.count if experts else 1
    shared = [*found.get("shared", []), *(found.get("dense", []) if experts else [])]  # an MLP beside them is one, too
    return LayerBytes(
        common_in=ByFormat.of(pair for pairs in found.values() for pair in pairs),
        shared_in=ByFormat.of(shared),
        behind_in=_behind(model.layers[index], found),
        expert_in=_expert(routed.times(1 / count), round(biases / count), is_aligned),
        experts=experts.count if experts else 0,
    )


def _behind(layer: Layer, found: dict[str, list[tuple[str, float]]]) -> ByFormat:
    """The matrices behind a layer's mixer: of attention the share that the output projection has of its parameters."""
    whole, output = (
        sum(part.elements for part in parts if part.group == "attention") for parts in (layer.parts, layer.behind)
    )
    attention = ByFormat.of(found.get("attention", [])).times(output / max(1, whole))
    return ByFormat.of([*found.get("shared", []), *found.get("dense", []), *attention.parts])


def _expert(matrices: ByFormat, biases: int, is_aligned: bool) -> ByFormat:
    """An expert with its biases and, in the engine's blocks, the padding of both, which count as of the last part."""
    if not matrices.parts:
        return matrices
    size = round(matrices.total)
    behind = align_up(size, EXPERT_ALIGN) - size + align_up(biases, EXPERT_ALIGN) if is_aligned else biases
    return ByFormat.of([*matrices.parts, (matrices.parts[-1][0], behind)]) if behind else matrices
