"""Seconds of weights on a device: the larger of bytes over bandwidth and FLOPs over compute."""

from __future__ import annotations

import math

from ...loaders.architecture import encodings
from .hardware import Device, End, Range


def part_seconds(
    device: Device, format: str, read: float, flops: float, end: End = "mid", experts: bool = False, tokens: float = 1.0
) -> float:
    """Seconds of weights in a format that `tokens` tokens (on average) are multiplied by."""
    bandwidth: Range = device.reads(format, experts)
    if device.slowdown is not None and device.measured(format, experts):
        return read / bandwidth.at(end) * device.slowdown(format, tokens, experts)
    rate = device.flops.at(end) if device.flops else math.inf
    if known := device.measured(format, experts):
        # A kernel that reads weights so fast multiplies them as fast.
        rate = max(rate, 2 * known / encodings.find(format).bytes_per_weight)
    return max(read / bandwidth.at(end), flops / rate)
