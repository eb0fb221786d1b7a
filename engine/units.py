"""Bytes and counts as a person reads them, numbers as JSON has them. Knows no model and no run, and imports nothing."""

from __future__ import annotations

MB, GB = 1e6, 1e9


def size(count: float) -> str:
    """Bytes as a person reads them."""
    if count >= GB:
        return f"{count / GB:.2f} GB"
    return f"{count / MB:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def count(parameters: float) -> str:
    """Parameters as a person reads them."""
    return f"{parameters / 1e9:.3f} B" if parameters >= 1e8 else f"{parameters / 1e6:.2f} M"


def rounded(value: float | None) -> float | None:
    """With three digits behind the point, as JSON has it."""
    return None if value is None else round(value, 3)
