"""Cases of the ops of latent and recurrent layers: rotation of views, products by head, the short convolution, the
gated delta rule and gates."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from .. import Ops
from ..formats import FORMATS, Format
from .case import BASIC, Case, Inputs, Source, U, fresh, linear_error, normal, starts_of, sum_error


def rotate_cases() -> Iterator[Case]:
    """A part of each head of a wider buffer, all of which is compared."""
    for T, N, width, start, r in ((1, 1, 8, 0, 4), (3, 2, 40, 9, 7), (17, 16, 96, 32, 32), (40, 1, 100, 36, 32)):

        def build(
            g: Generator, source: Source, T: int = T, N: int = N, width: int = width, start: int = start, r: int = r
        ) -> Inputs:
            angle = normal(g, 50, r)
            positions = torch.randint(50, (T,), generator=g, dtype=torch.int32)
            return {"x": normal(g, T, N + 1, width) * 3, "turns": (angle.cos(), angle.sin(), positions), "start": start}

        def call(ops: Ops, i: Inputs) -> list[Tensor]:
            x = fresh(i, "x")
            ops.rotate_(x[:, 1:, i["start"] :], *i["turns"])
            return [x]

        yield Case(
            op="rotate_",
            name=f"{T}x{N}x{width} rotating {2 * r} from {start}",
            build=build,
            call=call,
            allowed=lambda i, out: [out[0].abs().amax(-1, keepdim=True) * 4 * U + out[0] * 0],
        )


def by_head_case(form: Format, T: int, N: int, R: int, C: int, bench: bool = False) -> Case:
    """x as a part of each head of a wider buffer."""

    def build(g: Generator, source: Source) -> Inputs:
        return {"x": normal(g, T, N, C + 8)[..., 8:], "w": source.matrix(form, N * R, C), "heads": N}

    def allowed(i: Inputs, out: list[Tensor]) -> list[Tensor | float]:
        x, w = i["x"], i["w"]
        heads = [{**i, "x": x[:, n], "w": w.slice_rows(n * R, (n + 1) * R)} for n in range(N)]
        return [torch.stack([linear_error(head) for head in heads], dim=1)]

    return Case(
        op="linear_by_head",
        name=f"{form.name} {T}x{N}x{R}x{C}",
        build=build,
        call=lambda ops, i: [ops.linear_by_head(i["x"], i["w"])],
        allowed=allowed,
        bytes=N * R * form.row_bytes(C),
        flops=2 * T * N * R * C,
        bench=bench,
    )


def by_head_cases() -> Iterator[Case]:
    for form in (*BASIC, FORMATS["q6_k"], FORMATS["fp8"]):
        for T, N, R, C in ((1, 1, 1, 256), (3, 5, 7, 256), (1, 16, 40, 256), (40, 3, 33, 256)):
            yield by_head_case(form, T, N, R, C)
    yield by_head_case(FORMATS["f32"], 5, 3, 17, 33)
    for name in ("bf16", "q8_0", "q4_0"):
        for T in (1, 512):
            for R, C in ((512, 128), (128, 512)):
                yield by_head_case(FORMATS[name], T, 128, R, C, bench=True)


def sequences(new: list[int], old: list[int], slots: list[int]) -> Inputs:
    contexts = torch.tensor([n + o for n, o in zip(new, old, strict=True)], dtype=torch.int32)
    return {"slots": torch.tensor(slots, dtype=torch.int32), "starts": starts_of(new), "contexts": contexts}


def conv_case(
    C: int, taps: int, new: list[int], old: list[int], bench: bool = False, biased: bool = False,
    silu: bool | None = None,
) -> Case:  # fmt: skip
    """silu: whether one follows; None: as kernels have it that know nothing else, and no bias."""

    def build(g: Generator, source: Source) -> Inputs:
        S, T = len(new), sum(new)
        state, bias = normal(g, S + 1, C, taps - 1), normal(g, C) if biased else None
        state[S] = float("nan")
        x, where = normal(g, T, C + 5)[:, 3 : C + 3], sequences(new, old, list(range(S))[::-1])
        return {"x": x, "w": normal(g, C, taps), "bias": bias, "state": state, **where}

    def call(ops: Ops, i: Inputs) -> list[Tensor]:
        state, where = fresh(i, "state"), (i["slots"], i["starts"], i["contexts"])
        return [ops.short_conv(i["x"], i["w"], state, *where, *(() if silu is None else (i["bias"], silu))), state]

    def allowed(i: Inputs, out: list[Tensor]) -> list[Tensor | float]:
        """A sum of `taps` products of values below the largest and a bias, through silu, whose slope is below 1.1."""
        size = max(float(i["x"].abs().max()), float(i["state"].nan_to_num().abs().max()))
        added = i["w"].abs().sum(1) * size + (i["bias"].abs() if biased else 0.0)
        return [added * sum_error(taps + biased) * 1.1 + out[0].abs() * 32 * U * (silu is not False), 0.0]

    how = "" if silu is None else " biased" * biased + (" silu" if silu else " plain")
    return Case(
        op="short_conv",
        name=f"{C} channels {taps} taps new {new} after {old}{how}",
        build=build,
        call=call,
        allowed=allowed,
        bytes=4 * C * (3 * taps - 2) * len(new),
        bench=bench,
    )


def conv_cases() -> Iterator[Case]:
    """Sequences that begin, go on, and have nothing new; the state of a slot of nobody is NaN."""
    case = conv_case
    yield case(5, 2, [1], [0])
    yield case(37, 4, [1, 3, 0, 2], [0, 0, 4, 9])
    yield case(300, 4, [9, 1], [0, 2])
    yield case(520, 3, [40, 1, 1], [5, 1, 0])
    for new in (1, 512):
        yield case(8192, 4, [new], [100], bench=True)


def delta_error(i: Inputs, out: list[Tensor]) -> list[Tensor | float]:
    """What a token finds in a state column s of n keys, it finds to within e |s|, e = 2 (n + 8) u, and what it puts
    there is off by as much of |s| and |v|. Keys are of length 1 and 0 <= beta <= 1, so that a step is a map of norm 1
    at most, times the decay, of decays by key the largest: errors add up, and shrink by it. A decay is exp of a number,
    off by 4 u."""
    n = i["k"].shape[2]
    e, query = 2 * (n + 8) * U, n**-0.5
    lost, states = torch.empty_like(i["v"]), torch.zeros_like(i["state"])
    for s, slot in enumerate(i["slots"].tolist()):
        first, last = int(i["starts"][s]), int(i["starts"][s + 1])
        fresh_one = int(i["contexts"][s]) == last - first
        size = torch.zeros_like(i["v"][0]) if fresh_one else i["state"][slot].norm(dim=1)
        error = torch.zeros_like(size)
        for t in range(first, last):
            decay, v = i["decay"][t].exp().view(len(size), -1).amax(1, keepdim=True), i["v"][t].abs()
            error = error * decay + (e + 8 * U) * (size * decay + v) * 3
            size = size * decay + v
            lost[t] = (error + e * size) * query * 3
        states[slot] = error.unsqueeze(1)
    return [lost, states]


def delta_cases(by_key: bool = False) -> Iterator[Case]:
    """With decays from none to all, and a key of zeros."""

    def case(G: int, H: int, k: int, v: int, new: list[int], old: list[int], bench: bool = False) -> Case:
        def build(g: Generator, source: Source) -> Inputs:
            S, T = len(new), sum(new)
            key = normal(g, T, G, k)
            key[T // 2] = 0.0
            state = normal(g, S + 1, H, k, v)
            state[S] = float("nan")
            where = sequences(new, old, list(range(S))[::-1])
            decay = -torch.exp(normal(g, T, H, *(k,) * by_key) * 2 - 2)
            return {"q": normal(g, T, 2 * G, k)[:, :G], "k": key, "v": normal(g, T, H, v), "decay": decay,
                    "beta": torch.rand(T, H, generator=g), "state": state, **where}  # fmt: skip

        def call(ops: Ops, i: Inputs) -> list[Tensor]:
            state, gates = fresh(i, "state"), (i["decay"], i["beta"])
            out = ops.delta_rule(i["q"], i["k"], i["v"], *gates, state, i["slots"], i["starts"], i["contexts"])
            return [out, state]

        return Case(
            op="delta_rule",
            name=f"{H}/{G} heads {k}x{v} new {new} after {old}{' by key' if by_key else ''}",
            build=build,
            call=call,
            allowed=delta_error,
            bytes=8 * H * k * v * len(new),
            flops=8 * sum(new) * H * k * v,
            bench=bench,
        )

    yield case(1, 1, 8, 5, [1], [0])
    yield case(2, 4, 24, 40, [1, 1, 1], [3, 0, 9])
    yield case(2, 2, 16, 33, [5, 0, 70, 2], [0, 4, 2, 1])
    yield case(1, 2, 128, 128, [1], [7])
    yield case(1, 2, 128, 128, [130], [0])
    for new in (1, 512):
        yield case(16, 32, 128, 128, [new], [100], bench=True)


def gate_cases() -> Iterator[Case]:
    """exp is good to 2^-22 of itself, what is made of it to a few roundings more. Far below, where a sigmoid is no
    normal number, kernels may have the smallest one."""
    least = 2.0**-125

    for T, H in ((1, 1), (3, 5), (40, 33)):

        def build(g: Generator, source: Source, T: int = T, H: int = H) -> Inputs:
            return {"ba": normal(g, T, 2 * H) * 15, "rate": -normal(g, H).exp(), "bias": normal(g, H)}

        yield Case(
            op="delta_gates",
            name=f"{T}x{H}",
            build=build,
            call=lambda ops, i: list(ops.delta_gates(i["ba"], i["rate"], i["bias"])),
            allowed=lambda i, out: [out[0].abs() * 16 * U, out[1] * 16 * U + least],
        )
    for op in ("sigmoid_mul_", "softplus_mul_"):
        for T, C, G in ((1, 1, 1), (3, 300, 300), (70, 513, 513), (1, 96 * 128, 96), (5, 3 * 40, 3), (2, 600, 300)):

            def inputs(g: Generator, source: Source, T: int = T, C: int = C, G: int = G) -> Inputs:
                return {"y": normal(g, T, C), "gate": normal(g, T, G) * 15}

            def call(ops: Ops, i: Inputs, op: str = op) -> list[Tensor]:
                y = fresh(i, "y")
                getattr(ops, op)(y, i["gate"])
                return [y]

            yield Case(
                op=op,
                name=f"{T}x{C}{'' if G == C else f' by {G}'}",
                build=inputs,
                call=call,
                allowed=lambda i, out: [out[0].abs() * 16 * U + i["y"].abs() * least],
            )


def key_gate_cases() -> Iterator[Case]:
    """As those of `delta_gates`."""
    least = 2.0**-125
    for T, H, k, bound in ((1, 1, 4, None), (3, 5, 20, None), (40, 3, 128, None), (7, 3, 20, -5.0)):

        def build(
            g: Generator, source: Source, T: int = T, H: int = H, k: int = k, bound: float | None = bound
        ) -> Inputs:
            numbers = {"dt": normal(g, T, H * k) * 15, "b": normal(g, T, H) * 15, "bound": bound}
            return {**numbers, "rate": -normal(g, H).exp(), "bias": normal(g, H * k)}

        def allowed(i: Inputs, out: list[Tensor]) -> list[Tensor | float]:
            """A sigmoid of a number that was rounded twice is off by as much of that."""
            size = (i["dt"] + i["bias"]).abs() * i["rate"].abs().max() if i["bound"] else torch.zeros(1)
            return [out[0].abs() * (16 + 4 * size.max()) * U + 8 * least, out[1] * 16 * U + least]

        yield Case(
            op="key_gates",
            name=f"{T}x{H}x{k}{' bounded' if bound else ''}",
            build=build,
            call=lambda ops, i: list(ops.key_gates(i["dt"], i["b"], i["rate"], i["bias"], i["bound"])),
            allowed=allowed,
        )


MAKERS = (rotate_cases, by_head_cases, conv_cases, delta_cases, gate_cases)
RECURRENT_CASES = [case for maker in MAKERS for case in maker()]
KEY_CASES = [*delta_cases(by_key=True), *key_gate_cases()]  # the Triton kernels have none of these
