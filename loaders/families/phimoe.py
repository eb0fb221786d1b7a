"""Phi-3.5-MoE: LayerNorms, biases everywhere, a router that masks by distance, a rope with two sets of factors."""

from .family import Family, Key
from .mixtral import BLOCK_SPARSE

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
    tensors=BLOCK_SPARSE,
)
