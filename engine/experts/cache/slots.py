"""Places in VRAM for single experts, and which expert lies in which.

Experts of one layout share a pool: any of their layers may have any number of its places. Which pool has how many is
decided once, by what a policy has there at the start; what is left of the bytes goes to all pools in turn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from ....kernels import ExpertLayout
from ....kernels.packed import ExpertBank
from ...policies.protocol import Key, PolicyError, Shape

ABSENT = -1


def pool_sizes(shape: Shape, layouts: Sequence[ExpertLayout], start: Iterable[Key], budget: int) -> list[int]:
    """By layer the places of its layout's pool. start: the experts that are there at the start, within the budget."""
    first = Counter(layouts[layer] for layer, _ in start)
    most = Counter[ExpertLayout]()
    for layout, experts in zip(layouts, shape.experts, strict=True):
        most[layout] += experts
    left = budget - sum(layout.bytes * count for layout, count in first.items())
    sizes = {layout: first[layout] for layout in most}
    while growing := [layout for layout in sizes if sizes[layout] < most[layout] and layout.bytes <= left]:
        each = max(1, left // sum(layout.bytes for layout in growing))
        for layout in growing:
            more = min(each, most[layout] - sizes[layout], left // layout.bytes)
            sizes[layout] += more
            left -= more * layout.bytes
    return [sizes[layout] for layout in layouts]


class Slots:
    """The places of all layers on one device; None: in RAM, where files are read into them. sizes: by layer the places
    of its layout's pool. shared: the places instead, of experts of one layout, of which the first are not to be used
    (`keep_from`). Raises PolicyError where a policy wants more experts of a layout than its pool holds."""

    def __init__(
        self,
        shape: Shape,
        layouts: Sequence[ExpertLayout],
        sizes: Sequence[int],
        device: torch.device | None,
        shared: ExpertBank | None = None,
    ) -> None:
        pools = dict(zip(layouts, sizes, strict=True))
        empty = ExpertBank.on_a_page if device is None else partial(ExpertBank.empty, device=str(device))
        made = {layout: empty(layout, size) for layout, size in pools.items() if size}
        if shared is not None:
            pools, made = {shared.layout: 0}, {shared.layout: shared}
        self.first = 0 if shared is None else shared.experts  # of the places that may be used
        self.layouts, self.banks = list(layouts), [made.get(layout) for layout in layouts]
        self.free: Mapping[ExpertLayout, list[int]] = {
            layout: list(range(size))[::-1] for layout, size in pools.items()
        }
        self.of_LE = torch.full((shape.layers, max(shape.experts)), ABSENT, dtype=torch.int32)  # in RAM

    @property
    def pools(self) -> list[ExpertBank]:
        """The places, one bank for each layout that has any."""
        return list({id(bank): bank for bank in self.banks if bank is not None}.values())

    @property
    def nbytes(self) -> int:
        return sum((bank.experts - self.first) * bank.layout.bytes for bank in self.pools)

    @property
    def count(self) -> int:
        """Of all places."""
        return sum(bank.experts - self.first for bank in self.pools)

    def keep_from(self, first: int) -> list[tuple[int, int]]:
        """Of places that are shared those from a number on are used from now on. What lies before goes elsewhere, where
        it has room: from which place, and to which."""
        (bank,), (free,) = self.pools, self.free.values()
        free[:] = sorted({*(n for n in free if n >= first), *range(first, self.first)})
        self.first = first
        moved = []
        for layer, expert in ((self.of_LE >= 0) & (self.of_LE < first)).nonzero().tolist():
            number = free.pop()
            moved.append((int(self.of_LE[layer, expert]), number))
            self.of_LE[layer, expert] = number
        assert first <= bank.experts, f"places from {first} on, of {bank.experts}"
        return moved

    def take(self, key: Key) -> Tensor:
        """A place for an expert: uint8 [bytes of one], on the device."""
        layer, expert = key
        free, bank = self.free[self.layouts[layer]], self.banks[layer]
        if not free or bank is None:
            raise PolicyError(
                f"expert {expert} of layer {layer} finds no place: all {bank.experts if bank else 0} for experts in "
                f"{self.layouts[layer].name} are taken. Of a model with experts in several formats a policy keeps as "
                "many bytes of each as at the start"
            )
        number = free.pop()
        self.of_LE[layer, expert] = number
        return bank.data[number]

    def give_back(self, key: Key) -> None:
        """An expert leaves."""
        layer, expert = key
        self.free[self.layouts[layer]].append(int(self.of_LE[layer, expert]))
        self.of_LE[layer, expert] = ABSENT
