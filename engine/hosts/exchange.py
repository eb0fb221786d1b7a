"""One layer of one pass over the wire: who is asked for which rows, what came, and who is asked instead of one that is
lost.

Where hosts answer with a row for each choice, rows are added up here in the order of choices; where they answer with
sums, those are added in the order in which they were asked for, whatever the order in which they came.
"""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import DeviceError
from ...kernels import Ops
from ...kernels.cpu import EXPERT_OUT_BYTES, CpuOps
from ..bandwidth_model.network import wire_sizes
from ..experts.backend import Wired
from ..experts.disk.rows import F32, SPARE
from .asked import Asked, Booked
from .link import Link
from .messages import rows as messages
from .messages.frames import Broken, Kind
from .messages.rows import MOST_ROWS, Work

if TYPE_CHECKING:
    from .net_experts import Ready

STEP = 0.1  # seconds between looks at the clock


class Exchange:
    """Of layer number `layer` of those with experts; x float32 [tokens, hidden], ids and weights [tokens, choices].
    call: number of the last request before."""

    def __init__(
        self, parts: Ready, ops: Ops, layer: int, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, call: int
    ) -> None:
        self.parts, self.ops, self.layer, self.call, self.x_TD = parts, ops, layer, call, x_TD
        self.members, self.wire, self.is_summed = parts.members, parts.wire, parts.wire.is_summed
        (self.T, self.K), self.D = ids_TK.shape, x_TD.shape[1]
        on_input = parts.shelf.files.layouts[layer].weighs_input
        self.taken_P = weights_TK.flatten() if on_input else None
        self.given_TK = torch.ones_like(weights_TK) if on_input else weights_TK
        self.sent_P = weights_TK.flatten() if on_input or self.is_summed else None
        self.ids_P = ids_TK.flatten().long()
        make = torch.zeros if self.is_summed else torch.empty
        self.rows_PD = make(self.T * self.K, self.D)
        self.sums: list[tuple[int, Tensor, Tensor]] = []  # order of the request, tokens, what is added to them
        self.asked: dict[int, Asked] = {}
        self.mine: list[Tensor] = []
        self.booked = Booked()
        self.own_pairs = 0
        self.is_left_out = False  # whether some choices are
        self.own: set[int] = set()

    def leave_out(self) -> None:
        """Choices of no expert here (-1) are nobody's: their rows are nothing."""
        self.rows_PD.zero_()
        self.is_left_out = True

    @property
    def wired(self) -> Wired:
        booked = self.booked
        return Wired(booked.rows, booked.besides, len(self.own), self.own_pairs, booked.by_host(self.is_summed))

    @property
    def is_sent(self) -> bool:
        """Whether the system has taken all that is to be sent."""
        return not any(link.out for link in self._links())

    def _links(self) -> list[Link]:
        return [link for link in self.members.links if link is not None]

    def ask_all(self) -> None:
        """Sends every choice to who has its expert. An expert is to see its rows as many at a time as one call of the
        kernel shows it."""
        most = min(MOST_ROWS, max(1, EXPERT_OUT_BYTES // (self.K * (self.D + SPARE) * F32)))
        for first in range(0, self.T, most):
            last = min(self.T, first + most)
            pairs_N = torch.arange(first * self.K, last * self.K)
            self._ask(pairs_N[self.ids_P[pairs_N] >= 0] if self.is_left_out else pairs_N)
        self._write()

    def _ask(self, pairs_N: Tensor) -> None:
        """Deals choices out; those of the coordinator are kept for `compute_own`. Raises DeviceError for a node that is
        lost for good."""
        for node, here_N in self._by_owner(pairs_N):
            if node == 0:
                self.mine.append(here_N)
                continue
            link = self.members.links[node]
            if link is None:
                raise self.members.missing(node)
            self._request(node, link, here_N)

    def _by_owner(self, pairs_N: Tensor) -> list[tuple[int, Tensor]]:
        """By node its choices, sorted by expert. One token's are few: there lists are faster than tensors."""
        if self.T > 1:
            ids_N = self.ids_P[pairs_N]
            owners_N = self.members.owners_of(self.layer, ids_N)[ids_N]
            parts = [(node, pairs_N[owners_N == node]) for node in torch.unique(owners_N).tolist()]
            return [(node, N[torch.sort(self.ids_P[N], stable=True).indices]) for node, N in parts]
        ids = self.ids_P.tolist()
        pairs = sorted(pairs_N.tolist(), key=ids.__getitem__)
        owners = self.members.row_of(self.layer, [ids[pair] for pair in pairs])
        found: dict[int, list[int]] = {}
        for pair in pairs:
            found.setdefault(owners[ids[pair]], []).append(pair)
        return [(node, torch.tensor(pairs)) for node, pairs in sorted(found.items())]

    def _request(self, node: int, link: Link, pairs_N: Tensor) -> None:
        self.call = (self.call + 1) & 0xFFFFFFFF
        if self.T > 1:
            tokens_M, at_N = torch.unique(pairs_N // self.K, return_inverse=True)
            x_MD = self.x_TD[tokens_M]
        else:
            x_MD, tokens_M, at_N = self.x_TD, torch.zeros(1, dtype=torch.int64), torch.zeros_like(pairs_N)
        ids_N = self.ids_P.index_select(0, pairs_N)
        weights_N = None if self.sent_P is None else self.sent_P[pairs_N]
        work = Work(self.layer, x_MD, at_N, ids_N, weights_N, self.is_summed)
        answers = tokens_M if self.is_summed else pairs_N
        self.asked[self.call] = Asked(self.booked.requests, node, pairs_N, answers, at_N if self.is_summed else None)
        sizes = wire_sizes.request(len(x_MD), len(pairs_N), self.D, self.wire.name, weights_N is not None)
        experts = len(pairs_N) if self.T == 1 else len(torch.unique_consecutive(ids_N))
        self.booked.ask(node, experts, len(pairs_N), sizes)
        link.limit = max(link.limit, messages.ANSWER.size + len(answers) * self.wire.row(self.D))
        link.queue(messages.work_parts(work, self.wire, self.call))

    def compute_own(self) -> None:
        """The coordinator's choices."""
        while self.mine:
            pairs_N = self.mine.pop()
            ids_N = self.ids_P[pairs_N]
            taken_N = None if self.taken_P is None else self.taken_P[pairs_N]
            self.own |= {*ids_N.tolist()}
            self.own_pairs += len(pairs_N)
            try:
                found_ND = self.parts.shelf.rows(self.layer, self.x_TD, pairs_N // self.K, ids_N, taken_N)
            except OSError as error:
                raise DeviceError(f"experts of a lost host cannot be read here ({error}): start it again") from error
            self.rows_PD[pairs_N] = found_ND

    @torch.inference_mode()
    def run(self, until_sent: bool = False) -> None:
        """Sends and receives until everything has come, or only is sent; then it may run beside `compute_own`. Raises
        DeviceError where nobody can take what a lost host owes."""
        since = time.monotonic()
        while self.asked and not (until_sent and self.is_sent):
            self._write()
            self._wait(STEP)
            self._read()
            self._look_at_the_clock(since)
            if not until_sent:
                self.compute_own()

    def _wait(self, seconds: float) -> None:
        """Until something came, or more can be sent."""
        poller = select.poll()
        for link in self._links():
            poller.register(link.fileno(), select.POLLIN | (select.POLLOUT if link.out else 0))
        poller.poll(seconds * 1000)

    def _write(self) -> None:
        for node in self.members.alive:
            link = self.members.links[node]
            try:
                if link is not None:
                    link.write()
            except OSError as error:
                self._lose(node, error.strerror or str(error))

    def _read(self) -> None:
        for node in self.members.alive:
            link = self.members.links[node]
            try:
                for header, body in link.read() if link is not None else ():
                    self._take(node, header.kind, header.call, body)
            except OSError as error:
                self._lose(node, error.strerror or str(error))
            except Broken as error:
                self._lose(node, str(error))

    def _take(self, node: int, kind: Kind, call: int, body: bytearray) -> None:
        """Rows of an answer; what nobody waits for any more is of a pass that was given up."""
        asked = self.asked.get(call)
        if kind is not Kind.ROWS or (asked is not None and asked.node != node):
            raise Broken("it answered what it was not asked")
        if asked is None:
            return
        first, rows_ND = messages.read_answer(body, self.wire, self.D)
        at_N = asked.take(first, len(rows_ND))
        if self.is_summed:
            self.sums.append((asked.order, at_N, rows_ND))
        else:
            self.rows_PD.index_copy_(0, at_N, rows_ND)
        self.booked.take(node, wire_sizes.answer(len(rows_ND), 1, self.D, self.wire.name))
        if not asked.left:
            del self.asked[call]

    def _look_at_the_clock(self, since: float) -> None:
        """Loses hosts that owe something and were silent for too long."""
        now = time.monotonic()
        for node in sorted({asked.node for asked in self.asked.values()}):
            link = self.members.links[node]
            if link is not None and now - max(link.heard, since) > self.parts.timeout:
                self._lose(node, f"no word for {self.parts.timeout:g} s")

    def _lose(self, node: int, why: str) -> None:
        """What a host owes is asked of others."""
        owed = [call for call, asked in self.asked.items() if asked.node == node]
        pairs = [asked.owed_N for asked in map(self.asked.pop, owed)]
        self.members.lose(node, why)
        for pairs_N in pairs:
            self._ask(pairs_N)
        if pairs:
            self._write()

    def sum(self) -> Tensor:
        """float32 [tokens, hidden]."""
        assert not self.asked, "rows are missing"
        y_TD = self._sum_of_rows() if self.own_pairs or not self.is_summed else torch.zeros(self.T, self.D)
        for _, tokens_M, sums_MD in sorted(self.sums, key=lambda one: one[0]):
            y_TD.index_add_(0, tokens_M, sums_MD)
        return y_TD

    def _sum_of_rows(self) -> Tensor:
        rows_TKD, weights_TK = self.rows_PD.view(self.T, self.K, -1), self.given_TK
        if isinstance(self.ops, CpuOps):
            return self.ops.weighted_rows(rows_TKD, weights_TK)
        y_TD = torch.zeros(self.T, self.D)
        for k in range(self.K):
            y_TD += weights_TK[:, k, None] * rows_TKD[:, k]
        return y_TD
