"""Results of `vs_peers.py` as a table, and against those of an earlier run. Pure: numbers in, lines out."""

from __future__ import annotations

from typing import Any

Result = dict[str, Any]

TOLERANCE = 0.05
PLAIN_KEYS = (
    *(
        f"{what}_same_file_{recipe}"
        for recipe in ("q4_0", "q4_k_m")
        for what in ("decode", "decode_per_byte", "prefill512")
    ),
    *(f"prefill512_same_file_{recipe}_avx512" for recipe in ("q4_0", "q4_k_m")),
    "batch8_vs_batch1",
    *(f"expert_layer_vs_kt_kernel_{n}" for n in ("1", "512", "int8_1", "int8_512")),
    *(f"expert_layer_vs_kt_kernel_{n}_one_thread" for n in ("1", "512", "int8_1", "int8_512")),
)


def keys_of(result: Result) -> dict[str, float]:
    """The ratios of a result that were measured, all of them the higher the better."""
    shares = {f"share_of_read_bandwidth.{k}": v for k, v in result.get("share_of_read_bandwidth", {}).items()}
    return {**shares, **{key: result[key] for key in PLAIN_KEYS if result.get(key) is not None}}


def worse(old: Result, new: Result, tolerance: float = TOLERANCE) -> list[str]:
    """A line for every ratio that fell by more than the tolerance; ratios that one side lacks are left out."""
    before, after = keys_of(old), keys_of(new)
    return [
        f"{key}: {before[key]:.3f} -> {value:.3f} ({value / before[key] - 1:+.1%})"
        for key, value in after.items()
        if key in before and value < before[key] * (1 - tolerance)
    ]


def differs(old: Result, new: Result) -> str | None:
    """Why two results cannot be compared: another processor, instruction set or number of threads; None if they can."""
    for field in ("cpu", "isa", "threads"):
        a, b = old["passport"].get(field), new["passport"].get(field)
        if a != b:
            return f"{field} is {b!r}, in the old result {a!r}: not compared"
    if old.get("layers") != new.get("layers"):
        return f"layers are {new.get('layers')}, in the old result {old.get('layers')}: not compared"
    return None


def compare(old: Result, new: Result) -> tuple[list[str], int]:
    """What to print, and the exit status: 1 if a ratio got worse."""
    reason = differs(old, new)
    if reason:
        return [reason], 0
    lines = worse(old, new)
    return lines or ["nothing got worse by more than 5 %"], int(bool(lines))


def table(result: Result) -> list[str]:
    """The ratios, each with the medians behind it."""
    lines = [f"{key:40} {value:7.3f}" for key, value in keys_of(result).items()]
    for what, values in result.get("medians", {}).items():
        lines.append(f"{what}: " + ", ".join(f"{name} {value:g}" for name, value in values.items()))
    return lines
