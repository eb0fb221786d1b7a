"""What hosts owe and what they did in a layer: the choices of each request, and bytes by host."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..ledger.passes import HostWork
from .messages.frames import Broken


class Asked:
    """A request. order: its number in the layer; pairs: its choices; answers: what the rows of its answer are about,
    choices or tokens; of_pair: where the answer of each choice stands, None: where it stands itself."""

    def __init__(self, order: int, node: int, pairs_N: Tensor, answers_M: Tensor, of_pair_N: Tensor | None) -> None:
        self.order, self.node, self.pairs_N, self.answers_M, self.of_pair_N = order, node, pairs_N, answers_M, of_pair_N
        self.is_open_M = bytearray(b"\1") * len(answers_M)  # a few: bytes are faster than a tensor
        self.left = len(answers_M)

    def take(self, first: int, count: int) -> Tensor:
        """What so many rows are about, which are no longer owed. Raises Broken."""
        last = first + count
        if last > len(self.answers_M) or 0 in self.is_open_M[first:last]:
            raise Broken("it answered more than it was asked")
        self.is_open_M[first:last] = bytes(count)
        self.left -= count
        return self.answers_M[first:last]

    @property
    def owed_N(self) -> Tensor:
        """The choices that are still to be answered."""
        is_open_M = torch.tensor(list(self.is_open_M), dtype=torch.bool)
        return self.pairs_N[is_open_M if self.of_pair_N is None else is_open_M[self.of_pair_N]]


@dataclass
class _OfHost:
    experts: int = 0
    pairs: int = 0
    there: int = 0
    back: int = 0
    requests: int = 0
    frames: int = 0


@dataclass
class Booked:
    """Bytes of a layer on the wire: of rows, of everything else, and of each host with what it was asked."""

    rows: int = 0
    besides: int = 0
    requests: int = 0
    hosts: dict[int, _OfHost] = field(default_factory=dict)

    def ask(self, node: int, experts: int, pairs: int, sizes: tuple[int, int]) -> None:
        """A request for so many choices of so many experts. sizes: its bytes, of rows and besides."""
        one = self.hosts.setdefault(node, _OfHost())
        one.experts, one.pairs = one.experts + experts, one.pairs + pairs
        one.there, one.requests, self.requests = one.there + sum(sizes), one.requests + 1, self.requests + 1
        self._add(sizes)

    def take(self, node: int, sizes: tuple[int, int]) -> None:
        """A piece of an answer."""
        one = self.hosts[node]
        one.back, one.frames = one.back + sum(sizes), one.frames + 1
        self._add(sizes)

    def _add(self, sizes: tuple[int, int]) -> None:
        self.rows, self.besides = self.rows + sizes[0], self.besides + sizes[1]

    def by_host(self, is_summed: bool) -> tuple[HostWork, ...]:
        """What each did. Sums leave when a request is computed, rows of choices while the next ones are."""
        return tuple(
            HostWork(
                host=node, experts=one.experts, pairs=one.pairs, there=one.there, back=one.back,
                pieces=max(1, one.requests if is_summed else one.frames),
            )
            for node, one in sorted(self.hosts.items())
        )  # fmt: skip
