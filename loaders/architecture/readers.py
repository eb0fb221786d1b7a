"""What a config.json says about size, for every family that can be planned: `read` gives its `Architecture`.

A family that the engine runs is read by its own literal in `families/` and described by its `ModelSpec`; the others
have a reader here, which needs the keys that decide on sizes and no more. Nothing here imports torch.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigError
from ..families import FAMILIES, read_spec
from ..families.config_reader import ConfigReader
from . import grouped, hybrid, latent
from .architecture import Architecture
from .common import Read
from .of_spec import of_spec

READERS: dict[str, Read] = {
    "bailing_hybrid": hybrid.bailing_hybrid,
    "deepseek_v2": latent.deepseek,
    "deepseek_v3": latent.deepseek,
    "deepseek_v32": latent.deepseek_v32,
    "deepseek_v4": latent.deepseek_v4,
    "dots1": grouped.dots1,
    "ernie4_5_moe": grouped.ernie4_5_moe,
    "gemma4": grouped.gemma4,
    "glm4_moe": grouped.glm4_moe,
    "glm4_moe_lite": latent.deepseek,
    "glm5_next": hybrid.glm5_next,
    "glm_moe_dsa": latent.glm_moe_dsa,
    "gpt_oss": grouped.gpt_oss,
    "granitemoehybrid": hybrid.granitemoehybrid,
    "granitemoeshared": grouped.granitemoeshared,
    "hunyuan_v1_moe": grouped.hunyuan_v1_moe,
    "hy_v3": grouped.hy_v3,
    "kimi_k2": latent.deepseek,
    "kimi_k3": hybrid.kimi_k3,
    "kimi_linear": hybrid.kimi_linear,
    "laguna": grouped.laguna,
    "lfm2_moe": hybrid.lfm2_moe,
    "llama4": grouped.llama4,
    "mimo_v2_flash": grouped.mimo_v2_flash,
    "minimax_m2": grouped.minimax_m2,
    "minimax_m3_vl": grouped.minimax_m3,
    "mistral4": latent.deepseek,
    "mistral_large4": latent.mistral_large4,
    "nemotron_h": hybrid.nemotron_h,
    "phimoe": grouped.phimoe,
    "qwen3_5_moe": hybrid.qwen_next,
    "qwen3_next": hybrid.qwen_next,
    "qwen4_exp": hybrid.qwen4_exp,
    "solar_open": grouped.solar_open,
    "step3p5": grouped.step3p5,
    "step3p7": grouped.step3p5,
}
# Keys that change what is computed and not how much (positions, scores, scaling, training, vision and audio parts), and
# keys that decide on sizes in some families and stand in the configs of others without meaning.
SIZELESS = frozenset(
    (
        "add_swa_attention_sink_bias", "attn_type_list", "experts_per_token", "initial_context_length", "mla_use_nope",
        "moe_layer_num_skipped", "moe_router_activation_func", "mtp_transformer_layers", "qk_norm_type",
        "use_grouped_topk", "use_mtp", "use_routing_bias", "attention_multiplier", "attn_scale",
        "attn_temperature_tuning", "audio_config", "aux_loss_alpha", "clip_qkv",
        "decoder_sparse_step", "embedding_multiplier", "enable_moe_fp32_combine", "ep_size", "eod_token_id", "expand",
        "final_logit_softcapping", "floor_scale", "for_llm_compressor", "hidden_act", "hidden_activation",
        "image_token_id", "layer_norm_epsilon", "layer_norm_eps", "logits_scaling", "mlp_bias", "mlp_hidden_act",
        "mlp_only_layers", "moe_apply_router_weight_on_input", "moe_layer_freq", "moe_layers", "moe_renormalize",
        "moe_router_logit_softcapping", "moe_router_scaling_factor", "moe_routed_scaling_factor", "mscale", "n_group",
        "norm_eps", "norm_topk_prob", "num_expert_group", "num_key_value_heads", "num_mtp_layers", "num_mtp_modules",
        "num_nextn_predict_layers", "partial_rotary_factor", "pretraining_tp", "qk_head_dim", "quantization_config",
        "query_pre_attn_scalar", "residual_multiplier", "rms_norm_eps", "rope_interleave", "rope_local_base_freq",
        "rope_parameters", "rope_scaling", "rope_theta", "rotary_dim", "routed_scaling_factor", "router_scaling_factor",
        "scoring_func", "seq_aux", "swiglu_alpha", "swiglu_limit", "swiglu_limits", "swiglu_limits_shared",
        "topk_group", "topk_method", "use_qk_norm", "use_sliding_window", "v_head_dim", "vision_config", "head_dim",
        "hc_eps", "hc_sinkhorn_iters", "max_position_embeddings", "attention_bias", "compress_rope_theta",
        "expert_dtype", "qk_rope_head_dim", "first_k_dense_replace", "q_lora_rank", "intermediate_size",
    )
)  # fmt: skip
ALIASES = {"glm5_next_text": "glm5_next", "minimax_m3_vl_text": "minimax_m3_vl", "qwen4_exp_text": "qwen4_exp"}


@dataclass(frozen=True, kw_only=True)
class Described:
    """An architecture, why the engine cannot run the model (empty: it can), and config keys that nobody knows."""

    architecture: Architecture
    objections: tuple[str, ...]
    unknown_keys: tuple[str, ...]


class LenientReader(ConfigReader):
    """A reader for a plan: what stops a run is noted, not raised, as long as it does not change the sizes."""

    def __init__(self, values: dict[str, Any], source: str) -> None:
        super().__init__(values, source)
        self.objections: list[str] = []

    def refuse(self, error: ConfigError) -> None:
        """Notes what would stop a run."""
        self.objections.append(str(error).removeprefix(f"{self.source}: "))

    def limited(self, context: int, window: int, name: str) -> int:
        """The context as it is: a plan counts no scores."""
        return context

    def finish(self) -> None:
        """Unknown keys are listed by `unknown`."""

    def unknown(self) -> tuple[str, ...]:
        """Keys that were neither read nor known to leave the sizes alone."""
        rest = sorted(set(self.values) - self.seen - SIZELESS)
        return tuple(name for name in rest if not self.is_harmless(name, self.values[name]))


def read(values: dict[str, Any], source: str) -> Described:
    """The architecture of a config; raises ConfigError for a family nobody knows, and for sizes that are missing or
    impossible."""
    config = LenientReader(flatten(values), source)
    family = _family(config)
    if family in FAMILIES:
        architecture = of_spec(read_spec(FAMILIES[family], config))
    else:
        try:
            architecture = READERS[family](config)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{source}: a value is not of the kind that {family} has there ({type(error).__name__}: {error}); "
                "compare it with the model's page"
            ) from error
        config.objections.append(f"the engine does not run {family} yet")
    return Described(architecture=architecture, objections=tuple(config.objections), unknown_keys=config.unknown())


def flatten(values: dict[str, Any]) -> dict[str, Any]:
    """The text model of a config that wraps it together with vision or audio parts."""
    inner = values.get("text_config")
    if not isinstance(inner, dict):
        return values
    outer = {
        k: v for k, v in values.items() if k in ("quantization_config", "tie_word_embeddings", "torch_dtype", "dtype")
    }
    named = {"model_type": values.get("model_type")} if "model_type" not in inner else {}
    return {**outer, **named, **inner}


def _family(config: ConfigReader) -> str:
    """The family by model_type; "_text" is how newer releases name the text half of a wrapped model."""
    name = str(config.require("model_type"))
    known = {*FAMILIES, *READERS}
    for candidate in (name, ALIASES.get(name, ""), name.removesuffix("_text")):
        if candidate in known:
            return candidate
    near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5)
    hint = f"nearest: {', '.join(near)}; " if near else ""
    raise ConfigError(
        f"{config.source}: model_type '{name}' is no family that can be planned; {hint}there are "
        f"{', '.join(sorted(known))}"
    )
