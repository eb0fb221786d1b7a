"""Which of a checkpoint's tensors are one quantised weight, by headers alone, and in which format it lies in memory.

The engine's own reader of such weights is `loaders/quantised/gather.py`; this is what a plan can know without torch. A
test holds the two together. What the engine would refuse is not found here, and counts as it stands in the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from ...kernels import FORMATS, Format
from ..families.quantisation import Quantisation
from ..files.headers import Stored

# Beside a weight: how activations were rounded, and a shape that is known.
BESIDE = re.compile(
    r"(?:^|[._])(?:input|output|activation)_(?:scale|scale_ub|scale_inv|zero_point|global_scale)$|\.weight_shape$"
)
SUFFIX = {"F16": "", "BF16": "_bf16"}  # of a format with scales of that type
Shape = tuple[int, ...]


@dataclass
class Found:
    """weights: by the name of the tensor with the codes, the weight with its format's name as type; parts: names of
    tensors that are in memory with one of these, or not at all."""

    weights: dict[str, Stored] = field(default_factory=dict)
    parts: set[str] = field(default_factory=set)


def find(tensors: Iterable[Stored], how: Quantisation) -> Found:
    """The quantised weights of a checkpoint."""
    by_name = {tensor.name: tensor for tensor in tensors}
    found = Found(parts={name for name in by_name if BESIDE.search(name)})
    for name, tensor in by_name.items():
        for end, take in KINDS.items():
            if name not in found.parts and name.endswith(end):
                one = take(_Parts(by_name, name.removesuffix(end)), tensor, how)
                if one is not None:
                    format, shape, parts = one
                    found.weights[name] = replace(tensor, dtype=format.name.upper(), shape=shape)
                    found.parts |= parts
                    break
    return found


def int4_format(cols: int, groups: int, scales: str, has_zeros: bool) -> Format | None:
    """The format for rows of `cols` codes of 4 bits in so many groups; scales: their type. None: there is none."""
    group = cols // max(groups, 1)
    if scales not in SUFFIX or not groups or cols % groups or group % 32:
        return None
    if group % 128 == 0 or groups == 1:
        return FORMATS["int4_g128" + SUFFIX[scales]]
    return FORMATS[("int4_g32" if has_zeros else "q4_0") + SUFFIX[scales]]


class _Parts:
    """The tensors of one weight, and which of them were asked for."""

    def __init__(self, by_name: Mapping[str, Stored], module: str) -> None:
        self.by_name, self.module = by_name, module
        self.taken: set[str] = set()

    def take(self, *ends: str) -> Stored | None:
        """The first of these that is there."""
        name = next((self.module + end for end in ends if self.module + end in self.by_name), None)
        if name is None:
            return None
        self.taken.add(name)
        return self.by_name[name]


One = tuple[Format, Shape, set[str]] | None


def _weight(parts: _Parts, codes: Stored, how: Quantisation) -> One:
    if codes.dtype == "U8" and parts.take(".weight_scale_2"):
        return _fp4("nvfp4", parts, codes)
    if codes.dtype == "I8" and codes.shape and parts.take(".scale"):  # as DeepSeek-V4 has it
        return FORMATS["mxfp4"], (*codes.shape[:-1], 2 * codes.shape[-1]), parts.taken
    return _fp8(parts, codes, ".weight_scale_inv", ".weight_scale", ".scale")


def _experts(parts: _Parts, codes: Stored, how: Quantisation) -> One:
    return None if codes.name.endswith("scale") else _fp8(parts, codes, "_scale_inv", "_scale")


def _fp8(parts: _Parts, codes: Stored, *scales: str) -> One:
    if codes.dtype != "F8_E4M3" or parts.take(*scales) is None or codes.shape[-1] % 32:
        return None
    return FORMATS["fp8"], codes.shape, parts.taken


def _fp4(format: str, parts: _Parts, codes: Stored) -> One:
    """Two codes to a byte."""
    if parts.take(".weight_scale") is None or not codes.shape:
        return None
    return FORMATS[format], (*codes.shape[:-1], 2 * codes.shape[-1]), parts.taken


def _weight_packed(parts: _Parts, codes: Stored, how: Quantisation) -> One:
    if codes.dtype == "U8":
        return _fp4("nvfp4" if parts.take(".weight_global_scale") else "mxfp4", parts, codes)
    scales, zeros = parts.take(".weight_scale"), parts.take(".weight_zero_point")
    parts.take(".weight_g_idx")
    if codes.dtype != "I32" or len(codes.shape) != 2 or scales is None or len(scales.shape) != 2:
        return None
    rows, cols = codes.shape[0], 8 * codes.shape[1]
    format = int4_format(cols, scales.shape[1], scales.dtype, zeros is not None)
    return None if format is None else (format, (rows, cols), parts.taken)


def _qweight(parts: _Parts, codes: Stored, how: Quantisation) -> One:
    scales, zeros = parts.take(".scales"), parts.take(".qzeros")
    parts.take(".g_idx")
    if codes.dtype != "I32" or len(codes.shape) != 2 or scales is None or len(scales.shape) != 2:
        return None
    groups, rows = scales.shape
    cols = codes.shape[0] if how.interleaved else 8 * codes.shape[0]
    format = int4_format(cols, groups, scales.dtype, zeros is not None)
    return None if format is None else (format, (rows, cols), parts.taken)


def _blocks(parts: _Parts, codes: Stored, how: Quantisation) -> One:
    if codes.dtype != "U8" or len(codes.shape) < 3 or parts.take("_scales") is None:
        return None
    return FORMATS["mxfp4"], (*codes.shape[:-2], 32 * codes.shape[-2]), parts.taken


# By the end of a name: what stands in front of it is the module, which the names of the other parts begin with.
KINDS: dict[str, Callable[[_Parts, Stored, Quantisation], One]] = {
    ".weight_packed": _weight_packed, ".qweight": _qweight, "_blocks": _blocks, ".weight": _weight, "": _experts,
}  # fmt: skip
