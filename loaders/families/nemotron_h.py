"""Nemotron-3: Nano-30B-A3B. Every layer is one thing, with one norm: Mamba 2, attention that turns nothing, experts, or
an MLP. Experts, and the shared one beside them, have no gates; those of the larger models work on a narrower latent."""

from ...kernels.recipes import SQUARED_RELU
from .deepseek import BIASED_CHOICE
from .family import SpaceNames, TensorNames

NEMOTRON_H = BIASED_CHOICE(
    model_type="nemotron_h",
    architecture="NemotronHForCausalLM",
    mixer="state space",
    mtp_gap="they are several layers of one part each",
    one_part=True,
    leading_dense=False,
    experts=("n_routed_experts", "num_local_experts"),
    expert_latent="moe_latent_size",
    shared_width="moe_shared_expert_intermediate_size",
    activation=SQUARED_RELU,
    activation_names=("mlp_hidden_act", ("relu2",)),
    rotates=False,
    norm_eps="layer_norm_epsilon",
    implied={
        "attention_bias": (False, None),
        "mamba_hidden_act": ("silu", "swish", None),
        "mamba_ssm_cache_dtype": ("float32", None),
        "mlp_bias": (False, None),
        "n_shared_experts": (1, None),
    },
    unused=(
        "chunk_size", "expand", "mamba_chunk_size", "moe_shared_expert_overlap", "num_logits_to_keep",
        "residual_in_fp32", "rescale_prenorm_residual", "time_step_floor", "time_step_max", "time_step_min",
        "use_mamba_kernels", "mtp_layers_block_type", "mtp_hybrid_override_pattern",
    ),
    tensors=TensorNames(
        embed="backbone.embeddings.weight",
        final_norm="backbone.norm_f.weight",
        layer="backbone.layers.{layer}.",
        attn_norm="norm.weight",
        q="mixer.q_proj",
        k="mixer.k_proj",
        v="mixer.v_proj",
        o="mixer.o_proj",
        space=SpaceNames(
            rows="mixer.in_proj", conv="mixer.conv1d", rate="mixer.A_log", dt_bias="mixer.dt_bias", skip="mixer.D",
            norm="mixer.norm.weight", o="mixer.out_proj",
        ),
        router="mixer.gate.weight",
        choice_bias="mixer.gate.e_score_correction_bias",
        expert_gate=None,
        expert_up="mixer.experts.{e}.up_proj.weight",
        expert_down="mixer.experts.{e}.down_proj.weight",
        mlp_up="mixer.up_proj.weight",
        mlp_down="mixer.down_proj.weight",
        shared_up="mixer.shared_experts.up_proj.weight",
        shared_down="mixer.shared_experts.down_proj.weight",
    ),
)  # fmt: skip
