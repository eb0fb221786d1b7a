"""`Facts`: everything that `headrace inspect` says of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ....errors import ConfigError
from ....loaders.architecture.architecture import Architecture
from ....loaders.families import quantisation
from ....loaders.model_source import Source
from ....loaders.quants.quant import Quant
from ...bandwidth_model.flop_counts import CACHE_WIDTH, STATE_WIDTH
from ..plan import sizes
from ..storage import Storage
from . import here, stored, text
from .here import Here
from .stored import Run
from .text import Text


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A model: where it was read, its bytes, the formats of its tensors, its text side or why that cannot be said, and
    what runs it here."""

    source: Source
    storage: Storage
    quant: Quant | None
    runs: tuple[Run, ...]
    text: Text | str
    here: Here

    @property
    def model(self) -> Architecture:
        return self.source.described.architecture

    @property
    def active_bytes(self) -> int:
        """Bytes of weights that one token reads: what all tokens share, its experts, its row of the embedding."""
        layers = zip(self.model.layers, self.storage.layers, strict=True)
        chosen = sum(layer.experts.top_k * held.expert for layer, held in layers if layer.experts)
        return self.storage.common + round(chosen) + self.storage.rows

    @property
    def cache_bytes(self) -> int:
        """Bytes that one more token adds to the KV cache in 16 bits, windows aside."""
        caches = [cache for layer in self.model.layers if layer.mixer for cache in layer.mixer.caches]
        return round(CACHE_WIDTH * sum(cache.width / cache.every for cache in caches if cache.window is None))

    @property
    def window_bytes(self) -> int:
        """Bytes of the caches that hold a window, when it is full."""
        caches = [cache for layer in self.model.layers if layer.mixer for cache in layer.mixer.caches]
        return CACHE_WIDTH * sum(cache.stored(cache.window) for cache in caches if cache.window)

    @property
    def state_bytes(self) -> int:
        """Bytes of recurrent state of a sequence."""
        return STATE_WIDTH * self.model.state_elements

    @property
    def heads(self) -> dict[str, int]:
        """Query heads, key-value heads and their size, of those that the config or the metadata say."""
        return _heads(self.source)


def make(source: Source) -> Facts:
    """All facts of a model. Raises ConfigError, CheckpointError where its sizes cannot be told."""
    storage, _ = sizes(source, "native")
    quant = None if source.gguf is not None else _quant(source)
    model = source.described.architecture
    if source.tensors is not None:
        runs = stored.of_headers(source.tensors, model, quant)
    else:
        runs = stored.computed(model, source.native())
    return Facts(
        source=source,
        storage=storage,
        quant=quant,
        runs=tuple(runs),
        text=text.of_source(source),
        here=here.of_source(source, runs),
    )


def _quant(source: Source) -> Quant | None:
    """What the config says about quantisation; None if nothing, or nothing that is known."""
    if not any(source.config.get(key) for key in quantisation.KEYS):
        return None
    try:
        return source.native()
    except ConfigError:
        return None


def _heads(source: Source) -> dict[str, int]:
    if source.gguf is not None:
        arch = source.gguf.get("general.architecture")
        names = {"heads": "head_count", "kv_heads": "head_count_kv", "head_size": "key_length"}
        values: dict[str, Any] = {key: source.gguf.get(f"{arch}.attention.{name}") for key, name in names.items()}
    else:
        names = {"heads": "num_attention_heads", "kv_heads": "num_key_value_heads", "head_size": "head_dim"}
        values = {key: source.config.get(name) for key, name in names.items()}
    return {key: value for key, value in values.items() if isinstance(value, int)}
