"""A bank as the kernels of this folder see it: rows of gate, up and down in every block, and where the blocks begin."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ... import formats
from ...packed import ExpertBank
from .. import launch
from ..pointwise import constants_of


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
    """Rows of `up` lie `offset` elements behind those of `gate`, where both have one format. constants: BIASED and the
    activation. biases: float32, from the first expert's on: of gate, up and down, one behind the other; `bias_step`
    lead from an expert to the next. Without biases nothing of it is read. among: of how many experts a token chooses,
    of which these are some, or all."""

    hidden: int
    width: int
    experts: int
    among: int
    gate: Part
    up: Part
    down: Part
    offset: int
    biases: Tensor
    bias_step: int
    constants: dict[str, float]

    @property
    def formats(self) -> tuple[formats.Format, ...]:
        """Of gate, up and down."""
        return self.gate.format, self.up.format, self.down.format

    @property
    def is_packed(self) -> bool:
        """Whether every weight has to be unpacked."""
        return all(form.is_block for form in self.formats)


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
    biases = bank.data.view(launch.F32)[..., layout.bias_offset // 4 if layout.biased else 0 :]
    constants = dict(BIASED=layout.biased, **constants_of(layout.activation))
    return Blocks(
        layout.hidden, layout.width, bank.experts, bank.among or bank.experts, gate, up, down, offset, biases,
        layout.bytes // 4, constants,
    )  # fmt: skip


def _part(bank: ExpertBank, part: formats.Part) -> Part:
    layout, form, (_, cols) = bank.layout, bank.layout.of(part), bank.layout.shape(part)
    assert form.fits(cols), f"{cols} columns in {form.name}"
    rows = launch.stored(form, bank.data, cols, layout.offset(part))
    return Part(form, rows, layout.bytes // rows.values.element_size())
