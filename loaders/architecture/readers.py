"""What a config.json says about size, for every family that can be planned: `read` gives its `Architecture`.

A family that the engine runs is read by its own literal in `families/`, as for a run, and its architecture is that of
the spec; a family that nobody knows is read by the names that sizes usually have (`by_name/`). Keys that decide on
sizes are needed, and no more: no other key stops a plan. Nothing here imports torch.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from typing import Any

from ...errors import ConfigError, short
from ..families import FAMILIES, Family, named, read_spec
from ..families.config_reader import ConfigReader
from .architecture import Architecture
from .by_name import unknown_family
from .by_name.size_keys import may_change_sizes
from .by_name.text_part import text_part
from .context import NO_LIMIT, context_length
from .of_spec import of_spec

ALIASES = {"glm5_next": "glm5_next", "minimax_m3": "minimax_m3_vl"}
# Words of a model_type that say which part of a model with several inputs a config is of, and a "v" behind a number.
PART_OF = re.compile(r"_(?:text|vl|omni|vision|audio|thinker|mm)(?=_|$)|(?<=\d)v(?=_|$)")
# What a plan takes for whole numbers that are missing or impossible: sizes do not depend on them, or all models have
# these. A family may have more (`Family.planned`).
ASSUMED = {
    "decoder_sparse_step": 1, "n_group": 1, "num_expert_group": 1, "topk_group": 1, "hc_mult": 4,
    "hc_sinkhorn_iters": 1,
}  # fmt: skip
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
        self.has_stopped = False
        self.assumed: dict[str, Any] = dict(ASSUMED)

    def get(self, *names: str) -> Any:
        return _by_value(super().get(*names))

    def require(self, *names: str) -> Any:
        try:
            return super().require(*names)
        except ConfigError as error:
            return self._assumed(error, names)

    def integer(self, *names: str, maximum: int = 2**48) -> int:
        try:
            return super().integer(*names, maximum=maximum)
        except ConfigError as error:
            return int(self._assumed(error, names))

    def _assumed(self, error: ConfigError, names: tuple[str, ...]) -> Any:
        """What a plan takes for a value that is missing or impossible; raises the error where sizes depend on it."""
        if known := [self.assumed[name] for name in names if name in self.assumed]:
            self.stop(error)
            return known[0]
        raise error

    def number(self, *names: str) -> float:
        """A setting; sizes are whole numbers."""
        try:
            return super().number(*names)
        except ConfigError as error:
            self.stop(error)
            return 1.0

    def flag(self, *names: str) -> bool:
        try:
            value = self.require(*names)
            return bool(value) if value in (0, 1) else super().flag(*names)
        except ConfigError as error:
            self.stop(error)
            return False

    def refuse(self, error: ConfigError) -> None:
        """Notes what would stop a run."""
        if not self.has_stopped:
            self.objections.append(short(str(error).removeprefix(f"{self.source}: "), MOST_SAID))

    def stop(self, error: ConfigError) -> None:
        """Notes that a value is missing: what is said against those that follow may be a consequence of it."""
        self.refuse(error)
        self.has_stopped = True

    def limited(self, context: int, name: str) -> int:
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
        if family in FAMILIES:
            architecture = _of_family(FAMILIES[family], config)
        else:
            architecture = unknown_family.read(config, _nearest(family), dense)
            notes += (
                f"model_type '{family}' is not known: planned by the usual names of sizes, as {_outline(architecture)}",
            )
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


def _of_family(family: Family, config: LenientReader) -> Architecture:
    """What the spec of a config weighs; of values that a run demands and sizes do not depend on, any will do."""
    name = str(config.get("model_type"))
    config.assumed = {**config.assumed, family.context: NO_LIMIT, **family.planned}
    found = of_spec(read_spec(family, config))
    return replace(found, family=name, context=context_length(config))


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
        if candidate in FAMILIES:
            return candidate, candidate == snake != bare
    return name, False


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, sorted(FAMILIES), n=3, cutoff=0.5)
    return f" (nearest: {', '.join(near)})" if near else ""
