"""Where the weights of a model come from: a checkpoint's files here, random values in `bench/random_weights.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ...kernels import Ops
from ...loaders.gguf_weights.open_gguf import open_gguf
from ...loaders.hub import locate
from ...loaders.hub.local import is_inside
from ...loaders.spec import ModelSpec
from ...loaders.weights.checkpoint import Checkpoint, Progress, load_weights, open_directory
from ...loaders.weights.chosen_formats import LoadOptions
from ...loaders.weights.model_weights import Held, ModelWeights, Where
from ..config import EngineConfig
from ..devices.device import Device
from ..placement.placement import Tier
from ..speculation.mtp import asked as mtp_asked


@dataclass(frozen=True, kw_only=True)
class Target:
    """What to fill, and whom to tell. where: memory of each part, None for RAM. besides: bytes that a pass and the
    cache will take. prepare(weights, in_parts): called when memory is reserved and nothing filled, in_parts where banks
    are filled by the matrix. filled(part): called when a tensor has its final bytes; None: nobody asks. free: bytes of
    RAM that may be taken; None: what the system says. held: the part of the model to be loaded; None: all."""

    ops: Ops
    where: Where | None
    besides: int
    prepare: Callable[[ModelWeights, bool], None]
    filled: Callable[[Tensor], None] | None
    progress: Progress | None
    free: int | None = None
    held: Held | None = None


class WeightSource(Protocol):
    """Weights that are not loaded yet."""

    def open(self, config: EngineConfig, devices: Mapping[Tier, Device], show_progress: bool) -> Checkpoint:
        """Finds the model and reads its headers; no weights. devices: that it is to run on."""

    def load(self, checkpoint: Checkpoint, target: Target) -> ModelWeights:
        """Fills the weights of what `open` found."""


def name_of(source: WeightSource, spec: ModelSpec) -> str:
    """What people call the model: its directory's or its file's name, or the family's where there is none."""
    given = getattr(source, "model", None)
    return Path(given).name if isinstance(given, str) else spec.family


class CheckpointFiles:
    """The files of a checkpoint. model: its directory, a hub id, or "demo"."""

    def __init__(self, model: str) -> None:
        self.model = model

    def open(self, config: EngineConfig, devices: Mapping[Tier, Device], show_progress: bool) -> Checkpoint:
        """Finds the model, downloading it if need be, and reads its headers."""
        directory = locate.locate(
            self.model,
            revision=config.revision,
            offline=config.offline,
            cache_dir=config.cache_dir,
            show_progress=show_progress,
        )
        options = replace(load_options(config), mtp=mtp_asked.of(config, devices))
        found = open_gguf(directory, options) if directory.is_file() else open_directory(directory, options)
        inside = is_inside(self.model, directory)
        return replace(found, notes=(f"the model is in {directory}", *found.notes)) if inside else found

    def load(self, checkpoint: Checkpoint, target: Target) -> ModelWeights:
        def prepare(weights: ModelWeights) -> None:
            target.prepare(weights, not checkpoint.is_converted)

        return load_weights(
            checkpoint, target.ops, target.progress, target.besides, prepare, target.where, target.filled, target.free,
            target.held,
        )  # fmt: skip


class OpenedOnce(CheckpointFiles):
    """Files of a checkpoint whose headers are read once: whoever opens them again, with the same options, gets what was
    found."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.found: Checkpoint | None = None

    def open(self, config: EngineConfig, devices: Mapping[Tier, Device], show_progress: bool) -> Checkpoint:
        """As of a checkpoint's files; `devices` are those of the first time."""
        if self.found is None:
            self.found = super().open(config, devices, show_progress)
        return self.found


def load_options(config: EngineConfig) -> LoadOptions:
    return LoadOptions(
        expert_format=config.expert_format,
        dense_format=config.dense_format,
        plain_format=config.plain_format,
        experts_per_token=config.experts_per_token,
        ignore_config_keys=config.ignore_config_keys,
        ignore_tensors=config.ignore_tensors,
    )
