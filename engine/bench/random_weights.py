"""A model with random weights, made in RAM from a config alone: for measuring, not for text.

Everything but the values is real: shapes, formats, kernels, cache. Layers that memory does not hold are left out, and
`whole` remembers how many the model has.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from ...errors import OptionError
from ...kernels import Ops
from ...loaders.spec import ModelSpec
from ...loaders.weights import imagined
from ...loaders.weights.checkpoint import Checkpoint, Progress
from ...loaders.weights.model_weights import ModelWeights, allocate
from ...loaders.weights.noise import Noise
from ..config import EngineConfig
from ..core.weight_source import Target, load_options
from ..devices.device import Device
from ..generation.sampler import sample
from ..generation.sequence import Sequence
from ..llm import LLM
from ..memory import kv_budget
from ..memory.deciding import plan_memory
from ..model.kv_cache import PAGE, pages_for
from ..placement.placement import Tier
from ..speculation.mtp import asked as mtp_asked

MEMORY_SHARE = 0.9  # of what is free: the rest is for buffers and for what else runs
GPU_SHARE = 0.99  # of a GPU: the rest is for buffers that a measured link may ask for
RAM_LIMIT = "where the machine has more memory than it says"


class RandomWeights:
    """A source of random weights. model: whatever a plan takes, or a config; `layers`: the first so many, None for as
    many as fit. `whole` is the spec of the uncut model, from `open` on.

    With speculate "mtp" there is a layer for multi-token prediction, as the model's files would have one. Give
    `max_context`: the cache for `max_sequences` of that length is counted when layers are. What counts is the
    memory that the placement puts them into. A note says what was left out. Raises what `LLM` raises, and ConfigError
    for a family that cannot be run.
    """

    whole: ModelSpec

    def __init__(self, model: str | dict[str, Any], layers: int | None = None) -> None:
        self.model, self.layers = model, layers

    def open(self, config: EngineConfig, devices: Mapping[Tier, Device], show_progress: bool) -> Checkpoint:
        whole = imagined.imagine(
            self.model,
            load_options(config),
            revision=config.revision,
            offline=config.offline,
            cache_dir=config.cache_dir,
        )
        if config.mtp is not None:
            raise OptionError(
                "mtp is a file of weights, and these are random: leave it out, speculate 'mtp' makes them"
            )
        asked = mtp_asked.of(config, devices)
        whole = imagined.with_mtp(whole) if asked is not None and asked.must else whole
        self.whole = whole.spec
        layers, problem = imagined.layers_that_fit(whole, self.layers, partial(_check, config, devices))
        found = imagined.cut(whole, layers)
        if layers == len(whole.spec.layers) or self.layers is not None:
            return found
        note = f"the first {layers} of {len(whole.spec.layers)} layers, since {problem}; or --ram-limit, {RAM_LIMIT}"
        return replace(found, notes=(*found.notes, note))

    def load(self, checkpoint: Checkpoint, target: Target) -> ModelWeights:
        weights = allocate(checkpoint.spec, checkpoint.formats, where=target.where)
        target.prepare(weights, False)
        Noise().fill(weights, target.progress, target.filled)
        return weights


def _check(config: EngineConfig, devices: Mapping[Tier, Device], checkpoint: Checkpoint) -> None:
    """Raises MemoryNeeded where a model does not fit: beside a GPU where its placement puts it, on each tier."""
    kv_format, host = kv_budget.kv_format(config, checkpoint.spec, checkpoint.formats), devices[Tier.CPU]
    room = int(host.free * MEMORY_SHARE)
    if len(devices) == 1:
        pages = pages_for(config.max_context or PAGE) * config.max_sequences
        sizes = kv_budget.PageBytes(checkpoint.spec, kv_format, max(config.prefill_chunk, config.max_sequences))
        total = sizes.total(pages, config.max_context or PAGE, config.max_sequences)
        imagined.check_room(checkpoint, room, total)
        return
    with_rest = {tier: replace(one, free=int(one.free * GPU_SHARE)) for tier, one in devices.items()}
    plan_memory(config, checkpoint, kv_format, {**with_rest, Tier.CPU: replace(host, free=room)}, graphs=True)


class RandomSampler:
    """Chooses as any model does, and goes on with random tokens: noise falls into short circles of tokens, the more so
    where the head is the embedding, and would read the same few experts again and again."""

    def __init__(self) -> None:
        self.random = random.Random(0)

    def __call__(self, logits: Tensor, ready: list[Sequence], ops: Ops) -> list[int]:
        sample(logits, ready, ops)
        return [self.random.randrange(logits.shape[1]) for _ in ready]


def random_llm(
    model: str | dict[str, Any], *, layers: int | None = None, progress: Progress | None = None, **options: Any
) -> LLM:
    """An `LLM` of random weights that goes on with random tokens; arguments as of `RandomWeights` and `LLM`."""
    return LLM(RandomWeights(model, layers), progress=progress, sampler=RandomSampler(), **options)


def whole_spec(llm: LLM) -> ModelSpec:
    """The spec of a model as it is before layers are left out."""
    return llm.source.whole if isinstance(llm.source, RandomWeights) else llm.spec


def is_cut(llm: LLM) -> bool:
    """Whether layers were left out."""
    return len(llm.spec.layers) < len(whole_spec(llm).layers)
