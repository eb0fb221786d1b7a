"""DeepSeek-V2, V3, V3.1 and R1, Kimi-K2 and Moonlight, GLM-4.7-Flash: latent attention, dense first layers, a shared
expert beside the routed ones, a choice biased for balance and limited to groups. DeepSeek-V3.2 and GLM-5: with an
indexer that chooses keys."""

from dataclasses import replace
from functools import partial

from .family import Family, Key, TensorNames

NORM_EPS = 1e-6  # of the norms of latents, whatever the config says of the others
SHARED = TensorNames(
    shared_gate="mlp.shared_experts.gate_proj.weight",
    shared_up="mlp.shared_experts.up_proj.weight",
    shared_down="mlp.shared_experts.down_proj.weight",
)
# The feed-forward parts of these, and of families of plain attention (`biased_choice.py`, `exaone_moe.py`).
BIASED_CHOICE = partial(
    Family,
    expert_width="moe_intermediate_size",
    dense_width="intermediate_size",
    leading_dense=True,
    scoring="sigmoid",
    choice_bias=True,
    grouped_choice=True,
    renormalise=Key("norm_topk_prob"),
    weight_scale=Key("routed_scaling_factor"),
)
DEEPSEEK_V3 = BIASED_CHOICE(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    mixer="latent",
    experts=("n_routed_experts", "num_local_experts"),
    shared_experts="n_shared_experts",
    latent_norm_eps=NORM_EPS,
    tensors=SHARED,
)
# Its weights are never divided by their sum, whatever norm_topk_prob says; groups go by their best expert.
DEEPSEEK_V2 = replace(
    DEEPSEEK_V3,
    model_type="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    scoring="softmax",
    choice_bias=False,
    group_score="max",
    renormalise=False,
    implied={"norm_topk_prob": (False, None)},
)
KIMI_K2 = replace(DEEPSEEK_V3, model_type="kimi_k2")
GLM4_MOE_LITE = replace(DEEPSEEK_V3, model_type="glm4_moe_lite", architecture="Glm4MoeLiteForCausalLM")
DEEPSEEK_V32 = replace(
    DEEPSEEK_V3,
    model_type="deepseek_v32",
    architecture="DeepseekV32ForCausalLM",
    indexer=True,
    implied={"mlp_bias": (False, None)},
)
GLM_MOE_DSA = replace(
    DEEPSEEK_V32,
    model_type="glm_moe_dsa",
    architecture="GlmMoeDsaForCausalLM",
    planned={"first_k_dense_replace": 3},
    index_neighbours=True,
    index_shared=True,
    unused=("index_share_for_mtp_iteration", "dsa_indexer_loss_coeff"),
)
