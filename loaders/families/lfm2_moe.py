"""LFM2-MoE: 8B-A1B. Short convolutions between gates, and some layers of attention; the first layers are dense, then
the choice of experts is biased. transformers adds 1e-6 to the sum that weights are divided by, which is no more than a
millionth of it unless all scores are small."""

from .family import Family, Key, TensorNames

LFM2_MOE = Family(
    model_type="lfm2_moe",
    architecture="Lfm2MoeForCausalLM",
    mixer="conv",
    experts=("num_experts", "num_local_experts"),
    expert_width="moe_intermediate_size",
    dense_width="intermediate_size",
    leading_dense=True,
    dense_count="num_dense_layers",
    scoring="sigmoid",
    choice_bias=Key("use_expert_bias", True),
    renormalise=Key("norm_topk_prob"),
    weight_scale=Key("routed_scaling_factor", 1.0),
    activation_names=("hidden_act", ("silu", "swish", None)),
    qk_norm="head",
    norm_eps="norm_eps",
    tied_head=Key("tie_word_embeddings", True),
    implied={"tie_embedding": (True, None), "attention_bias": (False, None)},
    tensors=TensorNames(
        final_norm="model.embedding_norm.weight",
        attn_norm="operator_norm.weight",
        mlp_norm="ffn_norm.weight",
        o="self_attn.out_proj",
        q_norm="self_attn.q_layernorm.weight",
        k_norm="self_attn.k_layernorm.weight",
        router="feed_forward.gate.weight",
        choice_bias="feed_forward.expert_bias",
        expert_gate="feed_forward.experts.{e}.w1.weight",
        expert_up="feed_forward.experts.{e}.w3.weight",
        expert_down="feed_forward.experts.{e}.w2.weight",
        mlp_gate="feed_forward.w1.weight",
        mlp_up="feed_forward.w3.weight",
        mlp_down="feed_forward.w2.weight",
    ),
)
