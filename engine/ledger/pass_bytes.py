"""From what a model is to the bytes a pass must read, and from bytes to seconds; before a run, or for any routing.

    bytes = distinct experts * bytes of an expert        experts
          + every matrix that each token needs            dense
          + keys and values of the context, read + written   kv
          + the head, if logits are wanted                head
    seconds = sum over groups of bytes / bandwidth of the kernel that reads that format
            + layers * what a layer costs besides + what a pass costs besides

The ledger counts the experts from what was chosen, and the rest by the functions here. The second sum is the
bandwidth model of one tier. Models that are not loaded, and machines with more tiers, are the business of `planning/`,
which counts the same bytes and takes the same time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ...kernels.formats import KVFormat
from ...loaders.spec import AttentionSpec, CompressedSpec, LatentSpec, MixerSpec, ModelSpec, chunk_of
from ...loaders.weights.model_weights import LayerWeights, ModelWeights
from .passes import CPU_DRAM, DISK, Bytes

EXPERTS, DENSE, KV, HEAD = "experts", "dense", "kv", "head"
# What crosses a link besides hidden states of experts: choices and their weights, a pass's inputs, what sampling needs,
# experts that were copied before it was known that nobody would choose them.
ROUTING, INPUTS, SAMPLES, UNCHOSEN = "routing", "inputs", "samples", "unchosen"
HIDDEN = "hidden"  # hidden states that go to layers on other machines, and come back
PREFETCHED = "prefetched"  # experts that came from a disk behind a layer, for one that may choose them
GROUPS = (EXPERTS, UNCHOSEN, PREFETCHED, DENSE, KV, HEAD, ROUTING, INPUTS, SAMPLES, HIDDEN)


@dataclass(frozen=True)
class DenseSizes:
    """What the dense part of a pass is made of, in bytes: all layers with the final norm, of it what follows the last
    layer's keys and values, one row of the embedding and of each table of experts; and the head."""

    layers: int
    tail: int
    embedding_row: int
    head: int


Reach = tuple[int | None, int | None]  # tokens of a window, positions of a chunk; None: there is none
Span = tuple[int, int]  # of one sequence: its new tokens, and its tokens in the cache after the pass


@dataclass(frozen=True)
class Indexed:
    """Of a layer that sees some keys alone, in bytes: what attention reads of a token, and what its own indexer does
    (0: an earlier layer's choice serves); and how many keys are seen."""

    row: int
    key: int
    top: int

    def read(self, spans: Sequence[Span]) -> int:
        """What new tokens read at most: all of a context that is seen as a whole; else every key of the indexer, and
        for each token as many others as it may choose."""
        few = sum(context for _, context in spans if context <= self.top)
        many = [(new, context) for new, context in spans if context > self.top]
        chosen = sum(min(context, self.top * new) for new, context in many)
        return self.row * (few + chosen) + self.key * sum(context for _, context in many)


@dataclass(frozen=True)
class Entries:
    """Of a layer with compressed entries, in bytes: an entry and the indexer's key of it (0: there is none); how many
    tokens an entry stands for, and how many entries are seen, None: all."""

    row: int
    key: int
    rate: int
    top: int | None

    def written(self, spans: Sequence[Span]) -> int:
        """Those that become whole with new tokens."""
        whole = sum(context // self.rate - (context - new) // self.rate for new, context in spans)
        return (self.row + self.key) * whole

    def read(self, spans: Sequence[Span]) -> int:
        """What new tokens read at most: all; or every key of the indexer, and as many entries as they may choose."""
        size = 0
        for new, context in spans:
            entries = context // self.rate
            all_seen = self.top is None or entries <= self.top
            chosen = entries if self.top is None else min(entries, self.top * new)
            size += self.row * chosen + (0 if all_seen else self.key * entries)
        return size


@dataclass(frozen=True)
class CacheSizes:
    """What the caches of a model are made of, in bytes: of each layer what one token adds and how far a query sees, and
    the recurrent state of a sequence over all layers. indexed: by layer, of those that see some keys alone; entries:
    of those that have compressed ones besides."""

    layers: tuple[tuple[int, Reach], ...]
    state: int
    indexed: Mapping[int, Indexed] = field(default_factory=dict)
    entries: Mapping[int, Entries] = field(default_factory=dict)

    @cached_property
    def token(self) -> int:
        """What one token adds over all layers."""
        return sum(size for size, _ in self.layers)

    @cached_property
    def _reading(self) -> dict[Reach, int]:
        """By reach what is read of a token in all layers but the last."""
        found: Counter[Reach] = Counter()
        for i, (size, reach) in enumerate(self.layers[:-1]):
            if i not in self.indexed:
                found[reach] += size
        return dict(found)

    def moved(self, spans: Sequence[Span], logits: bool) -> int:
        """What a pass writes, and reads in every layer that attends: all but the last, if nobody wants logits. A state
        is read and written."""
        size = self.token * sum(new for new, _ in spans) + 2 * self.state * len(spans)
        last = len(self.layers) - 1
        own = logits and last not in self.indexed
        reading = [*self._reading.items(), *((reach, size) for size, reach in self.layers[-1:] if own)]
        chosen = Counter(one for layer, one in self.indexed.items() if logits or layer < last)
        size += sum(layers * one.read(spans) for one, layers in chosen.items())
        for layer, one in self.entries.items():
            size += one.written(spans) + (one.read(spans) if logits or layer < last else 0)
        return size + sum(each * sum(seen(span, reach) for span in spans) for reach, each in reading)


def reach_of(mixer: MixerSpec) -> Reach:
    """How far a query of a mixer sees."""
    return mixer.window, chunk_of(mixer)


def seen(span: Span, reach: Reach) -> int:
    """Tokens in the cache that the new ones of a sequence see together, each once."""
    (new, context), (window, chunk) = span, reach
    if chunk is not None:  # from where that of the first new one begins
        return context - (context - new) // chunk * chunk
    return context if window is None else min(context, window + new - 1)


def cache_sizes(spec: ModelSpec, format: KVFormat) -> CacheSizes:
    """The sizes of a model's caches; `format` is that of keys and values."""
    mixers = [layer.mixer for layer in spec.layers]
    layers = tuple((format.bytes(of_token(one)), reach_of(one)) if one else (0, (None, None)) for one in mixers)
    indexed = {
        i: Indexed(format.bytes(mixer.row), format.bytes(mixer.index_key), top)
        for i, mixer in enumerate(mixers)
        if isinstance(mixer, (LatentSpec, AttentionSpec)) and (top := seen_at_most(mixer)) is not None
    }
    entries = {
        i: entries_of(one, format) for i, one in enumerate(mixers) if isinstance(one, CompressedSpec) and one.rate
    }
    return CacheSizes(layers=layers, state=4 * spec.state_elements, indexed=indexed, entries=entries)


def of_token(mixer: MixerSpec) -> int:
    """Elements that every token adds to the cache by itself."""
    return mixer.row if isinstance(mixer, CompressedSpec) else mixer.cached


def entries_of(mixer: CompressedSpec, format: KVFormat) -> Entries:
    """Those of a layer that has some."""
    top = None if mixer.indexer is None else mixer.indexer.top
    return Entries(format.bytes(mixer.head_dim), format.bytes(mixer.index_key), mixer.rate, top)


def seen_at_most(mixer: MixerSpec) -> int | None:
    """Keys that a query sees where an indexer chooses them; None: there is no indexer."""
    if isinstance(mixer, LatentSpec):
        return None if mixer.indexer is None else mixer.indexer.top
    if isinstance(mixer, CompressedSpec):
        return None if mixer.indexer is None else mixer.indexer.top
    return mixer.blocks.keys if isinstance(mixer, AttentionSpec) and mixer.blocks is not None else None


def dense_sizes(weights: ModelWeights) -> DenseSizes:
    """The sizes of a model, of real weights or of such on the `meta` device."""
    tables = [layer.table for layer in weights.layers if layer.table is not None]
    tail = sum(layer_dense_bytes(last) - sum(part.nbytes for part in last.keeping()) for last in weights.layers[-1:])
    outside = sum(part.nbytes for _, part in weights.outside())
    return DenseSizes(
        layers=sum(map(layer_dense_bytes, weights.layers)) + outside,
        tail=tail + outside,
        embedding_row=weights.embed.format.row_bytes(weights.embed.cols) + sum(4 * one.shape[1] for one in tables),
        head=weights.head.nbytes,
    )


def common_bytes(
    sizes: DenseSizes,
    cache: CacheSizes,
    *,
    spans: Sequence[Span],
    logits: bool,
    main: str = CPU_DRAM,
    table: str = CPU_DRAM,
) -> Bytes:
    """What a pass reads besides routed experts, by group; `main`: the memory of it all, `table`: that of the
    embedding."""
    tokens = sum(new for new, _ in spans)
    rows = tokens * sizes.embedding_row
    groups = {
        DENSE: dense_bytes(sizes, tokens, logits) - (rows if table != main else 0),
        KV: cache.moved(spans, logits),
    }
    if logits:
        groups[HEAD] = sizes.head
    return {main: groups} if table == main else {main: groups, table: {DENSE: rows}}


def dense_bytes(sizes: DenseSizes, tokens: int, logits: bool) -> int:
    """Bytes of the weights that a pass reads, but for routed experts and head. A pass that nobody wants logits of ends
    with the keys and values of the last layer."""
    return sizes.layers + tokens * sizes.embedding_row - (0 if logits else sizes.tail)


def layer_dense_bytes(layer: LayerWeights) -> int:
    """Bytes of one layer without its routed experts."""
    return sum(part.nbytes for _, part in layer.common())


def bytes_per_token(spec: ModelSpec, format: KVFormat) -> int:
    """Bytes that one token takes in the cache, over all layers."""
    return format.bytes(spec.kv_elements_per_token)


def table_bytes(spec: ModelSpec, weights: ModelWeights, tokens: int) -> Bytes:
    """Bytes that tokens read of tables of runs of tokens, whose rows stay in their files."""
    rows = 0
    for layer, table in weights.tables.items():
        grams = spec.layers[layer].grams
        assert grams is not None, "a table of a layer without runs of tokens"
        rows += tokens * grams.all_heads * table.row_bytes
    return {DISK: {DENSE: rows}} if rows else {}
