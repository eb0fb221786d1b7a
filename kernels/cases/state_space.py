"""Cases of what layers between gates and state spaces are made of: products in place, a convolution with a bias or
without silu, the state space, the norm behind it; and of MLPs and experts without a gate. The Triton kernels have none
of them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from .. import Ops
from ..formats import FORMATS, ExpertLayout
from ..recipes import SQUARED_RELU
from .all import experts_case_of
from .case import BASIC, Case, Inputs, Source, U, fresh, normal
from .recurrent import conv_case, sequences


def mul_cases() -> Iterator[Case]:
    """Columns of wider rows, all of which are compared."""
    for T, C in ((1, 1), (3, 300), (70, 513)):

        def build(g: Generator, source: Source, T: int = T, C: int = C) -> Inputs:
            return {"rows": normal(g, T, 2 * C + 3), "C": C}

        def call(ops: Ops, i: Inputs) -> list[Tensor]:
            rows, C = fresh(i, "rows"), i["C"]
            ops.mul_(rows[:, 3 : C + 3], rows[:, C + 3 :])
            return [rows]

        yield Case(op="mul_", name=f"{T}x{C}", build=build, call=call)


def conv_cases() -> Iterator[Case]:
    for biased, silu in ((True, True), (True, False), (False, False)):
        for C, taps, new, old in ((5, 2, [1], [0]), (37, 4, [1, 3, 0, 2], [0, 0, 4, 9]), (300, 3, [9, 1], [0, 2])):
            yield conv_case(C, taps, new, old, biased=biased, silu=silu)


def space_error(i: Inputs, out: list[Tensor]) -> list[Tensor | float]:
    """A step is off by 8 u of itself, and by as much of what its softplus is made of; a decay by that of its exponent
    and 4 u, of itself. What is in a state is off by what it was before, which shrinks, and by that of its last change;
    what is read of it by a sum over the n rows besides. Both sides of a comparison, hence twice."""
    each, n = i["x"].shape[1] // i["b"].shape[1], i["b"].shape[2]
    b, c = (i[name].repeat_interleave(each, 1).abs() for name in ("b", "c"))
    x, skip = i["x"].abs(), i["skip"].abs().unsqueeze(1)
    step = torch.nn.functional.softplus(i["dt"] + i["bias"]).clamp(*i["range"])
    of_step = (8 * U * step + 2 * U * (i["dt"].abs() + i["bias"].abs())) / step.clamp(min=1e-30)
    exponent = (i["rate"] * step).abs()
    decay, of_decay = (-exponent).exp(), exponent * (of_step + 2 * U) + 4 * U
    lost, states = torch.empty_like(x), torch.zeros_like(i["state"])
    for s, slot in enumerate(i["slots"].tolist()):
        first, last = int(i["starts"][s]), int(i["starts"][s + 1])
        begins = int(i["contexts"][s]) == last - first
        size = torch.zeros_like(states[slot]) if begins else i["state"][slot].abs()
        error = torch.zeros_like(size)
        for t in range(first, last):
            kept = decay[t].view(-1, 1, 1)
            added = b[t].unsqueeze(2) * (step[t].unsqueeze(1) * x[t]).unsqueeze(1)
            error = error * kept + size * kept * (of_decay[t].view(-1, 1, 1) + 4 * U)
            error = error + added * (of_step[t].view(-1, 1, 1) + 4 * U)
            size = size * kept + added
            read = torch.einsum("hkv,hk->hv", error + size * (n / 2 + 16) * U, c[t])
            lost[t] = 2 * read + 4 * U * skip * x[t]
        states[slot] = 2 * error
    return [lost, states]


def space_cases() -> Iterator[Case]:
    """With steps from next to nothing to large ones, and rates from slow to fast."""

    def case(
        G: int, H: int, k: int, v: int, new: list[int], old: list[int], most: float = math.inf, bench: bool = False
    ) -> Case:
        def build(g: Generator, source: Source) -> Inputs:
            S, T = len(new), sum(new)
            state = normal(g, S + 1, H, k, v)
            state[S] = float("nan")
            where = sequences(new, old, list(range(S))[::-1])
            both = normal(g, T, 2 * G, k)
            return {"x": normal(g, T, H * v + 4)[:, 4:].view(T, H, v), "b": both[:, :G], "c": both[:, G:],
                    "dt": normal(g, T, H + 3)[:, 3:] * 4, "rate": -normal(g, H).exp(), "bias": normal(g, H),
                    "skip": normal(g, H), "range": (0.0 if most == math.inf else 0.01, most), "state": state,
                    **where}  # fmt: skip

        def call(ops: Ops, i: Inputs) -> list[Tensor]:
            state, where = fresh(i, "state"), (i["slots"], i["starts"], i["contexts"])
            steps = i["dt"], i["rate"], i["bias"], i["skip"], i["range"]
            return [ops.state_space(i["x"], i["b"], i["c"], *steps, state, *where), state]

        return Case(
            op="state_space",
            name=f"{H}/{G} heads {k}x{v} new {new} after {old}{'' if most == math.inf else f' steps to {most}'}",
            build=build,
            call=call,
            allowed=space_error,
            bytes=8 * H * k * v * len(new),
            flops=5 * sum(new) * H * k * v,
            bench=bench,
        )

    yield case(1, 1, 8, 5, [1], [0])
    yield case(2, 4, 24, 40, [1, 1, 1], [3, 0, 9])
    yield case(2, 2, 16, 33, [5, 0, 70, 2], [0, 4, 2, 1], most=1.5)
    yield case(1, 2, 128, 64, [1], [7])
    yield case(1, 2, 128, 64, [130], [0])
    for new in (1, 512):
        yield case(1, 48, 128, 64, [new], [100], bench=True)


def norm_cases() -> Iterator[Case]:
    for T, C, groups in ((1, 1, 1), (3, 300, 1), (5, 96, 4), (70, 513, 3)):

        def build(g: Generator, source: Source, T: int = T, C: int = C, groups: int = groups) -> Inputs:
            rows = normal(g, T, 2 * C + 3) * 3
            return {"y": rows[:, :C], "z": rows[:, C + 3 :], "w": normal(g, C), "groups": groups}

        def allowed(i: Inputs, out: list[Tensor]) -> list[Tensor | float]:
            """silu is good to 16 roundings; a mean of n squares to n / 2 more of a root, both sides."""
            return [out[0].abs() * 2 * (40 + i["w"].numel() / i["groups"] / 2) * U + 1e-36]

        yield Case(
            op="gated_norm",
            name=f"{T}x{C} in {groups}",
            build=build,
            call=lambda ops, i: [ops.gated_norm(i["y"], i["z"], i["w"], 1e-5, i["groups"])],
            allowed=allowed,
        )


def ungated_cases() -> Iterator[Case]:
    """With NaN, which no relu may hide."""
    for T, F in ((1, 5), (3, 77), (40, 513)):

        def build(g: Generator, source: Source, T: int = T, F: int = F) -> Inputs:
            x = normal(g, T, F) * 6
            x[0, 1] = float("nan")
            return {"x": x}

        call = lambda ops, i: [ops.glu(i["x"], SQUARED_RELU)]  # noqa: E731
        yield Case(op="glu", name=f"{T}x{F} no gate, squared relu", build=build, call=call)
    for form in (*BASIC, FORMATS["q4_k"], FORMATS["mxfp4"]):
        cols = 256 if form.name == "q4_k" else 96
        layout = ExpertLayout(format=form, hidden=cols, width=2 * cols, activation=SQUARED_RELU)
        yield experts_case_of(layout, 8, 1, 3, "partly elsewhere")
        yield experts_case_of(layout, 6, 40, 3, "crowded")
        yield experts_case_of(layout, 4, 5, 2)
    two = ExpertLayout(
        format=FORMATS["q4_0"], up_format=FORMATS["q8_0"], down_format=FORMATS["bf16"], hidden=160, width=96,
        activation=SQUARED_RELU,
    )  # fmt: skip
    yield experts_case_of(two, 6, 9, 3)


MAKERS = (mul_cases, conv_cases, space_cases, norm_cases, ungated_cases)
STATE_SPACE_CASES = [case for maker in MAKERS for case in maker()]
