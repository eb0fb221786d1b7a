"""Cosine and sine tables of the rotary embedding, for every kind of scaling that `RopeSpec` names; and the temperature
of queries by position.

Frequencies and angles are float32, as the models were trained: a float64 table differs by up to 5e-4 rad at position
10^4.
Sources: RoFormer (arXiv 2104.09864); YaRN (arXiv 2309.00071, sections 3.2 and 3.3); Llama 3.1's published rule.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...loaders.spec import RopeSpec, Temperature


def tables(rope: RopeSpec, positions: int, learned: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [positions, rotary_dim / 2]. Of two sets of factors that for longer contexts holds, for
    every sequence, where one may have more positions than were trained: keys that are cached stay right. learned:
    logarithms of what the frequencies are multiplied by, of a rope that has such."""
    is_long = rope.kind == "longrope" and positions > rope.original_context
    turns = frequencies(rope, is_long)
    if rope.learned:
        assert learned is not None, "a rope without its learned frequencies"
        turns = turns * learned.exp()
    angles = torch.arange(positions, dtype=torch.float32).unsqueeze(1) * turns
    factor = rope.long_attention_factor if is_long else rope.attention_factor
    return angles.cos() * factor, angles.sin() * factor


def temperatures(it: Temperature, positions: int) -> Tensor:
    """What queries are multiplied by, float32 [positions]."""
    places = torch.arange(positions, dtype=torch.float32)
    return 1 + it.scale * torch.log1p(torch.floor((places + it.first) / it.length))


def frequencies(rope: RopeSpec, is_long: bool = False) -> Tensor:
    """Radians per position of each rotated pair, float32 [rotary_dim / 2]. is_long: by the second set of factors."""
    if rope.kind == "none":
        return torch.zeros(rope.rotary_dim // 2)
    plain = 1.0 / (rope.theta ** (torch.arange(0, rope.rotary_dim, 2, dtype=torch.float32) / rope.rotary_dim))
    if rope.kind == "linear":
        return plain / rope.factor
    if rope.kind == "llama3":
        return _llama3(plain, rope)
    if rope.kind == "yarn":
        return _yarn(plain, rope)
    if rope.kind in ("divided", "longrope"):
        return plain / torch.tensor(rope.long_factors if is_long else rope.factors)
    if rope.kind == "proportional":
        plain[int(rope.share * rope.rotary_dim / 2) :] = 0.0
        return plain / rope.factor
    return plain


def _llama3(plain: Tensor, rope: RopeSpec) -> Tensor:
    """Slow pairs are divided by the factor, fast ones kept, those between blended by their turns in the old context."""
    turns = rope.original_context * plain / (2 * math.pi)
    span = max(rope.high_freq_factor - rope.low_freq_factor, 1e-6)  # Llama 4 has both alike: nothing lies between
    blend = (turns - rope.low_freq_factor) / span
    blend = blend.clamp(0, 1)
    return (1 - blend) * plain / rope.factor + blend * plain


def _yarn(plain: Tensor, rope: RopeSpec) -> Tensor:
    """Pairs that turn often keep their frequency, slow ones are divided by the factor, a linear ramp between."""

    def pair_with(turns: float) -> float:
        """The (fractional) pair that makes so many turns within the old context."""
        return rope.rotary_dim * math.log(rope.original_context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair_with(rope.beta_fast), pair_with(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_dim - 1)
    high = high + 0.001 if low == high else high
    ramp = ((torch.arange(len(plain), dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return plain / rope.factor * ramp + plain * (1 - ramp)
