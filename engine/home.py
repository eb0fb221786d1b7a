"""Where everything but the routed experts lies, as the decoder sees it: puts a pass's inputs there, and books what
crosses.

In RAM there is nothing to do. Beside a GPU the embedding, of which a token reads one row, stays in RAM as long as
experts do; its rows go up instead of the token ids.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..kernels import Matrix, Places
from .devices import Device
from .ledger import D2H, H2D, Ledger
from .planner import INPUTS, SAMPLES
from .scheduler import Inputs


@dataclass(frozen=True, kw_only=True)
class Home:
    """`device` holds the common weights and the cache, `table` the embedding."""

    device: Device
    table: Device
    ledger: Ledger

    def take(self, inputs: Inputs) -> Inputs:
        """The inputs of a pass on the device, but for token ids that are looked up in RAM."""
        if self.device.is_host:
            return inputs
        ids = inputs.ids_T if self.table.is_host else self._up(inputs.ids_T)
        places = inputs.places
        up: dict[str, Any] = {name: self._up(t) for name, t in vars(places).items() if isinstance(t, Tensor)}
        return replace(inputs, ids_T=ids, places=Places(**up), rows=self._up(inputs.rows))

    def embed(self, table: Matrix, ids_T: Tensor, scale: float) -> Tensor:
        """Embedding rows on the device: float32 [T, D]."""
        x_TD = self.table.ops.embed(table, ids_T, scale)
        return x_TD if self.table is self.device else self._up(x_TD)

    def book_samples(self, greedy: int, drawn: int, vocab: int) -> None:
        """What sampling takes down: the largest logit and its place of every sequence, and all logits of those whose
        token is drawn."""
        if not self.device.is_host:
            self.ledger.read(D2H, SAMPLES, 12 * (greedy + drawn) + 4 * vocab * drawn)

    def _up(self, tensor: Tensor) -> Tensor:
        self.ledger.read(H2D, INPUTS, tensor.nbytes)
        return self.device.put(tensor)


def in_ram(device: Device, ledger: Ledger) -> Home:
    """Everything in RAM."""
    return Home(device=device, table=device, ledger=ledger)
