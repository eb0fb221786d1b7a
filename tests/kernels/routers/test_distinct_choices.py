"""A token's experts differ from each other, whatever its logits are: kernels for few tokens read each chosen expert
once, and ledgers count by it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from headrace.kernels import Ops, load, reference
from headrace.kernels.context import Context
from headrace.kernels.decoder_layer import Router
from headrace.kernels.isa import available_isas
from headrace.kernels.packed import Matrix

EXPERTS, COLS, TOKENS = 12, 32, 3
INF, NAN = float("inf"), float("nan")
ROUTERS: dict[str, dict[str, Any]] = {
    "softmax": {"scoring": "softmax", "renormalise": True},
    "softmax_topk": {"scoring": "softmax_topk", "renormalise": False},
    "sigmoid_topk": {"scoring": "sigmoid_topk", "renormalise": False},
    "sigmoid": {"scoring": "sigmoid", "renormalise": True},
    "sqrt_softplus": {"scoring": "sqrt_softplus", "renormalise": True},
    "groups": {"scoring": "sigmoid", "renormalise": True, "groups": 4, "top_groups": 2},
    "groups by their best": {
        "scoring": "softmax", "renormalise": False, "groups": 3, "top_groups": 1, "group_score": "max",
    },
    "sparsemixer": {"scoring": "sparsemixer", "renormalise": False, "jitter": 0.01},
}  # fmt: skip
LOGITS: dict[str, list[float]] = {
    "ties": [0.5] * EXPERTS,
    "zeros of both signs": [0.0, -0.0] * (EXPERTS // 2),
    "no numbers": [NAN] * EXPERTS,
    "one no number": [1.0, NAN, *[0.5] * (EXPERTS - 2)],
    "first is no number": [NAN, *[-INF] * (EXPERTS - 1)],
    "last is no number": [*[1.0] * (EXPERTS - 1), NAN],
    "one number": [*[NAN] * (EXPERTS - 1), 2.0],
    "minus infinity": [-INF] * EXPERTS,
    "infinity": [INF] * EXPERTS,
    "all of these": [NAN, INF, -INF, 1.0] * (EXPERTS // 4),
    "beyond float32's exp": [1e38, -1e38, 3e38, *[-3e38] * (EXPERTS - 3)],
}


def router(name: str, top_k: int, logits: list[float], by_bias: bool) -> Router:
    """One whose logits are these for every token; by_bias: what the choice alone adds, logits being 0."""
    values, how = torch.tensor(logits), ROUTERS[name]
    given = {"choice_bias_E": values} if by_bias else {"bias_E": values}
    return Router(matrix=Matrix.plain(torch.zeros(EXPERTS, COLS)), top_k=top_k, **how, **given)


def check(ops: Ops, name: str, by_bias: bool) -> None:
    how = ROUTERS[name]
    in_reach = EXPERTS // how.get("groups", 1) * how.get("top_groups", 1)
    for what, logits in LOGITS.items():
        for top_k in (2, in_reach):
            ids, weights = ops.route(torch.zeros(TOKENS, COLS), router(name, top_k, logits, by_bias))
            assert weights.shape == (TOKENS, top_k)
            for row in ids.tolist():
                assert len(set(row)) == top_k, f"{name}, {what}: {row}"
                assert all(0 <= one < EXPERTS for one in row), f"{name}, {what}: {row}"


BIASED = [(name, False) for name in ROUTERS] + [(name, True) for name in ("softmax", "sigmoid", "groups")]


@pytest.mark.parametrize(("name", "by_bias"), BIASED)
@pytest.mark.parametrize("isa", ["reference", *available_isas()])
def test_in_torch_and_in_cpp(isa: str, name: str, by_bias: bool) -> None:
    check(reference if isa == "reference" else load("cpu", Context(isa=isa, threads=1)), name, by_bias)


@pytest.mark.versions
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of numbers that are none
@pytest.mark.parametrize(("name", "by_bias"), BIASED)
def test_in_triton(name: str, by_bias: bool) -> None:
    pytest.importorskip("triton", reason="the GPU kernels need Triton", exc_type=ImportError)
    from headrace.kernels import gpu

    check(gpu, name, by_bias)
