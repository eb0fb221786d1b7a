"""A checkpoint in our own packed layout: what `headrace convert` writes and loading reads without any work.

config.json, tokenizer files, generation_config.json    as they were
headrace.json           {"version": 1, "source": "...", "formats": {"experts": "q4_0", "dense": "bf16", ...}}
headrace.safetensors    every tensor of `ModelWeights.named()`: packed bytes as U8, vectors as F32
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ...errors import CheckpointError, OptionError
from ...kernels import FORMATS
from ...kernels.packed import ExpertBank, Matrix
from .. import regular
from ..files import safetensors
from ..files.entry import Entry
from ..files.gguf_set import is_gguf
from ..spec import ModelSpec
from .model_weights import Formats, ModelWeights, TierBanks
from .mtp.weights import MTP
from .targets import Piece, Target

MANIFEST = "headrace.json"
WEIGHTS = "headrace.safetensors"
VERSION = 1
MORE = "additional_chat_templates"
COMPANIONS = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip


def is_converted(directory: Path) -> bool:
    return (directory / MANIFEST).is_file()


def read_formats(directory: Path, expert_format: str, dense_format: str) -> Formats:
    """The formats of a converted directory; raises if others are asked for, since packed weights are not packed
    again."""
    path = directory / MANIFEST
    try:
        manifest = json.loads(regular.text(path))
        if manifest["version"] != VERSION:  # first: another version may know other formats
            version = manifest["version"]
            raise CheckpointError(f"{path} has layout version {version}, this headrace reads {VERSION}: convert again")
        names = manifest["formats"]
        experts, dense, embed = (FORMATS[names[group]] for group in ("experts", "dense", "embed"))
        own = {place: FORMATS[name] for place, name in manifest.get("own", {}).items()}
        formats = Formats(experts=experts, dense=dense, embed=embed, own=own)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error!r}): convert the model again") from error
    for option, asked, have in (
        ("--expert-format", expert_format, formats.experts.name),
        ("--dense-format", dense_format, formats.dense.name),
    ):
        if asked not in ("native", have):
            raise OptionError(
                f"{option} {asked}: {directory} was converted to {have} and cannot be packed again; "
                "leave the option out, or convert from the original checkpoint"
            )
    return formats


def origin(directory: Path) -> str:
    """What to do about a damaged conversion: of which model it is."""
    try:
        source = json.loads(regular.text(directory / MANIFEST)).get("source")
    except (OSError, ValueError, AttributeError, RecursionError):
        source = None
    return f"it is a conversion of {source}: convert that again" if source else "it is a conversion: convert again"


def targets(weights: ModelWeights) -> dict[str, Target]:
    """Every stored tensor as one run of bytes, or the experts of a layer that lie on several tiers as several."""
    stored = _stored(weights)
    found = {name: Target(tuple(t.shape), (Piece(0, _as_bytes(t)),)) for name, t in stored.items()}
    for i, layer in enumerate(weights.layers):
        if isinstance(split := layer.experts, TierBanks):
            for tier in split.banks:
                del found[f"layers.{i}.experts.{tier}"]
            pieces = tuple(Piece(first, _as_bytes(data)) for first, data in split.runs())
            found[f"layers.{i}.experts"] = Target((split.experts, split.layout.bytes), pieces)
    return found


def _stored(weights: ModelWeights) -> dict[str, Tensor]:
    """What such a directory holds: all but a layer for multi-token prediction, which stays in a file of its own."""
    return {name: one for name, one in weights.named().items() if not name.startswith(MTP)}


def of_bank(bank: ExpertBank, layer: int) -> Iterator[tuple[str, Target]]:
    """The experts of a layer, one row each."""
    pieces = tuple(Piece(e, _as_bytes(bank.data[e : e + 1])) for e in range(bank.experts))
    yield f"layers.{layer}.experts", Target((bank.experts, bank.layout.bytes), pieces)


def _as_bytes(tensor: Tensor) -> Matrix:
    format = FORMATS["f32"]  # the bytes are read as they are; the format only has to match a vector's float32
    data = tensor.view(torch.uint8)
    data = data.view(tensor.shape[0] if tensor.dim() > 1 else 1, -1)
    return Matrix(format, data.shape[0], data.shape[1] // 4, data)


def check(entries: dict[str, Entry], weights: ModelWeights, directory: Path) -> None:
    """Proves that the file holds exactly the tensors that config and formats ask for."""
    wanted = weights.named()
    wrong = [n for n, t in wanted.items() if n not in entries or _kind(entries[n]) != (t.dtype, tuple(t.shape))]
    wrong += [n for n in entries if n not in wanted]
    if wrong:
        raise CheckpointError(
            f"{directory / WEIGHTS} does not match config.json and {MANIFEST} at tensor '{wrong[0]}' "
            f"({len(wrong)} in all): convert the model again"
        )


def with_head(spec: ModelSpec, entries: Collection[str], notes: list[str]) -> ModelSpec:
    """The spec with the head that was packed, where config.json still says that there is none (`tied_head.py`)."""
    if not spec.tied_head or "head" not in entries:
        return spec
    notes.append("the head is not the embedding, as config.json says: the one that was stored beside it is used")
    return replace(spec, tied_head=False)


def _kind(entry: Entry) -> tuple[torch.dtype, tuple[int, ...]]:
    return entry.dtype, entry.shape


def check_destination(to: Path) -> None:
    """Raises OptionError where a model must not be written: over anything but an older conversion, whole or not."""
    if to.exists() and not to.is_dir():
        raise OptionError(f"cannot convert into {to}: it is a file; name a new directory")
    if to.is_dir() and not is_converted(to) and not _was_ended(to) and any(to.iterdir()):
        raise OptionError(f"cannot convert into {to}: there are other files in it; name a new or an empty directory")
    place = next(folder for folder in (to, *to.absolute().parents) if folder.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise OptionError(f"cannot convert into {to}: {place} cannot be written; name a directory elsewhere")


def _was_ended(to: Path) -> bool:
    """Whether a directory holds nothing but what a conversion writes before its manifest: weights come last of that."""
    names = {path.name for path in to.iterdir()}
    return WEIGHTS in names and names <= {WEIGHTS, MORE, *COMPANIONS}


def refuse_gguf(source: Path) -> None:
    """Raises OptionError for a GGUF file."""
    if source.is_file() and is_gguf(source):
        raise OptionError(f"cannot convert {source}: a GGUF file holds packed weights already; run it as it is")


def _check_room(to: Path, needed: int) -> None:
    """Raises OptionError before bytes are written that the disk does not hold; those of an older conversion go."""
    old = to / WEIGHTS
    if needed > (free := shutil.disk_usage(to).free + (old.stat().st_size if old.exists() else 0)):
        raise OptionError(
            f"cannot convert into {to}: {needed / 1e9:.3f} GB are to be written, {free / 1e9:.3f} GB are free: make "
            "room, or name a directory on another disk"
        )


def save(source: Path, to: Path, weights: ModelWeights, formats: Formats) -> None:
    """Writes the packed weights, the manifest and the small files of `source` into the directory `to`."""
    check_destination(to)
    refuse_gguf(source)
    if weights.tables:
        raise OptionError(f"cannot convert {source}: its tables of runs of tokens stay in their files; run it as it is")
    if to.exists() and to.samefile(source):
        raise OptionError(f"cannot convert {source} into itself: name another directory")
    is_new = not to.exists()
    try:
        to.mkdir(parents=True, exist_ok=True)
        _check_room(to, sum(tensor.nbytes for tensor in _stored(weights).values()))
    except (OptionError, OSError) as error:
        if is_new:
            with contextlib.suppress(OSError):
                to.rmdir()
        raise error if isinstance(error, OptionError) else _cannot_write(to, error) from error
    try:
        (to / MANIFEST).unlink(missing_ok=True)  # what is interrupted from here on does not look whole
        _write(source, to, weights, formats)
    except OSError as error:
        for name in (MANIFEST, WEIGHTS, *COMPANIONS):  # they may have filled the disk
            with contextlib.suppress(OSError):
                (to / name).unlink(missing_ok=True)
        shutil.rmtree(to / MORE, ignore_errors=True)
        raise _cannot_write(to, error) from error


def _write(source: Path, to: Path, weights: ModelWeights, formats: Formats) -> None:
    """The manifest comes last."""
    for name in COMPANIONS:
        (to / name).unlink(missing_ok=True)  # of a model that was converted to here before
        if (source / name).is_file():
            shutil.copyfile(source / name, to / name)
    if (source / MORE).is_dir():
        shutil.copytree(source / MORE, to / MORE, dirs_exist_ok=True)
    safetensors.write(to / WEIGHTS, _stored(weights), {"format": "headrace"})
    names = {"experts": formats.experts.name, "dense": formats.dense.name, "embed": formats.embed.name}
    own = {place: format.name for place, format in formats.own.items()}
    manifest = {"version": VERSION, "source": source.name, "formats": names, **({"own": own} if own else {})}
    (to / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def _cannot_write(to: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"cannot write {to}: {error.strerror}; give a directory on a disk with room")
