"""What the host reads of a captured step when it is over, in memory of the host that the driver knows: of each row the
likeliest token, and the experts that were chosen in layers which have some on the GPU; their weights, for a trace.

    in the graph       argmax of the logits writes here itself; choices of all layers come down by one copy
    after a replay     all of it is there; nobody waits for the device a second time
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import DeviceError
from ...kernels import Ops
from ...kernels.cpu.mailbox import pages
from ...kernels.passes.tally import Choice
from ..devices.cuda_driver import Driver

LINE = 64  # bytes; every part begins at a multiple


class Places(NamedTuple):
    """Of a size of B rows: largest logits float32 [B] and where they stand int64 [B]; ids of experts int32 [layers, B,
    K] and their weights float32, of no layer where nobody wants them."""

    values_B: Tensor
    tokens_B: Tensor
    ids_LBK: Tensor
    weights_LBK: Tensor


class StepResults:
    """For steps of `sizes` rows. layers: those whose choices are kept here, `top_k` experts a token; with_weights: and
    their weights. Raises DeviceError where the driver does not register the memory."""

    def __init__(
        self, driver: Driver, sizes: Sequence[int], layers: Sequence[int], top_k: int, with_weights: bool = False
    ) -> None:
        self.layers, self.with_weights = list(layers), with_weights
        weighted = len(self.layers) if with_weights else 0
        shapes = [_shapes(size, len(self.layers), weighted, top_k) for size in sizes]
        self.memory = pages(sum(_room(*one) for of in shapes for one in of))
        self.places, at = [], 0
        for of in shapes:
            found = []
            for dtype, shape in of:
                size = math.prod(shape) * dtype.itemsize
                found.append(self.memory[at : at + size].view(dtype).view(shape))
                at += _room(dtype, shape)
            self.places.append(Places(*found))
        driver.register(self.memory.data_ptr(), self.memory.nbytes)
        self.close = weakref.finalize(self, _release, driver, self.memory)

    def write(self, number: int, logits_BV: Tensor, chosen: Mapping[int, Choice], ops: Ops) -> None:
        """Enqueues it: of the `number`-th size; chosen: by layer, on the device."""
        places = self.places[number]
        ops.argmax(logits_BV, (places.values_B, places.tokens_B))
        if self.layers:
            ids_LBK = torch.stack([chosen[layer][0] for layer in self.layers])
            places.ids_LBK.copy_(ids_LBK, non_blocking=True)
        if self.layers and self.with_weights:
            weights_LBK = torch.stack([chosen[layer][1] for layer in self.layers])
            places.weights_LBK.copy_(weights_LBK, non_blocking=True)

    def likeliest(self, number: int, count: int) -> tuple[Tensor, Tensor]:
        """Of the first rows of the last step of a size, which is over: largest logits, and where they stand. There
        until the next."""
        places = self.places[number]
        return places.values_B[:count], places.tokens_B[:count]


def _shapes(rows: int, layers: int, weighted: int, top_k: int) -> list[tuple[torch.dtype, tuple[int, ...]]]:
    """The parts of a size, as in `Places`."""
    kept = (torch.int32, (layers, rows, top_k)), (torch.float32, (weighted, rows, top_k))
    return [(torch.float32, (rows,)), (torch.int64, (rows,)), *kept]


def _room(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """Bytes of a part, up to where the next begins."""
    return -(-math.prod(shape) * dtype.itemsize // LINE) * LINE


def _release(driver: Driver, memory: Tensor) -> None:
    try:
        driver.unregister(memory.data_ptr())
    except DeviceError:  # the process may be ending, with the driver gone before us
        return
