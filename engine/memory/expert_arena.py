"""RAM for the experts that the CPU computes beside a GPU: one arena, pinned for that GPU while it is filled.

    memory = ExpertMemory(size, ...)     before weights are allocated, which take their banks from `arena`
    memory.start(...)                    all banks are taken
    memory.filled(part)                  as parts get their final bytes
    memory.finish()                      what became of it, for the start-up table

A GPU reads pinned experts by itself, at the link's full speed and beside other work. Not pinned is slower, not wrong:
the table says why, and what it costs.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ...kernels.packed import ExpertBank
from ...loaders.weights.model_weights import ModelWeights, TierBanks
from ..devices.cuda_driver import Driver
from ..placement.placement import Tier
from .pinned import Arena, PinReport, Pins


class ExpertArena:
    """`sizes`: bytes by layer of the experts in RAM, 0 for none. number: of the GPU, as the driver counts. limit: bytes
    that may be pinned. Without a driver nothing is pinned; `problem` says why."""

    def __init__(self, sizes: list[int], driver: Driver | None, number: int, problem: str, limit: int) -> None:
        self.arena = Arena(Arena.room([size for size in sizes if size]))
        self.driver, self.number, self.problem, self.limit = driver, number, problem, limit
        self.pins: Pins | None = None
        self.report: PinReport | None = None

    def start(self, weights: ModelWeights, in_parts: bool) -> None:
        """Pins from now on what is filled. in_parts: matrices are filled one by one, and what pads an expert never."""
        self.pins = Pins(self.arena, self.driver, self.limit, self.number, problem=self.problem)
        if in_parts:
            for part in _padding(weights):
                self.pins.filled(part)

    def filled(self, part: Tensor) -> None:
        """A contiguous tensor has its final bytes; where it lies elsewhere, nothing is done."""
        assert self.pins is not None, "filled before start"
        self.pins.filled(part)

    def finish(self) -> None:
        """Waits until all is pinned that can be."""
        assert self.pins is not None, "finish before start"
        self.report = self.pins.finish()

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether a GPU can read a contiguous tensor by itself."""
        return self.pins is not None and self.pins.is_pinned(tensor)

    def cuts(self, bank: ExpertBank) -> list[int]:
        """The experts of a bank with which another registration begins: no copy may go on there."""
        return [] if self.pins is None else self.pins.cuts(bank.data, bank.layout.bytes)

    @property
    def is_whole(self) -> bool:
        """Whether all of it is pinned."""
        return self.report is not None and self.report.pinned == self.report.total

    def close(self) -> None:
        """Gives the driver its registrations back; no copy may be under way."""
        if self.pins is not None:
            self.pins.close()


def _padding(weights: ModelWeights) -> Iterator[Tensor]:
    """The bytes of every expert in RAM that no tensor fills: behind its matrices, and behind its biases."""
    for layer in weights.layers:
        if not isinstance(layer.experts, TierBanks) or Tier.CPU.value not in layer.experts.banks:
            continue
        bank = layer.experts.banks[Tier.CPU.value]
        used = sum(bank.matrix(0, part).nbytes for part in bank.layout.parts)
        layout = bank.layout
        for first, last in ((used, layout.bias_offset), (layout.bias_offset + layout.bias_bytes, layout.bytes)):
            if first < last:
                yield from (block[first:last] for block in bank.data)
