"""Hunyuan-A13B. Queries and keys are normalised behind the rotation; what differs by layer in its config must not."""

from .family import Family, Key, TensorNames

HUNYUAN_V1_MOE = Family(
    model_type="hunyuan_v1_moe",
    architecture="HunYuanMoEV1ForCausalLM",
    experts=("num_experts", "num_local_experts"),
    top_k="moe_topk",
    expert_width="intermediate_size",
    shared_width="intermediate_size",
    scoring="softmax",
    renormalise=True,
    qkv_bias=Key("attention_bias"),
    output_bias=Key("attention_bias"),
    qk_norm="head",
    qk_norm_if=Key("use_qk_norm", True),
    norms_last=True,
    by_layer=("moe_topk", "num_shared_expert", "moe_intermediate_size", "num_experts"),
    implied={
        "num_shared_expert": (1, None),
        "use_mixed_mlp_moe": (True, None),
        "use_qk_norm": (True, None),
        "use_rotary_pos_emb": (True, None),
    },
    unused=(
        "cla_share_factor",
        "dense_list",
        "mask_init_id",
        "num_media_embeds",
        "org_vocab_size",
        "pad_id",
        "pool_type",
        "sep_id",
        "eod_token_id",
    ),
    tensors=TensorNames(
        q_norm="self_attn.query_layernorm.weight",
        k_norm="self_attn.key_layernorm.weight",
        router="mlp.gate.wg.weight",
        shared_gate="mlp.shared_mlp.gate_proj.weight",
        shared_up="mlp.shared_mlp.up_proj.weight",
        shared_down="mlp.shared_mlp.down_proj.weight",
    ),
)
