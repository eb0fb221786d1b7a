"""Finds in a checkpoint's tensors those that hold one weight together, and makes an entry of them.

Types and names decide, module by module: a checkpoint may mix kinds, and modules that were left alone are as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import torch

from ...errors import CheckpointError
from ..families.quantisation import Quantisation
from ..files import safetensors
from ..files.entry import Entry, Packed
from . import fp4, fp8, int4

E4M3 = torch.float8_e4m3fn
# Beside a weight: how activations were rounded, and a shape that is known.
ACTIVATIONS = re.compile(r"(?:^|[._])(?:input|output|activation)_(?:scale|scale_ub|scale_inv|zero_point|global_scale)$")
KNOWN = ".weight_shape"


def gather(entries: Mapping[str, Entry], how: Quantisation, notes: list[str]) -> dict[str, Entry]:
    """The tensors by name, those of a quantised weight as one entry under the weight's name. Raises CheckpointError
    where a part of one is missing, or of a kind that cannot be run."""
    left = dict(entries)
    found = {}
    for name, entry in entries.items():
        for end, take in KINDS.items():
            if name.endswith(end) and (one := take(_Parts(left, name, name.removesuffix(end)), entry, how)):
                found[one.name] = one
                break
    for one in found.values():
        if isinstance(one.packed, (int4.ByRows, int4.ByColumns)) and one.packed.order:
            one.packed.check_order()
            break  # the others are looked at as they are read
    unused = [name for name in left if ACTIVATIONS.search(name)]
    for name in (*unused, *(name for name in entries if name.endswith(KNOWN))):
        del left[name]
    if unused:
        notes.append(
            f"{len(unused)} scales of activations, as {unused[0]}, are read over: activations are not rounded by them"
        )
    return {**left, **found}


def without_zero_biases(entries: Mapping[str, Entry], wanted: Collection[str], notes: list[str]) -> dict[str, Entry]:
    """The tensors without biases that a model has no place for and that add nothing: older tools for GPTQ write one
    beside every weight."""
    spare = [
        name
        for name, entry in entries.items()
        if name.endswith(".bias") and name not in wanted and _is_packed(entries, name) and _is_zero(entry)
    ]
    if spare:
        notes.append(f"{len(spare)} biases of zeros, as {spare[0]}, are read over")
    return {name: entry for name, entry in entries.items() if name not in {*spare}}


def _is_packed(entries: Mapping[str, Entry], bias: str) -> bool:
    weight = entries.get(bias.removesuffix("bias") + "weight")
    return weight is not None and weight.packed is not None


def _is_zero(entry: Entry) -> bool:
    return not safetensors.read_rows(entry, 0, 1).any()


class _Parts:
    """The tensors of one weight, taken out of all as they are asked for."""

    def __init__(self, left: dict[str, Entry], name: str, module: str) -> None:
        self.left, self.name, self.module = left, name, module

    def take(self, *ends: str) -> Entry | None:
        """The first of these that is there."""
        return next((self.left.pop(self.module + end) for end in ends if self.module + end in self.left), None)

    def need(self, *ends: str) -> Entry:
        if found := self.take(*ends):
            return found
        entry = self.left[self.name]
        raise CheckpointError(
            f"{entry.path}: tensor '{self.name}' is quantised, and there is no '{self.module}{ends[0]}' beside it: "
            "download it again"
        )

    def made(self, name: str, shape: tuple[int, ...], packed: Packed) -> Entry:
        """The entry of the weight; where it stands in the order of files is where its codes do."""
        codes = self.left.pop(self.name)
        rows = torch.Size(shape[:-1]).numel()
        return replace(
            codes, name=name, dtype=torch.uint8, shape=shape, packed=packed, blocks=packed.format.name,
            nbytes=rows * packed.format.row_bytes(shape[-1]),
        )  # fmt: skip


def _weight(parts: _Parts, codes: Entry, how: Quantisation) -> Entry | None:
    """fp8 of a module, modelopt's nvfp4, or mxfp4 as DeepSeek-V4 has it."""
    if codes.dtype == torch.uint8 and (whole := parts.take(".weight_scale_2")):
        return _nvfp4(parts, codes, whole, divided=False)
    if codes.dtype == torch.int8 and (scales := parts.take(".scale")):
        return _signed_mxfp4(parts, codes, scales)
    return _fp8(parts, codes, how, ".weight_scale_inv", ".weight_scale", ".scale") if codes.dtype == E4M3 else None


def _signed_mxfp4(parts: _Parts, codes: Entry, scales: Entry) -> Entry:
    """Two codes to an I8 [R, C / 2], powers of two as F8_E8M0 [R, C / 32]: the bytes are those of mxfp4."""
    fp4.check(codes, scales, 32)
    as_bytes = (replace(one, dtype=torch.uint8) for one in (codes, scales))
    return parts.made(parts.name, (*codes.shape[:-1], 2 * codes.shape[-1]), fp4.Mxfp4(*as_bytes))


def _experts(parts: _Parts, codes: Entry, how: Quantisation) -> Entry | None:
    """fp8 of all experts of a layer in one tensor, which has no module of its own."""
    is_scale = parts.name.endswith("scale")
    return None if codes.dtype != E4M3 or is_scale else _fp8(parts, codes, how, "_scale_inv", "_scale")


def _fp8(parts: _Parts, codes: Entry, how: Quantisation, *scales: str) -> Entry:
    _check_row(codes, codes.shape[-1])
    return parts.made(parts.name, codes.shape, fp8.find(codes, parts.need(*scales), how.tile))


def _weight_packed(parts: _Parts, codes: Entry, how: Quantisation) -> Entry | None:
    """What compressed-tensors packs: int4, nvfp4 or mxfp4."""
    name = parts.module + ".weight"
    if codes.dtype == torch.uint8:
        if whole := parts.take(".weight_global_scale"):
            return _nvfp4(parts, codes, whole, divided=True)
        scales = parts.need(".weight_scale")
        fp4.check(codes, scales, 32)
        return parts.made(name, (*codes.shape[:-1], 2 * codes.shape[-1]), fp4.Mxfp4(codes, scales))
    scales, zeros, order = parts.need(".weight_scale"), parts.take(".weight_zero_point"), parts.take(".weight_g_idx")
    rows, cols = codes.shape[0], codes.shape[-1] * 8
    groups = scales.shape[-1] if len(scales.shape) == 2 else 0
    _check_int32(codes, zeros)
    format = int4.format_of(cols, scales, groups, zeros is not None)
    return parts.made(name, (rows, cols), int4.ByRows(codes, scales, zeros, order, format))


def _nvfp4(parts: _Parts, codes: Entry, whole: Entry, divided: bool) -> Entry:
    scales = parts.need(".weight_scale")
    fp4.check(codes, scales, 16)
    _check_row(codes, 2 * codes.shape[-1])
    shape = (*codes.shape[:-1], 2 * codes.shape[-1])
    return parts.made(f"{parts.module}.weight", shape, fp4.Nvfp4(codes, scales, whole, divided))


def _qweight(parts: _Parts, codes: Entry, how: Quantisation) -> Entry | None:
    """AWQ and GPTQ."""
    scales, zeros, order = parts.need(".scales"), parts.take(".qzeros"), parts.take(".g_idx")
    _check_int32(codes, zeros)
    groups, rows = scales.shape if len(scales.shape) == 2 else (0, 0)
    cols = codes.shape[0] if how.interleaved else codes.shape[0] * 8
    format = int4.format_of(cols, scales, groups, zeros is not None)
    packed = int4.ByColumns(codes, scales, zeros, order, format, how.interleaved, how.zero)
    return parts.made(f"{parts.module}.weight", (rows, cols), packed)


def _blocks(parts: _Parts, codes: Entry, how: Quantisation) -> Entry | None:
    """MXFP4 as gpt-oss has it: experts of a layer in one tensor, [..., R, C / 32, 16]."""
    if codes.dtype != torch.uint8 or len(codes.shape) < 3:
        return None
    scales = parts.need("_scales")
    fp4.check(codes, scales, 32)
    return parts.made(parts.module, (*codes.shape[:-2], 32 * codes.shape[-2]), fp4.Mxfp4(codes, scales))


def _check_row(codes: Entry, cols: int) -> None:
    if cols % 32:
        raise CheckpointError(
            f"{codes.path}: '{codes.name}' has rows of {cols} weights, which can be run in multiples of 32: get the "
            "unquantised checkpoint"
        )


def _check_int32(*packed: Entry | None) -> None:
    for one in packed:
        if one is not None and (one.dtype != torch.int32 or len(one.shape) != 2):
            raise CheckpointError(
                f"{one.path}: '{one.name}' is {safetensors.NAMES[one.dtype]} {list(one.shape)}; 4 bits are read from "
                "I32 with rows and columns: get the unquantised checkpoint"
            )


# By the end of a name: what stands in front of it is the module, which the names of the other parts begin with.
KINDS: dict[str, Callable[[_Parts, Entry, Quantisation], Entry | None]] = {
    ".weight_packed": _weight_packed, ".qweight": _qweight, "_blocks": _blocks, ".weight": _weight, "": _experts,
}  # fmt: skip
