"""What frequencies of positions are divided by, tensors of GGUF files: where a context is stretched, and where a layer
turns a part of each head, whose other pairs are divided by so much that nothing is left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from ...errors import CheckpointError
from ..families.rope import note_of_two_sets
from ..files import safetensors
from ..files.entry import Entry
from ..gguf.of_tensors import Metadata
from ..spec import AttentionSpec, LayerSpec, ModelSpec, RopeSpec

NAME = "rope_freqs.weight"
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"
NOTHING = 1e20  # from here on a pair is not turned
STRETCHED = ("step35",)  # archs whose layers that see everything are stretched by what the tensor says


def taken(
    path: Path, found: Mapping[str, Entry], spec: ModelSpec, meta: Metadata, notes: list[str]
) -> tuple[dict[str, Entry], ModelSpec]:
    """The tensors without it, and the spec with what it says. Raises CheckpointError where it is not there and must be,
    or says what cannot be."""
    if LONG in found and SHORT in found:
        return _two_sets(path, found, spec, meta, notes)
    ropes = [mixer.rope for mixer in spec.mixers if isinstance(mixer, AttentionSpec)]
    share = next((one for one in ropes if one.kind == "proportional"), None)
    if share is not None:
        _check_part(path, found.get(NAME), share)
    elif NAME in found and any(one.kind == "default" for one in ropes):
        spec = _turned_by(spec, partial(_divided, path, found[NAME]), whole=meta.arch not in STRETCHED)
    else:
        return dict(found), spec
    return {name: one for name, one in found.items() if name != NAME}, spec


def _check_part(path: Path, entry: Entry | None, rope: RopeSpec) -> None:
    pairs = rope.rotary_dim // 2
    if entry is None:
        raise CheckpointError(f"{path} has no '{NAME}', which says what is turned of a head: get another conversion")
    turned = round(rope.share * pairs)
    values = safetensors.read_rows(entry, 0, 1).flatten().float() if entry.shape == (pairs,) else None
    if values is None or not (values[:turned] == 1).all() or not (values[turned:] >= NOTHING).all():
        raise CheckpointError(
            f"{path}: '{NAME}' is supported where it has {pairs} values, {turned} of 1 and the others {NOTHING:g} or "
            "more: get another conversion"
        )


def _divided(path: Path, entry: Entry, rope: RopeSpec) -> RopeSpec:
    """A rope whose pairs turn as much slower as the tensor says, which may have values for more."""
    pairs = rope.rotary_dim // 2
    longer = entry.shape[0] if len(entry.shape) == 1 else 0
    return replace(rope, kind="divided", factors=_read(path, entry, max(pairs, longer))[:pairs])


def _two_sets(
    path: Path, found: Mapping[str, Entry], spec: ModelSpec, meta: Metadata, notes: list[str]
) -> tuple[dict[str, Entry], ModelSpec]:
    """Two tensors: for contexts as trained, and for longer ones."""
    trained = meta.number("rope.scaling.original_context_length")
    grown = meta.get("rope.scaling.attn_factor") or 1.0
    if not trained:
        raise CheckpointError(f"{path} does not say which context '{SHORT}' is for: get another conversion")

    def of(rope: RopeSpec) -> RopeSpec:
        short, long = (_read(path, found[name], rope.rotary_dim // 2) for name in (SHORT, LONG))
        return replace(
            rope, kind="longrope", factors=short, long_factors=long, original_context=trained, attention_factor=grown,
            long_attention_factor=grown,
        )  # fmt: skip

    if trained < spec.context:
        notes.append(note_of_two_sets(trained))
    return {name: one for name, one in found.items() if name not in (SHORT, LONG)}, _turned_by(spec, of)


def _turned_by(spec: ModelSpec, of: Callable[[RopeSpec], RopeSpec], *, whole: bool = True) -> ModelSpec:
    """The spec with another rope in layers whose own is the plain one. whole: also of those that see a window."""

    def changed(layer: LayerSpec) -> LayerSpec:
        mixer = layer.mixer
        if not isinstance(mixer, AttentionSpec) or mixer.rope.kind != "default":
            return layer
        if mixer.window is not None and not whole:
            return layer
        return replace(layer, mixer=replace(mixer, rope=of(mixer.rope)))

    return replace(spec, layers=tuple(map(changed, spec.layers)))


def _read(path: Path, entry: Entry, pairs: int) -> tuple[float, ...]:
    """So many factors, each above 0."""
    values = safetensors.read_rows(entry, 0, 1).flatten().float() if entry.shape == (pairs,) else None
    if values is None or not (values > 0).all():
        raise CheckpointError(f"{path}: '{entry.name}' must have {pairs} values above 0: get another conversion")
    return tuple(values.tolist())
