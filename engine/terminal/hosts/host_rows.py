"""The rows of the start-up table about experts on several machines."""

from __future__ import annotations

from collections.abc import Iterator

from ....loaders.quants.by_format import ByFormat
from ...hosts.net_experts import NetExperts
from ...llm import LLM


def expert_rows(llm: LLM) -> Iterator[tuple[str, str, ByFormat]]:
    """What, where, and bytes by format: of the coordinator, and of each host that has some."""
    experts = llm.parts.decoder.experts
    assert isinstance(experts, NetExperts), "rows of hosts without hosts"
    members, layouts = experts.members, experts.shelf.files.layouts
    for number, name in enumerate(members.names):
        held = [row.count(number) for row in members.owners]
        if sum(held):
            pairs = zip(held, layouts, strict=True)
            read = ByFormat.sum(ByFormat.of(layout.bytes_by_format).times(count) for count, layout in pairs)
            yield f"{sum(held)} experts", f"host {name}" if number else "RAM", read


def line(llm: LLM) -> str:
    """What goes over the wire, for people."""
    experts = llm.parts.decoder.experts
    assert isinstance(experts, NetExperts), "a line about hosts without hosts"
    parts, count = experts.parts, len(experts.members.links) - 1
    return (
        f"expert parallelism over {count} hosts: attention, router, shared experts and KV cache are here; rows go as "
        f"{parts.wire.name}; a host that is silent for {parts.timeout:g} s is lost"
    )
