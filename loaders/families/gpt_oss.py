"""gpt-oss: 20b and 120b. Every other layer sees a window, heads have sinks, everything has biases; of each pair of an
expert's rows the first is gate, the second up."""

from dataclasses import replace

from ...kernels.recipes import Activation
from .family import FUSED, Family, Key

GPT_OSS = Family(
    model_type="gpt_oss",
    architecture="GptOssForCausalLM",
    planned={"attention_bias": True},
    experts=("num_local_experts",),
    expert_width="intermediate_size",
    scoring="softmax_topk",
    renormalise=False,
    router_bias=True,
    activation=Activation(alpha=1.702, offset=1.0),
    activation_limit=Key("swiglu_limit", 7.0),
    expert_bias=True,
    implied={"swiglu_alpha": (1.702, None)},
    qkv_bias=Key("attention_bias"),
    output_bias=Key("attention_bias"),
    windowed=True,
    sinks=True,
    tensors=replace(
        FUSED,
        router="mlp.router.weight",
        experts_turned=True,
        gate_up_in_turns=True,
        fused_gate_up_bias="mlp.experts.gate_up_proj_bias",
        expert_down_bias="mlp.experts.down_proj_bias",
    ),
)
