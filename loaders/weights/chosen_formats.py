"""Which format each tensor takes: as asked for, or as it is stored.

A row must be a whole number of a format's blocks. Where one is not, a format of smaller blocks takes its place for that
tensor, as converters do it: q4_k becomes q5_0, and so on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from ...errors import CheckpointError, OptionError
from ...kernels import FORMATS, Format
from ...kernels.packed import FORMAT_OF_DTYPE
from ..files.entry import Entry
from ..spec import ModelSpec
from .model_weights import Formats
from .targets import Target

Group = Literal["experts", "dense", "embed"]
GROUPS: tuple[Group, ...] = get_args(Group)
OPTIONS = {"experts": "--expert-format", "dense": "--dense-format"}
# What takes the place of formats of 256 weights in rows that are no multiple of them.
SMALLER_BLOCKS = {
    "q2_k": "iq4_nl",
    "q3_k": "iq4_nl",
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
    "iq4_xs": "iq4_nl",
}


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How to load. Formats are names of `FORMATS`, or "native": as the checkpoint has it."""

    expert_format: str = "native"
    dense_format: str = "native"
    plain_format: str = "native"  # what "native" stands for, where it is not as stored
    ignore_config_keys: Collection[str] = field(default_factory=tuple)
    ignore_tensors: Collection[str] = field(default_factory=tuple)  # names, or patterns of them


def find_format(name: str) -> Format:
    """The format of that name; raises OptionError with the names there are."""
    if name not in FORMATS:
        raise OptionError(f"weight format '{name}' is unknown; there are native, {', '.join(FORMATS)}")
    return FORMATS[name]


def resolve(
    spec: ModelSpec, wanted: Mapping[str, Target], entries: Mapping[str, Entry], options: LoadOptions
) -> Formats:
    """The formats of a checkpoint's tensors; raises OptionError where rows are no whole blocks."""
    stored = {name: _stored(entries[name]) for name, target in wanted.items() if target.group}
    usual = {group: _usual([stored[n] for n, t in wanted.items() if t.group == group]) for group in GROUPS}
    chosen = {
        place: _chosen(target, stored[name], usual[_group(target)], options)
        for name, target in wanted.items()
        for place in target.places
    }
    groups = {place: _group(target) for target in wanted.values() for place in target.places}
    return made(spec, chosen, groups, {g: _asked(g, options) or usual[g] for g in GROUPS})


def made(
    spec: ModelSpec, chosen: Mapping[str, Format], groups: Mapping[str, Group], usual: Mapping[Group, Format]
) -> Formats:
    """`Formats` that give each place the format chosen for it; a group is called by what most of its tensors have."""
    for layer in range(spec.layers):
        _check_gate_and_up(layer, chosen)
    found = {group: _most([chosen[p] for p, g in groups.items() if g == group]) or usual[group] for group in GROUPS}
    own = {place: format for place, format in chosen.items() if format is not found[groups[place]]}
    return Formats(experts=found["experts"], dense=found["dense"], embed=found["embed"], own=own)


def of_options(spec: ModelSpec, places: Mapping[str, Target], options: LoadOptions, plain: Format) -> Formats:
    """The formats of a model that is not stored; "native" is `plain`."""
    usual = {group: _asked(group, options) or plain for group in GROUPS}
    groups = {place: _group(target) for target in places.values() for place in target.places}
    chosen = {
        place: fitting(usual[_group(target)], _row(target), OPTIONS.get(target.group, ""))
        for target in places.values()
        for place in target.places
    }
    return made(spec, chosen, groups, usual)


def fitting(format: Format, cols: int, option: str) -> Format:
    """The format, or the one that takes its place in rows of `cols` weights; raises OptionError where none fits."""
    if not format.fits(cols):
        format = FORMATS[SMALLER_BLOCKS.get(format.name, format.name)]
    if not format.fits(cols):
        raise OptionError(
            f"{option} {format.name} packs {format.block} weights to a block, but this model has rows of {cols}, no "
            f"multiple of it: use {option} bf16"
        )
    return format


def _group(target: Target) -> Group:
    found = next(group for group in GROUPS if group == target.group)
    return found


def _row(target: Target) -> int:
    """Weights in a row of the matrices that a tensor fills."""
    return target.pieces[0].into.cols


def _stored(entry: Entry) -> Format:
    return FORMATS[entry.blocks or FORMAT_OF_DTYPE.get(entry.dtype, "f32")]


def _usual(found: list[Format]) -> Format:
    """The format of a group whose tensors are stored alike; float32, which holds them all, where plain ones differ."""
    kinds = dict.fromkeys(found)
    if len(kinds) == 1:
        return found[0]
    blocks = [format for format in found if format.is_block]
    return _most(blocks) or FORMATS["f32"]


def _most(found: list[Format]) -> Format | None:
    return Counter(found).most_common(1)[0][0] if found else None


def _asked(group: Group, options: LoadOptions) -> Format | None:
    """The format that options ask for; None: as stored."""
    own = {"experts": options.expert_format, "dense": options.dense_format, "embed": "native"}[group]
    name = options.plain_format if own == "native" else own
    return None if name == "native" else find_format(name)


def _chosen(target: Target, stored: Format, usual: Format, options: LoadOptions) -> Format:
    """A stored block format stays as it is; plain tensors of a group share the one that holds them all."""
    asked = _asked(_group(target), options)
    if asked is None:
        return stored if stored.is_block or usual.is_block else usual
    return fitting(asked, _row(target), OPTIONS.get(target.group, "--dtype"))


def _check_gate_and_up(layer: int, chosen: Mapping[str, Format]) -> None:
    """Kernels round a token once for gate and up: both must be blocks, or of one plain format."""
    gate, up = (chosen.get(f"{layer}.{part}") for part in ("gate", "up"))
    if gate is not up and gate is not None and up is not None and not (gate.is_block and up.is_block):
        raise CheckpointError(
            f"layer {layer} has its experts' gate in {gate.name} and up in {up.name}: both must be quantised, or "
            "alike; give --expert-format"
        )
