"""Values of a config that a family names by a `Key`."""

from __future__ import annotations

from typing import Any

from .config_reader import ConfigReader
from .family import Key

# Far above any model: a config that asks for more is damaged, and listing its tensors alone would fill the memory.
MAX_LAYERS = 1000
MAX_EXPERTS = 10000


def read_flag(config: ConfigReader, value: bool | Key) -> bool:
    if isinstance(value, bool):
        return value
    if value.default is not None and config.get(value.name) is None:
        return bool(value.default)
    return config.flag(value.name)


def read_scale(config: ConfigReader, key: Key | None) -> float:
    if key is None or (key.default is not None and config.get(key.name) is None):
        return 1.0 if key is None else float(key.default)
    return config.number(key.name)


def same_in_every_layer(config: ConfigReader, names: tuple[str, ...]) -> dict[str, Any]:
    """The config's values, with one in place of a list that has it for each layer; refuses lists of several."""
    values = dict(config.values)
    for name in names:
        if isinstance(listed := values.get(name), list):
            if not listed or any(value != listed[0] for value in listed):
                raise config.bad(name, listed, "the same in every layer")
            values[name] = listed[0]
    return values
