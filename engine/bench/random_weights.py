"""A model with random weights, made in RAM from a config alone: for measuring, not for text.

Everything but the values is real: shapes, formats, kernels, cache. Layers that memory does not hold are left out, and
`whole` remembers how many the model has.
"""

from __future__ import annotations

import random
from typing import Any

from torch import Tensor

from ...kernels import Ops
from ...loaders.memory import free_memory
from ...loaders.spec import ModelSpec
from ...loaders.weights import imagined
from ...loaders.weights.checkpoint import Checkpoint, Progress
from ...loaders.weights.model_weights import ModelWeights, allocate
from ...loaders.weights.noise import Noise
from ..config import EngineConfig
from ..core.weight_source import Target, load_options
from ..generation.sampler import sample
from ..generation.sequence import Sequence
from ..ledger.pass_bytes import bytes_per_token
from ..llm import LLM
from ..memory import kv_budget
from ..model.kv_cache import PAGE, pages_for

MEMORY_SHARE = 0.9  # of what is free: the rest is for buffers and for what else runs


class RandomWeights:
    """A source of random weights. model: whatever a plan takes, or a config; `layers`: the first so many, None for as
    many as fit. `whole` is the spec of the uncut model, from `open` on.

    Give `max_context`: the cache for `max_sequences` of that length is counted when layers are. Raises what `LLM`
    raises, and ConfigError for a family that cannot be run.
    """

    whole: ModelSpec

    def __init__(self, model: str | dict[str, Any], layers: int | None = None) -> None:
        self.model, self.layers = model, layers

    def open(self, config: EngineConfig, show_progress: bool) -> Checkpoint:
        whole = imagined.imagine(
            self.model,
            load_options(config),
            revision=config.revision,
            offline=config.offline,
            cache_dir=config.cache_dir,
        )
        self.whole = whole.spec
        dtype = kv_budget.kv_dtype(config, whole.formats)
        pages = pages_for(config.max_context or PAGE) * config.max_sequences

        def cache(spec: ModelSpec) -> int:
            return pages * PAGE * bytes_per_token(spec, dtype)

        room = int(free_memory() * MEMORY_SHARE)
        return imagined.cut(whole, imagined.layers_that_fit(whole, self.layers, room, cache))

    def load(self, checkpoint: Checkpoint, target: Target) -> ModelWeights:
        weights = allocate(checkpoint.spec, checkpoint.formats, where=target.where)
        target.prepare(weights, False)
        Noise().fill(weights, target.progress, target.filled)
        return weights


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
    return llm.spec.layers < whole_spec(llm).layers
