"""What a released config says, and what it asks of a checkpoint, in parameters."""

from __future__ import annotations

import copy
from typing import Any

from headrace.kernels import FORMATS
from headrace.loaders.architecture.by_name.text_part import text_part
from headrace.loaders.families import spec_of
from headrace.loaders.families.config_reader import ConfigReader
from headrace.loaders.families.family import Family
from headrace.loaders.spec import ModelSpec
from headrace.loaders.weights.model_weights import Formats, allocate
from headrace.loaders.weights.targets import targets


def spec(values: dict[str, Any], **changes: Any) -> ModelSpec:
    """The spec of the text model of a config with changes; ... takes a key away."""
    text, _ = text_part(copy.deepcopy(values))
    text = {key: value for key, value in {**text, **changes}.items() if value is not Ellipsis}
    return spec_of(ConfigReader(text, "config.json"))[1]


def parameters(values: dict[str, Any]) -> tuple[int, int]:
    """All parameters of a model, and those of its routed experts, summed over the tensors a checkpoint must have."""
    family, found = spec_of(ConfigReader(values, "config.json"))
    key = repr((family, found))
    if key not in _counted:
        _counted[key] = _count(family, found)
    return _counted[key]


_counted: dict[str, tuple[int, int]] = {}  # by architecture, of which there are several releases


def _count(family: Family, found: ModelSpec) -> tuple[int, int]:
    plain = FORMATS["bf16"]
    weights = allocate(found, Formats(experts=plain, dense=plain, embed=plain), "meta")
    wanted = targets(found, family.tensors, weights)
    total = sum(target.elements for target in wanted.values())
    biases = (target for name, target in wanted.items() if "experts" in name and name.endswith("_bias"))
    return total, sum(t.elements for t in wanted.values() if t.group == "experts") + sum(t.elements for t in biases)
