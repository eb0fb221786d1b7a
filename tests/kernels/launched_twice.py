"""Launches with a driver that does nothing: that a kernel's own choice of a variant is the one that Triton would make.

A process of its own, since interpreted and compiled kernels do not mix in one; prints JSON.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from typing import Any

import gpu_compile
import stub_cuda
import torch
import triton
from triton.backends.compiler import GPUTarget

from headrace.kernels import gpu
from headrace.kernels.gpu import ahead
from headrace.kernels.gpu.kernel import Kernel, apart, are_dependent_launches_offered, dependent_launches
from headrace.kernels.gpu.norms import _rmsnorm

CHOSEN = ("rmsnorm", "add_rmsnorm_", "place_qkv_", "decode bf16", "prefill bf16", "linear q4_0 1", "linear bf16 9",
          "experts q4_0 1", "experts q4_0 9", "route", "argmax", "pack", "decode window sinks bf16", "rotate_",
          "short_conv 512", "delta_rule")  # fmt: skip
EARLY = ("add_rmsnorm_", "linear q4_0 1", "argmax")


class Recorder:
    """Keeps what was launched: which compiled kernel (it is made for one), its grid, and its arguments."""

    launched: list[tuple[Any, ...]] = []
    early: list[bool] = []  # whether it was a dependent launch

    def __init__(self, _source: Any, metadata: Any) -> None:
        self.is_early = bool(metadata.launch_pdl)

    def __call__(self, *all_: Any) -> None:
        Recorder.early.append(self.is_early)
        x, y, z, stream, function, metadata, _launch_metadata, _enter, _leave, *args = all_
        kept = [a.dtype if isinstance(a, torch.Tensor) else (type(a).__name__, a) for a in args]
        Recorder.launched.append((id(self), (x, y, z), stream, function, metadata, *kept))


def launched(call: Any, forget: bool) -> list[tuple[Any, ...]]:
    """What a call launches; forget: by Triton's choice, as at the first time."""
    if forget:
        for kernel in every_kernel():
            kernel.known.clear()
    Recorder.launched = []
    call()
    return Recorder.launched


def every_kernel() -> list[Kernel]:
    modules = [m for name, m in sys.modules.items() if name.startswith(gpu.__name__)]
    return [value for m in modules for value in vars(m).values() if isinstance(value, Kernel)]


def normed(offset: int) -> int:
    """The compiled kernel for rows that begin so many floats into their memory."""
    x_TD, weight = torch.empty(1 + 64, device="meta")[offset : offset + 64].view(1, 64), torch.empty(64, device="meta")
    Recorder.launched = []
    gpu.rmsnorm(x_TD, weight, 1e-6)
    return int(Recorder.launched[0][0])


def ahead_of_a_launch() -> dict[str, Any]:
    """What compiling before the first launch leaves to it: variants that are still new then, and what is said."""

    def call() -> None:
        gpu.rmsnorm(torch.empty(3, 64, device="meta"), torch.empty(64, device="meta"), 1e-6)

    _rmsnorm.known.clear()
    Recorder.launched, said = [], []
    launches = ahead.wanted([call, call])
    new = [ahead.compile_all(launches, lambda done, total: said.append([done, total])).new for _ in range(2)]
    before = len(_rmsnorm.known)
    silent = not Recorder.launched
    call()
    broken = [(_rmsnorm, launches[0][1], {"BLOCK": 100, "num_warps": 1}), *launches]
    failed = ahead.compile_all(broken).failed
    return {
        "new": new, "said": said, "left": len(_rmsnorm.known) - before, "silent": silent,
        "launched": len(Recorder.launched), "failed": [text.split(":")[0] for text in failed],
    }  # fmt: skip


def dependent() -> dict[str, Any]:
    """Launches within `dependent_launches`, and whether each of such kernels waits before it reads or writes."""

    def call() -> None:
        gpu.rmsnorm(torch.empty(3, 64, device="meta"), torch.empty(64, device="meta"), 1e-6)

    Recorder.early = []
    call()
    for wanted in (True, False):
        with dependent_launches(wanted):
            for number in range(5):
                if number == 3:
                    apart()
                call()
    call()
    orders = []
    found = gpu_compile.launches("core")
    for label, kernel, args, kwargs in found:
        if label in EARLY:
            twin = copy.copy(kernel)
            twin.function = kernel.dependent
            source = gpu_compile.source_of(twin, args, kwargs)
            options = {name: value for name, value in kwargs.items() if name in gpu_compile.OPTIONS}
            for target in (90, 120):
                ptx = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options).asm["ptx"]
                orders.append(re.findall(r"griddepcontrol\.\w+|(?:ld|st|cp\.async)\.\w*global|cp\.async", ptx)[:3])
    offered = [are_dependent_launches_offered(capability) for capability in ((8, 9), (9, 0), (12, 0))]
    return {"early": Recorder.early, "orders": orders, "offered": offered}


def main() -> None:
    stub_cuda.use(Recorder)
    calls, differ, count = gpu_compile.calls(), [], 0
    for name in CHOSEN:
        first = launched(calls[name], forget=True)
        again = launched(calls[name], forget=False)
        count += len(first)
        if first != again:
            differ.append((name, str(first), str(again)))
    variants = [normed(0), normed(1), normed(0)]
    found = {"launches": count, "differ": differ, "aligned": variants, "ahead": ahead_of_a_launch()}
    print(json.dumps(found | {"dependent": dependent()}))


if __name__ == "__main__":
    main()
