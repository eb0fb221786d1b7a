"""What happens to a policy between two passes: another budget, a prompt that was read, another policy in its place.

Each is an event before a pass that generates, for the engine and for a replay alike. A policy answers with what comes
and what leaves; nothing of a layer is under way then, so that `fetch` and `admit` say nothing. A policy of one's own
need not know of any of it: without `resized` it keeps the budget of its start, without `prompted` prompts say nothing
to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple, Protocol, runtime_checkable

from .protocol import NOTHING, Moves, Policy, Shape, experts_of, moves_of
from .residents import Counts, Residents

Prompt = Sequence[Mapping[int, int]]  # by layer with experts: expert -> how many tokens of a prompt chose it


@runtime_checkable
class Resizable(Protocol):
    """What a policy has besides whose budget may change while it runs."""

    def resized(self, shape: Shape, budget: int, residents: Sequence[Set[int]]) -> Moves:
        """Another budget from now on, in bytes; what leaves, and what is prefetched, so that it is kept."""


@runtime_checkable
class Prompted(Protocol):
    """What a policy has besides that learns from prompts."""

    def prompted(self, step: int, prompt: Prompt, residents: Sequence[Set[int]]) -> Moves:
        """Prompts were read before pass `step`, the next one that generates; what leaves, and what is prefetched."""


@runtime_checkable
class Learning(Protocol):
    """What a policy has besides that another one may replace."""

    def successor(self) -> Policy | None:
        """Asked between two passes: who takes over now, if anybody does."""


class Resize(NamedTuple):
    """Bytes for experts from now on."""

    budget: int


class Read(NamedTuple):
    """Prompts were read."""

    prompt: Prompt


class Switch(NamedTuple):
    """Another policy takes over what is resident. It has `resized`."""

    policy: Policy


Event = Resize | Read | Switch


def take_in(residents: Residents, step: int, event: Event) -> tuple[Moves, Counts]:
    """Tells the policy before pass `step`, and does what it says. Raises PolicyError where that cannot be."""
    if isinstance(event, Switch):
        residents.policy = event.policy
        follower = event.policy
        experts_of(follower, "when it takes over", lambda: follower.start(residents.shape, residents.budget))
    elif isinstance(event, Resize):
        residents.budget = event.budget
    policy, moves = residents.policy, NOTHING
    if isinstance(event, Read):
        if isinstance(policy, Prompted):
            seen, prompted = event.prompt, policy.prompted
            moves = moves_of(policy, "about a prompt", lambda: prompted(step, seen, residents.by_layer))
    else:
        assert isinstance(policy, Resizable), f"policy {policy.name} keeps the budget of its start"
        resized = policy.resized
        moves = moves_of(
            policy, "about its budget", lambda: resized(residents.shape, residents.budget, residents.by_layer)
        )
    return moves, residents.between(moves)
