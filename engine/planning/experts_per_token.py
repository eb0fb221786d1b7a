"""A plan of a model whose tokens use more or fewer experts than it was trained with."""

from __future__ import annotations

from dataclasses import replace

from ...loaders.architecture.architecture import Architecture
from ...loaders.families import experts_per_token as used
from ...loaders.model_source import Source


def with_experts(source: Source, count: int | None) -> Source:
    """The source with so many experts a token in each layer that has any; None: as trained. Raises OptionError for a
    number that the model cannot use."""
    model = source.described.architecture
    trained = max((layer.experts.top_k for layer in model.layers if layer.experts is not None), default=0)
    if count is None or count == trained:
        return source
    offered = min((layer.experts.count for layer in model.layers if layer.experts is not None), default=0)
    used.check(count, trained, used.limit(trained, offered), source.name)
    described = replace(source.described, architecture=_changed(model, count))
    return replace(source, described=described, notes=(*source.notes, used.note(count, trained)))


def _changed(model: Architecture, count: int) -> Architecture:
    layers = tuple(
        layer if layer.experts is None else replace(layer, experts=replace(layer.experts, top_k=count))
        for layer in model.layers
    )
    return replace(model, layers=layers)
