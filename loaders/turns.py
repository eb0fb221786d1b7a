"""What positions do to queries and keys: turns, and how warm queries become. Parts of a `ModelSpec` (`spec.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RopeKind = Literal["default", "linear", "llama3", "yarn", "proportional", "divided", "longrope", "none"]


@dataclass(frozen=True, kw_only=True)
class RopeSpec:
    """Rotary embedding: rotate-half pairs over the first `rotary_dim` dims of a head; see `engine/model/rope.py`. A
    `kind` of "none" turns nothing."""

    theta: float
    rotary_dim: int
    kind: RopeKind = "default"
    factor: float = 1.0
    original_context: int = 0  # yarn, llama3: the context that was trained
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn: round the correction range to whole dims
    attention_factor: float = 1.0  # yarn: cos and sin are multiplied by it
    share: float = 1.0  # proportional: of the pairs that are turned, the first ones; the others stay as they are
    factors: tuple[float, ...] = ()  # divided, longrope: what each pair's frequency is divided by
    long_factors: tuple[float, ...] = ()  # longrope: the same where sequences may be longer than the trained context
    long_attention_factor: float = 1.0  # and what cos and sin are multiplied by then
    learned: bool = False  # frequencies are multiplied by e to the power of what a checkpoint has for each pair

    @property
    def extended_context(self) -> int:
        """Tokens that yarn stretches the trained context to; configs often leave max_position_embeddings below it."""
        return int(self.original_context * self.factor) if self.kind == "yarn" else 0


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """What a query at position p is multiplied by: 1 + scale * ln(1 + floor((p + first) / length)). Source: arXiv
    2501.19399."""

    scale: float
    length: int
    first: int = 0


NO_ROPE = RopeSpec(theta=1.0, rotary_dim=2, kind="none")
