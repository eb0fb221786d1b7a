"""`ModelSpec`: what a mixture-of-experts decoder is, with every number that the forward pass needs.

A layer is a mixer (what looks at other tokens: attention, latent attention, a delta rule, a convolution, a state
space) and what every token goes through alone (a dense MLP, or routed experts), or one of both. A spec is built from a
config.json by `families/`, and from then on the family's name does not matter: the decoder
(`engine/model/decoder.py`), the loader and the planner read these fields alone. Sizes are counts of elements; nothing
here knows a tensor, a format or a device.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ..kernels.recipes import SWIGLU, Activation, GroupScore, Scoring
from .choosers import BlockIndexerSpec, EntryIndexerSpec, IndexerSpec, RunIndexerSpec
from .compressed import CompressedSpec
from .grams import GramsSpec
from .recurrences import ConvSpec, DeltaSpec, Recurrent, SpaceSpec
from .residuals import BankedStreamsSpec, GatedStreamsSpec, StreamsSpec
from .turns import NO_ROPE, RopeKind, RopeSpec, Temperature

__all__ = [
    "NO_ROPE", "AttentionSpec", "BankedStreamsSpec", "BlockIndexerSpec", "CompressedSpec", "ConvSpec", "DeltaSpec",
    "DenseSpec", "EntryIndexerSpec", "GatedStreamsSpec", "GramsSpec", "IndexerSpec", "LatentSpec", "LayerSpec",
    "MixerSpec", "ModelSpec", "MoeSpec", "QkNorm", "Recurrent", "RopeKind", "RopeSpec", "RunIndexerSpec", "SpaceSpec",
    "StreamsSpec", "Temperature",
]  # fmt: skip

QkNorm = Literal["none", "head", "full", "plain"]
Gate = Literal["none", "of values", "of heads"]


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """Grouped-query attention. `qk_norm`: RMSNorm per head, over all heads at once, or per head without weights
    ("plain"); `clip`: q, k, v into +-clip; `window`: tokens that a query sees, itself included; `chunk`: of so many
    positions, a query sees those of its own one; `temperature`: of queries, behind their norms; `sinks`: a score more
    for each head, without a value; `gate`: what the heads give is weighted by the sigmoid of a projection, "of values"
    by one for each of them, "of heads" by one for each head; `soft_gate`: by the softplus; `norms_last`: queries and
    keys are rotated before their norms; `v_norm`: RMSNorm of values per head, without weights; `own_values`: without
    them keys before their norm serve as values; `narrow`: the width of a value, where it is not that of a key;
    `v_scale`: what values are multiplied by; `blocks`: some blocks of keys are seen alone."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: RopeSpec
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: QkNorm = "none"
    clip: float | None = None
    window: int | None = None
    chunk: int | None = None
    temperature: Temperature | None = None
    sinks: bool = False
    gate: Gate = "none"
    soft_gate: bool = False
    norms_last: bool = False
    v_norm: bool = False
    own_values: bool = True
    narrow: int | None = None
    v_scale: float = 1.0
    blocks: BlockIndexerSpec | RunIndexerSpec | None = None

    @property
    def v_dim(self) -> int:
        """The width of a value."""
        return self.narrow or self.head_dim

    @property
    def q_rows(self) -> int:
        return self.heads * self.head_dim

    @property
    def k_rows(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def v_rows(self) -> int:
        return self.kv_heads * self.v_dim

    @property
    def qkv_rows(self) -> int:
        """Rows of the stacked projection [q | k | v], or [q | k]."""
        return self.q_rows + self.k_rows + (self.v_rows if self.own_values else 0)

    @property
    def gate_rows(self) -> int:
        """Gates of a token, 0 where there are none."""
        return {"none": 0, "of values": self.out_rows, "of heads": self.heads}[self.gate]

    @property
    def cached(self) -> int:
        """Elements that one token adds to the cache."""
        return self.row + self.index_key

    @property
    def row(self) -> int:
        """Elements of a token's keys and values."""
        return self.k_rows + self.v_rows

    @property
    def index_key(self) -> int:
        """Elements of a token's key of the indexer."""
        return 0 if self.blocks is None else self.blocks.dim

    @property
    def state(self) -> int:
        """float32 elements of recurrent state of a sequence."""
        return 0

    @property
    def shared_by(self) -> float:
        """Query heads that read one cached key."""
        return self.heads / self.kv_heads

    @property
    def out_rows(self) -> int:
        """What the heads give together, the columns of the output projection."""
        return self.heads * self.v_dim

    @property
    def work_rows(self) -> int:
        """Values of a token that are in memory at once while the layer is computed, hidden states left out."""
        chosen = 0 if self.blocks is None else self.kv_heads * (2 * self.blocks.dim + self.blocks.keys)
        return 2 * self.qkv_rows + 3 * self.out_rows + 2 * self.gate_rows + chosen


@dataclass(frozen=True, kw_only=True)
class LatentSpec:
    """Multi-head latent attention: a token caches one latent of `kv_rank` and one rotary key of `rope.rotary_dim`,
    which all heads share. `q_rank`: queries come through so many dimensions, 0: straight from the hidden state; `nope`,
    `v_dim`: of a head's key without rotation, and of its value; `norm_eps`: of the norms of latents; `indexer`: only
    some keys are seen; `gate`: what a head gives is weighted by the sigmoid of a number; `by_logs`: queries of each
    head, and of the indexer's, are multiplied by a learned weight of the logarithm of their position plus a bias.
    Source: DeepSeek-V2 (arXiv 2405.04434, section 2.1)."""

    heads: int
    q_rank: int
    kv_rank: int
    nope: int
    v_dim: int
    scale: float
    rope: RopeSpec
    norm_eps: float
    bias: bool = False  # of the projections to the latents, and of the output
    temperature: Temperature | None = None  # of queries
    indexer: IndexerSpec | None = None
    gate: bool = False
    gate_of_values: bool = False  # a number for each value of a head, not one for each head
    by_logs: bool = False

    @property
    def rope_dim(self) -> int:
        return self.rope.rotary_dim

    @property
    def q_rows(self) -> int:
        return self.heads * (self.nope + self.rope_dim)

    @property
    def row(self) -> int:
        """Elements of a latent and its rotary key."""
        return self.kv_rank + self.rope_dim

    @property
    def index_key(self) -> int:
        """Elements of a token's key of the layer's own indexer."""
        return self.indexer.key if self.indexer is not None and self.indexer.own else 0

    @property
    def cached(self) -> int:
        return self.row + self.index_key

    @property
    def state(self) -> int:
        return 0

    @property
    def window(self) -> None:
        return None

    @property
    def shared_by(self) -> float:
        return float(self.heads)

    @property
    def out_rows(self) -> int:
        return self.heads * self.v_dim

    @property
    def work_rows(self) -> int:
        it = self.indexer
        chosen = 0 if it is None else it.top + it.own * (2 * it.heads * (it.dim + 1) + 2 * it.dim)
        attended = 2 * self.q_rows + 2 * self.heads * self.row + 2 * self.out_rows + self.q_rank + 2 * self.row
        return attended + chosen + self.gate * self.out_rows

    @property
    def gate_rows(self) -> int:
        """Gates of a token, 0 where there are none."""
        return self.gate * (self.out_rows if self.gate_of_values else self.heads)

    @property
    def made(self) -> int:
        """Values of a head's key and value that a prompt makes of a latent."""
        return self.nope + self.rope_dim + self.v_dim


MixerSpec = AttentionSpec | LatentSpec | CompressedSpec | DeltaSpec | ConvSpec | SpaceSpec


def chunk_of(mixer: MixerSpec) -> int | None:
    """Positions of the chunks that a mixer keeps to; None: it does not."""
    return mixer.chunk if isinstance(mixer, AttentionSpec) else None


@dataclass(frozen=True, kw_only=True)
class DenseSpec:
    """A gated MLP that every token goes through."""

    width: int
    activation: Activation = SWIGLU


@dataclass(frozen=True, kw_only=True)
class MoeSpec:
    """Routed experts of a layer, and the shared expert beside them (`shared_width` 0: none). The router's recipe is
    that of `kernels/reference.py`'s `route`."""

    experts: int
    top_k: int
    width: int
    scoring: Scoring
    renormalise: bool
    router_bias: bool = False
    choice_bias: bool = False
    groups: int = 1
    top_groups: int = 1
    group_score: GroupScore = "top2"
    scale: float = 1.0
    activation: Activation = SWIGLU
    expert_bias: bool = False
    shared_width: int = 0
    shared_gate: bool = False  # the shared expert is weighted by sigmoid(x . gate)
    shared_activation: Activation | None = None  # of the shared expert, where it has one of its own
    factors: bool = False  # each expert's weight is multiplied by a number of its own
    weighs_input: bool = False  # a weight multiplies what an expert takes, not what it gives
    jitter: float = 0.0  # of sparsemixer
    latent: int = 0  # routed experts work on so many dims, which the hidden state is projected to; 0: on itself
    latent_norm: bool = False  # of what they give, in front of the projection back
    by_token: bool = False  # a table says which experts a token has: scores weigh them, and choose none


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One layer: what looks at other tokens, then what every token goes through alone; or one of both. own_norms: what
    the mixer gives, the MLP, the experts, and the sum of both have norms behind them, MLP, experts and router one each
    in front, and at last the residual stream is multiplied by a number of the layer's own."""

    mixer: MixerSpec | None
    ffn: DenseSpec | MoeSpec | None
    own_norms: bool = False
    grams: GramsSpec | None = None  # what its tokens' runs have in a table is added before it

    @property
    def is_moe(self) -> bool:
        return isinstance(self.ffn, MoeSpec)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A decoder. Layers with routed experts have experts of the same sizes."""

    family: str
    vocab: int
    hidden: int
    context: int
    norm_eps: float
    layers: tuple[LayerSpec, ...]
    tied_head: bool = False
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logits_divisor: float = 1.0
    layernorms: bool = False  # norms of the residual stream are LayerNorms, with a bias
    head_bias: bool = False
    logits_cap: float | None = None  # logits become cap * tanh(logits / cap)
    streams: StreamsSpec | GatedStreamsSpec | BankedStreamsSpec | None = None
    eos_ids: tuple[int, ...] = ()
    mtp: LayerSpec | None = None  # that predicts the token after the next one; no layer of the decoder

    def layer_at(self, index: int) -> LayerSpec:
        """A layer by its number; the one for multi-token prediction stands behind the last."""
        if index < len(self.layers):
            return self.layers[index]
        assert self.mtp is not None, f"{len(self.layers)} layers, and number {index}"
        return self.mtp

    @cached_property
    def moe(self) -> MoeSpec:
        """The experts of the first layer that has them."""
        return next(layer.ffn for layer in self.layers if isinstance(layer.ffn, MoeSpec))

    @property
    def is_moe(self) -> tuple[bool, ...]:
        return tuple(layer.is_moe for layer in self.layers)

    @property
    def moe_layers(self) -> int:
        return sum(self.is_moe)

    @property
    def dense_width(self) -> int:
        """The widest MLP of layers without experts, 0 where there are none."""
        return max((layer.ffn.width for layer in self.layers if isinstance(layer.ffn, DenseSpec)), default=0)

    @property
    def learned_turns(self) -> int:
        """Pairs whose frequencies a checkpoint has a number for; 0: there are none."""
        ropes = [mixer.rope for mixer in self.mixers if not isinstance(mixer, Recurrent)]
        return max((rope.rotary_dim // 2 for rope in ropes if rope.learned), default=0)

    @property
    def mixers(self) -> tuple[MixerSpec, ...]:
        """Of the layers that have one."""
        return tuple(layer.mixer for layer in self.layers if layer.mixer is not None)

    @property
    def kv_elements_per_token(self) -> int:
        """Elements that one token adds to the cache over all layers."""
        return sum(mixer.cached for mixer in self.mixers)

    @property
    def state_elements(self) -> int:
        """float32 elements of recurrent state that one sequence keeps over all layers."""
        return sum(mixer.state for mixer in self.mixers) + sum(map(self.grams_state, self.layers))

    def grams_state(self, layer: LayerSpec) -> int:
        """Of them, those of a layer's runs of tokens: the last inputs of its convolution, and the last tokens."""
        it = layer.grams
        return 0 if it is None or self.streams is None else self.streams.count * self.hidden * it.past + it.size - 1

    @property
    def norm_size(self) -> int:
        """Weights of a norm of the residual stream; of gated streams, all of them have their own."""
        return self.hidden * (self.streams.count if isinstance(self.streams, GatedStreamsSpec) else 1)
