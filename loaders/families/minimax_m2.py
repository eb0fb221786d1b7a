"""MiniMax-M2, M2.1, M2.5, M2.7. Queries and keys are normalised over their full width, and rotated in part."""

from dataclasses import replace

from .family import Family
from .mixtral import BLOCK_SPARSE

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
    tensors=replace(BLOCK_SPARSE, choice_bias="block_sparse_moe.e_score_correction_bias"),
)
