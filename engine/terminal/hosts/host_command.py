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
from ....kernels import isa, load
from ....kernels.context import THREADS
from ....loaders.weights.by_expert.stored import StoredExperts
from ...config import EngineConfig
from ...core.weight_source import CheckpointFiles
from ...devices import device as devices
from ...devices import host
from ...experts.disk.files import ExpertFiles
from ...hosts.expert_host import ExpertHost, Opened
from ...hosts.joining import address as addresses
from ...hosts.joining import fingerprint, rate
from ...hosts.messages import greeting
from ...hosts.messages.greeting import LONGEST_NAME
from ...hosts.messages.terms import Terms
from ..generate_command import say


def run(model: str, join: str, name: str | None, config: dict[str, Any], once: bool = False) -> None:
    """Until it is ended; once: or its coordinator ends. Raises OptionError for an address that cannot be, DeviceError
    where the coordinator does not want this host, and what opening a model raises."""
    asked = EngineConfig(**config)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    address, port = addresses.parse(join, "--join")
    addresses.check(address, "--join", asked.i_know)
    called = f"{socket.gethostname()}-{os.getpid()}" if name is None else name
    if not called.isprintable() or not 0 < len(called) <= LONGEST_NAME:
        raise OptionError(f"--name is {called!r}; give 1 to {LONGEST_NAME} letters")
    said = f"{called} joins {addresses.shown(address, port)}; Ctrl-C ends it"
    say(said)
    opened = partial(open_model, model, asked)
    with contextlib.suppress(KeyboardInterrupt):
        ExpertHost(called, (address, port), greeting.token(asked.host_token), opened, say).run(once)


def open_model(model: str, config: EngineConfig, terms: Terms) -> Opened:
    """The model of this host as a coordinator's terms have it, without any weights yet."""
    asked = replace(config, device="cpu", **terms.options)
    context = terms.context(asked.threads or THREADS)
    name = "cpu" if asked.kernels == "auto" else asked.kernels
    ops = load(name, context)
    host.use_torch_threads(host.torch_threads(name, asked.threads))
    found = devices.find(asked, devices.ram(ops, name, asked))
    checkpoint = CheckpointFiles(model).open(asked, found, show_progress=True)
    if not checkpoint.entries:
        raise OptionError(f"{model} has no files to load experts from: give the model's directory, or a GGUF file")
    facts = {"isa": context.isa, "threads": context.threads, "kernels": isa.kernels_digest()}
    files = ExpertFiles(StoredExperts(checkpoint), ops)
    free = next(iter(found.values())).free
    rates = rate.measure(), rate.experts(ops, files.layouts[0], sum(files.stored.experts))
    return Opened(checkpoint, files, ops, fingerprint.of(checkpoint), free, *rates, facts)
