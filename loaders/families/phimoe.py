"""Phi-3.5-MoE: LayerNorms, biases everywhere, a router that masks by distance, a rope with two sets of factors."""

from .family import Family, Key, TensorNames

PHIMOE = Family(
    model_type="phimoe",
    architecture="PhimoeForCausalLM",
    experts=("num_local_experts",),
    expert_width="intermediate_size",
    scoring="sparsemixer",
    jitter=Key("router_jitter_noise", 0.01),
    renormalise=False,
    qkv_bias=Key("attention_bias"),
    output_bias=Key("attention_bias"),
    layernorms=True,
    head_bias=Key("lm_head_bias"),
    tensors=TensorNames(
        router="block_sparse_moe.gate.weight",
        expert_gate="block_sparse_moe.experts.{e}.w1.weight",
        expert_up="block_sparse_moe.experts.{e}.w3.weight",
        expert_down="block_sparse_moe.experts.{e}.w2.weight",
    ),
)
