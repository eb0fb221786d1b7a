"""Mixers that keep a state of a sequence, of the same size however long it is: a delta rule, a convolution, a state
space. Parts of a `ModelSpec` (`spec.py`)."""

from __future__ import annotations

import math
from dataclasses import dataclass


class Recurrent:
    """What mixers have in common that keep a state of a sequence, and nothing of its tokens."""

    @property
    def cached(self) -> int:
        return 0

    @property
    def window(self) -> None:
        return None

    @property
    def shared_by(self) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class DeltaSpec(Recurrent):
    """Gated delta rule: of every sequence a state [k_dim, v_dim] for each head of values, and the last `taps` - 1
    inputs of a short convolution over queries, keys and values. by_key (Kimi's): each number of a key has a decay of
    its own, and what comes out is weighted by a sigmoid of its gate; both come through so many dimensions. Sources:
    arXiv 2412.06464; Kimi Linear (arXiv 2510.26692, section 3)."""

    k_heads: int
    v_heads: int
    k_dim: int
    v_dim: int
    taps: int
    in_turns: bool = False  # heads of values go by turns of those of keys, instead of next to each other
    by_key: bool = False
    decay_rank: int = 0  # only by_key; 0: straight from the hidden state
    gate_rank: int = 0
    least: float | None = None  # only by_key: the logarithm of a decay is so much, below 0, times a sigmoid
    sigmoid: bool = False  # the gate of what comes out is one also where decays are not by key

    @property
    def decays(self) -> int:
        """Numbers that say how fast the state of a token decays."""
        return self.v_heads * (self.k_dim if self.by_key else 1)

    @property
    def k_rows(self) -> int:
        return self.k_heads * self.k_dim

    @property
    def out_rows(self) -> int:
        return self.v_heads * self.v_dim

    @property
    def channels(self) -> int:
        """Of the convolution: queries, keys, values."""
        return 2 * self.k_rows + self.out_rows

    @property
    def state(self) -> int:
        return self.v_heads * self.k_dim * self.v_dim + self.channels * (self.taps - 1)

    @property
    def work_rows(self) -> int:
        return 3 * self.channels + 6 * self.out_rows + (6 * self.decays if self.by_key else 0)


@dataclass(frozen=True, kw_only=True)
class ConvSpec(Recurrent):
    """A short convolution between two gates: of every sequence the last `taps` - 1 inputs of each channel. bias: of
    the projections and of the convolution."""

    channels: int
    taps: int
    bias: bool = False

    @property
    def out_rows(self) -> int:
        return self.channels

    @property
    def state(self) -> int:
        return self.channels * (self.taps - 1)

    @property
    def work_rows(self) -> int:
        return 5 * self.channels


@dataclass(frozen=True, kw_only=True)
class SpaceSpec(Recurrent):
    """The state space of Mamba 2: of every sequence a state [k_dim, v_dim] for each head, and the last `taps` - 1
    inputs of a short convolution; what is put into states and what reads them are of `groups` heads. `bias`: of the
    projections; `dt_range`: of a step. Source: arXiv 2405.21060."""

    heads: int
    groups: int
    k_dim: int
    v_dim: int
    taps: int
    conv_bias: bool
    bias: bool = False
    dt_range: tuple[float, float] = (0.0, math.inf)

    @property
    def out_rows(self) -> int:
        return self.heads * self.v_dim

    @property
    def channels(self) -> int:
        """Of the convolution: values, then what they are put in by, then what reads."""
        return self.out_rows + 2 * self.groups * self.k_dim

    @property
    def in_rows(self) -> int:
        """Of the projection: the gate of what comes out, channels, steps."""
        return self.out_rows + self.channels + self.heads

    @property
    def state(self) -> int:
        return self.heads * self.k_dim * self.v_dim + self.channels * (self.taps - 1)

    @property
    def work_rows(self) -> int:
        return self.in_rows + self.channels + 3 * self.out_rows + 2 * self.heads
