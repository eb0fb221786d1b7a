"""Attention over a window of tokens and, further back, over entries that each stand for several: `CompressedSpec`, a
part of a `ModelSpec` (`spec.py`)."""

from __future__ import annotations

from dataclasses import dataclass

from .choosers import EntryIndexerSpec
from .turns import RopeSpec, Temperature


@dataclass(frozen=True, kw_only=True)
class CompressedSpec:
    """All heads of queries share one key of `head_dim`, which is the value too: its last dims are turned, and turned
    back in what the heads give. A query sees the last `window` tokens, itself included, and an entry for every `rate`
    tokens up to its own (0: none). Queries come through `q_rank` dims; what heads give goes through `o_rank` for each
    of `groups` of them. indexer: some entries are seen alone; then an entry is made of the tokens before its own ones
    too, of which a token has a second key. A score more for each head has no value. Source: DeepSeek-V4 (section
    2.3)."""

    heads: int
    head_dim: int
    q_rank: int
    groups: int
    o_rank: int
    window: int
    scale: float
    rope: RopeSpec
    rate: int = 0
    indexer: EntryIndexerSpec | None = None

    @property
    def temperature(self) -> Temperature | None:
        """No query is the warmer for its position."""
        return None

    @property
    def series(self) -> int:
        """Keys of a token that entries are made of."""
        return 0 if self.rate == 0 else 1 if self.indexer is None else 2

    @property
    def entry(self) -> int:
        """Elements of an entry, with the indexer's key."""
        return 0 if self.rate == 0 else self.head_dim + self.index_key

    @property
    def index_key(self) -> int:
        """Elements of an entry's key of the indexer."""
        return 0 if self.indexer is None else self.indexer.dim

    @property
    def row(self) -> int:
        """Elements of a token's key."""
        return self.head_dim

    @property
    def cached(self) -> int:
        """Elements that one token adds to the cache, its part of an entry rounded up."""
        return self.row + (-(-self.entry // self.rate) if self.rate else 0)

    @property
    def state(self) -> int:
        """float32 elements of entries that are not whole yet: of each series the largest weight's logarithm, the sum
        of weights, and the weighted sum."""
        return 3 * self.series * self.entry

    @property
    def q_rows(self) -> int:
        return self.heads * self.head_dim

    @property
    def shared_by(self) -> float:
        """Query heads that read one cached key."""
        return float(self.heads)

    @property
    def out_rows(self) -> int:
        """The columns of the output projection."""
        return self.groups * self.o_rank

    @property
    def work_rows(self) -> int:
        """Values of a token that are in memory at once while the layer is computed, hidden states left out."""
        chosen = 0 if self.indexer is None else 2 * self.indexer.heads * (self.indexer.dim + 1) + self.indexer.top
        made = 6 * self.series * self.entry
        return 3 * self.q_rows + 2 * self.q_rank + 2 * self.row + 2 * self.out_rows + self.window + made + chosen

    def entry_rows(self, page: int) -> int:
        """Entries that a page of so many tokens has room for: of those whose last token lies there."""
        return max(1, page // self.rate) if self.rate else 0
