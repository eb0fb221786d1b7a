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
from ..families import FAMILIES, Family, named, spec_of
from ..families.config_reader import ConfigReader
from ..families.quantisation import KEYS as PACKED
from ..memory import GB
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
    family = str(source.config.get("model_type"))
    if named(family) is None:
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
    return replace(checkpoint, spec=replace(spec, layers=spec.layers[:layers]))


def layers_that_fit(checkpoint: Checkpoint, asked: int | None, check: Callable[[Checkpoint], None]) -> tuple[int, str]:
    """How many layers: those asked for, or as many as pass a check of memory, which raises MemoryNeeded; and what it
    said of the first that did not pass.

    Raises OptionError for a number that the model does not have, or without a routed layer; MemoryNeeded if the first
    routed layer does not fit, or what was asked for.
    """
    whole = len(checkpoint.spec.layers)
    fewest = checkpoint.spec.is_moe.index(True) + 1
    if asked is not None and not fewest <= asked <= whole:
        raise OptionError(
            f"--layers is {asked}: this model has {whole}, the first with routed experts is number {fewest}"
        )
    problem = ""
    for layers in range(asked or whole, (asked or fewest) - 1, -1):
        try:
            check(cut(checkpoint, layers))
        except MemoryNeeded as error:
            problem = problem or str(error)
            if layers == (asked or fewest):
                raise
        else:
            return layers, problem
    raise AssertionError("no number of layers was tried")


def check_room(checkpoint: Checkpoint, room: int, extra: int) -> None:
    """Raises MemoryNeeded where `room` bytes do not hold the weights and `extra` bytes."""
    needs = checkpoint.weight_bytes + extra
    if needs > room:
        raise MemoryNeeded(
            f"{len(checkpoint.spec.layers)} layers of this model need {needs / GB:.2f} GB, {room / GB:.2f} GB can be "
            f"taken: {SMALLER}"
        )
