"""What chooses the keys that attention sees, where it sees some alone. Parts of a `ModelSpec` (`spec.py`)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RunIndexerSpec:
    """What chooses the keys that grouped-query attention sees, run by run, the same for all heads: `heads` queries of
    `dim`, behind an RMSNorm and rotated, and one key of `dim` in the cache. A run of `pool` keys has their mean, behind
    an RMSNorm and rotated as its first; it scores the sum over heads of its products above 0. The best are seen, and
    the keys behind the last whole run: `top` of all."""

    heads: int
    dim: int
    top: int
    pool: int

    @property
    def keys(self) -> int:
        """The longest context that is seen as a whole."""
        return self.top


@dataclass(frozen=True, kw_only=True)
class BlockIndexerSpec:
    """What chooses the keys that grouped-query attention sees, block by block: for each head of keys a query of `dim`,
    one key of `dim` in the cache, both with an RMSNorm and rotated as the layer's own. A block of `size` keys scores
    the largest product of one of them; the `top` best are seen, of which the `local` last ones always are."""

    heads: int  # those of keys
    dim: int
    size: int
    top: int
    local: int

    @property
    def keys(self) -> int:
        """The longest context that is seen as a whole."""
        return self.top * self.size


@dataclass(frozen=True, kw_only=True)
class IndexerSpec:
    """What chooses the keys that latent attention sees. A token has `heads` queries of `dim`, made of the latent of its
    queries, a weight for each, and one key of `dim` in the cache. A key scores the weighted sum, over heads, of its
    products above 0; the `top` best are seen, and everything in a context of no more. own: without one, the choice of
    the last layer that has one serves. neighbours: checkpoints have the rotated dims of it as pairs (2i, 2i + 1), not
    (i, i + half). from_hidden: its queries are made of the hidden state, behind a LayerNorm. pool: keys are chosen in
    runs of so many, whose keys are averaged by learned weights of each dim; those behind the last whole run are seen
    besides, so that `top` is a multiple of a run and what may be behind it. Source: DeepSeek-V3.2-Exp (section
    2.1)."""

    heads: int
    dim: int
    top: int
    own: bool = True
    neighbours: bool = False
    from_hidden: bool = False
    pool: int = 1

    @property
    def key(self) -> int:
        """Elements that a token has in the cache: its key, and of runs what it is weighted by."""
        return self.dim * (1 if self.pool == 1 else 2)


@dataclass(frozen=True, kw_only=True)
class EntryIndexerSpec:
    """What chooses the compressed entries that a query sees: `heads` queries of `dim`, made of the latent of its
    queries, a weight for each, and of each entry a key of `dim`, compressed as the entry is. It scores as
    `IndexerSpec` says; the `top` best are seen. Source: DeepSeek-V4 (section 2.3.1)."""

    heads: int
    dim: int
    top: int
