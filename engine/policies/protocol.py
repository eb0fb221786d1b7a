"""What a policy is asked and what it may answer.

A policy says at the start which experts are resident in the fast memory, within a budget of bytes. Then it is asked at
every layer of every pass, when the pass has chosen its experts and before they are computed. A chosen expert that is
resident is used where it lies. Of those that are missing the policy says which come:

    fetch    over the link now: computed in the fast memory, and resident from now on
    admit    over the link when the layer is done: the CPU computes it now, and it is resident then
    neither  the CPU computes it

    prefetch experts of any layer that come without being asked for, after this layer
    evict    residents that make room: one that is chosen now goes when the layer is done, others before

A policy may have more experts in a second fast memory (`Storing`), of another GPU, which computes those of the missing
that lie there and do not come: they never move.

What an answer costs is not the policy's affair. It may keep whatever it likes of what it saw; `name` is what people
call it. A policy of one's own is a class with these two methods (docs/policies.md has one).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Container, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

from ...errors import HeadraceError, brief

Key = tuple[int, int]  # layer, counted over layers with experts; expert


class PolicyError(HeadraceError):
    """A policy answered what cannot be done."""


@dataclass(frozen=True)
class Shape:
    """Of a model, by layer with experts: how many there are, and the bytes of one."""

    experts: tuple[int, ...]
    expert_bytes: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(self.experts) == len(self.expert_bytes), f"{self.experts}, {self.expert_bytes}"

    @property
    def layers(self) -> int:
        return len(self.experts)

    @property
    def nbytes(self) -> int:
        """Of all experts."""
        return sum(count * size for count, size in zip(self.experts, self.expert_bytes, strict=True))

    def has(self, layer: int, expert: int) -> bool:
        """Whether there is such an expert."""
        return 0 <= layer < self.layers and 0 <= expert < self.experts[layer]

    def slots(self, budget: int) -> list[int]:
        """The budget in experts, the same number for each layer as far as bytes and experts allow; what is left goes
        to the first layers, one each."""
        return _even(self.experts, self.expert_bytes, budget)

    def first_of_each(self, budget: int) -> list[Key]:
        """As many experts of each layer as it has slots, the first ones."""
        return [(layer, expert) for layer, slots in enumerate(self.slots(budget)) for expert in range(slots)]


def _even(experts: tuple[int, ...], sizes: tuple[int, ...], budget: int) -> list[int]:
    slots = [0] * len(experts)
    open_ = {layer for layer, count in enumerate(experts) if count}
    while open_ and (each := budget // sum(sizes[layer] for layer in open_)):
        for layer in sorted(open_):
            more = min(each, experts[layer] - slots[layer])
            slots[layer] += more
            budget -= more * sizes[layer]
        open_ = {layer for layer in open_ if slots[layer] < experts[layer]}
    for layer in sorted(open_):
        if sizes[layer] <= budget:
            slots[layer] += 1
            budget -= sizes[layer]
    return slots


class Asked(NamedTuple):
    """A layer of a pass. step: of the pass, from 0; chosen: the experts of all its tokens, each once, in rising order;
    residents: by layer the experts that are there now; room: bytes that are free. Not to be changed."""

    step: int
    layer: int
    chosen: tuple[int, ...]
    residents: Sequence[Set[int]]
    room: int

    @property
    def resident(self) -> Set[int]:
        """Of this layer."""
        return self.residents[self.layer]

    @property
    def missing(self) -> list[int]:
        """Chosen and not resident."""
        return [expert for expert in self.chosen if expert not in self.resident]


class Moves(NamedTuple):
    """An answer. fetch and admit: experts of the layer that was asked about, chosen and missing."""

    fetch: tuple[int, ...] = ()
    admit: tuple[int, ...] = ()
    prefetch: tuple[Key, ...] = ()
    evict: tuple[Key, ...] = ()

    def late(self, layer: int, chosen: Container[int]) -> list[Key]:
        """Those of `evict` that go when a layer is done, since it chose them itself."""
        return [key for key in self.evict if key[0] == layer and key[1] in chosen]


NOTHING = Moves()


@runtime_checkable
class Policy(Protocol):
    name: str

    def start(self, shape: Shape, budget: int) -> Iterable[Key]:
        """The experts that are resident at the start, of at most `budget` bytes."""

    def layer(self, asked: Asked) -> Moves:
        """What is to happen."""


@runtime_checkable
class Storing(Protocol):
    """What a policy has besides that uses a second fast memory. store_bytes: what it may hold; store: the experts in
    it, asked for once, behind `start`."""

    store_bytes: int

    def store(self) -> Iterable[Key]:
        """They stay to the end."""


def experts_of(policy: Policy, when: str, say: Callable[[], Iterable[Key]]) -> list[Key]:
    """The experts that a policy says; raises PolicyError where it fails, or says no pairs."""
    found = _asked(policy, when, say)
    if isinstance(found, Iterator):  # of a method that yields: its code runs only now
        found = _asked(policy, when, lambda: list(found))
    try:
        return [(layer, expert) for layer, expert in found]
    except (TypeError, ValueError):
        raise PolicyError(
            f"policy {policy.name} says {brief(found)} {when}: give pairs of a layer and an expert, as [(0, 3), (0, 7)]"
        ) from None


def moves_of(policy: Policy, when: str, ask: Callable[[], object]) -> Moves:
    """A policy's answer; raises PolicyError where it fails, or answers something else."""
    found = _asked(policy, when, ask)
    if not isinstance(found, Moves):
        hint = "Moves() is to do nothing" if found is None else "as Moves(fetch=(3,), evict=((0, 7),))"
        raise PolicyError(f"policy {policy.name} answers {brief(found)} {when}: give a Moves, {hint}")
    for name, keys in found._asdict().items():
        is_pairs = name in ("evict", "prefetch")
        if not isinstance(keys, Iterable) or any(isinstance(key, Sequence) != is_pairs for key in keys):
            wanted = "pairs of a layer and an expert, as ((0, 7),)" if is_pairs else "numbers of experts, as (3,)"
            raise PolicyError(f"policy {policy.name} answers {name}={brief(keys)} {when}: give {wanted}")
    return found


T = TypeVar("T")


def _asked(policy: Policy, when: str, ask: Callable[[], T]) -> T:
    """What a policy says. What it raises becomes one line that says where in its code."""
    try:
        return ask()
    except HeadraceError:
        raise
    except Exception as error:  # whatever a policy of one's own may raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        at = f"line {last.lineno} of {Path(last.filename).name}"
        raise PolicyError(f"policy {policy.name} failed {when}: {type(error).__name__}: {error} ({at})") from error
