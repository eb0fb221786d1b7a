"""Residual streams that are several, or whose earlier states are kept. Parts of a `ModelSpec` (`spec.py`)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StreamsSpec:
    """Several residual streams in place of one: how many, how often rows and columns of what mixes them are brought to
    a sum of 1, and what is added so that no sum is 0. weighted_end: behind the last layer each counts by a gate that is
    made of all; else it is their mean. See `kernels/residual/streams.py`."""

    count: int
    rounds: int
    eps: float
    weighted_end: bool = False


@dataclass(frozen=True, kw_only=True)
class GatedStreamsSpec:
    """Several residual streams that are not mixed: a part takes of each what gates of a lower rank let through. See
    `kernels/residual/gated.py`."""

    count: int
    rank: int


@dataclass(frozen=True, kw_only=True)
class BankedStreamsSpec:
    """One residual stream, and what it was in front of every `every`-th layer, which is kept: `count` in all. joined:
    a checkpoint has what states fit to as one vector, not as a norm's weights and a projection. See
    `kernels/residual/banked.py`."""

    count: int
    every: int
    joined: bool = False
