"""The rows of the start-up table about layers on several machines."""

from __future__ import annotations

from collections.abc import Iterator

from ....loaders.quants.by_format import ByFormat
from ...hosts.layers.net_layers import NetLayers, named
from ...ledger import in_formats
from ...llm import LLM
from ...model.segment import Run


def split_of(llm: LLM) -> NetLayers | None:
    """Who has the layers, where they are dealt out."""
    found = llm.parts.decoder.beyond
    return found if isinstance(found, NetLayers) else None


def layer_rows(llm: LLM, split: NetLayers) -> Iterator[tuple[str, str, ByFormat, int]]:
    """What, where, bytes by format of the weights, and bytes of their part of the cache: of the coordinator, and of
    each host that has some."""
    each = in_formats.of_model(llm.spec, llm.parts.checkpoint.formats).layers
    holders = split.holders
    for number, (name, runs) in enumerate(zip(holders.names, holders.now, strict=True)):
        held = [each[i] for first, last in runs for i in range(first, last)]
        if held:
            parts = [one.common for one in held] + [one.expert.times(one.experts) for one in held if one.experts]
            read = ByFormat.sum(parts)
            cache = holders.layers.bytes(runs) - round(read.total)
            yield f"layers {_all(runs)}", f"host {name}" if number else "RAM", read, cache


def _all(runs: list[Run]) -> str:
    return ", ".join(map(named, runs))


def line(split: NetLayers) -> str:
    """What goes over the wire, for people."""
    count, parts = len(split.holders.links) - 1, split.parts
    return (
        f"layers over {count} hosts and this machine, each with its part of the KV cache; embedding, head and sampling "
        f"are here; hidden states go as {parts.wire.name}; a host that is silent for {parts.timeout:g} s is lost"
    )
