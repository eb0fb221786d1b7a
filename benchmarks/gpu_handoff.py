"""What `gpu_suite.py` measures of the hand-off between GPU and CPU: each way's time for a job, and what pinning takes.

The ways are tried by the engine's own probe, each in a process of its own: 48 jobs without experts in one graph, from
the start of its launch to the end of the stream, over the jobs. Pinning: an arena is filled by one thread, and its
pieces are registered beside that. Needs headrace as it is installed, with its C++ extension; without, it says so.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from gpu_child import Keep, nobody

LAYERS = 48
ARENA, LAYER = 4 << 30, 256 << 20


def pinning(driver: Any, size: int = ARENA, layer: int = LAYER) -> dict[str, Any]:
    """Seconds to fill and pin `size` bytes in areas of `layer`, and how much of them the driver took."""
    from headrace.engine.memory.pinned import Arena, Pins

    arena, start = Arena(size), time.perf_counter()
    areas = [arena.take(f"layer {n}", layer, 1 << 20) for n in range(size // layer)]
    pins = Pins(arena, driver, limit=size)
    for area in areas:
        pins.filled(area.fill_(1))
    filled = time.perf_counter() - start
    report = pins.finish()
    whole = time.perf_counter() - start
    pins.close()
    return {"bytes": size, "pinned": report.pinned, "problem": report.reason, "huge_pages": arena.huge,
            "fill_s": filled, "pin_s": report.seconds, "both_s": whole}  # fmt: skip


def measure(device: int, library: str | None = None, keep: Keep = nobody) -> dict[str, Any]:
    """Every way with its microseconds or its problem, the one to choose, and pinning; {"skipped": why} where the
    extension or the driver is missing."""
    try:
        from headrace.engine.cuda_graphs import signals
        from headrace.engine.devices.cuda_driver import (
            HOST_POINTER_IS_DEVICE_POINTER,
            HOST_REGISTER,
            LIBRARY,
            MEM_OPS_64,
            Driver,
        )
        from headrace.errors import HeadraceError
    except ImportError as error:
        return {"skipped": f"headrace is not installed with its C++ extension ({error}): pip install ."}
    library = library or LIBRARY
    trials = signals.probe(library, device, LAYERS)
    found: dict[str, Any] = {name: {"us": trial.us, "problem": trial.problem} for name, trial in trials.items()}
    keep(found)
    try:
        choice = signals.choose(trials)
        found["choice"] = {"name": choice.name, "reason": choice.reason}
        driver = Driver(library)
        driver.make_current(device)
        numbers = {"mem_ops_64": MEM_OPS_64, "host_register": HOST_REGISTER,
                   "host_pointer_is_device_pointer": HOST_POINTER_IS_DEVICE_POINTER}  # fmt: skip
        found["driver"] = {"cuda": driver.version, **{k: driver.attribute(device, n) for k, n in numbers.items()}}
        keep(found)
        size = ARENA if torch.cuda.is_available() else LAYER
        found["pinning"] = pinning(driver, size, min(size, LAYER))
    except HeadraceError as error:
        found["problem"] = str(error)
    return found


def show(found: dict[str, Any]) -> list[str]:
    """Lines for the screen."""
    if "skipped" in found:
        return [f"hand-off: {found['skipped']}"]
    lines = []
    for name, trial in found.items():
        if name in ("memop", "hostfunc", "spin", "eager"):
            lines.append(f"hand-off {name:10} " + (f"{trial['us']:8.1f} us a job" if trial["us"] else trial["problem"]))
    if "pinning" in found:
        pin = found["pinning"]
        sizes = f"{pin['pinned'] / 2**30:.2f} of {pin['bytes'] / 2**30:.2f} GiB"
        times = f"fill {pin['fill_s']:.2f} s, driver {pin['pin_s']:.2f} s, both {pin['both_s']:.2f} s"
        lines.append(f"pinned {sizes}: {times} {pin['problem']}".rstrip())
    return lines + [found[key] for key in ("problem",) if key in found]


def failures(found: dict[str, Any]) -> list[str]:
    """What no stream can do here."""
    return [found["problem"]] if "problem" in found else []
