"""What layers take on each machine of a pass: measured on the machines of a run, before its first pass.

Tokens that are drawn go from one machine to the next, as in a pass: embedding rows into the first layers, what these
made of them into the next. So they choose experts as tokens do; rows of noise chose more different ones, of all
experts alike, and took a tenth longer. Of what a machine takes, the round trip and the rows' time on the link are taken
off; what is left is the machine's, Python on both sides included. What tokens leave in the caches is overwritten before
anybody reads it.

Passes of a few tokens follow each other, as those that decode do: one behind a long prompt takes half as long again. Of
each the choices come back and are counted, as in every pass of a run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ....kernels.decoder_layer import Pages, Places
from ....kernels.passes.tally import Tally
from ...bandwidth_model.hardware import exactly
from ...bandwidth_model.network.hops import Costs
from ...bandwidth_model.network.stops import Stop
from ...ledger.pass_bytes import cache_sizes
from ...model.kv_cache import PAGE, pages_for
from ...model.segment import part_of
from ..joining import rate
from .flow import Flow
from .parts import Part

if TYPE_CHECKING:
    from .net_layers import NetLayers

DECODE, PROMPT = (1, 2, 4, 16, 64), (16, 64, 256)  # tokens; parts of a few sequences have the sizes between
SECONDS, LONG = 1.0, 3.0  # of all passes; of the fewest that there are, where machines are slow
FEWEST, MOST, WARM = 3, 16, 2  # rounds, and first passes of a size that are not timed
TURN, NOT_TIMED = 6, 2  # passes of a few tokens in a round, and how many of them come before those that are timed
I32 = torch.int32
Rows = Callable[[int], Tensor]  # of so many tokens what goes into the first layer, float32 [T, X]


def measure(net: NetLayers, most_tokens: int, most_sequences: int, rows: Rows) -> dict[int, Stop]:
    """By node one of its layers, as an average of those that it has. Raises CacheLost, DeviceError where a host is lost
    meanwhile."""
    samplers = [_Sampler(net, node) for node in dict.fromkeys(node for node, _ in net.holders.route)]
    room = net.holders.layers.room
    pages = min([room.pages, *(pages for _, pages in room.windows)])
    tokens = min(most_tokens, room.context, PAGE * pages)
    sizes = [(one, False) for one in DECODE if one <= min(most_sequences, pages)]
    sizes += [(one, True) for one in PROMPT if one <= tokens] or [(tokens, True)]
    start = time.perf_counter()
    for number in range(WARM + MOST):
        late = time.perf_counter() - start
        for size in sizes:
            if (number < WARM + FEWEST and (number == 0 or late < LONG * (number + 1))) or late < SECONDS:
                _take(samplers, rows, *size, 1 if size[1] or late > SECONDS else TURN)
    return {sampler.node: sampler.stop() for sampler in samplers}


def _take(samplers: Sequence[_Sampler], rows: Rows, tokens: int, is_prompt: bool, times: int) -> None:
    """Passes of a size one behind the other; of several the first are as long as what was before makes them."""
    for number in range(times):
        x_TX = rows(tokens)
        for sampler in samplers:  # in turn, as passes go: what disturbs one disturbs all
            x_RX = sampler.take(x_TX, is_prompt, is_timed=number >= NOT_TIMED or times == 1)
            x_TX = x_RX if len(x_RX) == tokens else x_TX  # fewer are of the last layer


class _Sampler:
    """Passes through the layers of one node."""

    def __init__(self, net: NetLayers, node: int) -> None:
        self.net, self.node, self.route = net, node, [one for one in net.holders.route if one[0] == node]
        self.hop, self.layers = net.hop(node), sum(last - first for _, (first, last) in self.route)
        self.row = net.parts.wire.row(net.width)
        self.tally = Tally(counts_2LE=torch.zeros(2, len(net.spec.layers), net.spec.moe.experts, dtype=torch.int64))
        self.taken: dict[tuple[int, bool], list[float]] = {}

    def take(self, x_TX: Tensor, is_prompt: bool, is_timed: bool) -> Tensor:
        """A pass of these tokens; what comes out of it."""
        x_RX, took = self._sample(x_TX, is_prompt)
        if is_timed:
            self.taken.setdefault((len(x_TX), is_prompt), []).append(took)
        return x_RX

    def stop(self) -> Stop:
        """What was found."""
        decode, prompt = self._costs(False), self._costs(True)
        found = Stop(hop=self.hop, decode=decode, prompt=prompt, context_s=self.context_s)
        return found.times(1 / self.layers)

    def _costs(self, is_prompt: bool) -> Costs:
        seconds = [(tokens, taken) for (tokens, prompt), taken in self.taken.items() if prompt == is_prompt]
        return Costs(
            tuple((float(tokens), exactly(statistics.median(taken[WARM:] or taken))) for tokens, taken in seconds)
        )

    def _sample(self, x_TX: Tensor, is_prompt: bool) -> tuple[Tensor, float]:
        """What comes out of one pass, and its seconds, less what the link takes."""
        tokens = len(x_TX)
        part = _part(self.net, tokens, is_prompt)
        start = time.perf_counter()
        flow = Flow(self.net, [part], False, wants_choices=True)
        flow.route = self.route
        with torch.inference_mode():
            x_RX = flow.run(x_TX, self.tally)
        took = time.perf_counter() - start
        if self.hop is None:
            return x_RX, took
        link = self.hop.round_trip.mid + 2 * tokens * self.row / self.hop.rate.mid
        return x_RX, max(0.0, took - len(self.route) * link)

    @property
    def context_s(self) -> float:
        """What a token in the cache costs, at the rate of the node's RAM."""
        spec, format = self.net.spec, self.net.holders.layers.room.format
        each = [cache_sizes(part_of(spec, *run), format) for _, run in self.route]
        more = sum(one.moved([(1, 2)], True) - one.moved([(1, 1)], True) for one in each)
        link = self.net.holders.links[self.route[0][0]]
        return more / max(1.0, rate.measure() if link is None else link.figures.ram_bytes_s)


def _part(net: NetLayers, tokens: int, is_prompt: bool) -> Part:
    """Of one prompt, or of as many sequences as tokens."""
    one = torch.arange(tokens)
    if is_prompt:
        positions_T, slots_T, tables_SM = one, one, torch.arange(pages_for(tokens))[None]
        starts, contexts = [0, tokens], [tokens]
    else:
        positions_T, slots_T, tables_SM = torch.zeros(tokens), one * PAGE, one[:, None]
        starts, contexts = list(range(tokens + 1)), [1] * tokens
    slots = torch.arange(len(contexts), dtype=I32) if net.spec.state_elements else None
    places = Places(
        positions_T=positions_T.to(I32), slots_T=slots_T, tables_SM=tables_SM.to(I32), states_S=slots,
        starts_S1=torch.tensor(starts, dtype=I32), contexts_S=torch.tensor(contexts, dtype=I32),
        windows=tuple(Pages(slots_T, tables_SM.to(I32)) for _ in net.holders.layers.room.windows),
    )  # fmt: skip
    rows_R = torch.tensor([tokens - 1]) if is_prompt else None
    counts = [end - start for start, end in pairwise(starts)]
    return Part(0, tokens, places, rows_R, tuple(zip(counts, contexts, strict=True)))
