"""`ModelSpec`: what a mixture-of-experts decoder is, with every number that the forward pass needs.

A spec is built from a config.json by `families/`, and from then on the family's name does not matter: the decoder
(`engine/model/decoder.py`), the loader and the planner read these fields alone. Sizes are counts of elements; nothing
here knows a tensor, a format or a device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

QkNorm = Literal["none", "head", "full"]
RopeKind = Literal["default", "linear", "llama3", "yarn"]


@dataclass(frozen=True, kw_only=True)
class RopeSpec:
    """Rotary embedding: rotate-half pairs over the first `rotary_dim` dims of a head; see `engine/model/rope.py`."""

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

    @property
    def extended_context(self) -> int:
        """Tokens that yarn stretches the trained context to; configs often leave max_position_embeddings below it."""
        return int(self.original_context * self.factor) if self.kind == "yarn" else 0


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """Grouped-query attention. `qk_norm`: RMSNorm per head, or over all heads at once; `clip`: q, k, v into +-clip."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: QkNorm = "none"
    clip: float | None = None

    @property
    def q_rows(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_rows(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def qkv_rows(self) -> int:
        """Rows of the stacked projection [q | k | v]."""
        return self.q_rows + 2 * self.kv_rows


@dataclass(frozen=True, kw_only=True)
class MoeSpec:
    """Routed experts of one layer, and the shared expert beside them (`shared_width` 0: none)."""

    experts: int
    top_k: int
    width: int
    scoring: Literal["softmax", "softmax_topk"]
    renormalise: bool
    shared_width: int = 0
    shared_gate: bool = False  # the shared expert is weighted by sigmoid(x . gate)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A decoder. `is_moe[i]` says whether layer i has routed experts; the others are dense, `dense_width` wide."""

    family: str
    vocab: int
    hidden: int
    context: int
    norm_eps: float
    attention: AttentionSpec
    rope: RopeSpec
    moe: MoeSpec
    is_moe: tuple[bool, ...]
    dense_width: int = 0
    tied_head: bool = False
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logits_divisor: float = 1.0
    eos_ids: tuple[int, ...] = ()

    @property
    def layers(self) -> int:
        return len(self.is_moe)

    @property
    def moe_layers(self) -> int:
        return sum(self.is_moe)

    @property
    def kv_elements_per_token(self) -> int:
        """Elements that one token adds to the KV cache over all layers: keys and values."""
        return 2 * self.layers * self.attention.kv_rows
