"""The C++ kernels against their plain twins: every case of `kernels/cases/all.py` on every instruction set of this CPU.

Outputs and the arena are filled with NaN beforehand, so a value that nobody wrote shows; one, two and three threads
must give the same bits. A failure names the worst value: where, got, expected, allowed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from headrace.kernels import _cpu, reference
from headrace.kernels.cases.all import CASES
from headrace.kernels.cases.block_formats import BLOCK_CASES
from headrace.kernels.cases.case import Case, Inputs, worst
from headrace.kernels.cases.families import BENT, FAMILY_CASES, glu_cases
from headrace.kernels.cases.few_rows import FewRows
from headrace.kernels.cases.mixers import MIXER_CASES
from headrace.kernels.cases.recurrent import KEY_CASES, RECURRENT_CASES
from headrace.kernels.cases.state_space import STATE_SPACE_CASES
from headrace.kernels.cases.variants.by_kind import KIND_CASES
from headrace.kernels.cases.variants.own_norms import OWN_NORMS_CASES
from headrace.kernels.cases.variants.pooled import POOLED_CASES
from headrace.kernels.cases.variants.sparse import SPARSE_CASES
from headrace.kernels.cases.variants.streams import STREAM_CASES
from headrace.kernels.cases.variants.warm import WARM_CASES
from headrace.kernels.context import Context
from headrace.kernels.cpu import CpuOps
from headrace.kernels.isa import available_isas

ALL = (
    *CASES, *BLOCK_CASES, *FAMILY_CASES, *RECURRENT_CASES, *MIXER_CASES, *OWN_NORMS_CASES, *SPARSE_CASES, *WARM_CASES,
    *KEY_CASES, *glu_cases(BENT), *KIND_CASES, *STATE_SPACE_CASES, *STREAM_CASES, *POOLED_CASES,
)  # fmt: skip
SMALL = [case for case in ALL if not case.bench]
ATTENDING = ("attention", "attention_block", "layers")
PAIRS_LOSE = 2.0**-8 + 2.0**-17  # of a query or a weight of attention: its rounding to bf16, and a shorter exponential


@contextmanager
def poisoned() -> Iterator[None]:
    """Whatever is allocated inside starts as NaN (or the largest number)."""
    before = torch.are_deterministic_algorithms_enabled()
    _cpu.poison_arena(True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        _cpu.poison_arena(False)


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


def activations_of(case: Case) -> tuple[str, ...]:
    """What activations may be rounded to, where that makes a difference."""
    is_exact = case.name.startswith(("f16", "f32", "bf16"))
    return ("int8", "bf16") if case.op in ("linear", "experts") and not is_exact else ("int8",)


def products_of(case: Case, context: Context) -> tuple[str, ...]:
    """What attention may multiply."""
    return ("float32", "bf16") if case.op in ATTENDING and context.has_bf16_attention else ("float32",)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: f"{case.op}: {case.name}")
def test_case(case: Case) -> None:
    inputs = case.inputs(FewRows(torch.Generator().manual_seed(1), rows=61))
    expected = case.call(reference, inputs)  # type: ignore[arg-type]
    bounds: dict[str, list[Tensor | float]] = {}  # many instruction sets round alike
    for isa in available_isas():
        for activations in activations_of(case):
            context = Context(isa=isa, activations=activations)
            tiles = {"tiles": context.tile_tokens, "tile_groups": context.tile_groups}
            for products in products_of(case, context):
                lost = PAIRS_LOSE if products == "bf16" else 0.0
                rounds = {**tiles, "activations": activations, "attention": lost}
                if str(rounds) not in bounds:
                    bounds[str(rounds)] = case.allowed({**inputs, **rounds}, expected)
                check(case, inputs, expected, bounds[str(rounds)], replace(context, attention=products))


def check(case: Case, inputs: Inputs, expected: list[Tensor], allowed: list[Tensor | float], context: Context) -> None:
    """Within bounds in this context, and the same bits from one, two and three threads."""
    how = f"{context.isa} with {context.activations}, attention by {context.attention}"
    outcomes = []
    for threads in (1, 2, 3):
        with poisoned():
            outcomes.append(case.call(CpuOps(replace(context, threads=threads)), inputs))
    for number, (got, want, limit) in enumerate(zip(outcomes[0], expected, allowed, strict=True)):
        problem = worst(got, want, limit)
        assert problem is None, f"{case.op} {case.name} on {how}, output {number}: {problem}"
    for threads, other in zip((2, 3), outcomes[1:], strict=True):
        same = all(torch.equal(bits(a), bits(b)) for a, b in zip(outcomes[0], other, strict=True))
        assert same, f"{case.op} {case.name} on {how}: {threads} threads differ from 1"


def test_names_are_unique() -> None:
    names = [(case.op, case.name) for case in ALL]
    assert len(set(names)) == len(names)


def test_every_op_has_cases() -> None:
    from headrace.kernels import Ops

    ops = {name for name in vars(Ops) if not name.startswith("_")}
    assert {case.op for case in SMALL} == ops
