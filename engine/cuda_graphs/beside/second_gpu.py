"""Experts on a second GPU inside of a step that is captured on the first: as a store of some experts of every layer, or
with all experts of half of the layers.

    submit     hidden states, numbers and weights of choices go there; its kernels compute beside the first one's
    collect    its part comes back, and the first one's stream waits for it

All of it is one graph. The second GPU's stream comes into the capture when it waits for the first one's, and is joined
to it again behind the copy back. What its kernels take meanwhile is memory of a pool of its own, which nobody else is
given while there are graphs. No signal and no host is between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from ....kernels.packed import ExpertBank
from ...devices.device import Device
from ..capture import nothing


class SecondGpu:
    """banks: by layer, of those that have experts there; local: int32 [experts], on the first GPU: an expert's number
    in the bank, or -1. What is in it may change between two steps. apart: what comes next in a stream waits in the
    usual way for what came before, which is a copy between the two, or work of the other one."""

    def __init__(
        self,
        main: Device,
        device: Device,
        banks: Mapping[int, ExpertBank],
        local: Mapping[int, Tensor],
        apart: Callable[[], None] = nothing,
    ) -> None:
        self.main, self.device, self.banks, self.local = main, device, dict(banks), dict(local)
        self.apart = apart
        self.stream = torch.cuda.Stream(device.place) if device.is_cuda else None
        self.pool = torch.cuda.MemPool() if device.is_cuda else None

    def submit(self, layer: int, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, padding_T: Tensor) -> Tensor:
        """Starts a layer's part, float32 [T, hidden] there: x, ids int32 and weights [T, K] of the first GPU. Rows
        whose bool in `padding` is set belong to no sequence, and read nothing."""
        local_TK = self.local[layer][ids_TK.long()]
        if len(x_TD) > 1:  # a step of one sequence has no other rows
            local_TK = local_TK.masked_fill(padding_T.unsqueeze(1), -1)
        with self._at_work():
            x_TD, local_TK, weights_TK = (self.device.put(t) for t in (x_TD, local_TK, weights_TK))
            self.apart()
            part_TD: Tensor = self.device.ops.experts(x_TD, local_TK, weights_TK, self.banks[layer])
        self.apart()
        return part_TD

    def collect(self, part_TD: Tensor) -> Tensor:
        """The part on the first GPU, valid as everything else in its stream is."""
        with self._at_work():
            here_TD = self.main.put(part_TD)
        if self.stream is not None:
            torch.cuda.current_stream(self.main.place).wait_stream(self.stream)
        self.apart()
        return here_TD

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Within it the second GPU is the current one, and its stream is behind the first one's."""
        if self.stream is None or self.pool is None:
            yield
            return
        with torch.cuda.device(self.device.place), torch.cuda.stream(self.stream):
            self.stream.wait_stream(torch.cuda.current_stream(self.main.place))
            with torch.cuda.use_mem_pool(self.pool, self.device.place):
                yield
