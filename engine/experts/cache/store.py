"""Experts that a policy has in a second GPU's memory (`policies/second_gpu.py`): they are copied there once, and
computed there where they are not resident in the first one's."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import torch
from torch import Tensor

from ....kernels.packed import ExpertBank
from ...devices.device import Device
from .slots import ABSENT


class Store:
    """stored: by layer with experts which of them; banks: of each layer all experts, in RAM."""

    def __init__(self, stored: Sequence[AbstractSet[int]], banks: Sequence[ExpertBank], device: Device) -> None:
        self.device = device
        self.numbers: list[Tensor] = []  # int32 [experts] in RAM: an expert's number there, or -1
        self.banks: list[ExpertBank | None] = []
        for experts, bank in zip(stored, banks, strict=True):
            rising = torch.tensor(sorted(experts), dtype=torch.int64)
            numbers = torch.full((bank.experts,), ABSENT, dtype=torch.int32)
            numbers[rising] = torch.arange(len(rising), dtype=torch.int32)
            self.numbers.append(numbers)
            held = ExpertBank(bank.layout, device.put(bank.data[rising]), bank.among or bank.experts)
            self.banks.append(held if experts else None)

    @property
    def nbytes(self) -> int:
        return sum(bank.nbytes for bank in self.banks if bank is not None)

    def sum_of(self, number: int, x_TD: Tensor, local_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """The weighted sum of a layer's experts on this GPU, float32 [tokens, hidden], there. local: their numbers
        here, -1 for others; x, local and weights on any device."""
        device, bank = self.device, self.banks[number]
        assert bank is not None, f"nothing of layer {number} is stored"
        x_TD, local_TK, weights_TK = (device.put(t) for t in (x_TD, local_TK, weights_TK))
        with device.current():
            part_TD: Tensor = device.ops.experts(x_TD, local_TK, weights_TK, bank)
        return part_TD
