"""What a config.json says about size, for every family that can be planned: `read` gives its `Architecture`.

A family that the engine runs is read by its own literal in `families/`, the others have a reader here, and a family
that nobody knows is read by the names that sizes usually have (`by_name/`). Each needs the keys that decide on sizes
and no more: no other key stops a plan. Nothing here imports torch.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigError, short
from ..families import FAMILIES, named, read_spec
from ..families.config_reader import ConfigReader
from . import grouped, hybrid, latent
from .architecture import Architecture
from .by_name import unknown_family
from .by_name.size_keys import may_change_sizes
from .by_name.text_part import text_part
from .common import Read
from .of_spec import of_family

READERS: dict[str, Read] = {
    "bailing_hybrid": hybrid.bailing_hybrid,
    "deepseek_v2": latent.deepseek,
    "deepseek_v3": latent.deepseek,
    "deepseek_v32": latent.deepseek_v32,
    "deepseek_v4": latent.deepseek_v4,
    "dots1": grouped.dots1,
    "ernie4_5_moe": grouped.ernie4_5_moe,
    "exaone_moe": grouped.exaone_moe,
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
ALIASES = {"glm5_next": "glm5_next", "minimax_m3": "minimax_m3_vl"}
# Words of a model_type that say which part of a model with several inputs a config is of, and a "v" behind a number.
PART_OF = re.compile(r"_(?:text|vl|omni|vision|audio|thinker|mm)(?=_|$)|(?<=\d)v(?=_|$)")
MOST_SAID = 240  # characters of an objection: a value may be a list of every module


@dataclass(frozen=True, kw_only=True)
class Described:
    """An architecture, why the engine cannot run the model (empty: it can), config keys that nobody knows and whose
    names say that they change sizes, and how the config was read where that is not plain."""

    architecture: Architecture
    objections: tuple[str, ...]
    unknown_keys: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class LenientReader(ConfigReader):
    """A reader for a plan: numbers and flags are taken by their value, and what stops a run is noted, not raised."""

    def __init__(self, values: dict[str, Any], source: str) -> None:
        super().__init__(values, source)
        self.objections: list[str] = []

    def get(self, *names: str) -> Any:
        return _by_value(super().get(*names))

    def flag(self, *names: str) -> bool:
        value = self.require(*names)
        return bool(value) if value in (0, 1) else super().flag(*names)

    def refuse(self, error: ConfigError) -> None:
        """Notes what would stop a run."""
        self.objections.append(short(str(error).removeprefix(f"{self.source}: "), MOST_SAID))

    def limited(self, context: int, window: int, name: str) -> int:
        """The context as it is: a plan counts no scores."""
        return context

    def finish(self) -> None:
        """Unknown keys are listed by `unknown`."""

    def unknown(self) -> tuple[str, ...]:
        """Keys that were not read and whose names say that they change sizes."""
        left = {key: value for key, value in self.values.items() if key not in self.seen}
        return tuple(sorted(key for key, value in left.items() if may_change_sizes(key, value)))


def _by_value(value: Any) -> Any:
    """A number that is written as text or as 4096.0, and a flag that is written as text."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        if re.fullmatch(r"\s*\d{1,15}(?:\.0*)?\s*", value):
            return int(float(value))
        return {"true": True, "false": False}.get(value.strip().lower(), value)
    return value


def read(values: dict[str, Any], source: str, dense: bool = False) -> Described:
    """The architecture of a config; raises ConfigError for a family nobody knows and whose sizes do not suffice, and
    for sizes that are missing or impossible. dense: a model without experts will do."""
    text, notes = text_part(values)
    config = LenientReader(text, source)
    family, by_class = _family(config)
    if by_class:
        notes += (f"model_type '{config.get('model_type')}' is not known: planned as {family}, which its class says",)
    try:
        if family in READERS:
            architecture = READERS[family](config)
        elif family in FAMILIES:
            architecture = of_family(FAMILIES[family], config)
        else:
            architecture = unknown_family.read(config, _nearest(family), dense)
            notes += (
                f"model_type '{family}' is not known: planned by the usual names of sizes, as {_outline(architecture)}",
            )
        if family in FAMILIES:
            _object_to_a_run(family, config)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(
            f"{source}: a value is not of the kind that {family} has there ({type(error).__name__}: {error}); "
            "compare it with the model's page"
        ) from error
    name = text.get("model_type")
    if not isinstance(name, str) or named(name) is None or named(name) is not FAMILIES.get(family):
        config.objections.append(f"the engine does not run {name or family} yet: it runs {', '.join(FAMILIES)}")
    return Described(
        architecture=architecture, objections=tuple(config.objections), unknown_keys=config.unknown(), notes=notes
    )


def _object_to_a_run(family: str, config: LenientReader) -> None:
    """Reads everything that a run needs, and notes what it has against it."""
    whole = LenientReader(config.values, config.source)
    try:
        read_spec(FAMILIES[family], whole)
    except ConfigError as error:
        whole.refuse(error)
    config.objections += whole.objections
    config.seen |= whole.seen


def _outline(model: Architecture) -> str:
    """The layers in few words."""
    kinds = ", ".join(dict.fromkeys(layer.mixer.kind for layer in model.layers if layer.mixer))
    experts = next((layer.experts for layer in model.layers if layer.experts), None)
    if experts is None:
        return f"{kinds} attention without experts"
    return f"{kinds} attention with {experts.count} experts of which a token takes {experts.top_k}"


def _family(config: ConfigReader) -> tuple[str, bool]:
    """The family by model_type, or by the class that the config names, and whether that decided though there is a type;
    the type as it stands there if nobody knows either. Newer releases name the text half of a wrapped model with a
    "_text" behind it."""
    classes = config.get("architectures")
    first = str(classes[0]) if isinstance(classes, list) and classes else ""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", re.sub(r"(?:Text)?(?:For[A-Z]\w+|Model)$", "", first)).lower()
    name = str(config.get("model_type") or snake or config.require("model_type"))
    bare = PART_OF.sub("", name)
    for candidate in (name, name.removesuffix("_text"), bare, ALIASES.get(bare, ""), snake):
        if candidate in FAMILIES or candidate in READERS:
            return candidate, candidate == snake != bare
    return name, False


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, sorted({*FAMILIES, *READERS}), n=3, cutoff=0.5)
    return f" (nearest: {', '.join(near)})" if near else ""
