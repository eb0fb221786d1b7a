"""What a guess of a model's own layer should take before one was made: its bytes, at the rates that were measured."""

from __future__ import annotations

from ....kernels.packed import ExpertBank, Matrix, Stacked
from ....loaders.quants.by_format import ByFormat
from ....loaders.weights.model_weights import LayerWeights
from ....loaders.weights.mtp.weights import MtpWeights
from ...bandwidth_model.hardware import Hardware
from ...bandwidth_model.roofline import Weights


def seconds(own: MtpWeights, head: Matrix, top_k: int, machine: Hardware, memory: str) -> tuple[float, float]:
    """Of the layer with a token's experts, and of a row of the head, all of which lie in one memory, by its name in the
    ledger. On a GPU launches are not counted."""
    dense = [(part.format.name, part.nbytes) for matrix in _matrices(own.layer) for part in _parts(matrix)]
    dense.append((own.project.format.name, own.project.nbytes))
    bank, experts = own.layer.experts, ByFormat()
    if isinstance(bank, ExpertBank):
        experts = ByFormat.of(bank.layout.bytes_by_format).times(top_k)
    loads = [Weights(memory, ByFormat.of(dense), 0.0), Weights(memory, experts, 0.0, experts=True)]
    rows = Weights(memory, ByFormat.of([(head.format.name, head.nbytes)]), 0.0)
    return sum(one.seconds(machine) for one in loads if one.bytes), rows.seconds(machine) / head.rows


def _matrices(layer: LayerWeights) -> list[Matrix | Stacked]:
    return [part for _, part in layer.common() if isinstance(part, (Matrix, Stacked))]


def _parts(one: Matrix | Stacked) -> tuple[Matrix, ...]:
    return one.parts if isinstance(one, Stacked) else (one,)
