"""Rows of the KV cache in plain torch: float tensors [P, G, B, d], or the same as q8_0.

A q8_0 page of one head is one run of bytes: codes [B, d], then scales [B, d / 32]. So rows of codes begin where vector
loads want them, and a page is copied, and kept on a disk, as one piece.

    d = half(max|x| / 127)   q = round(x / d), to the even one of two   a number is q d      of each 32 numbers

Codes are chosen against the scale as it is stored. A number that is none or infinite makes none of all 32; what a half
cannot hold is cut off at its largest one. Letters as in `reference.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..formats import BLOCK, KVFormat

LARGEST_HALF = 65504.0
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Q8Rows:
    """Rows of a q8_0 cache, or the first `width` numbers of each. planes: uint8 [P, G, bytes of a plane]; page: B;
    row: numbers of a row, a multiple of 32."""

    planes: Tensor
    page: int
    row: int
    width: int

    @classmethod
    def empty(cls, pages: int, groups: int, page: int, row: int, place: torch.device | None = None) -> Q8Rows:
        """Uninitialised rows."""
        assert row % BLOCK == 0, f"rows of {row} numbers"
        planes = torch.empty(pages, groups, page * (row + row // BLOCK * 2), dtype=torch.uint8, device=place)
        return cls(planes=planes, page=page, row=row, width=row)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """P, G, B and the numbers of a row that count."""
        pages, groups = self.planes.shape[:2]
        return pages, groups, self.page, self.width

    @cached_property
    def codes(self) -> Tensor:
        """int8 [P, G, B, width], a view."""
        codes = self.planes[..., : self.page * self.row].view(torch.int8)
        return codes.view(*self.shape[:3], self.row)[..., : self.width]

    @cached_property
    def scales(self) -> Tensor:
        """float16 [P, G, B, width / 32, rounded up], a view."""
        halves = self.planes[..., self.page * self.row :].view(torch.float16)
        return halves.view(*self.shape[:3], self.row // BLOCK)[..., : -(-self.width // BLOCK)]

    def __getitem__(self, pages: Tensor) -> Q8Rows:
        return replace(self, planes=self.planes[pages])

    def clone(self) -> Q8Rows:
        return replace(self, planes=self.planes.clone())


Rows = Tensor | Q8Rows


def empty(format: KVFormat, pages: int, groups: int, page: int, row: int, place: torch.device | None = None) -> Rows:
    """Uninitialised rows of a format [P, G, B, row]."""
    if format.name == "q8_0":
        return Q8Rows.empty(pages, groups, page, row, place)
    return torch.empty(pages, groups, page, row, dtype=DTYPES[format.name], device=place)


def over(format: KVFormat, pages: Tensor, groups: int, page: int, row: int) -> Rows:
    """Rows of a format [P, G, B, row] in memory that there is: uint8 [P, bytes of a page]."""
    if format.name == "q8_0":
        return Q8Rows(planes=pages.view(len(pages), groups, -1), page=page, row=row, width=row)
    return pages.view(DTYPES[format.name]).view(-1, groups, page, row)


def memory(rows: Rows) -> Tensor:
    """What the rows lie in, page by page: [P, ...]."""
    return rows.planes if isinstance(rows, Q8Rows) else rows


def widen(rows: Rows) -> Tensor:
    """float32 [P, G, B, width]."""
    if isinstance(rows, Tensor):
        return rows.float()
    scales = rows.scales.float().repeat_interleave(BLOCK, -1)[..., : rows.width]
    return rows.codes.float() * scales


def first(rows: Rows, width: int) -> Rows:
    """The first numbers of each row, a view."""
    return replace(rows, width=width) if isinstance(rows, Q8Rows) else rows[..., :width]


def store_(rows: Rows, slots_T: Tensor, values_TGd: Tensor) -> None:
    """Writes rows [T, G, d] into their slots, int64 [T]: slot = page * B + place in the page."""
    page = rows.shape[2]
    at = slots_T // page, slice(None), slots_T % page
    if isinstance(rows, Tensor):
        rows[at] = values_TGd.to(rows.dtype)
    else:
        rows.codes[at], rows.scales[at] = quantise(values_TGd)


def quantise(values: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [..., d] as codes, int8 [..., d], and scales, float16 [..., d / 32]."""
    runs: Tensor = values.float().unflatten(-1, (-1, BLOCK))
    peaks = runs.abs().amax(-1)
    is_finite = peaks.isfinite()
    wanted = (peaks / 127.0).clamp(max=LARGEST_HALF)
    scales = torch.where(is_finite, wanted, float("nan")).half()
    is_scaled = is_finite & (scales > 0)
    inverse = torch.where(is_scaled, 1.0 / torch.where(is_scaled, scales.float(), 1.0), 0.0)
    codes = torch.where(is_finite.unsqueeze(-1), runs * inverse.unsqueeze(-1), 0.0).round().clamp(-127, 127)
    return codes.to(torch.int8).flatten(-2), scales


def made_dtype(rows: Rows | KVFormat) -> torch.dtype:
    """The type of keys and values that are made of such rows."""
    if isinstance(rows, KVFormat):
        return DTYPES.get(rows.name, torch.bfloat16)
    return torch.bfloat16 if isinstance(rows, Q8Rows) else rows.dtype
