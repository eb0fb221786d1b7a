"""Checkpoints with quantised weights as tools release them, and the same model in float32: random codes and scales, and
what their formats' descriptions say that they stand for."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

E4M3 = torch.float8_e4m3fn
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
Written = tuple[dict[str, Tensor], Tensor]  # tensors by the end of their names, and the weights float32 [R, C]
Scales = Callable[[torch.Generator, tuple[int, ...]], Tensor]  # positive numbers of a shape


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A way to store a weight: how, what config.json says of it, and in which format it ends up."""

    write: Callable[[torch.Generator, int, int, Scales], Written]
    config: dict[str, Any]
    format: str
    activations: bool = False  # a scale of them lies beside
    is_exact: bool = True  # else one more rounding


def usual(deviation: float) -> Scales:
    """Such that codes of this deviation give weights for rows of 100 or so."""
    return lambda g, shape: torch.exp2(torch.rand(shape, generator=g) - 0.5) / deviation / 10


def extreme(least: float, most: float) -> Scales:
    """Powers of two times a number near 1, over all of a range of exponents."""

    def make(g: torch.Generator, shape: tuple[int, ...]) -> Tensor:
        power = torch.rand(shape, generator=g) * (most - least) + least
        return torch.exp2(power.floor()) * (1 + torch.rand(shape, generator=g))

    return make


# ---- floats of 8 bits


def fp8_codes(g: torch.Generator, R: int, C: int) -> Tensor:
    """Every float of 8 bits but NaN."""
    codes = torch.randint(0, 127, (R, C), generator=g) | torch.randint(0, 2, (R, C), generator=g) << 7
    return codes.to(torch.uint8).view(E4M3)


def fp8(g: torch.Generator, R: int, C: int, scales: Scales, *, by: str, name: str, dtype: torch.dtype) -> Written:
    height, width = {"tile": (128, 128), "row": (1, C), "tensor": (R, C)}[by]
    codes = fp8_codes(g, R, C)
    scale = scales(g, (math.ceil(R / height), math.ceil(C / width))).to(dtype)
    all_over = scale.float().repeat_interleave(height, 0)[:R].repeat_interleave(width, 1)[:, :C]
    stored = scale.reshape(()) if by == "tensor" else scale
    return {".weight": codes, name: stored}, codes.float() * all_over


# ---- integers of 4 bits


def groups_of(g: torch.Generator, R: int, C: int, group: int, scales: Scales, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Codes [R, C], scales and zero points [R, groups]."""
    n = C // group
    codes, zeros = torch.randint(0, 16, (R, C), generator=g), torch.randint(0, 16, (R, n), generator=g)
    return codes, scales(g, (R, n)).to(dtype), zeros


def meant(codes: Tensor, scale: Tensor, zeros: Tensor | int) -> Tensor:
    """scale * (code - zero)"""
    group = codes.shape[1] // scale.shape[1]
    zero = zeros.repeat_interleave(group, 1) if isinstance(zeros, Tensor) else zeros
    return scale.float().repeat_interleave(group, 1) * (codes - zero).float()


def packed(values: Tensor, order: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """Eight neighbours of a row [n, 8 m] in an integer of 32 bits [n, m], field i the one of `order`."""
    eights = torch.nn.functional.pad(values, (0, -values.shape[1] % 8)).reshape(len(values), -1, 8)
    words = sum(eights[:, :, at].long() << 4 * i for i, at in enumerate(order))
    assert isinstance(words, Tensor)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32).contiguous()


def int4(
    g: torch.Generator, R: int, C: int, scales: Scales, *, group: int, dtype: torch.dtype, symmetric: bool
) -> Written:
    """compressed-tensors: signed numbers plus 8, eight to an integer along a row; zero points along a column."""
    codes, scale, zeros = groups_of(g, R, C, group or C, scales, dtype)
    found = {".weight_packed": packed(codes), ".weight_scale": scale, ".weight_shape": torch.tensor([R, C])}
    if symmetric:
        return found, meant(codes, scale, 8)
    return found | {".weight_zero_point": packed(zeros.T).T.contiguous()}, meant(codes, scale, zeros)


def awq(g: torch.Generator, R: int, C: int, scales: Scales, *, group: int) -> Written:
    codes, scale, zeros = groups_of(g, R, C, group, scales, torch.float16)
    found = {".qweight": packed(codes.T, AWQ_ORDER), ".qzeros": packed(zeros.T, AWQ_ORDER)}
    return found | {".scales": scale.T.contiguous()}, meant(codes, scale, zeros)


def gptq(
    g: torch.Generator, R: int, C: int, scales: Scales, *, group: int, less: int, dtype: torch.dtype, order: bool
) -> Written:
    """less: by which a zero point is stored too small."""
    codes, scale, zeros = groups_of(g, R, C, group or C, scales, dtype)
    found = {".qweight": packed(codes).T, ".qzeros": packed(zeros.T), ".scales": scale.T}
    if order:
        found[".g_idx"] = (torch.arange(C) // (group or C)).to(torch.int32)
    return {end: tensor.contiguous() for end, tensor in found.items()}, meant(codes, scale, zeros + less)


# ---- floats of 4 bits


def nvfp4(
    g: torch.Generator, R: int, C: int, scales: Scales, *, packed_name: str, whole: str, inverse: bool
) -> Written:
    codes, factor = torch.randint(0, 16, (R, C), generator=g), scales(g, (1,)) / 8
    units = torch.randint(1, 127, (R, C // 16), generator=g).to(torch.uint8).view(E4M3)
    number = 1 / factor if inverse else factor
    all_over = units.float() / number if inverse else units.float() * number
    found = {packed_name: pairs(codes), ".weight_scale": units, whole: number if inverse else number.reshape(())}
    return found, E2M1[codes] * all_over.repeat_interleave(16, 1)


def mxfp4(g: torch.Generator, R: int, C: int, scales: Scales) -> Written:
    codes = torch.randint(0, 16, (R, C), generator=g)
    powers = scales(g, (R, C // 32)).log2().floor().int()
    found = {".weight_packed": pairs(codes), ".weight_scale": (powers + 127).to(torch.uint8)}
    return found, E2M1[codes] * torch.exp2(powers.float()).repeat_interleave(32, 1)


def pairs(codes: Tensor) -> Tensor:
    """Two neighbours in a byte, the first in its low half."""
    return (codes[:, 0::2] | codes[:, 1::2] << 4).to(torch.uint8)


# ---- the kinds, and checkpoints of them


def compressed(layout: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {
        "quant_method": "compressed-tensors", "format": layout, "config_groups": {"group_0": group},
        "ignore": ["lm_head", "re:.*mlp.gate$"], "quantization_status": "compressed", "kv_cache_scheme": None,
    }  # fmt: skip


FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32
KINDS: dict[str, Kind] = {
    "fp8 tiles": Kind(
        write=lambda *a: fp8(*a, by="tile", name=".weight_scale_inv", dtype=BF16), config=FP8, format="fp8"
    ),
    "fp8 tiles f32": Kind(
        write=lambda *a: fp8(*a, by="tile", name=".weight_scale_inv", dtype=F32), config=FP8, format="fp8"
    ),
    "fp8 rows": Kind(
        write=lambda *a: fp8(*a, by="row", name=".weight_scale", dtype=BF16), format="fp8",
        config=compressed("float-quantized", num_bits=8, type="float", strategy="channel", symmetric=True),
    ),
    "fp8 tensors": Kind(
        write=lambda *a: fp8(*a, by="tensor", name=".weight_scale", dtype=F32), format="fp8", activations=True,
        config={"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": None, "ignore": ["lm_head"]},
    ),
    "int4 g32": Kind(
        write=lambda *a: int4(*a, group=32, dtype=BF16, symmetric=True), format="q4_0_bf16",
        config=compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=32, symmetric=True),
    ),
    "int4 g32 half": Kind(
        write=lambda *a: int4(*a, group=32, dtype=F16, symmetric=True), format="q4_0",
        config=compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=32, symmetric=True),
    ),
    "int4 g128": Kind(
        write=lambda *a: int4(*a, group=128, dtype=BF16, symmetric=True), format="int4_g128_bf16",
        config=compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=128, symmetric=True),
    ),
    "int4 g128 zeros": Kind(
        write=lambda *a: int4(*a, group=128, dtype=BF16, symmetric=False), format="int4_g128_bf16",
        config=compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=128, symmetric=False),
    ),
    "int4 g64 zeros": Kind(
        write=lambda *a: int4(*a, group=64, dtype=BF16, symmetric=False), format="int4_g32_bf16",
        config=compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=64, symmetric=False),
    ),
    "int4 rows": Kind(
        write=lambda *a: int4(*a, group=0, dtype=BF16, symmetric=True), format="int4_g128_bf16",
        config=compressed("pack-quantized", num_bits=4, type="int", strategy="channel", symmetric=True),
    ),
    "awq": Kind(
        write=lambda *a: awq(*a, group=128), format="int4_g128",
        config={"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
    ),
    "awq g32": Kind(
        write=lambda *a: awq(*a, group=32), format="int4_g32",
        config={"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "GEMM"},
    ),
    "gptq": Kind(
        write=lambda *a: gptq(*a, group=128, less=1, dtype=F16, order=True), format="int4_g128",
        config={"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": False, "desc_act": False},
    ),
    "gptq v2": Kind(
        write=lambda *a: gptq(*a, group=64, less=0, dtype=BF16, order=True), format="int4_g32_bf16",
        config={"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": False, "checkpoint_format": "gptq_v2"},
    ),
    "gptq rows": Kind(
        write=lambda *a: gptq(*a, group=0, less=1, dtype=F16, order=False), format="int4_g128",
        config={"quant_method": "auto-round", "bits": 4, "group_size": -1, "packing_format": "auto_round:auto_gptq"},
    ),
    "nvfp4": Kind(
        write=lambda *a: nvfp4(*a, packed_name=".weight", whole=".weight_scale_2", inverse=False), format="nvfp4",
        config={"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}, activations=True,
    ),
    "nvfp4 inverse": Kind(
        write=lambda *a: nvfp4(*a, packed_name=".weight_packed", whole=".weight_global_scale", inverse=True),
        config=compressed("nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16),
        format="nvfp4", is_exact=False,
    ),
    "mxfp4": Kind(
        write=mxfp4, format="mxfp4",
        config=compressed("mxfp4-pack-quantized", num_bits=4, type="float", strategy="group", group_size=32),
    ),
}  # fmt: skip
DEVIATION = {"fp8": 120.0, "nvfp4": 300.0, "mxfp4": 2.7}  # of codes; 4.6 for integers


def deviation(kind: Kind) -> float:
    return DEVIATION.get(kind.format, 4.6)


def write(
    source: Path, to: Path, twin: Path, kind: Kind, is_quantised: Callable[[str], bool], seed: int = 0
) -> list[str]:
    """Writes the shapes of a float checkpoint with these modules quantised, the others in bf16, and the same model in
    float32 into `twin`; returns the modules."""
    g, stored, values, modules = torch.Generator().manual_seed(seed), {}, {}, []
    for name, tensor in load(source).items():
        module = name.removesuffix(".weight")
        if tensor.dim() == 2 and name.endswith(".weight") and is_quantised(module):
            parts, values[name] = kind.write(g, *tensor.shape, usual(deviation(kind)))
            stored |= {module + end: part.contiguous() for end, part in parts.items()}
            if kind.activations:
                stored[module + ".input_scale"] = torch.tensor(0.1)
            modules.append(module)
        else:
            stored[name] = tensor.to(torch.bfloat16)
            values[name] = stored[name].float()
    config = json.loads((source / "config.json").read_text())
    for folder, tensors, more in ((to, stored, {"quantization_config": kind.config}), (twin, values, {})):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({**config, **more}))
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return modules


def load(directory: Path) -> dict[str, Tensor]:
    return {
        name: tensor for path in sorted(directory.glob("*.safetensors")) for name, tensor in load_file(path).items()
    }
