"""What models compute differently in the same op, as data: how a router makes weights of its logits, and what stands
between the products of an MLP."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

# What they mean stands at `route` in `reference.py`.
Scoring = Literal["softmax", "softmax_topk", "sigmoid", "sigmoid_topk", "sparsemixer", "sqrt_softplus"]
GroupScore = Literal["max", "top2"]


@dataclass(frozen=True, kw_only=True)
class Activation:
    """(up + offset) * gate * sigmoid(alpha * (gate + cubic * gate^3)), of a gate that is at most `limit` and an up
    within +-limit. bend, bend_up: the gate, where it is not in the sigmoid, is bend * tanh(gate / bend), and up the
    same; 0: it is as it is. late: not the gate is at most `limit`, but its product with the sigmoid. Not gated: there
    is no gate, and the square of the positive part of up.

    The defaults are SwiGLU (arXiv 2002.05202), which clamps nothing; gpt-oss has alpha 1.702, offset 1, limit 7. GeGLU
    is there with a tanh in place of the error function (arXiv 1606.08415): 1/2 (1 + tanh(x)) is sigmoid(2 x)."""

    alpha: float = 1.0
    offset: float = 0.0
    limit: float = float("inf")
    cubic: float = 0.0
    bend: float = 0.0
    bend_up: float = 0.0
    late: bool = False
    gated: bool = True


SWIGLU = Activation()
SQUARED_RELU = Activation(gated=False)
GEGLU = Activation(alpha=2 * (2 / math.pi) ** 0.5, cubic=0.044715)
