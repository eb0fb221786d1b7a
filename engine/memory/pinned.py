"""Memory for experts that a GPU can read by itself: an arena on huge pages, pinned piece by piece as it is filled.

    arena = Arena(size, nodes)             reserved, nothing taken; huge pages, dealt out over nodes of memory
    data = arena.take("layer 0", size, block)
    pins = Pins(arena, driver, limit)      from then on:  pins.filled(data[a:b])  after each write
    report = pins.finish()                 what is pinned, how long it took, and why the rest is not

Pinning comes after filling: the driver would otherwise have the system zero all pages first. It registers one piece at
a time on one thread, because a driver does not register two at once, while the caller reads on. Pieces are about 1 GiB:
single calls for hundreds of GB have failed and held up every other CUDA process. A driver refuses a copy across two
registrations, so a piece ends where a layer does, if the layer has no more than twice that; in a larger one between
experts, and `cuts` says where copies must end too.

Not pinned is slower, not wrong: a layer is pinned as a whole or counts as pageable, and nothing here ends a run.
"""

from __future__ import annotations

import bisect
import logging
import math
import mmap
import queue
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import DeviceError, MemoryNeeded, OptionError
from ...loaders.memory import GB, all_memory
from ..devices.cuda_driver import Driver
from ..devices.host import cpu_kernels
from ..sizes import parse_limit
from ..units import size

log = logging.getLogger("headrace")
PAGE, HUGE_PAGE = 4096, 2 << 20
NO_RESERVE = 0x4000  # MAP_NORESERVE of Linux, which Python's mmap knows from 3.12 on
PIECE = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Area:
    """A run of bytes in an arena, on a page boundary, made of blocks (experts) that must not be cut."""

    name: str
    start: int
    size: int
    block: int

    @property
    def end(self) -> int:
        """Of its last page."""
        return -(-(self.start + self.size) // PAGE) * PAGE


class Arena:
    """Reserved address space for `size` bytes, which the system fills with pages as they are written.

    nodes: the nodes of memory whose pages are dealt out in turns; fewer than two: wherever the writer runs. `huge` and
    `interleaved` say what the system granted.
    """

    def __init__(self, size: int, nodes: Sequence[int] = ()) -> None:
        assert size > 0, f"an arena of {size} bytes"
        self.size = -(-size // PAGE) * PAGE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
        try:
            memory = mmap.mmap(-1, self.size + HUGE_PAGE, flags=flags)
        except OSError as error:
            raise MemoryNeeded(
                f"the system gives no {self.size / GB:.1f} GB of address space ({error.strerror}): raise `ulimit -v`, "
                "or set vm.overcommit_memory to 0"
            ) from error
        first = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % HUGE_PAGE
        self.data = torch.frombuffer(memory, dtype=torch.uint8, offset=first, count=self.size)
        self.areas: list[Area] = []
        self.huge: bool = cpu_kernels().advise_huge(self.data)
        self.interleaved: bool = len(nodes) > 1 and cpu_kernels().interleave(self.data, list(nodes))

    @staticmethod
    def room(sizes: Sequence[int]) -> int:
        """Bytes of an arena for areas of these sizes."""
        return sum(-(-size // PAGE) * PAGE for size in sizes)

    def take(self, name: str, size: int, block: int) -> Tensor:
        """The next bytes, on a page boundary: uint8 [size], in blocks of `block`."""
        assert size > 0, f"{name}: {size} bytes"
        assert size % block == 0, f"{name}: {size} bytes in blocks of {block}"
        start = self.areas[-1].end if self.areas else 0
        assert start + size <= self.size, f"{name}: {size} bytes at {start} of an arena of {self.size}"
        self.areas.append(Area(name=name, start=start, size=size, block=block))
        return self.data[start : start + size]

    def place(self, tensor: Tensor) -> int | None:
        """Where a contiguous tensor lies in the arena, or None if it lies elsewhere."""
        start = tensor.data_ptr() - self.data.data_ptr()
        return start if 0 <= start <= self.size - tensor.nbytes else None


def pieces(areas: Sequence[Area], most: int = PIECE) -> list[tuple[int, int]]:
    """Areas that lie one after another as pieces of at most `most` bytes, each of whole areas; an area of up to twice
    as many bytes is a piece by itself, a larger one is cut at pages and between blocks, where that is possible."""
    found, begin, last = [], areas[0].start if areas else 0, 0
    for border in (b for area in areas for b in _borders(area, 2 * most)):
        if border - begin > most and last > begin:
            found.append((begin, last))
            begin = last
        last = border
    return [*found, (begin, last)] if last > begin else found


def _borders(area: Area, whole: int) -> Iterator[int]:
    """Places in an area where it may be cut, if it has more than `whole` bytes, and its end."""
    step = math.lcm(area.block, PAGE)
    if area.end - area.start > whole:
        yield from range(area.start + step, area.start + area.size, step)
    yield area.end


def resolve_limit(asked: float | str | None, total: int | None = None) -> int:
    """The bytes that may be pinned, as `EngineConfig.pinned_limit` says. Raises OptionError for a limit below 0 or
    beyond what there is."""
    total = all_memory() if total is None else total
    number, unit = parse_limit(asked)
    if unit == "%":
        return int(total * number / 100)
    if number * GB > total:
        raise OptionError(
            f"pinned_limit is {number:g} GB; it must be between 0 and the {total / GB:.1f} GB of this process"
        )
    return int(number * GB)


@dataclass(frozen=True, kw_only=True)
class PinReport:
    """What became of an arena: bytes in all, bytes of layers that are pinned, seconds of the driver's calls; why the
    rest is not, or ""."""

    total: int
    pinned: int
    seconds: float
    reason: str = ""

    def __str__(self) -> str:
        """For the start-up table."""
        if self.pinned == self.total:
            return "yes"
        return f"{size(self.pinned)} of {size(self.total)}" if self.pinned else "no"

    @property
    def warning(self) -> str | None:
        """What is not pinned, why, and what that costs; None if all is."""
        if self.pinned == self.total:
            return None
        return (
            f"{size(self.total - self.pinned)} of {size(self.total)} of experts are not pinned "
            f"({self.reason}): copies of them to the GPU go through a buffer of the driver, and hold up other work"
        )


class Pins:
    """The registrations of one arena. Without a driver (`problem`: why), or with a limit of 0, it pins nothing and says
    so.

    Areas are pinned in their order, as many whole ones as the limit allows. All areas must have been taken.
    """

    def __init__(
        self,
        arena: Arena,
        driver: Driver | None,
        limit: int,
        device: int = 0,
        piece: int = PIECE,
        problem: str = "there is no driver of a GPU",
    ) -> None:
        self.arena, self.driver, self.device = arena, driver, device
        self.reason, self.seconds, self.refused = "", 0.0, False
        wanted = [area for area in arena.areas if area.end <= limit] if driver else []
        if len(wanted) < len(arena.areas):
            self.reason = f"the limit is {limit / GB:.1f} GB" if driver else problem
        self.pieces = pieces(wanted, piece)
        self.begins = [begin for begin, _ in self.pieces]
        self.left = [sum(self._overlap(area, p) for area in wanted) for p in self.pieces]
        self.pinned: list[tuple[int, int]] = []
        self.ready: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, name="headrace-pins", daemon=True)
        self.thread.start()
        self._release = weakref.finalize(self, _unregister, driver, arena.data, self.pinned)

    @staticmethod
    def _overlap(area: Area, piece: tuple[int, int]) -> int:
        return max(0, min(area.start + area.size, piece[1]) - max(area.start, piece[0]))

    def filled(self, tensor: Tensor) -> None:
        """A contiguous part of the arena has its final bytes; each byte is told once. Others are skipped."""
        start = self.arena.place(tensor)
        if start is None:
            return
        first = max(0, bisect.bisect_right(self.begins, start) - 1)
        for number in range(first, len(self.pieces)):
            begin, end = self.pieces[number]
            if begin >= start + tensor.nbytes:
                break
            part = min(end, start + tensor.nbytes) - max(begin, start)
            if part <= 0:  # beyond the last piece: not to be pinned
                continue
            self.left[number] -= part
            assert self.left[number] >= 0, f"bytes {begin} to {end} were filled twice"
            if self.left[number] == 0:
                self.ready.put(number)

    def _run(self) -> None:
        """Registers pieces as they come; after a first failure it only lets them pass."""
        current = False
        while (number := self.ready.get()) is not None:
            begin, end = self.pieces[number]
            if self.refused:
                continue
            start = time.perf_counter()
            try:
                assert self.driver is not None
                if not current:
                    self.driver.make_current(self.device)
                    current = True
                self.driver.register(self.arena.data.data_ptr() + begin, end - begin)
                self.pinned.append((begin, end))
            except DeviceError as error:
                self.reason, self.refused = str(error), True
            self.seconds += time.perf_counter() - start

    def finish(self) -> PinReport:
        """Waits until everything that was filled is pinned, or could not be; a warning goes to the log."""
        self._stop()
        left = sum(count > 0 for count in self.left)
        assert not left, f"{left} of {len(self.pieces)} pieces were never filled"
        pinned = sum(area.size for area in self.arena.areas if self.is_pinned(self._tensor(area)))
        total = sum(area.size for area in self.arena.areas)
        report = PinReport(total=total, pinned=pinned, seconds=self.seconds, reason=self.reason)
        if report.warning and self.driver is not None:
            log.warning(report.warning)
        return report

    def _tensor(self, area: Area) -> Tensor:
        return self.arena.data[area.start : area.start + area.size]

    def _stop(self) -> None:
        self.ready.put(None)
        self.thread.join()

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether every byte of a contiguous tensor is registered."""
        start = self.arena.place(tensor)
        if start is None:
            return False
        end = start + tensor.nbytes
        return sum(max(0, min(end, b) - max(start, a)) for a, b in self.pinned) == tensor.nbytes

    def cuts(self, tensor: Tensor, block: int) -> list[int]:
        """Where a contiguous tensor, in blocks of so many bytes, goes on in another registration: numbers of blocks."""
        start = self.arena.place(tensor)
        if start is None:
            return []
        first, last = bisect.bisect_right(self.begins, start), bisect.bisect_left(self.begins, start + tensor.nbytes)
        return [(begin - start) // block for begin in self.begins[first:last]]

    def close(self) -> None:
        """Takes all registrations back; no copy may be under way."""
        self._stop()
        self._release()


def _unregister(driver: Driver | None, data: Tensor, pinned: list[tuple[int, int]]) -> None:
    """The latest first, as the driver likes it; the memory is still there, since `data` holds it."""
    while pinned:
        begin, _ = pinned.pop()
        try:
            assert driver is not None
            driver.unregister(data.data_ptr() + begin)
        except DeviceError as error:  # the process may be ending, with the driver gone before us
            log.debug("unregister: %s", error)
