"""A model's weights by format, without memory: what predictions and memory plans count of what `allocate` makes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ...kernels.packed import Matrix, Stacked
from ...loaders.quants.by_format import NOTHING, ByFormat
from ...loaders.spec import ModelSpec
from ...loaders.weights.mixers.compressed import CompressedWeights
from ...loaders.weights.model_weights import Formats, LayerWeights, allocate

F32 = "f32"


@dataclass(frozen=True, kw_only=True)
class LayerFormats:
    """Bytes of one layer: all but its routed experts, of it the shared expert and the matrices behind the mixer (its
    output projection, and the MLP of every token), and one routed expert; there are so many `experts`."""

    common: ByFormat
    shared: ByFormat = NOTHING
    behind: ByFormat = NOTHING
    expert: ByFormat = NOTHING
    experts: int = 0


@dataclass(frozen=True, kw_only=True)
class ModelFormats:
    """Bytes of a model: layers, final norm and biases outside of layers, head, one row of the embedding and of tables
    of experts, all of the embedding where it is not the head, and all of the tables."""

    layers: tuple[LayerFormats, ...]
    final_norm: ByFormat
    head: ByFormat
    row: ByFormat
    embedding: ByFormat
    tables: ByFormat = NOTHING

    @property
    def dense(self) -> ByFormat:
        """Layers without routed experts, and the final norm."""
        return ByFormat.sum([*(layer.common for layer in self.layers), self.final_norm])


def of_model(spec: ModelSpec, formats: Formats) -> ModelFormats:
    """Of a model in these formats."""
    weights = allocate(spec, formats, "meta")
    embed, tables = weights.embed, [one.table.shape[1] for one in weights.layers if one.table is not None]
    return ModelFormats(
        layers=tuple(map(_layer, weights.layers)),
        final_norm=ByFormat.of([(F32, one.nbytes) for _, one in weights.outside()]),
        head=_matrices([weights.head]),
        row=ByFormat.of([(embed.format.name, embed.format.row_bytes(embed.cols)), (F32, 4 * sum(tables))]),
        embedding=NOTHING if weights.head is embed else _matrices([embed]),
        tables=ByFormat.of([(F32, 4 * len(tables) * spec.vocab * each) for each in {*tables}]),
    )


def _layer(layer: LayerWeights) -> LayerFormats:
    mlp = NOTHING if layer.mlp is None else _matrices([layer.mlp.gate_up, layer.mlp.down])
    common = ByFormat.of((F32 if isinstance(one, Tensor) else one.format.name, one.nbytes) for _, one in layer.common())
    behind = ByFormat.sum([mlp, _output(layer)])
    if layer.experts is None:
        return LayerFormats(common=common, behind=behind)
    bank = layer.experts
    return LayerFormats(
        common=common,
        shared=mlp,
        behind=behind,
        expert=ByFormat.of(bank.layout.bytes_by_format),
        experts=bank.experts,
    )


def _output(layer: LayerWeights) -> ByFormat:
    """The output projection of the mixer; none of the kind where it is two matrices, which plans do not tell apart."""
    mixer = layer.mixer
    return NOTHING if mixer is None or isinstance(mixer, CompressedWeights) else _matrices([mixer.o])


def _matrices(many: list[Matrix | Stacked]) -> ByFormat:
    return ByFormat.of((part.format.name, part.nbytes) for one in many for part in _parts(one))


def _parts(one: Matrix | Stacked) -> Iterator[Matrix]:
    yield from one.parts if isinstance(one, Stacked) else (one,)
