"""What a config says of the quantisation of a checkpoint's weights: whether it can be run, and what tensors cannot say.

A method is a row of `METHODS`: a function that reads its config and refuses, by name, what there are no kernels for.
Which tensors are quantised, the config does not decide: their types and shapes do (`loaders/quantised`), so that
modules which were left alone are read as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ConfigError, short
from .config_reader import ConfigReader, says_nothing

KEYS = ("quantization", "quantization_config", "compression_config")
# Files beside a config.json that say how it is quantised, and by what.
BESIDE = {"hf_quant_config.json": "modelopt", "quantize_config.json": "gptq", "quant_config.json": "awq"}
RUN = "fp8 (e4m3), awq and gptq of 4 bits, compressed-tensors (fp8, int4, nvfp4, mxfp4), modelopt (FP8, NVFP4), mxfp4"

Config = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Quantisation:
    """How weights are stored. method: its name. tile: rows and columns that share a scale, of fp8, where the config
    says it. zero: what is added to a zero point as it is stored. interleaved: 4-bit codes lie in the order of AWQ."""

    method: str
    tile: tuple[int, int] | None = None
    zero: int = 0
    interleaved: bool = False


class _NotRun(Exception):
    """What there are no kernels for, in words."""


def read(config: ConfigReader) -> Quantisation | None:
    """The quantisation of a checkpoint, None if it has none; raises ConfigError for one that cannot be run."""
    config.seen.update(KEYS)
    value = next((v for key in KEYS if not says_nothing(v := config.values.get(key))), None)
    if value is None:
        return None
    try:
        if not isinstance(value, dict):
            raise _NotRun(short(repr(value), 40))
        q = {"quant_method": "modelopt", **inside} if isinstance(inside := value.get("quantization"), dict) else value
        return _method(q)
    except _NotRun as what:
        config.refuse(
            ConfigError(
                f"{config.source}: the weights are quantised as {what}, which cannot be run; {RUN} can: get one of "
                "these, or the unquantised checkpoint, which can be quantised while loading"
            )
        )
        return None


def with_file_beside(values: dict[str, Any], directory: Path) -> dict[str, Any]:
    """The values of a config.json, with the quantisation that some tools write into a file beside it."""
    for name, method in BESIDE.items():
        if not any(values.get(key) for key in KEYS) and (directory / name).is_file():
            found = {"quant_method": method, **ConfigReader.open(directory / name).values}
            return {**values, "quantization_config": found}
    return values


def _method(q: Config) -> Quantisation:
    name = str(q.get("quant_method") or ("modelopt" if q.get("quant_algo") else "")).lower()
    reader = METHODS.get(re.sub(r"[^a-z0-9]", "", name.rpartition("/")[2]))
    if reader is None:
        raise _NotRun(short(name, 40) or "MLX does, or without a quant_method")
    return reader(q)


def _fp8(q: Config) -> Quantisation:
    kind = str(q.get("fmt") or "e4m3")
    if kind not in ("e4m3", "float8_e4m3fn"):  # as DeepSeek and as MiniMax call it
        raise _NotRun(f"fp8 of the kind {short(kind, 20)}")
    return Quantisation(method="fp8", tile=_tile(q.get("weight_block_size")))


def _tile(value: Any) -> tuple[int, int] | None:
    """Two whole numbers, as a list or as "128x128"; None: it is not said."""
    if value is None:
        return None
    sizes = value.lower().split("x") if isinstance(value, str) else value
    try:
        rows, cols = (int(size) for size in sizes)
    except (TypeError, ValueError):
        raise _NotRun(f"fp8 in tiles of {short(repr(value), 30)}") from None
    if rows < 1 or cols < 1 or cols % 128:
        raise _NotRun(f"fp8 in tiles of {rows} x {cols} (columns must be a multiple of 128)")
    return rows, cols


def _compressed(q: Config) -> Quantisation:
    sparse, turned = q.get("sparsity_config") or {}, q.get("transform_config") or {}
    if isinstance(sparse, dict) and str(sparse.get("format") or "dense") != "dense":
        raise _NotRun(f"compressed-tensors with weights left out ({short(str(sparse['format']), 30)})")
    if not says_nothing(turned):
        raise _NotRun("compressed-tensors with activations that are transformed (transform_config)")
    groups = q.get("config_groups")
    groups = list(groups.values()) if isinstance(groups, dict) else []
    tiles = [_of_group(group, q) for group in groups if isinstance(group, dict) and group.get("weights")]
    return Quantisation(method="compressed-tensors", tile=next((tile for tile in tiles if tile), None))


def _of_group(group: Config, q: Config) -> tuple[int, int] | None:
    """The tile of a group of modules; raises for a kind that has no kernels."""
    weights, layout = group["weights"], str(group.get("format") or q.get("format"))
    bits, kind = weights.get("num_bits"), str(weights.get("type") or "int")
    if layout not in LAYOUTS.get((kind, bits), ()):
        raise _NotRun(f"compressed-tensors {short(layout, 30)} with {kind} of {short(str(bits), 10)} bits")
    return _tile(weights.get("block_structure")) if kind == "float" and bits == 8 else None


# How compressed-tensors stores weights that can be run, by their type and bits.
LAYOUTS = {
    ("float", 8): ("float-quantized", "naive-quantized", "None"),
    ("float", 4): ("nvfp4-pack-quantized", "mxfp4-pack-quantized"),
    ("int", 4): ("pack-quantized",),
}


def _modelopt(q: Config) -> Quantisation:
    algorithm = str(q.get("quant_algo") or "").upper()
    if not algorithm and q.get("config_groups"):
        return _compressed({**q, "format": "None"})
    if algorithm not in ("FP8", "FP8_PB_WO", "FP8_PER_CHANNEL_PER_TOKEN", "NVFP4", "MIXED_PRECISION"):
        raise _NotRun(f"modelopt {short(algorithm, 30)}")
    return Quantisation(method="modelopt")


def _awq(q: Config) -> Quantisation:
    version = str(q.get("version") or q.get("format") or "gemm").lower()
    _only_four_bits(q, "awq")
    if version != "gemm":
        raise _NotRun(f"awq of the version {short(version, 20)}")
    return Quantisation(method="awq", interleaved=True)


def _gptq(q: Config) -> Quantisation:
    layout = str(q.get("checkpoint_format") or q.get("format") or "gptq").lower()
    _only_four_bits(q, "gptq")
    if layout not in ("gptq", "gptq_v2") or q.get("is_marlin_format"):
        raise _NotRun(f"gptq in the layout {'marlin' if q.get('is_marlin_format') else short(layout, 20)}")
    return Quantisation(method="gptq", zero=0 if layout == "gptq_v2" else 1)


def _auto_round(q: Config) -> Quantisation:
    packing = str(q.get("packing_format") or "auto_round:auto_gptq").lower().rpartition(":")[2]
    if packing not in ("auto_gptq", "auto_awq"):
        raise _NotRun(f"auto-round in the packing {short(packing, 30)}")
    return (_gptq if packing == "auto_gptq" else _awq)({"bits": q.get("bits")})


def _only_four_bits(q: Config, method: str) -> None:
    bits = q.get("bits", q.get("w_bit"))
    if bits != 4:
        raise _NotRun(f"{method} of {short(str(bits), 10)} bits")


METHODS: dict[str, Callable[[Config], Quantisation]] = {
    "fp8": _fp8, "fbgemmfp8": _fp8, "compressedtensors": _compressed, "modelopt": _modelopt, "awq": _awq,
    "gptq": _gptq, "gptqmodel": _gptq, "autoround": _auto_round, "mxfp4": lambda q: Quantisation(method="mxfp4"),
}  # fmt: skip
