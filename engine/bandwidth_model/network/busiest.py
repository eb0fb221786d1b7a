"""How much the busiest of several machines gets of a layer's choices, where each expert is as likely as the next.

A machine with a share s of E experts gets s * n of n different ones on average, and in most layers one gets more. The
choice is without putting back, so its variance is n s (1 - s) (E - n) / (E - 1). The most of m machines that share a
sum is as far above the mean as the most of m normal values (Blom's figure), times sqrt(m / (m - 1)).
"""

from __future__ import annotations

import math
from statistics import NormalDist


def most(chosen: float, share: float, experts: int, machines: int) -> float:
    """Different experts of `chosen` that a machine has to expect where the slowest of so many counts."""
    mean = chosen * share
    if machines < 2 or experts < 2 or not 0 < share < 1:
        return mean
    above = NormalDist().inv_cdf((machines - 0.375) / (machines + 0.25)) * math.sqrt(machines / (machines - 1))
    variance = chosen * share * (1 - share) * max(0.0, experts - chosen) / (experts - 1)
    return min(chosen, experts * share, mean + above * math.sqrt(variance)) if mean else 0.0
