"""The methods by which safetensors are quantised: what each stores for a weight, and which modules it leaves alone.

Each reads numbers, never a default by its own name where the config has one. A method that nobody knows is read by its
bits and group all the same (`of_config.py`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .encodings import ENCODINGS, Encoding, bits_per_weight, by_numbers
from .numbers import bits_of, by_name, group_of, is_symmetric, number, skipped


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """What a method does. `linear`: matrices of the layers (None: it is not said); `experts`: routed ones where they
    differ; `head`, `embed`, `router` None: as they were. `plain`: patterns of modules that stay as they were; `own`:
    of modules with an encoding of their own, the first that fits."""

    linear: Encoding | None
    experts: Encoding | None = None
    only_experts: bool = False
    head: Encoding | None = None
    embed: Encoding | None = None
    router: Encoding | None = None
    plain: Iterable[Any] = ()
    own: list[tuple[Any, Encoding | None]] = field(default_factory=list)


Config = Mapping[str, Any]


def mlx(q: Config) -> Scheme:
    """Every matrix, embedding, head and router included; modules under their own path override, false leaves one."""
    default = _mlx(q)
    own = [
        (path, _mlx({**q, **value}) if isinstance(value, dict) else None)
        for path, value in q.items()
        if isinstance(value, dict) or value is False
    ]
    return Scheme(linear=default, head=default, embed=default, router=default, own=own)


def _mlx(q: Config) -> Encoding | None:
    mode = str(q.get("mode") or "affine")
    if mode in ENCODINGS:
        return ENCODINGS[mode]
    bits = bits_of(q)  # a scale and a bias of two bytes each
    return None if bits is None else by_numbers(bits, group_of(q, 64), zero=2)


def gptq(q: Config) -> Scheme:
    """Packed columns, scales, packed zero points also where symmetric, and the group of every column."""

    def one(numbers: Config) -> Encoding | None:
        bits = bits_of(numbers)
        return None if bits is None else by_numbers(bits, group_of(numbers), column=4)

    own: list[tuple[Any, Encoding | None]] = []
    for pattern, changes in (q.get("dynamic") or {}).items():
        sign, _, rest = str(pattern).rpartition(":") if str(pattern)[:2] in ("-:", "+:") else ("", "", str(pattern))
        own.append((f"re:{rest}", None if sign == "-" else one({**q, **(changes or {})})))
    default = one(q)
    return Scheme(linear=default, head=default if q.get("lm_head") is True else None, plain=skipped(q), own=own)


def awq(q: Config) -> Scheme:
    bits = bits_of(q)
    zero = 0 if is_symmetric(q, False) else None
    return Scheme(linear=None if bits is None else by_numbers(bits, group_of(q), zero=zero), plain=skipped(q))


def auto_round(q: Config) -> Scheme:
    """As gptq or awq pack, with bits of their own for modules in `extra_config`."""

    def one(numbers: Config) -> Encoding | None:
        bits, kind = bits_of(numbers), str(numbers.get("data_type") or "int")
        if bits is None or bits >= 16:
            return None
        named = by_name(kind if kind[-1:].isdigit() else f"{kind}{bits:g}") if kind != "int" else None
        column = 4 if numbers.get("packing_format") == "auto_gptq" else 0
        return named or by_numbers(bits, group_of(numbers), column=column)

    own = [
        (path, one({**q, **value})) for path, value in (q.get("extra_config") or {}).items() if isinstance(value, dict)
    ]
    return Scheme(linear=one(q), plain=skipped(q), own=own)


def bitsandbytes(q: Config) -> Scheme:
    """4 bits with a scale for 64 weights, itself of 8 bits where it is quantised twice; or 8 with one a row."""
    if q.get("load_in_8bit") or q.get("_load_in_8bit"):
        found = Encoding(name="int8-row", block=1, block_bytes=1, row_bytes=4)
    else:
        block = int(number(q, ("bnb_4bit_blocksize", "blocksize")) or 64)
        kind = str(q.get("bnb_4bit_quant_type") or "fp4")
        scale = 1 + 4 / 256 if q.get("bnb_4bit_use_double_quant") else 4
        found = Encoding(name=kind, block=block, block_bytes=block / 2 + scale)
    return Scheme(linear=found, plain=skipped(q))


def exl(q: Config) -> Scheme:
    """exl2 and exl3: bits on average over the layers, the head with its own."""
    bits, head = bits_of(q), number(q, ("head_bits",))
    return Scheme(
        linear=None if bits is None else bits_per_weight(bits), head=bits_per_weight(head or 6), plain=skipped(q)
    )


def hqq(q: Config) -> Scheme:
    """A scale and a zero point of two bytes each; settings may be listed by kind of module."""

    def one(numbers: Config) -> Encoding | None:
        bits = bits_of(numbers)
        return None if bits is None else by_numbers(bits, group_of(numbers, 64), zero=2)

    inside = q.get("quant_config") or {}
    own = [(path, one(value)) for path, value in inside.items() if isinstance(value, dict) and "." in path]
    default = None if own and "weight_quant_params" not in inside else one(q)
    return Scheme(linear=default or (own[0][1] if own else None), plain=skipped(q), own=own)


def compressed_tensors(q: Config) -> Scheme:
    """Groups of modules with their own bits, and modules that are ignored."""
    default: Encoding | None = None
    own: list[tuple[Any, Encoding | None]] = []
    for group in (q.get("config_groups") or {}).values():
        weights = group.get("weights") or {}
        found = _weights(weights, str(group.get("format") or q.get("format"))) if weights else None
        targets = [str(target) for target in group.get("targets") or ["Linear"]]
        named = [target for target in targets if "." in target or target.startswith("re:") or target == "lm_head"]
        own += [(target, found) for target in named]
        default = default if named else default or found
    is_named = any(found for _, found in own)
    return Scheme(
        linear=default or (None if not is_named else UNTOUCHED), plain=skipped(q), own=own, head=_of_head(own)
    )


def _of_head(own: list[tuple[Any, Encoding | None]]) -> Encoding | None:
    return next((found for pattern, found in own if "lm_head" in str(pattern)), None)


UNTOUCHED = Encoding(name="as it was", block=1, block_bytes=0)  # of matrices that no group names


def _weights(weights: Config, layout: str = "") -> Encoding | None:
    """One set of weights by its numbers: type, bits, strategy, group."""
    bits, group = bits_of(weights), number(weights, ("group_size",))
    strategy = str(weights.get("strategy") or ("group" if group and group > 0 else "channel"))
    if bits is None:
        return None
    if str(weights.get("type")) == "float" or "fp" in layout:
        if bits == 4:
            return ENCODINGS["mxfp4" if group == 32 or "mx" in layout else "nvfp4"]
        if bits == 8 and strategy == "block":
            return _tiled(weights.get("block_structure"))
        return ENCODINGS["mxfp8" if group == 32 else "fp8-channel"]
    zero = None if weights.get("symmetric") is False else 0.0
    whole = strategy in ("channel", "tensor") or not group or group < 1
    if bits == 8 and whole:
        return ENCODINGS["int8"]
    return by_numbers(bits, None if whole else int(group or 0), zero=zero)


def _tiled(block: object) -> Encoding:
    """FP8 with a scale for each tile."""
    sizes = block if isinstance(block, list) and len(block) == 2 and all(isinstance(n, int) for n in block) else None
    if sizes is None or sizes == [128, 128]:
        return ENCODINGS["fp8"]
    rows, cols = sizes
    if rows == 1:
        return Encoding(name=f"fp8-g{cols}", block=cols, block_bytes=cols + 4)
    return Encoding(name=f"fp8-{rows}x{cols}", block=1, block_bytes=1, tile=cols, tile_bytes=4)


def modelopt(q: Config) -> Scheme:
    """NVIDIA's: an algorithm for all, or one for each module."""
    group = group_of(q)
    if str(q.get("quant_algo")).upper() == "MIXED_PRECISION" or (not q.get("quant_algo") and q.get("quantized_layers")):
        layers = q.get("quantized_layers") or {}
        own = [(path, by_name(str(v.get("quant_algo")), group_of(v))) for path, v in layers.items()]
        return Scheme(linear=UNTOUCHED if own else None, plain=skipped(q), own=own)
    algorithm = str(q.get("quant_algo") or "")
    if "PB" in algorithm.upper():  # per block
        return Scheme(linear=ENCODINGS["fp8"], plain=skipped(q))
    found = by_name(algorithm, group)
    if found is None and q.get("config_groups"):
        return compressed_tensors(q)
    return Scheme(linear=found, plain=skipped(q))


def quark(q: Config) -> Scheme:
    """AMD's: one setting for all, others by layer."""

    def one(setting: object) -> Encoding | None:
        weights = setting.get("weight") if isinstance(setting, dict) else None
        weights = weights[0] if isinstance(weights, list) and weights else weights
        if not isinstance(weights, dict):
            return None
        name, scheme = str(weights.get("dtype")).lower(), str(weights.get("qscheme"))
        group = number(weights, ("group_size",)) if "group" in scheme else None
        if "fp4" in name:
            return ENCODINGS["nvfp4" if group == 16 else "mxfp4"]
        if "fp6" in name:
            return by_numbers(6, int(group or 32), scale=1, zero=0, kind="fp")
        if match := re.search(r"int(\d)", name):
            bits = int(match[1])
            return by_numbers(bits, int(group) if group else None, zero=0 if weights.get("symmetric") else None)
        return by_name(name)

    layers = (q.get("layer_quant_config") or {}).items()
    return Scheme(linear=one(q.get("global_quant_config")), plain=skipped(q), own=[(p, one(s)) for p, s in layers])


def fp8(q: Config) -> Scheme:
    tiles = q.get("weight_block_size")
    return Scheme(linear=_tiled(tiles) if tiles else ENCODINGS["fp8-channel"], plain=skipped(q))


def only_experts(name: str) -> Callable[[Config], Scheme]:
    """Routed experts in blocks of floats, all else as it was: how gpt-oss is released."""
    return lambda q: Scheme(linear=ENCODINGS[name], only_experts=True, plain=skipped(q))


def torchao(q: Config) -> Scheme:
    """The width that stands before "weight"; integers of 4 bits have scales and zero points of two bytes."""
    text, group = str(q.get("quant_type")).lower(), number(q, ("group_size",))
    width = re.search(r"(int|float)(\d)_?weight", text)
    if width and width[1] == "int" and width[2] != "8":
        found = by_numbers(int(width[2]), int(group) if group and group > 0 else 128, zero=2)
    else:
        found = by_name(width[0] if width else text, int(group) if group and group > 0 else 128)  # type: ignore[assignment]
    both = found if q.get("include_input_output_embeddings") else None
    return Scheme(linear=found, head=both, embed=both, plain=skipped(q))


def vptq(q: Config) -> Scheme:
    """Vectors of weights as indices into tables of centroids, and of residuals."""
    layers = q.get("config_for_layers") or {}
    own = [(path, _of_centroids(value)) for path, value in layers.items() if isinstance(value, dict)]
    return Scheme(linear=own[0][1] if own else None, plain=skipped(q), own=own)


def _of_centroids(q: Config) -> Encoding | None:
    def last(name: str) -> float:
        value = q.get(name)
        value = value[-1] if isinstance(value, list) and value else value
        return float(value) if isinstance(value, (int, float)) else 0.0

    length, first, rest = last("vector_lens"), last("num_centroids"), last("num_res_centroids")
    if length < 1 or first < 2:
        return None
    return bits_per_weight((math.log2(first) + (math.log2(rest) if rest > 1 else 0)) / length)


def aqlm(q: Config) -> Scheme:
    """Groups of weights as sums of entries of codebooks."""
    sizes = [number(q, (n,)) for n in ("nbits_per_codebook", "num_codebooks", "in_group_size", "out_group_size")]
    if sizes[0] is None or sizes[1] is None or not sizes[2]:
        return Scheme(linear=None)
    bits = sizes[0] * sizes[1] / (sizes[2] * (sizes[3] or 1))
    found = Encoding(name=f"{bits:g}bpw", block=1, block_bytes=bits / 8, row_bytes=2)
    return Scheme(linear=found, plain=skipped({**q, "ignore": q.get("linear_weights_not_to_quantize")}))


def bitnet(q: Config) -> Scheme:
    """Ternary weights, four in a byte."""
    return Scheme(linear=Encoding(name="ternary", block=4, block_bytes=1), plain=skipped(q))


def in_rows(name: str) -> Callable[[Config], Scheme]:
    """One scale a row."""
    return lambda q: Scheme(linear=ENCODINGS[name], plain=skipped(q))


METHODS: dict[str, Callable[[Config], Scheme]] = {
    "mlx": mlx, "gptq": gptq, "gptqmodel": gptq, "awq": awq, "autoround": auto_round, "bitsandbytes": bitsandbytes,
    "bnb": bitsandbytes, "exl2": exl, "exl3": exl, "hqq": hqq, "compressedtensors": compressed_tensors,
    "modelopt": modelopt, "quark": quark, "fp8": fp8, "mxfp4": only_experts("mxfp4"), "mxfp8": in_rows("mxfp8"),
    "fbgemmfp8": in_rows("fp8-channel"), "ptpcfp8": in_rows("fp8-channel"), "torchao": torchao, "vptq": vptq,
    "eetq": in_rows("int8"), "aqlm": aqlm, "bitnet": bitnet,
}  # fmt: skip


def find(name: str) -> Callable[[Config], Scheme] | None:
    """The method of that name, or of the one that it is a variant of: "intel/auto-round", "finegrained_fp8"."""
    key = re.sub(r"[^a-z0-9]", "", name.lower().rpartition("/")[2])
    if key in METHODS:
        return METHODS[key]
    is_integer = re.search(r"(?:w|int)\d", key)  # "w4a8_fp8": the name says more than its end
    for known in sorted(METHODS, key=len, reverse=True):
        if key.startswith(known) or (key.endswith(known) and not is_integer):
            return METHODS[known]
    return None
