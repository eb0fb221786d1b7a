"""Mixtral: 8x7B and 8x22B."""

from .family import Family, TensorNames

# Of router and experts, which others have too.
BLOCK_SPARSE = TensorNames(
    router="block_sparse_moe.gate.weight",
    expert_gate="block_sparse_moe.experts.{e}.w1.weight",
    expert_up="block_sparse_moe.experts.{e}.w3.weight",
    expert_down="block_sparse_moe.experts.{e}.w2.weight",
)
MIXTRAL = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    experts=("num_local_experts",),
    expert_width="intermediate_size",
    scoring="softmax",
    renormalise=True,
    tensors=BLOCK_SPARSE,
)
