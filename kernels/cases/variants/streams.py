"""Cases of the ops of several residual streams. The Triton kernels have none of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from ... import Ops
from ..case import Case, Inputs, Source, U, fresh, normal, sum_error

EPS = 1e-6
SHAPES = ((1, 2, 33), (1, 4, 2048), (7, 4, 160), (3, 9, 77), (40, 3, 96))  # tokens, streams, numbers of one


def weights_cases() -> Iterator[Case]:
    for T, m, rounds in ((1, 4, 20), (5, 2, 1), (33, 4, 3), (3, 9, 20)):
        W = (2 + m) * m

        def build(g: Generator, source: Source, T: int = T, W: int = W) -> Inputs:
            return {"products": normal(g, T, W) * 3, "base": normal(g, W), "scale": normal(g, 3)}

        def call(ops: Ops, i: Inputs, rounds: int = rounds) -> list[Tensor]:
            return list(ops.stream_weights(i["products"], i["base"], i["scale"], rounds, EPS))

        def allowed(i: Inputs, out: list[Tensor], m: int = m, rounds: int = rounds) -> list[Tensor | float]:
            """A logit is off by a rounding of its terms; each division by a sum of m loses m + 4 roundings."""
            logits = float(i["products"].abs().max() * i["scale"].abs().max() + i["base"].abs().max())
            lost = 4 * U * logits + 32 * U
            return [out[0] * lost, out[1] * lost, out[2] * (2 * lost + 2 * rounds * (m + 4) * U)]

        yield Case(op="stream_weights", name=f"{T} of {m} in {rounds} rounds", build=build, call=call, allowed=allowed)


def _norm_error(out: Tensor, lost: Tensor, sums: Tensor, weight: Tensor) -> Tensor:
    """Of an RMSNorm of `sums`, which are off by as much as `lost`."""
    spread = lost / sums.square().mean(1, keepdim=True).sqrt() * weight.abs()
    return out.abs() * (out.shape[1] / 4 + 24) * U + spread.amax(1, keepdim=True) * 2


def take_cases() -> Iterator[Case]:
    for T, m, D in SHAPES:
        for has_norm in (False, True):

            def build(g: Generator, source: Source, T: int = T, m: int = m, D: int = D) -> Inputs:
                # Behind the streams of a token there is more of its row, and not all streams are taken.
                rows = normal(g, T, (m + 1) * D + 3)[:, : (m + 1) * D].unflatten(1, (m + 1, D))
                return {"x": rows[:, :m], "takes": normal(g, T, m), "norm": normal(g, D)}

            def call(ops: Ops, i: Inputs, has_norm: bool = has_norm) -> list[Tensor]:
                return [ops.take_streams(i["x"], i["takes"], i["norm"] if has_norm else None, EPS)]

            def allowed(i: Inputs, out: list[Tensor], has_norm: bool = has_norm) -> list[Tensor | float]:
                takes, x = i["takes"].unsqueeze(2), i["x"]
                lost = (takes * x).abs().sum(1) * sum_error(x.shape[1])
                return [_norm_error(out[0], lost, (takes * x).sum(1), i["norm"]) if has_norm else lost]

            name = f"{T} of {m}x{D}" + " normed" * has_norm
            yield Case(op="take_streams", name=name, build=build, call=call, allowed=allowed)


def close_cases() -> Iterator[Case]:
    for T, m, D in SHAPES:
        for kind in ("mixed", "as they are", "moved", "nothing made"):

            def build(g: Generator, source: Source, T: int = T, m: int = m, D: int = D, kind: str = kind) -> Inputs:
                rows = normal(g, T, m * D + m)
                moved = torch.eye(m).roll(1, 0).expand(T, m, m)
                mixes = {"as they are": None, "moved": moved}.get(kind, torch.rand(T, m, m, generator=g))
                x, made = rows[:, :-m].unflatten(1, (m, D)), None if kind == "nothing made" else normal(g, T, D)
                return {"x": x, "gives": rows[:, -m:], "mixes": mixes, "made": made}

            def call(ops: Ops, i: Inputs) -> list[Tensor]:
                return [ops.close_streams(i["x"], i["mixes"], i["gives"], i["made"])]

            def allowed(i: Inputs, out: list[Tensor]) -> list[Tensor | float]:
                x, m = i["x"].abs(), i["x"].shape[1]
                lost = x * 2 * U if i["mixes"] is None else i["mixes"].transpose(1, 2) @ x * sum_error(m)
                if i["made"] is None:
                    return [lost]
                return [lost + (lost / U + i["gives"].abs().unsqueeze(2) * i["made"].abs().unsqueeze(1)) * 4 * U]

            name = f"{T} of {m}x{D} {kind}"
            yield Case(op="close_streams", name=name, build=build, call=call, allowed=allowed)


def fit_cases() -> Iterator[Case]:
    for T, m, D in SHAPES:

        def build(g: Generator, source: Source, T: int = T, m: int = m, D: int = D) -> Inputs:
            return {"x": normal(g, T, m + 1, D)[:, :m] * 2, "by": normal(g, D) / D**0.5}

        def allowed(i: Inputs, out: list[Tensor], D: int = D) -> list[Tensor | float]:
            """A fit is off by an error of sums of its products and of its length, a weight by twice as much."""
            length = i["x"].square().mean(2).sqrt()
            products = (i["x"].abs() @ i["by"].abs()) / length
            off = float((products * (sum_error(D) + (D / 4 + 24) * U)).max())
            return [out[0] * (4 * off + 64 * U)]

        yield Case(
            op="fit_streams", name=f"{T} of {m}x{D}", build=build,
            call=lambda ops, i: [ops.fit_streams(i["x"], i["by"], EPS)], allowed=allowed,
        )  # fmt: skip


def gate_cases() -> Iterator[Case]:
    for T, m, D in SHAPES:

        def build(g: Generator, source: Source, T: int = T, m: int = m, D: int = D) -> Inputs:
            return {"x": normal(g, T, m, D), "open": normal(g, T, m * D) * 4}

        def allowed(i: Inputs, out: list[Tensor]) -> list[Tensor | float]:
            """A sigmoid is good to some roundings of itself."""
            terms = i["open"].sigmoid().view(i["x"].shape) * i["x"]
            return [terms.abs().sum(1) * 64 * U + 1e-37]

        yield Case(
            op="gate_streams", name=f"{T} of {m}x{D}", build=build,
            call=lambda ops, i: [ops.gate_streams(i["x"], fresh(i, "open"))], allowed=allowed,
        )  # fmt: skip


MAKERS = (weights_cases, take_cases, close_cases, fit_cases, gate_cases)
STREAM_CASES = [case for maker in MAKERS for case in maker()]
