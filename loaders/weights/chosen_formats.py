"""Which format each tensor takes: as asked for, or as it is stored.

What is asked for is a format, or a mix of llama-quantize by its name (`quants/recipes.py`, which plans use too): then
some tensors of some layers get a larger type. A row must be a whole number of a format's blocks. Where one is not, a
format of smaller blocks takes its place for that tensor, as converters do it: q4_k becomes q5_0, and so on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from ...errors import CheckpointError, OptionError
from ...kernels import FORMATS, Format
from ...kernels.formats import PARTS
from ...kernels.packed import FORMAT_OF_DTYPE
from ..architecture import architecture
from ..architecture.architecture import Part
from ..files.entry import Entry
from ..quants import recipes
from ..quants.encodings import SMALLER_BLOCKS
from ..quants.in_memory import F32, as_loaded, most, usual
from ..quants.module_names import PART_NAMES
from ..quants.quant import Place
from ..spec import ModelSpec
from .model_weights import Formats
from .mtp.asked import MtpAsked
from .targets import Target

Group = Literal["experts", "dense", "embed"]
GROUPS: tuple[Group, ...] = get_args(Group)
OPTIONS = {"experts": "--expert-format", "dense": "--dense-format"}
NAMES = tuple(dict.fromkeys(("native", *FORMATS, *recipes.PACKED)))


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How to load. Formats are names of `NAMES`; "native": as the checkpoint has it. experts_per_token: that are used;
    None: as trained."""

    expert_format: str = "native"
    dense_format: str = "native"
    plain_format: str = "native"  # what "native" stands for, where it is not as stored
    experts_per_token: int | None = None
    ignore_config_keys: Collection[str] = field(default_factory=tuple)
    ignore_tensors: Collection[str] = field(default_factory=tuple)  # names, or patterns of them
    mtp: MtpAsked | None = None  # None: a layer for multi-token prediction is not looked for


def resolve(
    spec: ModelSpec, wanted: Mapping[str, Target], entries: Mapping[str, Entry], options: LoadOptions
) -> Formats:
    """The formats of a checkpoint's tensors; raises OptionError where rows are no whole blocks, CheckpointError
    for an expert's gate and up in formats that no kernel takes together."""
    stored = {name: _stored(entries[name]) for name, target in wanted.items() if target.group}
    files = {place: entries[name].path for name, target in wanted.items() for place in target.places}
    return of_stored(spec, wanted, stored, files, options)


def of_stored(
    spec: ModelSpec,
    wanted: Mapping[str, Target],
    stored: Mapping[str, Format],
    files: Mapping[str, Path],
    options: LoadOptions,
) -> Formats:
    """The same by the format that each tensor is stored in; files: which one each place is in."""
    shared = {group: usual([stored[n] for n, t in wanted.items() if t.group == group] or [F32]) for group in GROUPS}
    chosen, groups = {}, {}
    for name, target in wanted.items():
        for place in target.places:
            group = groups[place] = _group(target)
            found = _asked_at(spec, place, target, options)
            chosen[place] = _as_stored(stored[name], shared[group], target, place) if found is None else found
    for layer in range(len(spec.layers) + (spec.mtp is not None)):
        _check_gate_and_up(layer, chosen, files)
    return made(spec, chosen, groups, {group: _base(group, options) or shared[group] for group in GROUPS})


def made(
    spec: ModelSpec, chosen: Mapping[str, Format], groups: Mapping[str, Group], usual: Mapping[Group, Format]
) -> Formats:
    """`Formats` that give each place the format chosen for it; a group is called by what most of its tensors have."""
    found = {group: most([chosen[p] for p, g in groups.items() if g == group]) or usual[group] for group in GROUPS}
    own = {place: format for place, format in chosen.items() if format is not found[groups[place]]}
    found["embed"] = chosen["embed"]  # of a tied head too, whose group is that of the dense ones
    return Formats(experts=found["experts"], dense=found["dense"], embed=found["embed"], own=own)


def of_options(spec: ModelSpec, places: Mapping[str, Target], options: LoadOptions, plain: Format) -> Formats:
    """The formats of a model that is not stored; "native" is `plain`."""
    chosen, groups = {}, {}
    for target in places.values():
        for place in target.places:
            groups[place] = _group(target)
            chosen[place] = _asked_at(spec, place, target, options) or plain
    return made(spec, chosen, groups, {group: _base(group, options) or plain for group in GROUPS})


def _as_stored(stored: Format, usual: Format, target: Target, place: str) -> Format:
    """The format of a tensor that keeps its own; bf16 where blocks of its columns would have to be made anew."""
    found = as_loaded(stored, usual)
    return FORMATS["bf16"] if place in target.turned_places and found.is_block else found


def _group(target: Target) -> Group:
    found = next(group for group in GROUPS if group == target.group)
    return found


def _stored(entry: Entry) -> Format:
    return FORMATS[entry.blocks or FORMAT_OF_DTYPE.get(entry.dtype, "f32")]


# ---- what options ask for


def _asked(group: Group, options: LoadOptions) -> str | None:
    """The format or mix that options ask for; None: as stored."""
    own = {"experts": options.expert_format, "dense": options.dense_format, "embed": "native"}[group]
    name = options.plain_format if own == "native" else own
    if name not in NAMES:
        raise OptionError(f"weight format '{name}' is unknown; there are {', '.join(NAMES)}")
    return None if name == "native" else name


def _base(group: Group, options: LoadOptions) -> Format | None:
    """What most tensors of a group get; None: as stored."""
    name = _asked(group, options)
    return None if name is None else FORMATS[recipes.BASES[name] if name in recipes.PACKED else name]


def _asked_at(spec: ModelSpec, place: str, target: Target, options: LoadOptions) -> Format | None:
    """The format that options ask for at a place; None: as stored. Raises OptionError where no format fits."""
    name, cols = _asked(_group(target), options), _row(target, place)
    if name is None:
        return None
    if name in recipes.PACKED:
        mixed = recipes.mix(name).encoding(*_as_part(spec, place, cols)).packed
        assert mixed is not None, f"{name} has a type that is not packed"
        return mixed
    return fitting(FORMATS[name], cols, OPTIONS.get(target.group, "--dtype"))


def _as_part(spec: ModelSpec, place: str, cols: int) -> tuple[Part, Place]:
    """A tensor as a plan knows it, by which mixes choose."""
    layer, _, role = place.rpartition(".")
    mixer = spec.layer_at(int(layer)).mixer if layer else None
    heads = 1.0 if mixer is None else mixer.shared_by
    layers, experts = len(spec.layers), spec.moe.experts
    at = Place(layer=int(layer) if layer else None, layers=layers, experts=experts, shared_by=heads)
    if not layer:
        is_head = role == "head" or spec.tied_head
        return Part("head" if is_head else "embedding", spec.vocab, cols, name="output"), at
    group: architecture.Group = "experts" if role in PARTS else "dense" if role.startswith("mlp") else "attention"
    return Part(group, 1, cols, name=PART_NAMES.get(role, role)), at  # llama.cpp has no rule for others


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


def _row(target: Target, place: str) -> int:
    """Weights in a row of the matrix of a place that a tensor fills."""
    if not target.turned_places:
        return target.pieces[0].into.cols
    is_turned = place in target.turned_places
    return next(piece.into.cols for piece in target.pieces if (piece.column is not None) == is_turned)


def _check_gate_and_up(layer: int, chosen: Mapping[str, Format], files: Mapping[str, Path]) -> None:
    """Kernels make a token ready once for gate and up."""
    gate, up = (chosen.get(f"{layer}.{part}") for part in ("gate", "up"))
    if gate is not None and up is not None and gate.activations != up.activations:
        raise CheckpointError(
            f"{files[f'{layer}.gate']}: experts of layer {layer} have gate in {gate.name} and up in {up.name}; both "
            "must be quantised as integers, or alike: give --expert-format q8_0, or get the model in another format"
        )
