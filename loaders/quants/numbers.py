"""Numbers of a quantisation config, whatever each method calls them: bits, group, symmetric or not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from .encodings import ENCODINGS, Encoding, by_numbers

BITS = ("bits", "w_bit", "nbits", "num_bits", "weight_bits", "wbits", "w_bits", "n_bits", "q_bits", "bit", "quant_bits")
GROUP = ("group_size", "q_group_size", "groupsize", "weight_group_size", "g", "block_size", "q_group")
SKIPPED = (
    "modules_to_not_convert", "llm_int8_skip_modules", "exclude_modules", "exclude", "ignore", "ignored_layers",
    "skip_modules", "ignored_modules", "modules_to_skip", "skip_patterns", "exclude_layers",
)  # fmt: skip
# Widths that are said by a name alone, the first that is found: "NVFP4", "W4A16_AWQ", "int4_weight_only".
NAMED = (
    (re.compile(r"nv_?fp4"), "nvfp4"),
    (re.compile(r"mx_?fp4"), "mxfp4"),
    (re.compile(r"mx_?fp8"), "mxfp8"),
    (re.compile(r"fp8|float8|e4m3|e5m2"), "fp8-channel"),
)
INTEGER = re.compile(r"(?:int|w)(\d{1,2})(?!\d)")


def number(config: Mapping[str, Any], names: tuple[str, ...]) -> float | None:
    """The first number under one of these names, at the top or in what is nested: weights before activations."""
    for level in _levels(config, 0):
        for name in names:
            value = level.get(name)
            if isinstance(value, str) and re.fullmatch(r"-?\d+(?:\.\d+)?", value.strip()):
                value = float(value)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e6:
                return value
    return None


def _levels(config: Mapping[str, Any], depth: int) -> Iterator[Mapping[str, Any]]:
    yield config
    nested = [(key, value) for key, value in config.items() if isinstance(value, dict) and "activation" not in key]
    for _, value in sorted(nested, key=lambda pair: ("weight" not in pair[0], pair[0] != "default")):
        if depth < 4:
            yield from _levels(value, depth + 1)


def bits_of(config: Mapping[str, Any]) -> float | None:
    """Bits of a weight; None where no number says them."""
    bits = number(config, BITS)
    return bits if bits is not None and 0 < bits <= 64 else None


def group_of(config: Mapping[str, Any], default: int | None = 128) -> int | None:
    """Weights in a group; None for a whole row, which configs call -1 or 0."""
    group = number(config, GROUP)
    if group is None:
        return default
    return int(group) if group >= 1 else None


def is_symmetric(config: Mapping[str, Any], default: bool) -> bool:
    """Whether groups have no zero point."""
    for name, means in (("sym", True), ("symmetric", True), ("is_symmetric", True), ("zero_point", False)):
        if isinstance(config.get(name), bool):
            return bool(config[name]) is means
    return default


def skipped(config: Mapping[str, Any]) -> list[Any]:
    """Modules that a config leaves as they are, under any of the names for that."""
    return [item for name in SKIPPED for item in _listed(config.get(name))]


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value] if isinstance(value, str) else []


def by_name(text: str, group: int | None = 128) -> Encoding | None:
    """The encoding that a name says: a width of floats, or bits of integers."""
    text = text.lower()
    if match := INTEGER.search(text):  # "w4a8_fp8": the weights come first
        bits = int(match[1])
        if not text[: match.start()].endswith("u") and "fp" not in text[: match.start()] and 1 <= bits <= 8:
            is_float = next((name for pattern, name in NAMED if pattern.match(text)), None)
            if is_float is None and not (bits == 8 and "fp8" in text):
                return by_numbers(bits, group, zero=0) if bits < 8 else ENCODINGS["int8"]
    found = next((name for pattern, name in NAMED if pattern.search(text)), None)
    return ENCODINGS[found] if found else None
