"""In which formats a model's tensors are stored: by group, name and layer, those with the same one together."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from ....loaders.architecture.architecture import GROUPS, Architecture, Part, vector
from ....loaders.architecture.tensor_names import GROUP_OF, LEFT_OUT, alike, place
from ....loaders.files.headers import Stored
from ....loaders.quants.module_names import ATTENTION, MLP
from ....loaders.quants.quant import Place, Quant, outside, place_of

LAYER = re.compile(r"^.*?(?:^|\.)(?:layers|blk|h)\.\d+\.")
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
# What is stored beside the integers of a weight, and how they are called themselves.
OF_A_WEIGHT = re.compile(
    r"(?:[._](?:weight|qweight|qzeros|scales|biases|g_idx|weight_packed|weight_scale(?:_inv|_2)?|weight_shape|blocks"
    r"|weight_zero_point|weight_global_scale|input_scale|input_global_scale|absmax|quant_map|nested_absmax"
    r"|nested_quant_map|SCB|quant_state\.\w+|trellis|suh|svh|q_weight|q_scale|q_scale_max|q_groups|q_invperm))+$"
)
PLAIN = ("F64", "F32", "F16", "BF16")
PART_NAMES = {
    **{theirs: ours for ours, theirs in ATTENTION.items()},
    **{theirs: ours for ours, several in MLP.items() for theirs in several},
}
ORDER = {group: number for number, group in enumerate((*GROUPS, *LEFT_OUT))}


@dataclass(frozen=True, kw_only=True)
class Run:
    """Tensors of a group that have one format in the same layers. tensors: their names without layer and expert;
    layers: as "0-3, 5", "" for those outside of layers."""

    group: str
    tensors: tuple[str, ...]
    format: str
    layers: str
    nbytes: int


@dataclass
class _Module:
    """One weight with what belongs to it: the type of its largest tensor, and whether it has others."""

    dtype: str = ""
    most: int = -1
    nbytes: int = 0
    tensors: int = 0

    def add(self, tensor: Stored) -> None:
        self.nbytes += tensor.nbytes
        self.tensors += 1
        if tensor.nbytes > self.most:
            self.dtype, self.most = tensor.dtype, tensor.nbytes


Key = tuple[str, str, int | None]  # group, name, layer


def of_headers(tensors: Iterable[Stored], model: Architecture, quant: Quant | None) -> list[Run]:
    """The formats of stored tensors. quant: what the config says of integers that are packed in plain types."""
    modules: defaultdict[Key, dict[str, _Module]] = defaultdict(dict)
    for tensor in tensors:
        layer, group = place(tensor.name, len(model.layers))
        bare, rest = _names(alike(tensor.name))
        module = tensor.name[: len(tensor.name) - rest]
        modules[group, bare, layer].setdefault(module, _Module()).add(tensor)
    found: dict[Key, tuple[str, int]] = {}
    for (group, name, layer), same in modules.items():
        kinds = {module.dtype: module for module in same.values()}  # experts of a layer may differ
        format = "/".join(_format(one, group, name, layer, model, quant) for one in kinds.values())
        found[group, name, layer] = format, sum(module.nbytes for module in same.values())
    return _runs(found)


@lru_cache(maxsize=1 << 14)
def _names(name: str) -> tuple[str, int]:
    """Of a name with 0 for its numbers: that of its weight without layer and expert, and characters behind it."""
    module = OF_A_WEIGHT.sub("", name)
    return NUMBER.sub("*", LAYER.sub("", module)), len(name) - len(module)


def computed(model: Architecture, quant: Quant) -> list[Run]:
    """The formats that a config says, with the bytes that follow."""
    found: dict[Key, tuple[str, int]] = {}

    def add(part: Part, where: Place, layer: int | None, count: int = 1) -> None:
        name = part.name or part.group
        format, before = found.get((part.group, name, layer), ("", 0))
        format = format or quant.encoding(part, where).name
        found[part.group, name, layer] = format, before + count * quant.stored_bytes(part, where)

    for i, layer in enumerate(model.layers):
        for part in layer.parts:
            add(part, place_of(model, i), i)
        if layer.experts:
            for part in layer.experts.parts():
                add(part, place_of(model, i), i, layer.experts.count)
    beside = outside(model)
    embedding = () if model.tied_head else (model.embedding,)
    for part in (vector(model.hidden), *model.extra, *model.lookup, model.head, *embedding):
        add(part, beside, None)
    return _runs(found)


def _format(module: _Module, group: str, name: str, layer: int | None, model: Architecture, quant: Quant | None) -> str:
    """What to call the format of a weight: the file's name for it, or what the config says of packed integers."""
    if quant is None or module.dtype in PLAIN or group in LEFT_OUT:
        return module.dtype.lower()
    where = outside(model) if layer is None else place_of(model, layer)
    part = Part(GROUP_OF[group], 2, 2, name=PART_NAMES.get(name.rpartition(".")[2], ""))
    encoding = quant.encoding(part, where)
    return encoding.name if encoding.name.upper() not in PLAIN else module.dtype.lower()


def _runs(found: Mapping[Key, tuple[str, int]]) -> list[Run]:
    """Names of a group with the same format in the same layers together."""
    layers: defaultdict[tuple[str, str, str], list[int | None]] = defaultdict(list)
    sizes: defaultdict[tuple[str, str, str], int] = defaultdict(int)
    for (group, name, layer), (format, nbytes) in found.items():
        layers[group, name, format].append(layer)
        sizes[group, name, format] += nbytes
    alike: defaultdict[tuple[str, str, str], list[str]] = defaultdict(list)
    held: defaultdict[tuple[str, str, str], int] = defaultdict(int)
    for (group, name, format), where in layers.items():
        key = group, format, spans([layer for layer in where if layer is not None])
        alike[key].append(name)
        held[key] += sizes[group, name, format]
    runs = [
        Run(group=group, tensors=tuple(names), format=format, layers=where, nbytes=held[group, format, where])
        for (group, format, where), names in alike.items()
    ]
    return sorted(runs, key=lambda run: (ORDER[run.group], -run.nbytes))


def spans(layers: Sequence[int]) -> str:
    """Layer numbers in few words: "0-3, 5"."""
    steps = groupby(enumerate(sorted(set(layers))), key=lambda pair: pair[1] - pair[0])
    runs = [[layer for _, layer in run] for _, run in steps]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
