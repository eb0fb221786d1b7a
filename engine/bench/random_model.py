"""A model with random weights, made in RAM from a config alone: for measuring, not for text.

Everything but the values is real: shapes, formats, kernels, cache. Layers that memory does not hold are left out, and
`whole` remembers how many the model has.
"""

from __future__ import annotations

import random
from typing import Any

from torch import Tensor

from ...loaders.memory import free_memory
from ...loaders.spec import ModelSpec
from ...loaders.weights import imagined
from ...loaders.weights.checkpoint import Checkpoint, Progress
from ...loaders.weights.model_weights import ModelWeights, allocate
from ...loaders.weights.noise import Noise
from ..bandwidth_model.cpu_pass import predict_seconds
from ..generation.sequence import Sequence
from ..ledger.ledger import Bytes
from ..ledger.pass_bytes import bytes_per_token
from ..llm import LLM, load_options
from ..memory import kv_budget
from ..model.kv_cache import PAGE, pages_for

MEMORY_SHARE = 0.9  # of what is free: the rest is for buffers and for what else runs


class RandomLLM(LLM):
    """An `LLM` of random weights. model: whatever a plan takes, or a config; `layers`: the first so many, None for as
    many as fit.

    `whole` is the spec of the uncut model. Give `max_context`: the cache for `max_sequences` of that length is counted
    when layers are. Raises what `LLM` raises, and ConfigError for a family that cannot be run.
    """

    def __init__(
        self,
        model: str | dict[str, Any],
        *,
        layers: int | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> None:
        self.source = model
        self.layers = layers
        self.random = random.Random(0)
        super().__init__(str(model), progress=progress, **options)

    def _open(self, model: str, show_progress: bool) -> Checkpoint:
        config = self.config
        whole = imagined.imagine(
            self.source,
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

    def _load(self, progress: Progress | None) -> ModelWeights:
        weights = allocate(self.spec, self.checkpoint.formats, where=self._where())
        self._prepare(weights, in_parts=False)
        memory = self.memory
        Noise().fill(weights, progress, None if memory is None else memory.filled)
        if memory is not None:
            memory.finish()
        return weights

    def _sample(self, logits: Tensor, ready: list[Sequence]) -> list[int]:
        """Chooses as any model does, and goes on with random tokens: noise falls into short circles of tokens, the more
        so where the head is the embedding, and would read the same few experts again and again."""
        super()._sample(logits, ready)
        return [self.random.randrange(self.spec.vocab) for _ in ready]

    def predict_whole(self, read: Bytes, tokens: int, sequences: int) -> float:
        """Seconds that the uncut model is predicted to take for these bytes and tokens; 0 without a profile."""
        if self.machine is None:
            return 0.0
        formats = self.checkpoint.formats
        return predict_seconds(read, self.machine, formats, self.kv_dtype, self.whole, tokens, sequences)

    @property
    def is_cut(self) -> bool:
        """Whether layers were left out."""
        return self.spec.layers < self.whole.layers
