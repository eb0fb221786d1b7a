"""How a GPU's stream posts a job into the mailbox and waits for its answer: four ways, and the choice among them.

    memop      the stream itself writes and awaits the flags (one node for both writes, one for the wait)
    hostfunc   the driver calls C functions that do so, on a thread of its own; a graph may hold them
    spin       kernels of one warp do so (`kernels/gpu/spin.py`), which give up after a time; a graph may hold them
    eager      the engine's thread waits for the stream, posts, and waits for the answer; no graph

Which of them work, and how long they take, is asked of the machine: a probe in a process of its own
(`signal_probe.py`), because a wait in a stream that is never answered cannot be taken back, and hangs its process. The
choice keeps its reason, for the start-up table.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ...errors import DeviceError, OptionError, first_words
from ...kernels import _cpu
from ...kernels.cpu.mailbox import Mailbox, Slot
from ..config import GRAPHED
from ..devices.cuda_driver import LIBRARY, WRITE_64, Driver, MemOp

VARIANTS = (*GRAPHED, "eager")
START, STAGE = 60.0, 5.0  # seconds: until a probe has loaded, and for each of its stages
FIRST_JOB = "first job"  # what the probe's stages are called
CAPTURED = "captured jobs"


class Signals(Protocol):
    """Posts and awaits jobs in the order of a stream. Streams are handles, as torch gives them."""

    name: str
    in_graphs: bool  # whether a graph that is being captured may hold it

    def publish(self, stream: int, slot: Slot) -> None:
        """After all that came before in the stream, which wrote the job."""

    def await_result(self, stream: int, slot: Slot) -> None:
        """What comes after in the stream finds y written."""


class MemOps:
    """The flags are written and awaited by the stream itself."""

    name, in_graphs = "memop", True

    def __init__(self, driver: Driver, memory: Tensor) -> None:
        self.driver = driver
        self.shift = driver.device_pointer(memory.data_ptr()) - memory.data_ptr()

    def publish(self, stream: int, slot: Slot) -> None:
        at = slot.address + self.shift
        done, ready = MemOp(WRITE_64, at + _cpu.DONE_AT, 0), MemOp(WRITE_64, at + _cpu.READY_AT, 1)
        self.driver.batch(stream, [done, ready])

    def await_result(self, stream: int, slot: Slot) -> None:
        self.driver.wait(stream, slot.address + self.shift + _cpu.DONE_AT, 1)


class HostFunctions:
    """The driver's thread writes and awaits the flags, in C++."""

    name, in_graphs = "hostfunc", True

    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    def publish(self, stream: int, slot: Slot) -> None:
        self.driver.host_function(stream, _cpu.host_post, slot.address)

    def await_result(self, stream: int, slot: Slot) -> None:
        self.driver.host_function(stream, _cpu.host_wait, slot.address)


class Spin:
    """Kernels write and await the flags. stream: makes a stream, by its handle, the one that they are launched in."""

    name, in_graphs = "spin", True

    def __init__(self, mailbox: Mailbox, stream: Callable[[int], AbstractContextManager[Any]]) -> None:
        from ...kernels.gpu import spin

        self.mailbox, self.stream, self.kernels = mailbox, stream, spin

    def publish(self, stream: int, slot: Slot) -> None:
        with self.stream(stream):
            self.kernels.post(slot.ready, slot.done)

    def await_result(self, stream: int, slot: Slot) -> None:
        with self.stream(stream):
            self.kernels.wait(slot.done, self.mailbox.gave_up, 2 * self.mailbox.timeout)

    def warm(self, stream: int) -> None:
        """Compiles and loads the kernels, on flags that nobody looks at."""
        ready, done = self.mailbox.spare[:1], self.mailbox.spare[8:9]
        with self.stream(stream):
            self.kernels.post(ready, done)
            self.kernels.wait(ready, self.mailbox.gave_up, 2 * self.mailbox.timeout)


class Eager:
    """The calling thread does it all. Without a driver there is no stream to wait for: what came before is done."""

    name, in_graphs = "eager", False

    def __init__(self, driver: Driver | None, mailbox: Mailbox) -> None:
        self.driver, self.mailbox = driver, mailbox

    def publish(self, stream: int, slot: Slot) -> None:
        if self.driver is not None:
            self.driver.synchronize(stream)
        self.mailbox.post(slot)

    def await_result(self, stream: int, slot: Slot) -> None:
        self.mailbox.wait(slot)


def make(name: str, driver: Driver, mailbox: Mailbox) -> Signals:
    """The hand-off called `name`, over a mailbox whose memory is registered with the driver."""
    if name == "memop":
        return MemOps(driver, mailbox.memory)
    if name == "spin":
        return Spin(mailbox, of_torch)
    return HostFunctions(driver) if name == "hostfunc" else Eager(driver, mailbox)


def of_torch(stream: int) -> AbstractContextManager[Any]:
    """A stream by its handle as torch's current one. Without CUDA kernels run in the interpreter, at once."""
    return torch.cuda.stream(torch.cuda.ExternalStream(stream)) if torch.cuda.is_available() else nullcontext()


# The choice


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What the probe found of one way: microseconds of a job without experts, or why it does not work here."""

    name: str
    us: float | None = None
    problem: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.us:.1f} us" if self.us is not None else f"{self.name}: {self.problem}"


@dataclass(frozen=True, kw_only=True)
class SignalChoice:
    """The way to take, and why. us: microseconds of a job without experts, as the probe found them; None: no probe.
    fell_back: graphs were tried, and something failed or was slower."""

    name: str
    reason: str
    us: float | None = None
    fell_back: bool = False


def choose(trials: Mapping[str, Trial], asked: str = "auto") -> SignalChoice:
    """The fastest way that a graph can hold; eager where there is none, because without graphs every kernel of a step
    costs a launch. Raises OptionError for an unknown way, DeviceError where what was asked for, or all of it, fails."""
    if asked not in ("auto", *VARIANTS):
        raise OptionError(f"handoff is {asked!r}; choose one of auto, {', '.join(VARIANTS)}")
    works = {name: trial.us for name, trial in trials.items() if trial.us is not None}
    times = told(trials)
    if asked != "auto":
        if asked not in works:
            raise DeviceError(f"the hand-off '{asked}' does not work here ({times}): take auto, or one that works")
        return SignalChoice(name=asked, reason=f"asked for ({times})", us=works[asked])
    graphs = [name for name in GRAPHED if name in works]
    if graphs:
        best = min(graphs, key=lambda name: works[name])
        return SignalChoice(name=best, reason=f"fastest in a graph ({times})", us=works[best])
    if "eager" in works:
        slower = f"no other works ({times}): every step without a graph, which is slower"
        return SignalChoice(name="eager", reason=slower, us=works["eager"])
    raise DeviceError(f"no hand-off between GPU and CPU works here ({times}): place the experts elsewhere")


def told(trials: Mapping[str, Trial]) -> str:
    """What was found of every way, in a line."""
    return "; ".join(str(trials[name]) for name in VARIANTS if name in trials)


# The probe


def probe(library: str = LIBRARY, device: int = 0, layers: int = 48, stage: float = STAGE) -> dict[str, Trial]:
    """Tries every way, each in a process of its own that is killed when one of its stages takes longer than `stage`
    seconds. All processes are started at once, since they load torch first, and are asked one after another. Takes a
    few seconds. Never raises: what failed is in the trials."""
    started = {name: _started(name, library, device, layers) for name in VARIANTS}
    try:
        return {name: _tried(name, process, stage) for name, process in started.items()}
    finally:
        for process in started.values():
            if isinstance(process, subprocess.Popen):
                process.kill()
                process.communicate()


def _started(name: str, library: str, device: int, layers: int) -> subprocess.Popen[bytes] | Exception:
    """The process of a way, which waits until it is asked; or why it could not be started."""
    module = "headrace.engine.cuda_graphs.signal_probe"
    command = [sys.executable, "-m", module, name, library, str(device), str(layers)]
    pipe = subprocess.PIPE
    try:
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0)
    except Exception as error:
        return error


def _tried(name: str, process: subprocess.Popen[bytes] | Exception, limit: float) -> Trial:
    """A trial, also where there is no process, or none that can be asked."""
    try:
        if isinstance(process, Exception):
            raise process
        return _try(name, process, limit)
    except Exception as error:
        return Trial(name=name, problem=f"the probe could not be run: {first_words(error)}")


def _try(name: str, process: subprocess.Popen[bytes], limit: float) -> Trial:
    stage, allowed = "start", START
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it ended before it was asked, and said why
        process.stdin.write(b"\n")
    try:
        assert process.stdout is not None
        while (line := _line(process, allowed)) is not None:
            said = _said(line)
            if "us" in said:
                return Trial(name=name, us=said["us"])
            if "problem" in said:
                return Trial(name=name, problem=said["problem"])
            if "stage" in said:
                stage, allowed = said["stage"], limit
        if process.poll() is None:
            return Trial(name=name, problem=f"no answer within {allowed:g} s ({stage})")
        return Trial(name=name, problem=f"the probe ended ({stage}): {_last_words(process)}")
    finally:
        process.kill()  # before the next one is asked
        process.wait()


def _said(line: bytes) -> dict[str, Any]:
    """What a line of the probe says; nothing where a library wrote it."""
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _line(process: subprocess.Popen[bytes], seconds: float) -> bytes | None:
    """The next line of a process; None where none comes in time, or it has ended."""
    pipe, line, until = process.stdout, b"", time.monotonic() + seconds
    assert pipe is not None
    while not line.endswith(b"\n"):
        if not select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
            return None
        byte = pipe.read(1)
        if not byte:
            process.wait(timeout=10)
            return None
        line += byte
    return line


def _last_words(process: subprocess.Popen[bytes]) -> str:
    assert process.stderr is not None
    lines = process.stderr.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"status {process.returncode}"
