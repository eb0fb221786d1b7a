"""MiniMax-M2, M2.1, M2.5, M2.7. Queries and keys are normalised over their full width, and rotated in part."""

from .family import Family, TensorNames

MINIMAX_M2 = Family(
    model_type="minimax_m2",
    architecture="MiniMaxM2ForCausalLM",
    experts=("num_local_experts", "num_experts"),
    expert_width="intermediate_size",
    scoring="sigmoid",
    choice_bias=True,
    renormalise=True,
    qk_norm="full",
    partial_rope=True,
    rotary_dim="rotary_dim",
    implied={
        "qk_norm_type": ("per_layer", None),
        "use_routing_bias": (True, None),
        "shared_intermediate_size": (0, None),
    },
    unused=("mlp_intermediate_size", "shared_moe_mode"),  # of dense layers and a shared expert, which there are not
    tensors=TensorNames(
        router="block_sparse_moe.gate.weight",
        choice_bias="block_sparse_moe.e_score_correction_bias",
        expert_gate="block_sparse_moe.experts.{e}.w1.weight",
        expert_up="block_sparse_moe.experts.{e}.w3.weight",
        expert_down="block_sparse_moe.experts.{e}.w2.weight",
    ),
)
