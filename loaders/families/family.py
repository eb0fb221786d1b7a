"""What one family of checkpoints is, as data: its config keys, its router recipe, its tensor names.

A family is a literal of `Family` in a file of its own, listed in `__init__.py`. `read_spec` (`spec_reader.py`) turns a
config.json into a `ModelSpec` with it. Adding a family of known mixers means adding a literal; the decoder does not
change.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ...kernels.recipes import SWIGLU, Activation, GroupScore, Scoring
from ..spec import QkNorm
from .config_reader import ConfigReader


@dataclass(frozen=True)
class Key:
    """A value that stands in config.json under `name`, or is `default` where released configs leave it out."""

    name: str
    default: Any = None


@dataclass(frozen=True, kw_only=True)
class LatentNames:
    """Names of latent attention. kv_b has both up-projections; None: k_up and v_up are stored alone, k_up turned."""

    q: str = "self_attn.q_proj"
    q_a: str = "self_attn.q_a_proj"
    q_a_norm: str = "self_attn.q_a_layernorm.weight"
    q_b: str = "self_attn.q_b_proj"
    kv_a: str = "self_attn.kv_a_proj_with_mqa"
    kv_a_norm: str = "self_attn.kv_a_layernorm.weight"
    kv_b: str | None = "self_attn.kv_b_proj"
    k_up: str = ""
    v_up: str = ""
    o: str = "self_attn.o_proj"
    gate: str = ""
    warmth: str = ""  # of the logarithms of positions, and what is added to them
    warmth_bias: str = ""
    index_q: str = "self_attn.indexer.wq_b.weight"  # these five: of what chooses keys
    index_k: str = "self_attn.indexer.wk.weight"
    index_norm: str = "self_attn.indexer.k_norm.weight"
    index_bias: str = "self_attn.indexer.k_norm.bias"
    index_weights: str = "self_attn.indexer.weights_proj.weight"
    index_gate: str = "self_attn.indexer.index_kpool_compress_gate"  # these two: of runs of keys
    index_places: str = "self_attn.indexer.index_kpool_compress_ape"
    index_in_norm: str = ""  # these four: where its queries are made of the hidden state
    index_in_bias: str = ""
    index_warmth: str = ""
    index_warmth_bias: str = ""


@dataclass(frozen=True, kw_only=True)
class CompressedNames:
    """Names of attention over a window and compressed entries. Those of what makes entries begin with `entries`, and
    of what makes the indexer's keys of them with `index_entries`."""

    q_a: str = "attn.wq_a.weight"
    q_a_norm: str = "attn.q_norm.weight"
    q: str = "attn.wq_b.weight"
    k: str = "attn.wkv.weight"
    k_norm: str = "attn.kv_norm.weight"
    o_a: str = "attn.wo_a.weight"
    o: str = "attn.wo_b.weight"
    sinks: str = "attn.attn_sink"
    entries: str = "attn.compressor."
    index_entries: str = "attn.indexer.compressor."
    made: str = "wkv.weight"  # these four: of either
    weighed: str = "wgate.weight"
    places: str = "ape"
    norm: str = "norm.weight"
    index_q: str = "attn.indexer.wq_b.weight"
    index_weights: str = "attn.indexer.weights_proj.weight"


@dataclass(frozen=True, kw_only=True)
class DeltaNames:
    """Names of the gated delta rule. qkvz, ba: by turns of each head of keys; None: qkv, z, b, a are stored alone."""

    qkvz: str | None = None
    qkv: str = "linear_attn.in_proj_qkv.weight"
    z: str = "linear_attn.in_proj_z.weight"
    ba: str | None = None
    b: str = "linear_attn.in_proj_b.weight"
    a: str = "linear_attn.in_proj_a.weight"
    conv: str = "linear_attn.conv1d.weight"
    conv_is_deep: bool = True  # [channels, 1, taps]
    rate: str = "linear_attn.A_log"
    rate_is_log: bool = True  # of the rate less its sign
    dt_bias: str = "linear_attn.dt_bias"
    norm: str = "linear_attn.norm.weight"
    o: str = "linear_attn.out_proj.weight"
    apart: tuple[str, str, str] | None = None  # q, k and v; instead of qkv
    convs: tuple[str, str, str] | None = None  # theirs; instead of conv
    decay_low: str = "self_attn.f_a_proj.weight"  # these three: of decays by key
    decay: str = "self_attn.f_b_proj.weight"
    z_low: str = "self_attn.g_a_proj.weight"


@dataclass(frozen=True, kw_only=True)
class ConvNames:
    """Names of a short convolution between gates."""

    rows: str = "conv.in_proj"
    conv: str = "conv.conv"
    conv_is_deep: bool = True  # [channels, 1, taps]
    o: str = "conv.out_proj"


@dataclass(frozen=True, kw_only=True)
class SpaceNames:
    """Names of a state space."""

    rows: str = "mamba.in_proj"
    conv: str = "mamba.conv1d"
    conv_is_deep: bool = True  # [channels, 1, taps]
    rate: str = "mamba.A_log"
    rate_is_log: bool = True  # of the rate less its sign
    dt_bias: str = "mamba.dt_bias"
    skip: str = "mamba.D"
    norm: str = "mamba.norm.weight"
    o: str = "mamba.out_proj"
    in_columns: bool = False  # rate and skip are [heads, 1], the norm [groups, values of one]


@dataclass(frozen=True, kw_only=True)
class GramsNames:
    """Names of a table of runs of tokens, and of what is made of its rows. table: of its parts, behind the name of
    their layer; whole: of one that stands outside of layers, instead."""

    table: str = "ple.ple_embedding.ngram_embedding."
    whole: str | None = None
    key: str = "ple.key_proj.weight"
    value: str = "ple.value_proj.weight"
    key_norm: str = "ple.norm_key.weight"
    query_norm: str = "ple.norm_query.weight"
    conv_norm: str = "ple.norm_conv.weight"
    conv: str = "ple.conv1d.weight"
    conv_is_deep: bool = True  # [channels, 1, taps]


@dataclass(frozen=True, kw_only=True)
class TensorNames:
    """Checkpoint names by role. Layer names follow `layer`; `{e}` is the expert. None: the family has no such
    tensor."""

    embed: str = "model.embed_tokens.weight"
    final_norm: str = "model.norm.weight"
    final_norm_bias: str = "model.norm.bias"
    head: str = "lm_head.weight"
    head_bias: str = "lm_head.bias"
    turns: str = ""  # learned logarithms of frequencies
    layer: str = "model.layers.{layer}."
    attn_norm: str = "input_layernorm.weight"
    mlp_norm: str = "post_attention_layernorm.weight"
    attn_norm_bias: str = "input_layernorm.bias"
    mlp_norm_bias: str = "post_attention_layernorm.bias"
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    o: str = "self_attn.o_proj"
    q_norm: str = "self_attn.q_norm.weight"
    k_norm: str = "self_attn.k_norm.weight"
    sinks: str = "self_attn.sinks"
    block_q: str = "self_attn.index_q_proj.weight"  # these four: of what chooses blocks of keys
    block_k: str = "self_attn.index_k_proj.weight"
    block_qk: str = ""  # instead of the two
    block_q_norm: str = "self_attn.index_q_norm.weight"
    block_k_norm: str = "self_attn.index_k_norm.weight"
    attn_gate: str | None = None  # of what heads give; None: of each head its rows stand behind those of its queries
    latent: LatentNames = LatentNames()
    compressed: CompressedNames = CompressedNames()
    delta: DeltaNames = DeltaNames()
    conv: ConvNames = ConvNames()
    space: SpaceNames = SpaceNames()
    norms_from_one: bool = False  # of norms, what is stored is the weight less 1
    router: str = "mlp.gate.weight"
    router_bias: str = "mlp.router.bias"
    choice_bias: str = "mlp.gate.e_score_correction_bias"
    choice_bias_is_row: bool = False  # [1, experts]
    expert_table: str = ""  # of layers whose experts a table of tokens chooses
    expert_gate: str | None = "mlp.experts.{e}.gate_proj.weight"
    expert_up: str | None = "mlp.experts.{e}.up_proj.weight"
    expert_down: str = "mlp.experts.{e}.down_proj.weight"
    experts_in: str = "mixer.fc1_latent_proj.weight"  # these three: of experts on a narrower latent
    experts_back: str = "mixer.fc2_latent_proj.weight"
    latent_norm: str = ""
    fused_gate_up: str | None = None  # gate rows first, then up
    gate_up_in_turns: bool = False  # or a row of gate, a row of up, and so on
    expert_gate_bias: str | None = None
    expert_up_bias: str | None = None
    expert_down_bias: str | None = None
    fused_gate_up_bias: str | None = None
    out_norm: str = "post_attention_layernorm.weight"  # these eight: of layers with norms of their own
    router_norm: str = "router.scale"
    factors: str = "router.per_expert_scale"
    mlp_in: str = "pre_feedforward_layernorm.weight"
    mlp_out: str = "post_feedforward_layernorm_1.weight"
    experts_out: str = "post_feedforward_layernorm_2.weight"
    ffn_out: str = "post_feedforward_layernorm.weight"
    layer_scale: str = "layer_scalar"
    experts_turned: bool = False  # [experts, in, out] instead of [experts, out, in]
    mixings: tuple[str, str] = ("hc_attn_{}", "hc_ffn_{}")  # of several streams: of fn, base and scale, or of `gates`
    last_mixing: str = "model.hyper_connection_mixer.{}.weight"  # of gated ones, behind the last layer
    gates: tuple[str, str, str] = ("input_mix_weight_down", "input_mix_weight_up", "block_inject_weight")
    grams: GramsNames = GramsNames()
    fittings: tuple[
        tuple[str, str], tuple[str, str]
    ] = (  # of states of a residual stream: projections, and their norms
        ("self_attention_res_proj.weight", "self_attention_res_norm.weight"),
        ("mlp_res_proj.weight", "mlp_res_norm.weight"),
    )
    last_fitting: tuple[str, str] = ("model.output_attn_res_proj.weight", "model.output_attn_res_norm.weight")
    mlp_gate: str = "mlp.gate_proj.weight"
    mlp_up: str = "mlp.up_proj.weight"
    mlp_down: str = "mlp.down_proj.weight"
    shared_gate: str = "mlp.shared_expert.gate_proj.weight"
    shared_up: str = "mlp.shared_expert.up_proj.weight"
    shared_down: str = "mlp.shared_expert.down_proj.weight"
    shared_gate_up: str | None = None  # gate rows first, then up
    shared_expert_gate: str = "mlp.shared_expert_gate.weight"
    mtp_project: str = "eh_proj.weight"  # these four: of the layer for multi-token prediction, behind the last one
    mtp_embed_norm: str = "enorm.weight"
    mtp_hidden_norm: str = "hnorm.weight"
    mtp_norm: str = "shared_head.norm.weight"


# Of experts whose gate and up are one tensor, all experts of a layer in one.
FUSED = TensorNames(
    expert_gate=None, expert_up=None, fused_gate_up="mlp.experts.gate_up_proj", expert_down="mlp.experts.down_proj"
)
MixerKind = Literal["attention", "latent", "delta", "latent and delta", "compressed", "conv", "state space"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family. A `Key` is looked up in config.json; a plain value is part of the architecture.

    mixer: what looks at other tokens; "delta": a gated delta rule, with attention in every so many layers; "latent and
    delta": one with decays by key, with latent attention that rotates nothing; "compressed": attention over a window
    and compressed entries; "conv" and "state space": a convolution between gates and Mamba 2, with attention where
    `layer_types` says so. one_part: layers are a mixer, experts or an
    MLP alone. context, groups, norm_eps: keys. rotates: whether attention turns queries and keys; a key: where it says
    "rope". windowed:
    layers that `layer_types` calls sliding see `sliding_window` tokens. grouped_choice: `n_group` and `topk_group` say
    how the router chooses. own_norms: as in `LayerSpec`, with a factor for each expert; full_attention: layers that do
    not slide have heads of other sizes and another rope, whose keys may serve as values; values are normed.
    leading_dense: the first `dense_count` layers are dense. range_of_experts: of the
    layers from `moe_layer_start_index` to `moe_layer_end_index` every `moe_layer_interval`-th has experts.
    interleaved_experts: those of `moe_layers`, or every `interleave_moe_layer_step`-th. chunked: attention as
    `chunks.py` says. weighs_input: as in `MoeSpec`. layernorms: norms of the residual stream take the mean off, and
    have biases.
    shared_experts: how many experts wide the shared one is. partial_rope: the config must say how many dims of a head
    are rotated. neighbours: the rope turns dims 2i and 2i + 1, not i and i + half. full_without_rope: layers that see
    everything rotate nothing, unless all of them do. by_kind: layers over a window and such that see everything have
    numbers of heads and ropes of their own (`by_kind.py`), and sinks over windows alone. v_dim: the key of the width of
    a value. head_gate: what heads give is weighted by gates with a projection of their own. layer_limits: keys of lists
    with the limit of each layer's experts, and of its other MLP. spelling: makes of the keys of releases those that
    transformers writes. by_layer: keys that may be lists with the same value for each layer.
    unused: keys of released configs that nothing is computed with. mtp_gap: why layers for multi-token prediction that
    releases have are not run; empty: they are, or there are none."""

    model_type: str
    architecture: str
    experts: tuple[str, ...]
    expert_width: str
    scoring: Scoring
    renormalise: bool | Key
    mixer: MixerKind = "attention"
    one_part: bool = False
    context: str = "max_position_embeddings"
    groups: str = "n_group"
    norm_eps: str = "rms_norm_eps"
    rotates: bool | str = True
    bounded_decay: bool = False  # as Ling-3.0's delta rules, whose latent attention has gates
    dense_width: str | None = None
    leading_dense: bool = False
    dense_count: str = "first_k_dense_replace"
    range_of_experts: bool = False
    interleaved_experts: bool = False
    top_k: str = "num_experts_per_tok"
    expert_latent: str | None = None  # a key with the dims that routed experts work on
    shared_width: str | None = None
    shared_experts: str | None = None
    shared_gate: bool = False
    router_bias: bool = False
    choice_bias: bool | Key = False
    grouped_choice: bool = False
    weighs_input: bool = False
    jitter: Key | None = None  # of sparsemixer
    group_score: GroupScore = "top2"
    weight_scale: Key | None = None
    activation: Activation = SWIGLU
    activation_limit: Key | None = None
    layer_limits: tuple[str, str] | None = None
    activation_names: tuple[str, tuple[str | None, ...]] = ("hidden_act", ("silu", "swish"))
    expert_bias: bool = False
    qkv_bias: bool | Key = False
    output_bias: bool | Key = False
    qk_norm: QkNorm = "none"
    qk_norm_if: Key | None = None  # else always
    norms_last: bool = False  # of queries and keys, behind the rotation
    partial_rope: bool = False
    rotary_dim: str | None = None  # a key with the number of rotated dims, instead of their share
    neighbours: bool = False
    full_without_rope: bool = False
    clip: Key | None = None
    windowed: bool = False
    chunked: bool = False
    by_kind: bool = False
    sinks: bool = False
    output_gate: bool = False
    head_gate: Literal["sigmoid", "softplus"] | None = None
    v_dim: str | None = None
    v_scale: Key | None = None
    own_norms: bool = False
    layernorms: bool = False
    head_bias: bool | Key = False
    full_attention: bool = False
    attention_scale: Key | float | None = None
    latent_norm_eps: float | None = None  # of the norms of latents, where it is not the model's
    indexer: bool = False  # of latent attention, chooses the keys that are seen
    index_neighbours: bool = False  # its rotated dims are pairs (2i, 2i + 1) in checkpoints
    index_shared: bool = False  # some layers see what an earlier one chose
    has_grams: bool = False  # `ple_layer_ids` have a table of runs of tokens, attention chooses runs of keys
    block_layers: str | None = None  # what `layer_types` calls layers that choose blocks of keys
    streams: tuple[Key, Key, Key] | None = None  # their number, rounds, eps
    weighted_end: bool = False  # of streams, as in `StreamsSpec`
    tables_of_experts: bool = False  # a table of tokens chooses the experts of some layers
    gated_streams: tuple[Key, Key] | None = None  # their number and rank
    kept_streams: Key | None = None  # in front of every so many layers the residual stream is kept
    bends: bool = False  # the activation is Kimi-K3's, with gates of full rank
    runs: bool = False  # the indexer chooses runs of keys, delta rules have a bound if the config says so
    still_layers: bool = False  # `no_rope_layers` have no rotated dims; queries and turns are learned by position
    embedding_scale: Key | Literal["root of hidden"] | None = None
    residual_scale: Key | None = None
    logits_divisor: Key | None = None
    logits_cap: Key | None = None
    tied_head: bool | Key = Key("tie_word_embeddings", False)
    window_needs_switch: bool = False  # `sliding_window` counts only where `use_sliding_window` is true
    spelling: Callable[[ConfigReader], dict[str, Any]] | None = None
    by_layer: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    mtp_gap: str = ""
    mtp_dense: bool = False  # layers for multi-token prediction have an MLP in place of experts
    mtp_windowed: bool = False  # they attend over the window
    mtp_before_norm: bool = False  # they go on from states in front of the final norm
    implied: Mapping[str, Collection[Any]] = field(default_factory=dict)  # keys, and the values that are computed with
    planned: Mapping[str, Any] = field(default_factory=dict)  # what a plan takes for keys that are left out
    tensors: TensorNames = TensorNames()
