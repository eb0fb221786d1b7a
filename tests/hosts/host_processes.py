"""Hosts as processes of this machine, and a coordinator in that of the test; what it says, beside one machine alone."""

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
from typing import Any, Protocol

import torch

from headrace import LLM, SamplingParams
from headrace.engine.hosts.net_experts import NetExperts

WAIT = 60  # seconds for all hosts to join on a busy machine
PROMPT = [5, 11, 3, 70, 29, 8, 8, 14, 101, 33, 2, 9]
PROMPTS = ["In the beginning", "And it came to pass, when the children", "Behold,"]
GREEDY = SamplingParams(max_new_tokens=12, ignore_eos=True)


def said(llm: LLM) -> list[list[int]]:
    """To each prompt alone, and to all as a batch."""
    alone = [r.token_ids for p in PROMPTS for r in llm.generate(p, GREEDY)]
    return alone + [r.token_ids for r in llm.generate(PROMPTS, GREEDY)]


@functools.cache
def of_one_machine() -> tuple[list[list[int]], torch.Tensor]:
    """What the demo model says without hosts, and its logits."""
    with LLM("demo", device="cpu", max_context=128, no_measure=True) as llm:
        return said(llm), llm.logits(PROMPT)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


class Hosts:
    """Processes that join a port of this machine, at one of its addresses."""

    def __init__(self, model: Path | str, count: int, *options: str, address: str = "127.0.0.1") -> None:
        self.model, self.port, self.options, self.address = model, free_port(), options, address
        self.processes = {f"h{number}": self.start(f"h{number}") for number in range(1, count + 1)}

    @property
    def count(self) -> int:
        return len(self.processes)

    def start(self, name: str, model: Path | str | None = None, **variables: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "headrace", "host", str(model or self.model)]
        command += ["--join", f"{self.address}:{self.port}", "--name", name, "--threads", "1", *self.options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
        return subprocess.Popen(self.command(name, command), text=True, stderr=subprocess.PIPE, env=environment)

    def command(self, name: str, words: list[str]) -> list[str]:
        """What starts a host."""
        return words

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


class Joined(Protocol):
    """Hosts of a model that join a port of this machine."""

    model: Path | str
    port: int
    address: str

    @property
    def count(self) -> int: ...


@contextlib.contextmanager
def coordinator(hosts: Joined, **options: Any) -> Iterator[LLM]:
    """A model on hosts that are there already: they join one coordinator after the other."""
    given = {"max_context": 128, "no_measure": True, **options}
    with LLM(hosts.model, hosts=hosts.count, listen=f"{hosts.address}:{hosts.port}", host_wait=WAIT, **given) as llm:
        yield llm


@contextlib.contextmanager
def hosts_of(model: Path | str, count: int, **options: Any) -> Iterator[tuple[Hosts, LLM]]:
    """So many hosts, and a model that has its experts there."""
    hosts = Hosts(model, count)
    try:
        with coordinator(hosts, **options) as llm:
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
