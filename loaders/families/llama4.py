"""Llama 4: Scout and Maverick. Three layers within chunks of the context, then one that sees everything and rotates
nothing. One routed expert beside the shared one: it takes its token times the router's score. Maverick has experts in
every other layer. The text model alone."""

from .family import Family, Key, TensorNames

LLAMA4 = Family(
    model_type="llama4",
    architecture="Llama4ForCausalLM",
    experts=("num_local_experts",),
    expert_width="intermediate_size",
    dense_width="intermediate_size_mlp",
    interleaved_experts=True,
    shared_width="intermediate_size",
    scoring="sigmoid_topk",
    weighs_input=True,
    renormalise=False,
    qkv_bias=Key("attention_bias", False),
    output_bias=Key("attention_bias", False),
    qk_norm="plain",
    qk_norm_if=Key("use_qk_norm"),
    neighbours=True,
    chunked=True,
    tensors=TensorNames(
        router="feed_forward.router.weight",
        expert_gate=None,
        expert_up=None,
        fused_gate_up="feed_forward.experts.gate_up_proj",
        expert_down="feed_forward.experts.down_proj",
        experts_turned=True,
        mlp_gate="feed_forward.gate_proj.weight",
        mlp_up="feed_forward.up_proj.weight",
        mlp_down="feed_forward.down_proj.weight",
        shared_gate="feed_forward.shared_expert.gate_proj.weight",
        shared_up="feed_forward.shared_expert.up_proj.weight",
        shared_down="feed_forward.shared_expert.down_proj.weight",
    ),
)
