"""Mistral-Small-4-119B: latent attention whose queries are the warmer the further back they look; a softmax router
beside a shared expert. Mistral-Large-4: the same with an indexer, and warmth and turns that are learned, under the
names of its release. The text models alone."""

from dataclasses import replace

from .deepseek import NORM_EPS, SHARED
from .family import FUSED, Family, Key, LatentNames, TensorNames

MISTRAL4 = Family(
    model_type="mistral4",
    architecture="Mistral4ForCausalLM",
    planned={"first_k_dense_replace": 0},
    mixer="latent",
    experts=("n_routed_experts", "num_local_experts"),
    expert_width="moe_intermediate_size",
    dense_width="intermediate_size",
    leading_dense=True,
    shared_experts="n_shared_experts",
    scoring="softmax",
    grouped_choice=True,
    renormalise=Key("norm_topk_prob"),
    weight_scale=Key("routed_scaling_factor"),
    latent_norm_eps=NORM_EPS,
    tensors=replace(FUSED, shared_gate=SHARED.shared_gate, shared_up=SHARED.shared_up, shared_down=SHARED.shared_down),
)
MISTRAL_LARGE4 = replace(
    MISTRAL4,
    model_type="mistral_large4",
    architecture="MistralLarge4ForConditionalGeneration",
    planned={"first_k_dense_replace": 1},
    renormalise=True,
    latent_norm_eps=None,
    indexer=True,
    index_neighbours=True,
    index_shared=True,
    still_layers=True,
    logits_cap=Key("final_logit_softcapping"),
    tensors=TensorNames(
        embed="tok_embeddings.weight",
        final_norm="norm.weight",
        head="output.weight",
        turns="lerope.alpha",
        layer="layers.{layer}.",
        attn_norm="attention_norm.weight",
        mlp_norm="ffn_norm.weight",
        router="gate.weight",
        expert_gate="experts.{e}.w1.weight",
        expert_up="experts.{e}.w3.weight",
        expert_down="experts.{e}.w2.weight",
        mlp_gate="feed_forward.w1.weight",
        mlp_up="feed_forward.w3.weight",
        mlp_down="feed_forward.w2.weight",
        shared_gate="shared_experts.w1.weight",
        shared_up="shared_experts.w3.weight",
        shared_down="shared_experts.w2.weight",
        latent=LatentNames(
            q="attention.wq",
            kv_a="attention.wkv_a_with_mqa",
            kv_a_norm="attention.kv_a_norm.weight",
            kv_b="attention.wkv_b",
            o="attention.wo",
            warmth="attention.ssmax_scaling.s",
            warmth_bias="attention.ssmax_scaling.b",
            index_q="attention.indexer.wq_b.weight",
            index_k="attention.indexer.wk.weight",
            index_norm="attention.indexer.k_norm.weight",
            index_bias="attention.indexer.k_norm.bias",
            index_weights="attention.indexer.weights_proj.weight",
            index_in_norm="attention.indexer.q_input_norm.weight",
            index_in_bias="attention.indexer.q_input_norm.bias",
            index_warmth="attention.indexer.ssmax_scaling.s",
            index_warmth_bias="attention.indexer.ssmax_scaling.b",
        ),
    ),
)
