"""`headrace host` in the terminal: joins a coordinator, and computes the experts that it is given until Ctrl-C."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from dataclasses import replace
from functools import partial
from typing import Any

from ....errors import OptionError
from ....kernels import load
from ....kernels.context import THREADS
from ....loaders.weights.by_expert.stored import StoredExperts
from ...config import EngineConfig
from ...core.weight_source import CheckpointFiles
from ...devices import device as devices
from ...devices import host as machine
from ...experts.disk.files import ExpertFiles
from ...hosts.expert_host import ExpertHost, Opened
from ...hosts.files.fetched import FetchedFiles, FetchedModel
from ...hosts.joining import address as addresses
from ...hosts.joining import fingerprint, rate
from ...hosts.messages import greeting
from ...hosts.messages.greeting import LONGEST_NAME
from ...hosts.messages.terms import Terms
from ..generate_command import say


def run(model: str | None, join: str, name: str | None, config: dict[str, Any], once: bool = False) -> None:
    """Until it is ended; once: or its coordinator ends. Raises OptionError for an address that cannot be, DeviceError
    where the coordinator does not want this host, and what opening a model raises. model: None: the coordinator's
    files are read over the connection."""
    asked = EngineConfig(**config)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    address, port = addresses.parse(join, "--join")
    addresses.check(address, "--join", asked.i_know)
    called = f"{socket.gethostname()}-{os.getpid()}" if name is None else name
    if not called.isprintable() or not 0 < len(called) <= LONGEST_NAME:
        raise OptionError(f"--name is {called!r}; give 1 to {LONGEST_NAME} letters")
    said = f"{called} joins {addresses.shown(address, port)}; Ctrl-C ends it"
    say(said)
    secret = greeting.token(asked.host_token)
    if model is None:
        fetched = Fetched((address, port), secret, called, asked)
        host = ExpertHost(called, (address, port), secret, fetched.open, say, asks_always=True)
    else:
        host = ExpertHost(called, (address, port), secret, partial(open_model, model, asked), say)
    with contextlib.suppress(KeyboardInterrupt):
        host.run(once=once)


class Fetched:
    """The coordinator's model, opened anew where it is another than before."""

    def __init__(self, address: tuple[str, int], secret: bytes, name: str, config: EngineConfig) -> None:
        self.address, self.secret, self.name, self.config = address, secret, name, config
        self.model: FetchedModel | None = None
        self.opened: tuple[Terms, Opened] | None = None

    def open(self, terms: Terms) -> Opened:
        """As `open_model`. Raises Broken, OSError where the connection ends."""
        if self.model is not None and not self.model.again():
            self.model.close()
            self.model = None
        if self.model is None:
            self.model, self.opened = FetchedModel(self.address, self.secret, self.name), None
        if self.opened is None or self.opened[0] != terms:
            self.opened = terms, open_model(str(self.model.path), self.config, terms, self.model)
        return self.opened[1]


def open_model(model: str, config: EngineConfig, terms: Terms, fetched: FetchedModel | None = None) -> Opened:
    """The model of this host as a coordinator's terms have it, without any weights yet. fetched: where they come from,
    if not from its files."""
    asked = replace(config, device="cpu", **terms.options)
    context = terms.context(asked.threads or THREADS)
    name = "cpu" if asked.kernels == "auto" else asked.kernels
    ops = load(name, context)
    machine.use_torch_threads(machine.torch_threads(name, asked.threads))
    found = devices.find(asked, devices.ram(ops, name, asked))
    checkpoint = CheckpointFiles(model).open(asked, found, show_progress=True)
    if not checkpoint.entries:
        raise OptionError(f"{model} has no files to load experts from: give the model's directory, or a GGUF file")
    facts = {"rounding": context.rounding if name == "cpu" else {}}
    files = ExpertFiles(StoredExperts(checkpoint), ops, None if fetched is None else FetchedFiles(fetched))
    free = next(iter(found.values())).free
    known, read = (fingerprint.of(checkpoint), None) if fetched is None else (fetched.fingerprint, fetched.read_into)
    rates = rate.measure(), rate.experts(ops, files.layouts[0], sum(files.stored.experts))
    return Opened(checkpoint, files, ops, known, free, *rates, facts, read)
