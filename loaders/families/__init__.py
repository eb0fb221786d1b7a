"""The families that can be run, by the `model_type` of their config.json."""

from __future__ import annotations

import difflib

from ...errors import ConfigError
from ..spec import ModelSpec
from . import experts_per_token as used
from .bailing_hybrid import BAILING_HYBRID
from .biased_choice import DOTS1, GLM4_MOE, HY_V3, SOLAR_OPEN
from .config_reader import ConfigReader
from .deepseek import DEEPSEEK_V2, DEEPSEEK_V3, DEEPSEEK_V32, GLM4_MOE_LITE, GLM_MOE_DSA, KIMI_K2
from .deepseek_v4 import DEEPSEEK_V4
from .ernie import ERNIE4_5_MOE
from .exaone_moe import EXAONE_MOE
from .family import Family, TensorNames
from .gemma4 import GEMMA4
from .glm5_next import GLM5_NEXT
from .gpt_oss import GPT_OSS
from .granitemoe import GRANITEMOE, GRANITEMOEHYBRID, GRANITEMOESHARED
from .hunyuan import HUNYUAN_V1_MOE
from .kimi_k3 import KIMI_K3
from .kimi_linear import KIMI_LINEAR
from .laguna import LAGUNA
from .lfm2_moe import LFM2_MOE
from .llama4 import LLAMA4
from .mimo_v2_flash import MIMO_V2_FLASH
from .minimax_m2 import MINIMAX_M2
from .minimax_m3 import MINIMAX_M3
from .mistral4 import MISTRAL4, MISTRAL_LARGE4
from .mixtral import MIXTRAL
from .nemotron_h import NEMOTRON_H
from .olmoe import OLMOE
from .phimoe import PHIMOE
from .qwen2_moe import QWEN2_MOE
from .qwen3_moe import QWEN3_MOE
from .qwen3_next import QWEN3_5_MOE, QWEN3_NEXT
from .qwen4_exp import QWEN4_EXP
from .spec_reader import read_eos, read_spec
from .step3p5 import STEP3P5, STEP3P7

__all__ = ["FAMILIES", "Family", "TensorNames", "find_family", "named", "read_eos", "read_spec", "spec_of"]

FAMILIES: dict[str, Family] = {
    f.model_type: f
    for f in (
        QWEN3_MOE, QWEN2_MOE, MIXTRAL, OLMOE, GRANITEMOE, GPT_OSS, DEEPSEEK_V2, DEEPSEEK_V3, KIMI_K2, GLM4_MOE_LITE,
        QWEN3_NEXT, QWEN3_5_MOE, GLM4_MOE, MINIMAX_M2, DOTS1, SOLAR_OPEN, HY_V3, ERNIE4_5_MOE, GRANITEMOESHARED,
        EXAONE_MOE, HUNYUAN_V1_MOE, GEMMA4, DEEPSEEK_V32, GLM_MOE_DSA, LLAMA4, PHIMOE, MISTRAL4, KIMI_LINEAR,
        MIMO_V2_FLASH, STEP3P5, STEP3P7, LAGUNA, BAILING_HYBRID, LFM2_MOE, GRANITEMOEHYBRID, NEMOTRON_H,
        MISTRAL_LARGE4, MINIMAX_M3, GLM5_NEXT, QWEN4_EXP, KIMI_K3, DEEPSEEK_V4,
    )
}  # fmt: skip


def named(model_type: str) -> Family | None:
    """The family of that name, None if there is none; newer releases put "_text" behind it."""
    return FAMILIES.get(model_type) or FAMILIES.get(model_type.removesuffix("_text"))


def find_family(config: ConfigReader) -> Family:
    """The family that a config names; raises ConfigError with the nearest names if there is none."""
    model_type = config.require("model_type")
    if isinstance(model_type, str) and (found := named(model_type)):
        return found
    near = difflib.get_close_matches(str(model_type), FAMILIES, n=2, cutoff=0.5)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    raise ConfigError(
        f"{config.source}: model_type '{model_type}' is not supported{hint}. Supported: {', '.join(FAMILIES)}"
    )


def spec_of(config: ConfigReader, experts_per_token: int | None = None) -> tuple[Family, ModelSpec]:
    """Family and spec of a config. experts_per_token: in place of the config's number, which a note says; raises
    OptionError for one that the model cannot use."""
    family = find_family(config)
    spec, notes = used.with_experts(read_spec(family, config), experts_per_token, config.source)
    config.notes += notes
    return family, spec
