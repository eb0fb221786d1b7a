"""A bank as the kernels of this folder see it: rows of gate, up and down in every block, and where the blocks begin."""

from __future__ import annotations

from dataclasses import dataclass

from ... import formats
from ...packed import ExpertBank
from .. import launch


@dataclass(frozen=True)
class Part:
    """One of the three matrices of all experts; `size` elements lead from an expert to the next."""

    format: formats.Format
    rows: launch.Stored
    size: int

    @property
    def name(self) -> str:
        return self.format.name


@dataclass(frozen=True)
class Blocks:
    """Rows of `up` lie `offset` elements behind those of `gate`, where both have one format."""

    hidden: int
    width: int
    experts: int
    gate: Part
    up: Part
    down: Part
    offset: int


def blocks_of(bank: ExpertBank) -> Blocks:
    """A bank, looked at once."""
    found: Blocks | None = bank.native.get("gpu")
    if found is None:
        found = bank.native["gpu"] = _blocks(bank)
    return found


def _blocks(bank: ExpertBank) -> Blocks:
    layout = bank.layout
    launch.check(bank.data, launch.U8, bank.experts, layout.bytes)
    gate, up, down = (_part(bank, part) for part in formats.PARTS)
    offset = layout.offset("up") // gate.rows.values.element_size()
    return Blocks(layout.hidden, layout.width, bank.experts, gate, up, down, offset)


def _part(bank: ExpertBank, part: formats.Part) -> Part:
    layout, form, (_, cols) = bank.layout, bank.layout.of(part), bank.layout.shape(part)
    assert form.fits(cols), f"{cols} columns in {form.name}"
    rows = launch.stored(form, bank.data, cols, layout.offset(part))
    return Part(form, rows, layout.bytes // rows.values.element_size())
