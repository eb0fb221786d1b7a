"""Small questions to a GPU that nobody has asked yet, each answered in seconds: what decides how the rest is built.

    python benchmarks/gpu_micro.py [NAME ...]

memory      does free RAM grow as it is taken (some virtual machines begin small)?
across      is a copy that crosses from one registered piece of memory into the next one allowed, and as fast?
slice       can a copy from a part of registered memory be captured, and one from its beginning?
nodes       microseconds of a graph's node: a kernel, one of a single warp, one with programmatic dependent launch, a
            copy of 8 KB and a kernel, a kernel that reads the 8 KB where they lie in RAM
wake        microseconds from a graph's end until the host goes on, where it sleeps, and where it spins
eager       microseconds of a launch without a graph, by Triton and by torch
pauses      microseconds of an op of the CPU's team after pauses, in a step and not (`team_pauses.py`)

A part of `gpu_suite.py`, and a program. The questions share a process as long as all goes well. One that fails, hangs
or breaks the GPU's context is answered by what went wrong, and those behind it get a new process.
"""

from __future__ import annotations

import argparse
import mmap
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gpu_child
import torch
import triton
import triton.language as tl
from gpu_child import LAST_LINES, Keep, nobody
from torch import Tensor

SECONDS = 25.0  # of one question
TAKEN, COPIED, SMALL = 8 << 30, 32 << 20, 8192  # bytes
CHAIN, REPLAYS, LAUNCHES = 400, 20, 2000


def memory() -> dict[str, Any]:
    """GiB in all and free, before and with so much of them taken."""
    before, start = _meminfo(), time.perf_counter()
    size = min(TAKEN, int(0.5 * before["MemAvailable"] * 2**30))
    block = torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)
    block[:: mmap.PAGESIZE].fill_(1)
    return {"taken_gib": size / 2**30, "before_gib": before, "with_it_gib": _meminfo(),
            "s": round(time.perf_counter() - start, 2)}  # fmt: skip


def _meminfo() -> dict[str, float]:
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    found = {name: int(rest.split()[0]) / 2**20 for name, rest in (line.split(":") for line in lines)}
    return {name: round(found[name], 2) for name in ("MemTotal", "MemFree", "MemAvailable")}


@contextmanager
def registered(size: int, pieces: int = 1) -> Iterator[Tensor]:
    """Bytes [size] of RAM on pages of their own, pinned in so many pieces; their storage begins where they do."""
    from headrace.engine.devices.cuda_driver import LIBRARY, Driver

    driver = Driver(LIBRARY)
    driver.make_current(torch.cuda.current_device())
    data = torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8).fill_(1)
    starts = range(data.data_ptr(), data.data_ptr() + size, size // pieces)
    for start in starts:
        driver.register(start, size // pieces)
    try:
        yield data
    finally:
        torch.cuda.synchronize()
        for start in starts:
            driver.unregister(start)


def across() -> dict[str, Any]:
    """GB/s and what was refused, of copies within a piece and over two."""
    there = torch.empty(COPIED, dtype=torch.uint8, device="cuda")
    with registered(2 * COPIED, pieces=2) as data:
        return {name: _refused_or(lambda at=at: _copied(data[at : at + COPIED], there))
                for name, at in (("within", 0), ("across", COPIED // 2))}  # fmt: skip


def _copied(data: Tensor, to: Tensor) -> dict[str, Any]:
    """Of the second copy: when the call was back, and how fast the bytes came."""
    for _ in range(2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        to.copy_(data, non_blocking=True)
        back = time.perf_counter() - start
        torch.cuda.synchronize()
        took = time.perf_counter() - start
    return {"back_after_us": round(back * 1e6, 1), "gb_s": round(data.nbytes / took / 1e9, 1)}


def slice() -> dict[str, Any]:
    """By where the copied part begins in its storage: whether it counts as pinned, and can be captured. Registered is
    from the second page on, so that the storage's first byte is not."""
    from headrace.engine.devices.cuda_driver import LIBRARY, Driver

    driver = Driver(LIBRARY)
    driver.make_current(torch.cuda.current_device())
    found = {}
    for name, at in (("from the beginning", 0), ("from the second page", mmap.PAGESIZE)):
        whole = torch.frombuffer(mmap.mmap(-1, 1 << 20), dtype=torch.uint8).fill_(1)
        part = whole[at:]
        driver.register(part.data_ptr(), part.nbytes)
        found[name] = {"is_pinned": part.is_pinned(), "capture": _refused_or(lambda part=part: _captured(part))}
        torch.cuda.synchronize()
        driver.unregister(part.data_ptr())
    return found


def _captured(data: Tensor) -> str:
    there = torch.zeros_like(data, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        there.copy_(data, non_blocking=True)
    graph.replay()
    torch.cuda.synchronize()
    return "right" if bool((there == 1).all()) else "wrong bytes"


def _refused_or(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except RuntimeError as error:
        return f"refused: {str(error).splitlines()[0]}"


@triton.jit
def add_one(x_ptr, N: tl.constexpr):
    """x float32 [N] + 1, in place."""
    at = tl.arange(0, N)
    tl.store(x_ptr + at, tl.load(x_ptr + at) + 1.0)


@triton.jit
def add_one_early(x_ptr, N: tl.constexpr):
    """The same, as a node that starts while the one before it ends."""
    tl.extra.cuda.gdc_wait()
    tl.extra.cuda.gdc_launch_dependents()
    at = tl.arange(0, N)
    tl.store(x_ptr + at, tl.load(x_ptr + at) + 1.0)


@triton.jit
def add_host(host_ptr, x_ptr, N: tl.constexpr):
    """x float32 += what lies in RAM, a program for N of them."""
    at = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(x_ptr + at, tl.load(x_ptr + at) + tl.load(host_ptr + at, volatile=True))


def nodes() -> dict[str, Any]:
    """Microseconds of a node in a chain of them, and of the launch of the chain."""
    count = SMALL // 4
    x = torch.zeros(count, device="cuda")
    with registered(1 << 16) as data:
        host = data[:SMALL].view(torch.float32)

        def copy_and_add() -> None:
            x.copy_(host, non_blocking=True)
            add_one[(1,)](x, N=count, num_warps=8)

        calls: dict[str, Callable[[], Any]] = {
            "kernel": lambda: add_one[(1,)](x, N=count, num_warps=8),
            "kernel, one warp": lambda: add_one[(1,)](x, N=32, num_warps=1),
            "kernel, dependent launch": lambda: add_one_early[(1,)](x, N=count, num_warps=8, launch_pdl=True),
            "copy up and kernel": copy_and_add,
            "kernel that reads RAM": lambda: add_host[(2,)](host, x, N=count // 2),
            "torch": lambda: x.add_(1.0),
        }
        return {name: _refused_or(lambda call=call: _node(call)) for name, call in calls.items()}


def _node(call: Callable[[], Any]) -> dict[str, float]:
    from gpu_table import captured

    graph = captured([call] * CHAIN)
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    took, launched = [], []
    for _ in range(REPLAYS):
        start.record()
        begin = time.perf_counter()
        graph.replay()
        launched.append(time.perf_counter() - begin)
        stop.record()
        stop.synchronize()
        took.append(start.elapsed_time(stop))
    us = statistics.median(took) * 1e3 / CHAIN
    return {"us": round(us, 2), "launch_us": round(statistics.median(launched) * 1e6, 1)}


def wake() -> dict[str, float]:
    """Microseconds that the host sees beyond those of the device, for a graph of some milliseconds."""
    from gpu_table import captured

    x = torch.zeros(SMALL // 4, device="cuda")
    graph = captured([lambda: add_one[(1,)](x, N=SMALL // 4, num_warps=8)] * 8 * CHAIN)
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    found = {}
    for name, sleeps in (("sleeping", True), ("spinning", False)):
        over, beyond = torch.cuda.Event(blocking=sleeps), []
        for _ in range(REPLAYS):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            start.record()
            graph.replay()
            stop.record()
            over.record()
            over.synchronize()
            host = time.perf_counter() - begin
            stop.synchronize()
            beyond.append(host * 1e6 - start.elapsed_time(stop) * 1e3)
        found[name] = round(statistics.median(beyond), 1)
    return found


def eager() -> dict[str, float]:
    """Microseconds from call to call."""
    x = torch.zeros(SMALL // 4, device="cuda")
    calls = {"triton": lambda: add_one[(1,)](x, N=SMALL // 4, num_warps=8), "torch": lambda: x.add_(1.0)}
    found = {}
    for name, call in calls.items():
        for _ in range(50):
            call()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(LAUNCHES):
            call()
        found[name] = round((time.perf_counter() - start) / LAUNCHES * 1e6, 2)
        torch.cuda.synchronize()
    return found


def pauses() -> dict[str, Any]:
    """As `team_pauses.py` measures them, with all threads."""
    import team_pauses

    from headrace.kernels.context import Context

    torch.set_num_threads(1)
    context = Context()
    return {"threads": context.threads, **team_pauses.table(team_pauses.measure(context, 100))}


QUESTIONS: dict[str, Callable[[], Any]] = {
    one.__name__: one for one in (memory, across, slice, nodes, wake, eager, pauses)
}  # fmt: skip


def named(name: str) -> list[str]:
    """Questions whose name contains `name`."""
    found = [one for one in QUESTIONS if name in one]
    if not found:
        raise ValueError(f"no question is called '{name}': take a part of {', '.join(QUESTIONS)}")
    return found


def measure(names: list[str], keep: Keep = nobody, seconds: float = SECONDS) -> dict[str, Any]:
    """Answers by question; {"problem": ..., "stderr": [...]} for one that has none. `keep` gets all after each."""
    found: dict[str, Any] = {}

    def take(value: dict[str, Any]) -> None:
        found.update(value)
        keep(found)

    while left := [name for name in names if name not in found]:
        command = [sys.executable, str(Path(__file__).resolve()), *left]
        wrong = gpu_child.run(command, take, seconds * len(left), silence=seconds)
        if wrong and not any(name in found for name in left[:1]):
            take({left[0]: wrong})
        if not wrong and left[0] not in found:
            take({left[0]: {"problem": "its process ended without an answer"}})
    return found


def failures(found: dict[str, Any]) -> list[str]:
    """Questions without an answer."""
    return [f"{name}: {answer['problem']}" for name, answer in found.items() if "problem" in answer]


def show(found: dict[str, Any]) -> list[str]:
    """Lines for the screen."""
    return [f"  {name}: {answer.get('problem', answer)}" for name, answer in found.items()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="questions; all, if none is named")
    parser.add_argument("--report", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.report is None:
        found = measure(args.names or list(QUESTIONS))
        print("\n".join(show(found)))
        return 1 if failures(found) else 0
    keep = gpu_child.reporter(args.report)
    for name in args.names:
        try:
            keep({name: QUESTIONS[name]()})
        except Exception as error:
            traceback.print_exc()
            lines = traceback.format_exc().splitlines()[-LAST_LINES:]
            keep({name: {"problem": f"{type(error).__name__}: {str(error)[:300]}", "stderr": lines}})
            return 1  # the GPU's context may be broken: the next question begins anew
    return 0


if __name__ == "__main__":
    sys.exit(main())
