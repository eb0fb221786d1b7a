"""Ops of several Python threads at once, on teams of several sizes: each gives the bits it gives alone. For
`make sanitize-thread`, which sees what no result shows: one small case of each op, so that it takes minutes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from smallest_cases import smallest
from torch import Tensor

from headrace.kernels.cases.case import Case
from headrace.kernels.context import Context
from headrace.kernels.cpu import CpuOps

TEAMS = (1, 2, 3)
ROUNDS = 3


def outputs(case: Case, threads: int) -> list[bytes]:
    """What a call writes, rounds after one another, each from inputs of its own."""
    ops = CpuOps(Context(threads=threads))
    return [b"".join(map(as_bytes, case.call(ops, case.inputs(seed=seed)))) for seed in range(ROUNDS)]


def as_bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("case", smallest(), ids=lambda case: f"{case.op}: {case.name}")
def test_threads_that_call_an_op_at_once(case: Case) -> None:
    alone = outputs(case, 1)
    with ThreadPoolExecutor(len(TEAMS)) as pool:
        at_once = [*pool.map(lambda threads: outputs(case, threads), TEAMS)]
    assert at_once == [alone] * len(TEAMS)


def test_different_ops_at_once() -> None:
    cases = smallest()
    alone = [outputs(case, 2) for case in cases]
    with ThreadPoolExecutor(len(TEAMS)) as pool:
        assert [*pool.map(lambda case: outputs(case, 2), cases)] == alone
