"""Ways into and out of memory besides the kernels' own reads: disk, single NUMA nodes, copies, GPUs.

    disk    a file that is written, then read past the page cache (O_DIRECT, several reads at a time) and out of it
    node    a plain read, by all threads, of memory that lies on one node
    copy    memory to memory by one thread: what a copy to a GPU from memory that is not pinned goes through first
    gpu     host to device and back, pinned and pageable; read and write of its own memory; experts of the CPU beside
            copies, and copies both ways at once (`contention_gpu.py`)

What cannot be measured here is left out, and `notes` says why. A fresh file may still lie in a cache of the drive or of
the host of a virtual machine: then it reads faster than a model that was not touched for a day.
"""

from __future__ import annotations

import errno
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from torch import Tensor

from ...errors import DeviceError
from ...loaders.memory import GB, free_memory
from ..devices.cuda_driver import LIBRARY, Driver
from ..devices.host import cpu_kernels
from ..devices.streams import CudaStream
from . import contention, contention_gpu

FILE, QUICK_FILE = 512 << 20, 128 << 20
BLOCK, READERS = 4 << 20, 4
NODE_BYTES = 512 << 20
COPY_BYTES = 128 << 20
ROUNDS = 5


@dataclass(kw_only=True)
class Links:
    """Bytes per second by name, and why something is missing."""

    disk: dict[str, float] = field(default_factory=dict)  # "direct", "cached"
    nodes: dict[str, float] = field(default_factory=dict)  # by number, where there are several
    copies: dict[str, float] = field(default_factory=dict)  # "host", "gpu0 h2d pinned", ...
    together: dict[str, dict[str, float]] = field(default_factory=dict)  # "experts q4_0 + gpu0 h2d pinned", ...
    notes: list[str] = field(default_factory=list)


def measure(folder: Path, quick: bool = False) -> Links:
    """Measures what is there; about 2 seconds, and as designed 8 for each GPU. `folder`: where models are kept, a file
    of FILE bytes is written there and taken away again."""
    found = Links()
    disk(folder, QUICK_FILE if quick else FILE, found)
    nodes(found)
    found.copies["host"] = _rate(COPY_BYTES, _host_copy())
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu(index, found)
            beside(index, contention.QUICK_ROUNDS if quick else contention.ROUNDS, found)
    return found


def _rate(size: int, run: Callable[[], object]) -> float:
    """Bytes a second: the median of a few runs, after one that is not counted."""
    run()
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return size / statistics.median(seconds)


# ---- disk


def disk(folder: Path, size: int, found: Links) -> None:
    """Reads a file past the page cache and out of it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if psutil.disk_usage(str(folder)).free < 4 * size:
            found.notes.append(f"disk not measured: less than {4 * size / GB:.1f} GB is free in {folder}")
            return
        with _file(folder, size) as path:
            found.disk["cached"] = _read(path, size, os.O_RDONLY)
            try:
                found.disk["direct"] = _read(path, size, os.O_RDONLY | getattr(os, "O_DIRECT", 0))
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                found.notes.append(
                    f"disk past the page cache not measured: the file system of {folder} has no O_DIRECT"
                )
    except OSError as error:
        found.notes.append(f"disk not measured: {folder}: {error.strerror}")


@contextmanager
def _file(folder: Path, size: int) -> Iterator[Path]:
    """A file of bytes that no drive compresses away, written through to the disk."""
    handle, name = tempfile.mkstemp(prefix="measure-", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            for _ in range(size // BLOCK):
                file.write(os.urandom(BLOCK))
            file.flush()
            os.fsync(file.fileno())
        yield Path(name)
    finally:
        Path(name).unlink()


def _read(path: Path, size: int, flags: int) -> float:
    """Bytes a second with READERS reads at a time, into pages that are there already."""
    buffers = [mmap.mmap(-1, BLOCK) for _ in range(READERS)]  # O_DIRECT wants whole pages
    handle = os.open(path, flags)

    def part(reader: int) -> None:
        for at in range(reader * BLOCK, size, READERS * BLOCK):
            os.preadv(handle, [buffers[reader]], at)

    try:
        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(part, range(READERS)))
            start = time.perf_counter()
            list(pool.map(part, range(READERS)))
            return size / (time.perf_counter() - start)
    finally:
        os.close(handle)


# ---- memory


def nodes(found: Links) -> None:
    """Plain reads of each node's memory, where there are several."""
    cpu = cpu_kernels()
    several: list[int] = cpu.numa_nodes()
    if len(several) < 2:
        return
    for node in several:
        if free_memory() < 2 * NODE_BYTES:
            found.notes.append(f"node {node} not measured: less than {2 * NODE_BYTES / GB:.1f} GB of memory is free")
            continue
        arena = torch.empty(NODE_BYTES, dtype=torch.uint8)
        if not cpu.interleave(arena, [node]):
            found.notes.append(f"node {node} not measured: the system gives no memory of one node")
            continue
        arena.fill_(1)
        found.nodes[str(node)] = _rate(NODE_BYTES, lambda data=arena: cpu.stream_read(data))  # type: ignore[misc]


def _host_copy() -> Callable[[], Tensor]:
    """A copy by torch's threads as they are set: one, beside the CPU kernels."""
    source, target = (torch.ones(COPY_BYTES, dtype=torch.uint8) for _ in range(2))
    return lambda: target.copy_(source)


# ---- GPUs


def gpu(index: int, found: Links) -> None:
    """Copies between host and device, and inside the device (a byte read and a byte written count as two)."""
    device = torch.device("cuda", index)
    pinned = torch.ones(COPY_BYTES, dtype=torch.uint8).pin_memory()
    pageable = torch.ones(COPY_BYTES, dtype=torch.uint8)
    there, other = (torch.ones(COPY_BYTES, dtype=torch.uint8, device=device) for _ in range(2))

    def timed(target: Tensor, source: Tensor, factor: int = 1) -> float:
        def run() -> None:
            target.copy_(source, non_blocking=True)
            torch.cuda.synchronize(device)

        return _rate(factor * COPY_BYTES, run)

    name = f"gpu{index}"
    for kind, host in (("pinned", pinned), ("pageable", pageable)):
        found.copies[f"{name} h2d {kind}"] = timed(there, host)
        found.copies[f"{name} d2h {kind}"] = timed(host, there)
    found.copies[f"{name} hbm"] = timed(other, there, 2)
    for peer in range(torch.cuda.device_count()):
        if peer != index:
            away = torch.ones(COPY_BYTES, dtype=torch.uint8, device=torch.device("cuda", peer))
            found.copies[f"{name} to gpu{peer}"] = timed(away, there)


def beside(index: int, rounds: int, found: Links) -> None:
    """The CPU's experts and copies at once, with memory that is pinned as that of experts is."""
    try:
        driver = Driver(LIBRARY)
        driver.make_current(index)
    except DeviceError as error:
        found.notes.append(f"copies beside kernels not measured: {error}")
        return
    place = torch.device("cuda", index)
    up, down = (CudaStream(place, torch.cuda.Stream(place)) for _ in range(2))
    rates, problem = contention_gpu.measure(index, place, driver, up, down, rounds)
    found.together |= rates
    if problem:
        found.notes.append(problem)
