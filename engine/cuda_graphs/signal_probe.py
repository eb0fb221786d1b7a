"""Tries one hand-off here, as a program with the arguments WAY LIBRARY DEVICE LAYERS.

Waits for a line of its standard input: until then others may be at work. Then says in lines of JSON how far it is
({"stage": ...}) and what came out ({"us": ...} of a job, or {"problem": ...}). Whoever started it kills it where a
stage does not end (`signals.py`): first a job by itself, then a graph of one job for each layer, launched three times,
then timed. The jobs choose no experts, so the time is that of the hand-off alone. Exits by `os._exit`: a stream that
hangs would hold up any other way out.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable

import torch

from ...errors import HeadraceError
from ...kernels import FORMATS, ExpertLayout
from ...kernels.context import Context
from ...kernels.cpu.mailbox import Mailbox
from ...kernels.packed import ExpertBank
from ..devices.cuda_driver import MEM_OPS_64, Driver
from . import signals

HIDDEN, TOP_K, ROUNDS = 2048, 8, 50


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def run(name: str, library: str, device: int, layers: int) -> None:
    """All stages of one way."""
    driver = Driver(library)
    driver.make_current(device)
    if name == "memop" and not driver.attribute(device, MEM_OPS_64):
        return say(problem="the GPU or its driver has no 64-bit memory operations in streams")
    if name == "spin" and not torch.cuda.is_available():
        return say(problem="its kernels are launched by torch, which sees no GPU here")
    mailbox = empty_mailbox(layers)
    driver.register(mailbox.memory.data_ptr(), mailbox.memory.nbytes)
    stream, way = driver.stream(), signals.make(name, driver, mailbox)
    if isinstance(way, signals.Spin):
        torch.cuda.set_device(device)
        way.warm(stream)
        driver.synchronize(stream)
    say(stage=signals.FIRST_JOB)
    step(way, mailbox, stream)
    driver.synchronize(stream)
    mailbox.check()
    say(stage=signals.CAPTURED)
    again = captured(way, driver, mailbox, stream) if way.in_graphs else lambda: step(way, mailbox, stream)
    times = []
    for _ in range(3 + ROUNDS):
        start = time.perf_counter()
        again()
        driver.synchronize(stream)
        times.append(time.perf_counter() - start)
    mailbox.check()
    say(us=statistics.median(times[3:]) / layers * 1e6)


def empty_mailbox(layers: int) -> Mailbox:
    """A mailbox of one token whose jobs choose no expert."""
    bank = ExpertBank.empty(ExpertLayout(format=FORMATS["q8_0"], hidden=HIDDEN, width=32), 1)
    mailbox = Mailbox([bank] * layers, context=Context(), layers=range(layers), top_k=TOP_K, batches=[1], timeout=2.0)
    for layer in range(layers):
        mailbox.slot(layer, 0).ids_TK.fill_(-1)
    return mailbox


def step(way: signals.Signals, mailbox: Mailbox, stream: int, begin: bool = True) -> None:
    """A job for each layer."""
    if begin:
        mailbox.begin(0)
    for layer in range(len(mailbox.layers)):
        slot = mailbox.slot(layer, 0)
        way.publish(stream, slot)
        way.await_result(stream, slot)


def captured(way: signals.Signals, driver: Driver, mailbox: Mailbox, stream: int) -> Callable[[], None]:
    """The step as a graph; called, it runs."""
    driver.begin_capture(stream)
    step(way, mailbox, stream, begin=False)
    graph = driver.end_capture(stream)

    def launch() -> None:
        mailbox.begin(0)
        driver.launch(graph, stream)

    return launch


def main() -> None:
    name, library, device, layers = sys.argv[1:]
    if not sys.stdin.readline():  # whoever started it is gone
        return
    try:
        run(name, library, int(device), int(layers))
    except HeadraceError as error:
        say(problem=str(error))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
