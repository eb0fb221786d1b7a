"""What is resident in the fast memory, as a policy wants it: carries its answers out, refuses what cannot be, counts.

Used by a replay and by the engine, so that both count alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import NamedTuple

from .protocol import Asked, Key, Moves, Policy, PolicyError, Shape, Storing, experts_of, moves_of


@dataclass
class Counts:
    """Of layers and passes so far. Choices count once for a pass and layer, however many of its tokens chose an expert.

    hits: were resident; early: of those that a prefetch brought, the first use; fetched, admitted: came over the link
    for a choice, at once or behind it; prefetched: came without one; on_cpu: computed by the CPU; evicted; store_hits:
    were missing, and computed where a second fast memory has them. *_bytes: of the same experts.
    """

    hits: int = 0
    early: int = 0
    fetched: int = 0
    admitted: int = 0
    prefetched: int = 0
    on_cpu: int = 0
    evicted: int = 0
    gpu_bytes: int = 0
    link_bytes: int = 0
    cpu_bytes: int = 0
    store_hits: int = 0
    store_bytes: int = 0

    @property
    def choices(self) -> int:
        return self.hits + self.early + self.fetched + self.on_cpu + self.store_hits

    @property
    def hit_rate(self) -> float:
        """Of choices those that were resident because they had stayed."""
        return self.hits / self.choices if self.choices else 0.0

    @property
    def store_rate(self) -> float:
        """Of choices those that a second fast memory answered."""
        return self.store_hits / self.choices if self.choices else 0.0

    def add(self, other: Counts) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


class Snapshot(NamedTuple):
    """By layer what was resident, and what of it was prefetched and not chosen since, and by which prefetch."""

    by_layer: list[set[int]]
    unused: dict[Key, int]


class Residents:
    """Raises PolicyError where the policy's start does not fit, or an answer cannot be carried out."""

    def __init__(self, policy: Policy, shape: Shape, budget: int) -> None:
        self.policy, self.shape, self.budget = policy, shape, budget
        self.by_layer: list[set[int]] = [set() for _ in shape.experts]
        self.unused: dict[Key, int] = {}  # prefetched, and not chosen since: by which prefetch
        self.prefetches = 0
        self.used = 0
        for key in experts_of(policy, "at the start", lambda: policy.start(shape, budget)):
            self._bring(key)
        self._fits("at the start")
        self.stored: list[set[int]] = [set() for _ in shape.experts]  # in a second fast memory
        if isinstance(policy, Storing):
            self._fill(policy)

    def layer(self, step: int, layer: int, chosen: tuple[int, ...]) -> tuple[Moves, Counts]:
        """Asks the policy about a layer of a pass, and does what it says; chosen in rising order, each once."""
        resident, size = self.by_layer[layer], self.shape.expert_bytes[layer]
        asked = Asked(step, layer, chosen, self.by_layer, self.budget - self.used)
        missing = asked.missing
        early = self._first_uses(layer, chosen, resident, self.unused)
        moves = self._moves(asked, missing)
        late = moves.late(layer, chosen)
        self._evict(key for key in moves.evict if key not in late)
        for expert in moves.fetch:
            self._bring((layer, expert))
        self._fits("while it fetches")
        self._evict(late)
        for key in [*((layer, expert) for expert in moves.admit), *moves.prefetch]:
            self._bring(key)
        self._prefetched(moves)
        self._fits("when the layer is done")
        stored = len(self.stored[layer].intersection(missing).difference(moves.fetch))
        on_cpu, hits = len(missing) - len(moves.fetch) - stored, len(chosen) - len(missing) - early
        brought = sum(self.shape.expert_bytes[n] for n, _ in moves.prefetch)
        return moves, Counts(
            hits=hits, early=early, fetched=len(moves.fetch), admitted=len(moves.admit),
            prefetched=len(moves.prefetch), on_cpu=on_cpu, evicted=len(moves.evict),
            gpu_bytes=(len(chosen) - on_cpu - stored) * size, cpu_bytes=on_cpu * size,
            store_hits=stored, store_bytes=stored * size,
            link_bytes=(len(moves.fetch) + len(moves.admit)) * size + brought,
        )  # fmt: skip

    def snapshot(self) -> Snapshot:
        """What is resident now."""
        return Snapshot([set(there) for there in self.by_layer], dict(self.unused))

    def count(self, layer: int, chosen: tuple[int, ...], then: Snapshot | None = None) -> Counts:
        """What a layer of a pass finds where nothing comes while it runs, and the policy is asked later (`answer`).
        then: what was resident when the pass ran, if that may have changed since."""
        resident, size = (self.by_layer if then is None else then.by_layer)[layer], self.shape.expert_bytes[layer]
        here = [expert for expert in chosen if expert in resident]
        early = self._first_uses(layer, chosen, resident, self.unused if then is None else then.unused)
        stored = len(self.stored[layer].intersection(chosen).difference(here))
        on_cpu = len(chosen) - len(here) - stored
        return Counts(
            hits=len(here) - early, early=early, on_cpu=on_cpu, gpu_bytes=len(here) * size,
            cpu_bytes=on_cpu * size, store_hits=stored, store_bytes=stored * size,
        )  # fmt: skip

    def answer(self, step: int, layer: int, chosen: tuple[int, ...]) -> tuple[Moves, Counts]:
        """Asks the policy about a layer of a pass that is over, and does what it says: what it fetches comes for later
        passes, as what it admits."""
        asked = Asked(step, layer, chosen, self.by_layer, self.budget - self.used)
        missing = asked.missing
        moves = self._moves(asked, missing)
        moves = moves._replace(fetch=(), admit=(*moves.fetch, *moves.admit))
        self._evict(moves.evict)
        coming = [*((layer, expert) for expert in moves.admit), *moves.prefetch]
        for key in coming:
            self._bring(key)
        self._prefetched(moves)
        self._fits("behind a pass")
        return moves, Counts(
            admitted=len(moves.admit), prefetched=len(moves.prefetch), evicted=len(moves.evict),
            link_bytes=sum(self.shape.expert_bytes[n] for n, _ in coming),
        )  # fmt: skip

    def between(self, moves: Moves) -> Counts:
        """Does between two passes what the policy says: some leave, others come without having been chosen."""
        if moves.fetch or moves.admit:
            raise PolicyError(f"policy {self.policy.name} fetches between two passes: prefetch instead")
        self._evict(moves.evict)
        for key in moves.prefetch:
            self._bring(key)
        self._prefetched(moves)
        self._fits("between two passes")
        return Counts(
            prefetched=len(moves.prefetch), evicted=len(moves.evict),
            link_bytes=sum(self.shape.expert_bytes[layer] for layer, _ in moves.prefetch),
        )  # fmt: skip

    def _fill(self, policy: Storing) -> None:
        """Of the second fast memory, once."""
        used, name = 0, self.policy.name
        for layer, expert in experts_of(self.policy, "of a second memory", policy.store):
            if not self.shape.has(layer, expert):
                raise PolicyError(f"policy {name} stores expert {expert} of layer {layer}, which there is not")
            if expert in self.stored[layer]:
                raise PolicyError(f"policy {name} stores expert {expert} of layer {layer} twice")
            self.stored[layer].add(expert)
            used += self.shape.expert_bytes[layer]
        if used > policy.store_bytes:
            raise PolicyError(f"policy {name} stores {used} bytes of experts, of {policy.store_bytes} that it may")

    def _prefetched(self, moves: Moves) -> None:
        self.prefetches += 1
        self.unused.update(dict.fromkeys(moves.prefetch, self.prefetches))

    def _first_uses(self, layer: int, chosen: tuple[int, ...], resident: set[int], unused: dict[Key, int]) -> int:
        """How many of the chosen residents a prefetch brought that were not chosen since. One that left meanwhile, and
        was prefetched again, has not been used since."""
        if not unused:
            return 0
        first = {(layer, expert) for expert in chosen if expert in resident} & unused.keys()
        for key in first:
            if self.unused.get(key) == unused[key]:
                del self.unused[key]
        return len(first)

    def _moves(self, asked: Asked, missing: list[int]) -> Moves:
        """What the policy says of a layer, if it can be done."""
        moves = moves_of(self.policy, f"at layer {asked.layer} of pass {asked.step}", lambda: self.policy.layer(asked))
        self._check(moves, missing)
        return moves

    def _check(self, moves: Moves, missing: list[int]) -> None:
        asked_for = [*moves.fetch, *moves.admit]
        if len(set(asked_for)) < len(asked_for) or not set(asked_for) <= set(missing):
            raise PolicyError(
                f"policy {self.policy.name} fetches {asked_for}, and {missing} are missing: fetch or admit of "
                "these, each once"
            )

    def _bring(self, key: Key) -> None:
        layer, expert = key
        if not self.shape.has(layer, expert):
            raise PolicyError(f"policy {self.policy.name} brings expert {expert} of layer {layer}, which there is not")
        if expert in self.by_layer[layer]:
            raise PolicyError(f"policy {self.policy.name} brings expert {expert} of layer {layer}, which is resident")
        self.by_layer[layer].add(expert)
        self.used += self.shape.expert_bytes[layer]

    def _evict(self, keys: Iterable[Key]) -> None:
        for layer, expert in keys:
            if not 0 <= layer < self.shape.layers or expert not in self.by_layer[layer]:
                raise PolicyError(f"policy {self.policy.name} evicts expert {expert} of layer {layer}, not resident")
            self.by_layer[layer].remove(expert)
            self.unused.pop((layer, expert), None)
            self.used -= self.shape.expert_bytes[layer]

    def _fits(self, when: str) -> None:
        if self.used > self.budget:
            raise PolicyError(
                f"policy {self.policy.name} has {self.used} bytes of experts resident {when}, of {self.budget} that it "
                "may have: evict first"
            )
