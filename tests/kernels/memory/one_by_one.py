"""Makes allocations of C++ fail, one after the other: a program with `failing_memory` loaded first.

    python one_by_one.py LIBRARY ops FIRST STEP             every STEP-th op from number FIRST on: one call of its
                                                            smallest case, every allocation of the kernels
    python one_by_one.py LIBRARY kernels FIRST STEP DIRECTORY ...   a model's load and some tokens: every STEP-th
    python one_by_one.py LIBRARY torch FIRST STEP DIRECTORY ...     allocation of the kernels, or of torch's tensors;
                                                                    of each model from another one on

Each failure has a process of its own, a fork: its teams and their memory are new, and so is the folder for caches.
What nanobind allocates for tables of its own is not among them: the call was made once before, and it knows more
objects than a call makes. There the call must succeed or raise MemoryError (RuntimeError where a thread was to start,
and of torch), and what it gives right after, with memory again, must be what it always gives. Writes a line for
whatever else happened, and last how many failures there were.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import signal
import sys
import traceback
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import torch
from smallest_cases import smallest

from headrace import LLM, HeadraceError, SamplingParams
from headrace.kernels.cases.case import Case
from headrace.kernels.context import Context
from headrace.kernels.cpu import CpuOps

SUCCEEDED, REFUSED, WRONG, NOT_REACHED, WRONG_AT_ALL = range(5)
LONGEST = 120  # seconds: signal 14 ends what hangs
WATCHED = {"ops": b"/_cpu.", "kernels": b"/_cpu.", "torch": b"/libc10.so"}
OBJECTS = 4096  # more than any call makes
ALONE = ("experts", "layers", "mul_")  # ops whose threads fail to start, too; others have a team before
Call = Callable[[], Any]

memory = ctypes.CDLL(sys.argv[1])
memory.memory_count.restype = ctypes.c_int64
memory.memory_fail.argtypes = [ctypes.c_int64]
memory.memory_watch.restype = ctypes.c_bool


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)  # what nobody writes is NaN, and not what lay there
    what, first, step = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    assert memory.memory_watch(WATCHED[what]), "its library is not loaded"
    objects = [Context() for _ in range(OBJECTS)]
    del objects
    if what == "ops":
        return print("failures", ops(first, step))
    models = sys.argv[5:]
    print("failures", sum(model(directory, first + 5 * i % step, step) for i, directory in enumerate(models)))


def ops(first: int, step: int) -> int:
    failures = 0
    for case in smallest()[first::step]:

        def call(case: Case = case) -> list[torch.Tensor]:
            return case.call(CpuOps(Context(threads=3)), case.inputs(seed=3))

        before = nothing if case.op in ALONE else a_team
        failures += every_failure(f"{case.op}: {case.name}", call, 1, 1, before)
    return failures


def nothing() -> None:
    """Processes begin as they are."""


def a_team() -> None:
    """Threads with memory of their own, which all ops share: nine of ten allocations of an op that comes first."""
    cases = {case.op: case for case in smallest()}
    cases["linear"].call(CpuOps(Context(threads=3)), cases["linear"].inputs(seed=3))


def model(directory: str, first: int, step: int) -> int:
    def call() -> list[torch.Tensor]:
        options: dict[str, Any] = {"max_context": 64, "threads": 2, "no_measure": True, "speculate": "off"}
        with LLM(directory, **options) as llm:
            said = llm.generate([[5, 6, 7, 8]], SamplingParams(max_new_tokens=4, ignore_eos=True))
            return [torch.tensor(said[0].token_ids)]

    return every_failure(directory, call, first, step, nothing)


def every_failure(name: str, call: Call, first: int, step: int, before: Call) -> int:
    """One failure after the other, or every so many-th, until none is reached; how many there were."""
    call()  # nanobind's tables grow: it ends the process where it is refused the memory for them
    for number in itertools.count(first, step):
        how = apart(lambda number=number: (before(), one_failure(call, number))[1])
        if how == NOT_REACHED:
            return (number - first) // step
        assert how != WRONG_AT_ALL, f"{name}: two calls differ without a failure"
        if how not in (SUCCEEDED, REFUSED):
            print(f"{name}: allocation {number} ended with {how}", flush=True)
    raise AssertionError("endless")


def one_failure(call: Call, number: int) -> int:
    memory.memory_fail(number)
    failed = False
    try:
        first = call()
    except (MemoryError, RuntimeError, HeadraceError) as error:
        failed = True
        if "\n" in str(error):
            print("more than a line:", error, flush=True)
            return WRONG
    count = memory.memory_count()
    again = call()
    if not failed and not same(first, again):
        return WRONG_AT_ALL if count < number else WRONG
    if count < number:
        return NOT_REACHED
    return REFUSED if failed else SUCCEEDED


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(bits(x), bits(y)) for x, y in zip(a, b, strict=True))


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


def apart(run: Callable[[], int]) -> int:
    """What a function says in a process of its own; -N where signal N ended it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    signal.alarm(LONGEST)
    try:
        with TemporaryDirectory() as caches:
            os.environ["XDG_CACHE_HOME"] = caches
            said = run()
        os._exit(said)
    except BaseException:
        traceback.print_exc(limit=-4)
        os._exit(WRONG)


if __name__ == "__main__":
    main()
