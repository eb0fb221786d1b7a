"""A checkpoint that has a config and no weights: real shapes, to be filled with noise.

The model may be anything that a plan takes: a directory, a config.json, a name on the hub (its config alone is fetched)
or of the catalogue. The family must be one that the engine runs. Where memory is short layers are left out from the
end; what is left has a routed layer at least.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import ConfigError, MemoryNeeded, OptionError
from ...kernels import FORMATS
from .. import model_source
from ..families import FAMILIES, Family, spec_of
from ..families.config_reader import ConfigReader
from ..memory import GB
from ..quants.of_config import KEYS as PACKED
from ..spec import ModelSpec
from . import chosen_formats
from .checkpoint import SMALLER, Checkpoint
from .chosen_formats import LoadOptions
from .model_weights import Formats, allocate
from .targets import targets

STORED = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}


def imagine(model: str | dict[str, Any], options: LoadOptions, **where: Any) -> Checkpoint:
    """The checkpoint of a config, or of what a plan takes for a model; `where`: how to look for that on the hub. Raises
    ConfigError for a family that the engine does not run, OptionError for formats that do not fit its rows."""
    if isinstance(model, dict):
        source = model_source.of_config(model, "the config", "random")
    else:
        source = model_source.find(model, **where)
    family = source.config.get("model_type")
    if family not in FAMILIES:
        raise ConfigError(
            f"{source.name} is of the family {family!r}, which the engine does not run yet (it runs "
            f"{', '.join(FAMILIES)}): headrace plan predicts its speed"
        )
    config = {key: value for key, value in source.config.items() if key not in PACKED}
    reader = ConfigReader(config, source.name, options.ignore_config_keys)
    found, spec = spec_of(reader)
    formats = _formats(config, found, spec, options)
    return Checkpoint(
        directory=Path(source.name), family=found, spec=spec, names=found.tensors, formats=formats,
        entries={}, is_converted=False,
        notes=tuple(reader.notes),
    )  # fmt: skip


def _formats(config: dict[str, Any], family: Family, spec: ModelSpec, options: LoadOptions) -> Formats:
    """The formats asked for; "native" is that of the dtype option, or the config's own dtype."""
    stored = str(config.get("torch_dtype") or config.get("dtype") or "bfloat16").removeprefix("torch.")
    plain = FORMATS["f32"]
    wanted = targets(spec, family.tensors, allocate(spec, Formats(experts=plain, dense=plain, embed=plain), "meta"))
    return chosen_formats.of_options(spec, wanted, options, FORMATS[STORED.get(stored, "bf16")])


def cut(checkpoint: Checkpoint, layers: int) -> Checkpoint:
    """The same checkpoint with its first layers only."""
    spec = checkpoint.spec
    return replace(checkpoint, spec=replace(spec, is_moe=spec.is_moe[:layers]))


def layers_that_fit(checkpoint: Checkpoint, asked: int | None, room: int, extra: Callable[[ModelSpec], int]) -> int:
    """How many layers: those asked for, or as many as `room` bytes hold together with the `extra` of a model so cut.

    Raises OptionError for a number that the model does not have, or without a routed layer; MemoryNeeded if the first
    routed layer does not fit.
    """
    whole = checkpoint.spec.layers
    fewest = checkpoint.spec.is_moe.index(True) + 1
    if asked is not None and not fewest <= asked <= whole:
        raise OptionError(
            f"--layers is {asked}: this model has {whole}, the first with routed experts is number {fewest}"
        )

    def needs(layers: int) -> int:
        smaller = cut(checkpoint, layers)
        return smaller.weight_bytes + extra(smaller.spec)

    most = asked or whole
    fitting = next((n for n in range(most, fewest - 1, -1) if needs(n) <= room), None)
    if fitting is None or (asked is not None and fitting < asked):
        least = needs(asked or fewest) / GB
        raise MemoryNeeded(
            f"{asked or fewest} layers of this model need {least:.2f} GB, {room / GB:.2f} GB can be taken: {SMALLER}"
        )
    return fitting
