"""The rows of the start-up table about experts on several machines."""

from __future__ import annotations

from collections.abc import Iterator

from ....loaders.quants.by_format import ByFormat
from ...llm import LLM
from ...placement.placement import Tier
from ...placement.placement_file import IN_VRAM


def expert_rows(llm: LLM) -> Iterator[tuple[str, str, ByFormat]]:
    """What, where, and bytes by format: of the coordinator, and of each host that has some."""
    experts = llm.parts.net_experts
    assert experts is not None, "rows of hosts without hosts"
    members, layouts = experts.members, experts.shelf.files.layouts
    names = {number: f"host {name}" if number else "RAM" for number, name in enumerate(members.names)}
    if llm.parts.main.tier is Tier.GPU0:
        names = {IN_VRAM: llm.parts.main.tier.value, **names}
    for number, where in names.items():
        held = [len(row) for row in members.share(number)]
        if sum(held):
            pairs = zip(held, layouts, strict=True)
            read = ByFormat.sum(ByFormat.of(layout.bytes_by_format).times(count) for count, layout in pairs)
            yield f"{sum(held)} experts", where, read


def remark(llm: LLM) -> str | None:
    """Why passes with hosts have no prediction, if they have none."""
    network = llm.parts.network
    if network is None or network.costs is not None:
        return None
    return "no prediction: what a layer with hosts takes was not measured at the start: leave out --no-measure"


def lines(llm: LLM) -> list[str]:
    """What goes over the wire, and what hosts and their links were measured to do, for people."""
    experts = llm.parts.net_experts
    assert experts is not None, "lines about hosts without hosts"
    parts, members = experts.parts, experts.members
    rows = f"sums go back as {parts.wire.name}" if parts.wire.is_summed else f"rows go as {parts.wire.name}"
    found = [
        f"expert parallelism over {len(members.links) - 1} hosts: attention, router, shared experts and KV cache are "
        f"here; {rows}; a host that is silent for {parts.timeout:g} s is lost"
    ]
    found += [f"host {link.name}: {link.figures}" for link in members.links if link is not None]
    if copies := sum(map(len, members.replicas)):
        found.append(f"{copies} experts have a copy on another machine")
    if (costs := experts.network.costs) is not None:
        each = ", ".join(f"{seconds.mid * 1e6:.0f} us of {tokens:.0f}" for tokens, seconds in costs.points)
        found.append(f"a layer with hosts takes besides, by its tokens: {each}")
    return found
