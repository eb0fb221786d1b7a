"""A host that takes over experts without room for them in RAM reads them from its disk, again and again."""

from __future__ import annotations

from host_processes import coordinator, experts_of, said
from thread_hosts import ThreadHosts

from headrace import LLM


def test_experts_of_a_lost_host_stay_on_the_disk_of_the_other() -> None:
    with LLM("demo", device="cpu", max_context=128, no_measure=True) as llm:
        expected = said(llm)
    hosts = ThreadHosts("demo", 2)
    try:
        with coordinator(hosts, host_timeout=5.0) as llm:
            assert said(llm) == expected
            shelf = hosts.hosts["h2"].shelf
            assert shelf is not None
            size = max(layout.bytes for layout in shelf.files.layouts)
            shelf.room, before, own = 3 * size, shelf.read_bytes, set(shelf.own)
            hosts.end("h1")
            assert said(llm) == expected
            assert experts_of(llm).members.losses == 1
            lost = sum(map(len, experts_of(llm).members.share(1)))
            assert shelf.read_bytes - before > 2 * lost * size  # each of them more than once
            assert sum(shelf.files.layouts[layer].bytes for layer, _ in shelf.adopted) <= shelf.room + 8 * size
            assert shelf.own == own
    finally:
        hosts.close()
