"""What kernels are told of a format, from the one table of `kernels/formats.py`: constants by name, looked up while a
kernel is compiled.

    block            whether weights are codes with scales; of the others nothing else is said
    low, high        bits of the plane with the lower bits of a code, and of the one with the rest (0: there is none)
    values, offset   what a code stands for: "integer": code - offset, of 8 bits with the top bit flipped; "table": one
                     of up to 16 values of -128 to 127; "e2m1" and "e4m3": a float of 4 or 8 bits, of which the formats'
                     table says the same
    first, second    of a table: the values of codes 0 to 7, and of 8 to 15, plus 128, a byte each
    scales, per, half, gain, minimums    see `formats.Scales`

All of it is in the key of a compiled kernel (Triton puts constants of a module there), so that a changed row of the
table makes it anew.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ...formats import BLOCK, E2M1_VALUES, E4M3_VALUES, FORMATS, Codes, Format

FLOATS = {E2M1_VALUES: "e2m1", E4M3_VALUES[:127]: "e4m3"}  # the last of e4m3 is no number, and equals nothing


def _of_codes(codes: Codes) -> dict[str, Any]:
    low, high = codes.planes[-1], sum(codes.planes[:-1])
    found: dict[str, Any] = dict(low=low, high=high, values="integer", offset=codes.offset)
    if codes.bits == 8:
        found["offset"] = 128
    if codes.table:
        found["values"] = FLOATS.get(codes.table[:127], "table")
        if found["values"] == "table":
            assert len(codes.table) <= 16, f"a table of {len(codes.table)} values"
            values = bytes(int(value) + 128 for value in codes.table).ljust(16, b"\0")
            found["first"] = int.from_bytes(values[:8], "little", signed=True)
            found["second"] = int.from_bytes(values[8:], "little", signed=True)
    return found


def _of(form: Format) -> dict[str, Any]:
    """All that is said of a format, by name."""
    if not form.is_block:
        return dict(block=False)
    kind = form.scales
    return dict(
        block=True, **_of_codes(form.codes), scales=kind.kind, per=kind.per, half=kind.half, gain=kind.gain,
        minimums=kind.has_min or kind.kind == "half_zero",
    )  # fmt: skip


CONSTANTS = tl.constexpr(tuple((name, tuple(_of(form).items())) for name, form in FORMATS.items()))


@triton.constexpr_function
def about(format, name):
    """A constant of a format, both by name; None if nothing of the kind is said."""
    return dict(dict(CONSTANTS.value)[format]).get(name)


@triton.constexpr_function
def weights_of(format):
    """Weights of a granule: 16 bytes of the plane with the lower bits. A multiple, or a half, of a block."""
    return 128 // about(format, "low")


@triton.constexpr_function
def runs_of(format):
    """Into how many parts a granule falls, each of them with a factor of its own."""
    return max(1, weights_of(format) // min(about(format, "per"), 32)) if about(format, "block") else 1


@triton.constexpr_function
def block_of_run(format, run):
    """Which block of a granule a run is in, and which half of it."""
    return divmod(run, 2) if about(format, "per") == 16 else (run, 0)


assert BLOCK == 32, "what kernels take for granted"
