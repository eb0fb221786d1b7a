"""A checkpoint that has a config and no weights: real shapes, to be filled with noise.

The model may be anything that a plan takes: a directory, a config.json, a GGUF file, a name on the hub (its config, or
its GGUF header, alone is fetched) or of the catalogue. The family must be one that the engine runs. Where memory is
short layers are left out from the end; what is left has a routed layer at least.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import CheckpointError, ConfigError, MemoryNeeded, OptionError
from ...kernels import FORMATS
from .. import model_source
from ..families import FAMILIES, Family, named, spec_of
from ..families.config_reader import ConfigReader
from ..families.quantisation import KEYS as PACKED
from ..gguf.runnable import READABLE
from ..gguf.stored_names import names_of
from ..memory import GB
from ..model_source import Source
from ..spec import ModelSpec, MoeSpec
from . import chosen_formats
from .checkpoint import SMALLER, Checkpoint
from .chosen_formats import LoadOptions
from .model_weights import Formats
from .mtp.find import gap_of, layer_of
from .targets import empty_targets

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
    found, spec = spec_of(reader, options.experts_per_token)
    if any(layer.grams for layer in spec.layers):
        raise ConfigError(
            f"{source.name} has tables of runs of tokens, which stay in the files of a checkpoint: without one there "
            "is nothing to read; headrace plan predicts its speed"
        )
    of_file = source.gguf is not None and source.tensors is not None
    formats = _of_file(source, spec, options) if of_file else _formats(config, found, spec, options)
    return Checkpoint(
        directory=Path(source.name), family=found, spec=spec, names=found.tensors, formats=formats,
        entries={}, is_converted=False,
        notes=tuple(reader.notes),
    )  # fmt: skip


def _formats(config: dict[str, Any], family: Family, spec: ModelSpec, options: LoadOptions) -> Formats:
    """The formats asked for; "native" is that of the dtype option, or the config's own dtype."""
    stored = str(config.get("torch_dtype") or config.get("dtype") or "bfloat16").removeprefix("torch.")
    plain = FORMATS[STORED.get(stored, "bf16")]
    return chosen_formats.of_options(spec, empty_targets(_of_one_expert(spec), family.tensors), options, plain)


def _of_one_expert(spec: ModelSpec) -> ModelSpec:
    """The same with an expert a layer: all of a layer have the same formats, and a model may have 100,000."""
    layers = (
        replace(layer, ffn=replace(layer.ffn, experts=1)) if isinstance(layer.ffn, MoeSpec) else layer
        for layer in spec.layers
    )
    return replace(spec, layers=tuple(layers))


def _of_file(source: Source, spec: ModelSpec, options: LoadOptions) -> Formats:
    """The formats of a GGUF file's tensors, where no others are asked for; raises CheckpointError for one that is not
    there, or of a type without kernels."""
    found = {tensor.name: tensor for tensor in source.tensors or ()}
    wanted = {name: target for name, target in empty_targets(spec, names_of(found)).items() if target.group}
    for name, target in wanted.items():
        if name not in found or math.prod(found[name].shape) != target.elements:
            raise CheckpointError(
                f"{source.name} has no tensor '{name}' of {target.elements} weights: get another conversion"
            )
        if (kind := found[name].dtype) not in READABLE:
            raise CheckpointError(
                f"{source.name}: tensor '{name}' is {kind}, which cannot be computed with yet; there are kernels for "
                f"{', '.join(READABLE)}: get the model in one of these"
            )
    stored = {name: FORMATS[found[name].dtype.lower()] for name in wanted}
    files = {place: Path(source.name) for target in wanted.values() for place in target.places}
    return chosen_formats.of_stored(spec, wanted, stored, files, options)


def with_mtp(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint with a layer for multi-token prediction, as its files would have one. Raises ConfigError for
    a model that cannot have one."""
    layer = None if gap_of(checkpoint.spec.family) else layer_of(checkpoint.spec)
    if layer is None:
        raise ConfigError(
            f"{checkpoint.directory}: layers for multi-token prediction are not run for {checkpoint.spec.family}: "
            "leave it out"
        )
    return replace(checkpoint, spec=replace(checkpoint.spec, mtp=layer))


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
