"""Hosts as processes of this machine, or as threads of the test's, which start at once; and a coordinator in it."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headrace import LLM, EngineConfig
from headrace.engine.hosts.expert_host import ExpertHost
from headrace.engine.hosts.net_experts import NetExperts
from headrace.engine.terminal.hosts.host_command import open_model

WAIT = 60  # seconds for all hosts to join on a busy machine
PROMPT = [5, 11, 3, 70, 29, 8, 8, 14, 101, 33, 2, 9]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


class Hosts:
    """Processes that join a port of this machine."""

    def __init__(self, model: Path | str, count: int, *options: str) -> None:
        self.model, self.port, self.options = model, free_port(), options
        self.processes = {f"h{number}": self.start(f"h{number}") for number in range(1, count + 1)}

    def start(self, name: str, model: Path | str | None = None, **variables: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "headrace", "host", str(model or self.model)]
        command += ["--join", f"127.0.0.1:{self.port}", "--name", name, "--threads", "1", *self.options]
        return subprocess.Popen(
            command, text=True, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1", **variables}
        )

    def restart(self, name: str) -> None:
        self.end(name)
        self.processes[name] = self.start(name)

    def signal(self, name: str, number: signal.Signals) -> None:
        self.processes[name].send_signal(number)

    def end(self, name: str) -> None:
        process = self.processes[name]
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()

    def close(self) -> None:
        for name in self.processes:
            self.end(name)


class ThreadHosts:
    """Hosts that are threads of this process: for what is not about their death. They join one coordinator after the
    other."""

    def __init__(self, model: Path | str, count: int) -> None:
        self.model, self.port = model, free_port()
        self.processes = [f"h{number}" for number in range(1, count + 1)]
        self.hosts = [self._host(name) for name in self.processes]
        self.threads = [threading.Thread(target=host.run, daemon=True) for host in self.hosts]
        for thread in self.threads:
            thread.start()

    def _host(self, name: str) -> ExpertHost:
        opened = functools.partial(open_model, str(self.model), EngineConfig(threads=1))
        return ExpertHost(name, ("127.0.0.1", self.port), b"", opened, lambda text: None)

    def close(self) -> None:
        """They end when they look for a coordinator the next time."""
        for host in self.hosts:
            host.is_over.set()
        for thread in self.threads:
            thread.join(20)
            assert not thread.is_alive(), "a host that does not end"


@contextlib.contextmanager
def near_hosts(model: Path | str, count: int, **options: Any) -> Iterator[LLM]:
    """So many hosts as threads, and a model that has its experts there."""
    hosts = ThreadHosts(model, count)
    try:
        with coordinator(hosts, **options) as llm:
            yield llm
    finally:
        hosts.close()


@contextlib.contextmanager
def hosts_of(model: Path | str, count: int, **options: Any) -> Iterator[tuple[Hosts, LLM]]:
    """So many hosts, and a model that has its experts there."""
    hosts = Hosts(model, count)
    try:
        given = {"max_context": 128, "no_measure": True, **options}
        with LLM(model, hosts=count, listen=f"127.0.0.1:{hosts.port}", host_wait=WAIT, **given) as llm:
            yield hosts, llm
    finally:
        hosts.close()


def experts_of(llm: LLM) -> NetExperts:
    found = llm.parts.decoder.experts
    assert isinstance(found, NetExperts)
    return found


@contextlib.contextmanager
def later(seconds: float, action: Any, *arguments: Any) -> Iterator[None]:
    """Does something in so many seconds, in another thread."""
    timer = threading.Timer(seconds, action, arguments)
    timer.start()
    try:
        yield
    finally:
        timer.join()


@contextlib.contextmanager
def coordinator(hosts: Hosts | ThreadHosts, **options: Any) -> Iterator[LLM]:
    """A model on hosts that are there already: they join one coordinator after the other."""
    given = {"max_context": 128, "no_measure": True, **options}
    count = len(hosts.processes)
    with LLM(hosts.model, hosts=count, listen=f"127.0.0.1:{hosts.port}", host_wait=WAIT, **given) as llm:
        yield llm
