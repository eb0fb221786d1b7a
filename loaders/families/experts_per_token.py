"""How many experts a token uses, where it is not the number that the model was trained with.

The spec is changed where it is read, so that all that follows takes the number for the model's own: memory, bytes,
kernels, traces. Weights of the chosen experts are those of the model's router with that many: of a softmax over the
chosen ones, or divided by their sum, where the model does it so.
"""

from __future__ import annotations

from dataclasses import replace

from ...errors import OptionError, brief
from ..spec import ModelSpec, MoeSpec

TIMES = 2  # the most, in times the trained number: what lies far outside of training is no model any more


def most_experts(moe: MoeSpec) -> int:
    """The most that a token can use; with groups no more than the open ones have."""
    return limit(moe.top_k, moe.top_groups * (moe.experts // moe.groups))


def limit(trained: int, offered: int) -> int:
    """The same by the trained number, and by how many experts a token may choose among."""
    return min(TIMES * trained, offered)


def check(count: int, trained: int, most: int, source: str) -> None:
    """Raises OptionError for a number that a model cannot use; source: what names the model."""
    if not 1 <= count <= most:
        raise OptionError(
            f"experts_per_token is {brief(count)}; a token of {source} uses {trained} as trained: give a whole number "
            f"from 1 to {most}"
        )


def note(count: int, trained: int) -> str:
    """What a user should know of it."""
    return f"a token uses {count} experts of a layer, the model was trained with {trained}"


def with_experts(spec: ModelSpec, count: int | None, source: str) -> tuple[ModelSpec, tuple[str, ...]]:
    """The spec with so many experts a token in each layer that has any, and notes; None: as trained. Raises
    OptionError."""
    if count is None:
        return spec, ()
    check(count, spec.moe.top_k, most_experts(spec.moe), source)
    if count == spec.moe.top_k:
        return spec, ()
    layers = tuple(
        replace(layer, ffn=replace(layer.ffn, top_k=count)) if isinstance(layer.ffn, MoeSpec) else layer
        for layer in spec.layers
    )
    return replace(spec, layers=layers), (note(count, spec.moe.top_k),)
