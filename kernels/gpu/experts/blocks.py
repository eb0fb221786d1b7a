"""A bank as the kernels of this folder see it: rows of gate, up and down in every block, and where the blocks begin."""

from __future__ import annotations

from dataclasses import dataclass

from ...formats import Format
from ...packed import ExpertBank
from .. import launch


@dataclass(frozen=True)
class Blocks:
    """`up` are rows of gate, and of up `offset` elements behind; `down` begins there with its matrix. `size` elements
    lead from an expert to the next."""

    format: Format
    hidden: int
    width: int
    experts: int
    up: launch.Stored
    down: launch.Stored
    offset: int
    size: int


def blocks_of(bank: ExpertBank) -> Blocks:
    """A bank, looked at once."""
    found: Blocks | None = bank.native.get("gpu")
    if found is None:
        found = bank.native["gpu"] = _blocks(bank)
    return found


def _blocks(bank: ExpertBank) -> Blocks:
    layout = bank.layout
    form, D, F = layout.format, layout.hidden, layout.width
    assert len({*layout.formats}) == 1, f"gate, up and down in {layout.name}"
    assert all(map(form.fits, (D, F))), f"{D} x {F} in {form.name}"
    launch.check(bank.data, launch.U8, bank.experts, layout.bytes)
    up, down = launch.stored(form, bank.data, D), launch.stored(form, bank.data[:, layout.offset("down") :], F)
    each = up.values.element_size()  # offsets count elements, which are bytes in block formats
    return Blocks(form, D, F, bank.experts, up, down, layout.offset("up") // each, layout.bytes // each)
