"""Mixtral: 8x7B and 8x22B."""

from .family import Family, TensorNames

MIXTRAL = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    experts=("num_local_experts",),
    expert_width="intermediate_size",
    scoring="softmax",
    renormalise=True,
    tensors=TensorNames(
        router="block_sparse_moe.gate.weight",
        expert_gate="block_sparse_moe.experts.{e}.w1.weight",
        expert_up="block_sparse_moe.experts.{e}.w3.weight",
        expert_down="block_sparse_moe.experts.{e}.w2.weight",
    ),
)
