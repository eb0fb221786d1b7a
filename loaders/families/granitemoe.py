"""Granite-MoE: 3.1-1b-a400m, 3.1-3b-a800m. Four multipliers, fused expert tensors, usually a tied head. Granite-MoE
with a shared expert beside them. Granite 4.0 H: with that, most layers are Mamba 2, and attention turns nothing."""

from dataclasses import replace

from .family import Family, Key, TensorNames

GRANITEMOE = Family(
    model_type="granitemoe",
    architecture="GraniteMoeForCausalLM",
    experts=("num_local_experts",),
    expert_width="intermediate_size",
    scoring="softmax_topk",
    renormalise=False,
    qkv_bias=Key("attention_bias"),
    output_bias=Key("attention_bias"),
    attention_scale=Key("attention_multiplier"),
    embedding_scale=Key("embedding_multiplier"),
    residual_scale=Key("residual_multiplier"),
    logits_divisor=Key("logits_scaling"),
    tied_head=Key("tie_word_embeddings"),
    tensors=TensorNames(
        router="block_sparse_moe.router.layer.weight",
        expert_gate=None,
        expert_up=None,
        fused_gate_up="block_sparse_moe.input_linear.weight",
        expert_down="block_sparse_moe.output_linear.weight",
    ),
)
GRANITEMOESHARED = replace(
    GRANITEMOE,
    model_type="granitemoeshared",
    architecture="GraniteMoeSharedForCausalLM",
    shared_width="shared_intermediate_size",
    tensors=replace(
        GRANITEMOE.tensors,
        shared_gate_up="shared_mlp.input_linear.weight",
        shared_down="shared_mlp.output_linear.weight",
    ),
)
GRANITEMOEHYBRID = replace(
    GRANITEMOESHARED,
    model_type="granitemoehybrid",
    architecture="GraniteMoeHybridForCausalLM",
    planned={"tie_word_embeddings": True},
    mixer="state space",
    rotates="position_embedding_type",
    implied={"normalization_function": ("rmsnorm", None), "position_embedding_type": ("nope", "rope", None)},
    unused=("mamba_chunk_size",),
)
