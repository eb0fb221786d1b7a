"""The hand-off between a GPU and the CPU's experts: host memory for one layer's work on its way down and its result up.

    GPU stream   ... router | x, ids, weights -> host | event | experts here, shared expert ...... | y -> GPU | sum
    worker                                     waits for the event | ids -> local | C++ op | y written |
    main thread  launches, never waits for the GPU, until it collects: then it waits for the worker

No graph and no flag in memory: each layer costs an event, a wake-up of the worker and the launches. The buffers are
pinned where the device is a GPU, so that copies are one DMA and go on beside the host. One set serves all layers: x,
weights and y of a layer are written again only by copies that the same stream does after those that read them, and by a
worker that the collect before has waited for. The ids have a place a layer: the ledger reads them when the pass is
over.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..devices.device import Device, Event


class HostBuffers:
    """Buffers for passes of up to `tokens` tokens through `layers` layers."""

    def __init__(self, device: Device, *, layers: int, tokens: int, hidden: int, top_k: int) -> None:
        def host(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=dtype, pin_memory=device.is_cuda)

        self.device = device
        self.tokens = tokens
        self.x_TD, self.y_TD = host(tokens, hidden), host(tokens, hidden)
        self.weights_TK = host(tokens, top_k)
        self.ids_LTK = host(layers, tokens, top_k, dtype=torch.int32)
        self.event = Event(device.place)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.x_TD, self.y_TD, self.weights_TK, self.ids_LTK))

    def ids_down(self, layer: int, ids_TK: Tensor) -> Tensor:
        """Sends a layer's choices down; they may be read after `event`, or at the end of the pass."""
        assert len(ids_TK) <= self.tokens, f"{len(ids_TK)} tokens in buffers for {self.tokens}"
        host = self.ids_LTK[layer, : len(ids_TK)]
        host.copy_(ids_TK, non_blocking=True)
        return host

    def down(self, layer: int, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sends a layer's work down and records the event; the host's x, ids and weights may be read after it."""
        T, ids = len(x_TD), self.ids_down(layer, ids_TK)
        x, weights = self.x_TD[:T], self.weights_TK[:T]
        x.copy_(x_TD, non_blocking=True)
        weights.copy_(weights_TK, non_blocking=True)
        self.event.set()
        return x, ids, weights

    def up(self, tokens: int) -> Tensor:
        """The result that lies in `y_TD`, on the device."""
        y = self.y_TD[:tokens]
        return self.device.put(y) if self.device.is_cuda else y.clone()
