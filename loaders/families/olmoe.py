"""OLMoE: 1B-7B. Queries and keys are normalised over their full width, before the split into heads."""

from .family import Family, Key

OLMOE = Family(
    model_type="olmoe",
    architecture="OlmoeForCausalLM",
    experts=("num_experts",),
    expert_width="intermediate_size",
    scoring="softmax",
    renormalise=Key("norm_topk_prob"),
    qkv_bias=Key("attention_bias"),
    output_bias=Key("attention_bias"),
    qk_norm="full",
    clip=Key("clip_qkv"),
)
