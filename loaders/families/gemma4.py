"""Gemma 4 with experts: 26B-A4B. Five layers over a window, then one that sees everything, with wider heads, another
rope, and keys that serve as values. An MLP beside the experts; norms in front of and behind every part. The text model
alone."""

from ...kernels.recipes import GEGLU
from .family import Family, Key, TensorNames

GEMMA4 = Family(
    model_type="gemma4",
    architecture="Gemma4ForCausalLM",
    experts=("num_experts",),
    expert_width="moe_intermediate_size",
    top_k="top_k_experts",
    scoring="softmax",
    renormalise=True,
    shared_width="intermediate_size",
    activation=GEGLU,
    activation_names=("hidden_activation", ("gelu_pytorch_tanh",)),
    qkv_bias=False,
    qk_norm="head",
    own_norms=True,
    windowed=True,
    full_attention=True,
    attention_scale=1.0,
    embedding_scale="root of hidden",
    logits_cap=Key("final_logit_softcapping"),
    tied_head=Key("tie_word_embeddings", True),
    implied={
        "attention_bias": (False, None),
        "enable_moe_block": (True,),
        "hidden_size_per_layer_input": (0, None),  # embeddings of each layer's own
        "num_kv_shared_layers": (0, None),
        "use_bidirectional_attention": ("vision", None),  # of pictures, which are left out
        "use_double_wide_mlp": (False, None),
    },
    tensors=TensorNames(
        mlp_norm="pre_feedforward_layernorm_2.weight",
        router="router.proj.weight",
        expert_gate=None,
        expert_up=None,
        fused_gate_up="experts.gate_up_proj",
        expert_down="experts.down_proj",
        shared_gate="mlp.gate_proj.weight",
        shared_up="mlp.up_proj.weight",
        shared_down="mlp.down_proj.weight",
    ),
)
