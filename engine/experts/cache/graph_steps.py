"""A cache of experts behind steps that are graphs: where experts lie is a table on the device, which a step only reads.

    refresh       before a step: the table says what has arrived, and what has left
    meanwhile     the policy answers for the step before (`late_answers.py`)
    over          behind it: copies start, into places that no table names

A graph has the addresses of the tables and the places, not what is in them, so that nothing is captured anew. An expert
that leaves is out of the table one step before its place is written again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache as once
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ....kernels.packed import ExpertBank
from ...devices.device import Device
from ...policies.residents import Snapshot
from ..backend import Chosen, Moved
from .expert_cache import ExpertCache
from .late_answers import Choices
from .ruled_cache import chosen_of
from .slots import ABSENT
from .store import Store


class Found(NamedTuple):
    """What a step found: the places of experts, int32 [layers with experts, experts]; and bytes that were sent up
    before it (the table) and behind it (experts)."""

    here_LE: Tensor
    table: int
    behind: int


class CachedSteps:
    """Of one model. On the device `there`, int32 [2 or 3, layers with experts, experts]: the place of an expert, its
    number in RAM, and in a store on a second GPU, if there is one; -1 in those that it is not to be taken from."""

    def __init__(self, cache: ExpertCache, device: Device, store: Store | None = None) -> None:
        self.cache, self.store, shape = cache, store, cache.shape
        tables = 2 if store is None else 3
        self.host = torch.full((tables, shape.layers, max(shape.experts)), ABSENT, dtype=torch.int32)
        self.stored_LE = self.host[0].clone()
        for number, numbers_E in enumerate([] if store is None else store.numbers):
            self.stored_LE[number, : len(numbers_E)] = numbers_E
        if device.is_cuda:
            self.host = self.host.pin_memory()
        self.numbers = torch.arange(max(shape.experts), dtype=torch.int32)
        self.there = device.put(self.host.clone())
        self.then: Snapshot | None = None
        self.sent = -1  # bytes of the last refresh; before the first one all is new
        self.refresh()

    def bank(self, layer: int) -> ExpertBank | None:
        """The places for experts of a layer of the model; None: there are none."""
        return self.cache.bank(layer)

    def here(self, layer: int) -> Tensor:
        """On the device, int32 [experts]: the place of each expert of a layer of the model, or -1."""
        number = self.cache.number[layer]
        return self.there[0, number, : self.cache.shape.experts[number]]

    def in_ram(self, layer: int) -> Tensor:
        """The same for the CPU: the number of each expert that is to be computed there, or -1."""
        number = self.cache.number[layer]
        return self.there[1, number, : self.cache.shape.experts[number]]

    def stored(self, layer: int) -> Tensor:
        """The same for the second GPU: the number of each expert that is to be computed there, or -1."""
        number = self.cache.number[layer]
        return self.there[2, number, : self.cache.shape.experts[number]]

    def store_banks(self) -> dict[int, ExpertBank]:
        """By layer of the model, what is stored on the second GPU."""
        banks = [] if self.store is None else self.store.banks
        found = zip(self.cache.number, banks, strict=False)
        return {layer: bank for layer, bank in found if bank is not None}

    def is_split(self, layer: int) -> bool:
        """Whether some experts of a layer may be elsewhere than in RAM."""
        return self.bank(layer) is not None or layer in self.store_banks()

    def refresh(self) -> None:
        """Brings the tables up to date, before a step."""
        here_LE = self.cache.places()
        is_same = self.sent >= 0 and torch.equal(here_LE, self.host[0])
        self.sent = 0 if is_same else self.host.nbytes
        if not is_same:
            self.host[0] = here_LE
            elsewhere_LE = torch.where(here_LE < 0, self.stored_LE, ABSENT)
            self.host[1] = torch.where((here_LE < 0) & (elsewhere_LE < 0), self.numbers, ABSENT)
            if self.store is not None:
                self.host[2] = elsewhere_LE
            self.there.copy_(self.host, non_blocking=True)

    def meanwhile(self) -> None:
        """While a step runs."""
        late = self.cache.late
        self.then = late.meanwhile() if late is not None and self.cache.generating else None

    def over(self, each: Callable[[], list[Chosen]]) -> Callable[[], list[Chosen]]:
        """A step is over: each: its layers' choices. They come back with what the account needs of the cache. Both the
        account and the policy ask several times, when the next step runs: each is worked out once."""
        cache, late = self.cache, self.cache.late
        each = once(each)
        if late is not None and cache.generating:
            late.over(cache.steps, once(partial(self._choices, each)), self.then)
        cache.carry_out()
        found = Found(self.host[0].clone(), self.sent, cache.booked())
        return once(partial(self._with_moved, each, found))

    def _choices(self, each: Callable[[], list[Chosen]]) -> Choices:
        """By layer with experts what was chosen, as the policy is asked."""
        return [(self.cache.number[one.layer], chosen_of(one.ids_TK)) for one in each()]

    def _with_moved(self, each: Callable[[], list[Chosen]], found: Found) -> list[Chosen]:
        """The first layer has what was sent up for none in particular."""
        chosen = each()
        return [one._replace(moved=self._moved(one, found, i == 0)) for i, one in enumerate(chosen)]

    def _moved(self, one: Chosen, found: Found, is_first: bool) -> Moved:
        number = self.cache.number[one.layer]
        there = frozenset((found.here_LE[number] >= 0).nonzero().flatten().tolist())
        stored = frozenset((self.stored_LE[number] >= 0).nonzero().flatten().tolist()) if self.store else frozenset()
        mine = (stored - there).intersection(one.ids_TK.flatten().tolist()) if stored else stored
        across = one.ids_TK.nbytes if mine else 0
        return Moved(there, 0, found.behind if is_first else 0, found.table if is_first else 0, mine, across)
