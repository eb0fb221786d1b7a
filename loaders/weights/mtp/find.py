"""Finds the layer for multi-token prediction of a model: among its tensors, in `mtp.safetensors` beside them, or in a
file that was given.

Three ways of storing it are known. As one more decoder layer behind the last, with what joins its inputs under the same
number (DeepSeek-V3, section 2.2; GGUF has it so, too); under `mtp.` (Qwen3-Next); and in parts that have names of their
own (ERNIE-4.5). The others get the names of the first here. Further layers of the kind are not read: the first is asked
again for the tokens behind its own.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ....errors import CheckpointError, ConfigError, OptionError, listed
from ....kernels import FORMATS
from ...architecture.tensor_names import MTP_PART
from ...families import named
from ...families.family import TensorNames
from ...files.entry import Entry
from ...spec import AttentionSpec, DenseSpec, LatentSpec, LayerSpec, ModelSpec
from ..mixers.target import Target
from ..model_weights import Formats, allocate
from ..targets import of_mtp
from .asked import MtpAsked

BESIDE = "mtp.safetensors"  # beside a model's own files
OTHERWISE = re.compile(r"(?:^|\.)mtp\w*\.")  # of names, however such layers are stored
START, PROJECT = "mtp.", "fc.weight"  # of names as Qwen3-Next has them
FIRST, OWN_PROJECT = "layers.0.", "eh_proj.weight"  # where each such layer joins its inputs itself, as MiMo's
ENDS = {
    "pre_fc_norm_embedding.weight": "mtp_embed_norm", "pre_fc_norm_hidden.weight": "mtp_hidden_norm",
    PROJECT: "mtp_project", "norm.weight": "mtp_norm", f"{FIRST}{OWN_PROJECT}": "mtp_project",
    f"{FIRST}pre_mlp_layernorm.weight": "mlp_norm", f"{FIRST}final_layernorm.weight": "mtp_norm",
}  # fmt: skip
LOOKS, LOOKED_AT = 16, 4096  # places where two heads are compared, and bytes of each
JOINS = (PROJECT, FIRST + OWN_PROJECT)
# Of parts with names of their own, as ERNIE-4.5's.
PARTS = {"linear_proj": "mtp_project", "emb_norm": "mtp_embed_norm", "hidden_norm": "mtp_hidden_norm"}
WITHIN = "transformer."  # between the number and the name of some tensors of Step's
# Copies of the model's own.
SHARED = (
    "embed_tokens.weight", "shared_head.head.weight", "nextn.embed_tokens.weight", "nextn.shared_head_head.weight",
)  # fmt: skip
HEAD = "shared_head.output.weight"  # a copy of the model's head, if its bytes are the same


@dataclass(frozen=True, kw_only=True)
class Mtp:
    """The layer that was found: its spec, its names, and where its tensors lie and go. known: names of all that belongs
    to it, copies included."""

    layer: LayerSpec
    names: TensorNames
    entries: dict[str, Entry]
    wanted: dict[str, Target]
    known: frozenset[str]


def layer_of(spec: ModelSpec) -> LayerSpec | None:
    """What the layer is: as the last one of the decoder that attends to everything and has experts, or, of families
    that say so, with an MLP, and over a window. None: such a layer is not known of models like this."""
    if spec.streams is not None or spec.layernorms:
        return None
    found = named(spec.family)
    if found is not None and found.mtp_dense:
        return _with_an_mlp(spec, found.mtp_windowed)
    return next((one for one in reversed(spec.layers) if _is_alike(one)), None)


def _with_an_mlp(spec: ModelSpec, is_windowed: bool) -> LayerSpec | None:
    mixers = [one.mixer for one in spec.layers if isinstance(one.mixer, AttentionSpec)]
    mixer = next((one for one in mixers if bool(one.window) == is_windowed), None)
    ffn = next((one.ffn for one in spec.layers if isinstance(one.ffn, DenseSpec)), None)
    return None if mixer is None or ffn is None else LayerSpec(mixer=mixer, ffn=ffn)


def _is_alike(layer: LayerSpec) -> bool:
    mixer = layer.mixer
    if not isinstance(mixer, (AttentionSpec, LatentSpec)) or not layer.is_moe or layer.own_norms or layer.grams:
        return False
    indexer = mixer.indexer if isinstance(mixer, LatentSpec) else None
    return indexer is None or indexer.own


def goes_on_before_norm(family: str) -> bool:
    """Whether such layers of a family go on from states in front of the final norm."""
    found = named(family)
    return found is not None and found.mtp_before_norm


def gap_of(family: str) -> str:
    """Why such layers of a family are not run; empty: nothing is known that stands in the way."""
    found = named(family)
    return "" if found is None else found.mtp_gap


def is_in(entries: Collection[str], names: TensorNames, spec: ModelSpec) -> bool:
    """Whether such a layer is among tensors, by names as `renamed` gives them."""
    return names.layer.format(layer=len(spec.layers)) + names.mtp_project in entries


def renamed(entries: Mapping[str, Entry], names: TensorNames, spec: ModelSpec) -> dict[str, Entry]:
    """The tensors with those of the layer under the number behind the last one of the decoder."""
    behind = names.layer.format(layer=len(spec.layers))
    entries = {name.replace(behind + WITHIN, behind, 1): one for name, one in entries.items()}
    ends = (name.removesuffix(end) for name in entries for end in JOINS if name.endswith(START + end))
    start = next((one for one in ends if one == START or one.endswith(f".{START}")), None)
    if start is None:
        return _of_parts(entries, names, spec)
    roles = {start + end: getattr(names, role) for end, role in ENDS.items()}
    first = start + FIRST
    return {
        behind + (roles.get(name) or name.removeprefix(first))
        if name in roles or name.startswith(first)
        else name: entry
        for name, entry in entries.items()
    }


def _of_parts(entries: Mapping[str, Entry], names: TensorNames, spec: ModelSpec) -> dict[str, Entry]:
    """The same of ERNIE-4.5, where each part has a name outside of layers. In front of the head stands the model's own
    norm, which is read once more for the layer."""
    prefix = names.layer.format(layer=len(spec.layers))
    roles = {part: getattr(names, role) for part, role in PARTS.items()}
    found: dict[str, Entry] = {}
    for name, entry in entries.items():
        match = MTP_PART.fullmatch(name)
        found[name if match is None else prefix + (roles.get(match[1]) or match[2])] = entry
    if prefix + names.mtp_project in found and names.final_norm in entries:
        found.setdefault(prefix + names.mtp_norm, entries[names.final_norm])
    return found


def made(
    where: Path, entries: Mapping[str, Entry], names: TensorNames, spec: ModelSpec, asked: MtpAsked, notes: list[str]
) -> Mtp | None:
    """The layer of tensors that are there (`is_in`); None, with a note, where it cannot be used and need not be. where:
    the file or the folder, for errors. Raises ConfigError for a model that cannot have one, CheckpointError for
    tensors that are missing or of another shape."""
    try:
        return _made(where, entries, names, spec)
    except (CheckpointError, ConfigError) as error:
        if asked.must:
            raise
        notes.append(f"its layer for multi-token prediction is left out: {error}")
        return None


def _made(where: Path, entries: Mapping[str, Entry], names: TensorNames, spec: ModelSpec) -> Mtp:
    layer, prefix = layer_of(spec), names.layer.format(layer=len(spec.layers))
    if gap := gap_of(spec.family):
        raise _not_run(where, spec, gap)
    if layer is None:
        raise ConfigError(f"{where}: layers for multi-token prediction are not run for {spec.family}: leave it out")
    plain = FORMATS["f32"]
    with_it = replace(spec, mtp=layer)
    weights = allocate(with_it, Formats(experts=plain, dense=plain, embed=plain), "meta").mtp
    assert weights is not None, "a spec with a layer and no weights of it"
    wanted = of_mtp(with_it, names, weights)
    if missing := [name.removeprefix(prefix) for name in wanted if name not in entries]:
        raise CheckpointError(
            f"{where} lacks {len(missing)} of the {len(wanted)} tensors of its layer for multi-token prediction, as "
            f"{listed([repr(name) for name in missing], 2)}: download it again, or leave speculate 'mtp' out"
        )
    if _has_another_head(entries.get(prefix + HEAD), entries.get(names.head)):
        raise ConfigError(
            f"{where}: the layer for multi-token prediction has a head of its own, which is not read: give speculate "
            "'lookup' or 'off'"
        )
    mine = {name: entry for name, entry in entries.items() if name.startswith(prefix)}
    for name, target in wanted.items():
        if _sizes(mine[name].shape) != _sizes(target.shape):
            raise CheckpointError(
                f"{where}: tensor '{mine[name].name}' of the layer for multi-token prediction has shape "
                f"{list(mine[name].shape)}, the config asks for {list(target.shape)}: it belongs to another model"
            )
    copies = {prefix + name for name in (*SHARED, HEAD)}
    return Mtp(
        layer=layer, names=names, entries={name: mine[name] for name in wanted}, wanted=wanted,
        known=frozenset({*wanted, *copies}),
    )  # fmt: skip


def _has_another_head(own: Entry | None, head: Entry | None) -> bool:
    """Whether a head is another than the model's, by some of its bytes; False where one of them is not there."""
    if own is None or head is None or (own.dtype, own.nbytes) != (head.dtype, head.nbytes):
        return own is not None and head is not None
    return any(_bytes(own, at) != _bytes(head, at) for at in range(0, own.nbytes, max(1, own.nbytes // LOOKS)))


def _bytes(one: Entry, at: int) -> bytes:
    with one.path.open("rb") as file:
        file.seek(one.offset + at)
        return file.read(min(LOOKED_AT, one.nbytes - at))


def _sizes(shape: tuple[int, ...]) -> list[int]:
    """Dims of 1 are kept or dropped by libraries."""
    return [size for size in shape if size != 1]


def _not_run(where: Path, spec: ModelSpec, gap: str) -> ConfigError:
    return ConfigError(
        f"{where}: layers for multi-token prediction of {spec.family} are not run: {gap}; give speculate 'lookup' or "
        "'off'"
    )


def none_there(where: Path, asked: MtpAsked, spec: ModelSpec, entries: Collection[str]) -> None:
    """Raises OptionError where there must be such a layer and is none, ConfigError where there are some of a family
    whose layers are not run."""
    if asked.must:
        if (gap := gap_of(spec.family)) and any(OTHERWISE.search(name) for name in entries):
            raise _not_run(where, spec, gap)
        place = f"{asked.file} holds none" if asked.file else f"there is no {BESIDE} beside it"
        raise OptionError(
            f"speculate is 'mtp', and {where} has no layer for multi-token prediction; {place}: give the file that "
            "holds it (mtp FILE), or speculate 'lookup' or 'off'"
        )
