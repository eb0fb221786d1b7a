"""What a layer with hosts takes besides rows, links and experts: measured on the hosts of a run, before its first pass.

Layers of a few sizes are sent with rows that mean nothing; of what they take, the seconds of `hops.Exchange` are taken
off. What is left is Python and the system on both sides.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, NamedTuple

import torch

from ....loaders.quants.by_format import ByFormat
from ...bandwidth_model.hardware import Hardware, exactly
from ...bandwidth_model.network.hops import Asked, Costs, Exchange, Network
from ...ledger.passes import LayerWork

if TYPE_CHECKING:
    from ..net_experts import NetExperts

TOKENS = (1, 2, 4, 16, 64)  # one token goes another way through `exchange.py` than several
SECONDS, MOST = 0.6, 24  # of all layers together, at most; layers of a size
FEWEST, WARM = 3, 2  # layers of a size that are timed at least, and first ones that are not


class Sample(NamedTuple):
    """A layer that was sent: seconds that it took, and those of `Exchange`."""

    measured_s: float
    exchange_s: float


def measure(experts: NetExperts, most_tokens: int) -> Costs | None:
    """By tokens of a layer; None where hosts have no experts. Raises DeviceError where experts cannot be had."""
    layers = [layer for layer, row in enumerate(experts.members.owners) if any(owner > 0 for owner in row)]
    if not layers:
        return None
    found: dict[int, list[float]] = {tokens: [] for tokens in TOKENS if tokens <= most_tokens}
    draw, end = torch.Generator().manual_seed(1), time.perf_counter() + SECONDS
    for number in range(WARM + MOST):
        for tokens, seconds in found.items():  # in turn, so that what disturbs one disturbs all
            one = sample(experts, layers[number % len(layers)], tokens, draw)
            seconds.append(one.measured_s - one.exchange_s)
        if number >= WARM + FEWEST and time.perf_counter() > end:
            break
    experts.last = -1
    return Costs(
        tuple((float(tokens), exactly(max(0.0, statistics.median(late[WARM:])))) for tokens, late in found.items())
    )


@torch.inference_mode()
def sample(experts: NetExperts, layer: int, tokens: int, draw: torch.Generator) -> Sample:
    """One layer (of those with experts) whose tokens choose among the experts of hosts, each as often as the others."""
    stored = experts.shelf.files.stored
    there = torch.tensor([expert for expert, owner in enumerate(experts.members.owners[layer]) if owner > 0])
    count = min(stored.top_k, len(there))
    chosen = torch.rand(tokens, len(there), generator=draw).topk(count).indices
    ids_TK, x_TD = there[chosen].int(), torch.full((tokens, experts.shelf.files.layouts[layer].hidden), 0.01)
    start = time.perf_counter()
    experts.last = -1
    _, done = experts.collect(experts.submit(stored.layers[layer], x_TD, ids_TK, torch.full(ids_TK.shape, 1 / count)))
    took = time.perf_counter() - start
    assert experts.network is not None, "a layer of hosts that nobody knows"
    return Sample(took, exchange(experts, experts.network, experts.work(done)).seconds(Hardware(name="hosts alone")))


def exchange(experts: NetExperts, network: Network, work: LayerWork) -> Exchange:
    """What hosts did in a layer, as the bandwidth model has it."""
    layout = experts.shelf.files.layouts[experts.number[work.layer]]
    read = ByFormat.of(layout.bytes_by_format)
    flops = 6.0 * layout.hidden * layout.width  # of a choice
    return Exchange(
        tuple(
            Asked(
                hop=network.hops[one.host], read=read.times(one.experts), flops=one.pairs * flops,
                each=one.pairs / max(1, one.experts), there=one.there, back=one.back, pieces=one.pieces,
            )
            for one in work.hosts
        )
    )  # fmt: skip
