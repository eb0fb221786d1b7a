"""Layers that are one thing each: a state space, attention, experts or an MLP, as letters or a list say."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import ConfigError
from ..spec import DenseSpec, MixerSpec, MoeSpec
from .config_reader import ConfigReader
from .family import Family

LETTERS = {"M": "mamba", "E": "moe", "*": "attention", "-": "mlp"}
SPELLINGS = {"linear_attention": "mamba", "full_attention": "attention"}


def kinds(config: ConfigReader) -> list[str]:
    """What each layer is."""
    pattern, names = config.get("hybrid_override_pattern"), config.get("layers_block_type", "layer_types")
    said = list(pattern) if names is None and isinstance(pattern, str) else names
    if not isinstance(said, list) or not said:
        raise config.bad("layers_block_type", said, "a list of kinds of layers, or hybrid_override_pattern")
    found = [SPELLINGS.get(str(one), LETTERS.get(str(one), str(one))) for one in said]
    if unknown := sorted(set(found) - {*LETTERS.values()}):
        raise config.bad("layers_block_type", unknown[0], ", ".join(LETTERS.values()))
    return found


def mixers(config: ConfigReader, space: MixerSpec, attention: MixerSpec) -> list[MixerSpec | None]:
    """What looks at other tokens in each layer, if something does."""
    of_kind = {"mamba": space, "attention": attention}
    return [of_kind.get(kind) for kind in kinds(config)]


def ffns(family: Family, config: ConfigReader, moe: MoeSpec) -> list[MoeSpec | DenseSpec | None]:
    """What every token goes through alone in each layer, if something is there."""
    found = kinds(config)
    if family.dense_width is not None:
        config.seen.add(family.dense_width)
    if "moe" not in found:
        config.refuse(
            ConfigError(f"{config.source}: none of the {len(found)} layers has experts: the engine runs models that do")
        )
    return [moe if kind == "moe" else _dense(family, config, moe) if kind == "mlp" else None for kind in found]


def _dense(family: Family, config: ConfigReader, moe: MoeSpec) -> DenseSpec:
    assert family.dense_width is not None, "MLPs of a family without a width for them"
    return DenseSpec(width=config.integer(family.dense_width), activation=moe.activation)


def check_count(config: ConfigReader, count: int, found: Sequence[object]) -> None:
    """A number of layers besides, which must be theirs."""
    if count != len(found):
        config.refuse(config.bad("num_hidden_layers", count, f"{len(found)}, as layers_block_type lists"))
