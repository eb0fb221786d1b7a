"""Hosts as threads of the test's own process: a start takes no second of imports."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from host_processes import coordinator, free_port

from headrace import LLM, EngineConfig
from headrace.engine.hosts.expert_host import ExpertHost
from headrace.engine.hosts.layers.net_layers import NetLayers
from headrace.engine.terminal.hosts.host_command import Fetched, open_model


class ThreadHosts:
    """So many hosts that join a port of this machine."""

    address = "127.0.0.1"

    def __init__(self, model: Path | str, count: int, has_copy: bool = True) -> None:
        self.model, self.port, self.has_copy, self.said = model, free_port(), has_copy, list[str]()
        self.hosts: dict[str, ExpertHost] = {}
        self.threads: dict[str, threading.Thread] = {}
        for number in range(1, count + 1):
            self.start(f"h{number}")

    @property
    def count(self) -> int:
        return len(self.hosts)

    def start(self, name: str) -> None:
        address, config = ("127.0.0.1", self.port), EngineConfig(threads=1)
        opened = partial(open_model, str(self.model), config)
        if not self.has_copy:
            opened = Fetched(address, b"", name, config).open
        host = ExpertHost(name, address, b"", opened, self.said.append, not self.has_copy)
        self.hosts[name], self.threads[name] = host, threading.Thread(target=self._run, args=(host,), daemon=True)
        self.threads[name].start()

    def _run(self, host: ExpertHost) -> None:
        try:
            host.run()
        except Exception as error:
            self.said.append(str(error))

    def end(self, name: str) -> None:
        """It leaves without a word."""
        self.hosts[name].stop()
        self.threads[name].join(20)
        assert not self.threads[name].is_alive()

    def close(self) -> None:
        for name in self.hosts:
            self.end(name)


@contextlib.contextmanager
def near_hosts(model: Path | str, count: int, **options: Any) -> Iterator[LLM]:
    """So many hosts as threads, and a model that has its experts there."""
    hosts = ThreadHosts(model, count)
    try:
        with coordinator(hosts, **options) as llm:
            yield llm
    finally:
        hosts.close()


layered = partial(coordinator, split_by="layers")  # whole layers on each host


def layers_of(llm: LLM) -> NetLayers:
    found = llm.parts.decoder.beyond
    assert isinstance(found, NetLayers)
    return found
