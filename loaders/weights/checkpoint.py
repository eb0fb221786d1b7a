"""Loads a checkpoint directory: names -> tensors, streamed one piece at a time into their final, packed place.

Everything that can be wrong is found in the headers before memory is taken: missing, left-over and misshapen tensors,
formats that do not fit, memory that is not there. Then pieces are read in file order by two reader threads, a little
ahead of the packing. Knows files and packed weights, not where they will be computed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from ...errors import CheckpointError, OptionError
from ...kernels import FORMATS, Format, Ops
from ...kernels.packed import FORMAT_OF_DTYPE, Matrix
from ..families import Family, TensorNames, read_eos, spec_of
from ..families.config_reader import ConfigReader
from ..files import recognise, safetensors
from ..files.read_ahead import in_order
from ..files.safetensors import Entry
from ..memory import require_memory
from ..spec import ModelSpec
from . import converted, whole_model
from .model_weights import Formats, ModelWeights, Where, allocate
from .targets import Target, targets

CHUNK_BYTES = 32 << 20
SMALLER = "choose a smaller --expert-format or --dense-format (q8_0, q4_0), or free memory"
Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How to load. Formats are names of `FORMATS`, or "native": as the checkpoint has it."""

    expert_format: str = "native"
    dense_format: str = "native"
    plain_format: str = "native"  # what "native" stands for, where it is not as stored
    ignore_config_keys: Collection[str] = field(default_factory=tuple)
    ignore_tensors: Collection[str] = field(default_factory=tuple)  # names, or patterns of them


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A directory that was read as far as its headers: enough to plan, nothing loaded yet.

    names: of its tensors. notes: what a user should know of how it was read, a line each."""

    directory: Path
    family: Family
    spec: ModelSpec
    names: TensorNames
    formats: Formats
    entries: dict[str, Entry]
    is_converted: bool
    notes: tuple[str, ...] = ()

    @property
    def weight_bytes(self) -> int:
        """Bytes that the packed weights will take."""
        return allocate(self.spec, self.formats, "meta").nbytes


def open_directory(directory: Path, options: LoadOptions) -> Checkpoint:
    """Reads config and headers and checks them against each other; raises ConfigError or CheckpointError."""
    config = ConfigReader.open(directory / "config.json", options.ignore_config_keys)
    family, spec = spec_of(config)
    spec = _with_generation_config(spec, directory)
    if converted.is_converted(directory):
        formats = converted.read_formats(directory, options.expert_format, options.dense_format)
        entries = safetensors.read_header(directory / converted.WEIGHTS, converted.origin(directory))
        spec = converted.with_head(spec, entries, config.notes)
        converted.check(entries, allocate(spec, formats, "meta"), directory)
        return Checkpoint(
            directory=directory, family=family, spec=spec, names=family.tensors, formats=formats, entries=entries,
            is_converted=True, notes=tuple(config.notes),
        )  # fmt: skip
    found = whole_model.find(directory, family, spec, options.ignore_tensors, config.notes)
    formats = resolve_formats(found.spec, found.wanted, found.entries, options)
    for name, target in found.wanted.items():
        _check_entry(found.entries[name], target)
    return Checkpoint(
        directory=directory, family=family, spec=found.spec, names=found.names, formats=formats, entries=found.entries,
        is_converted=False, notes=tuple(config.notes),
    )  # fmt: skip


def load_weights(
    checkpoint: Checkpoint,
    ops: Ops,
    progress: Progress | None = None,
    extra: int = 0,
    prepare: Callable[[ModelWeights], None] | None = None,
    where: Where | None = None,
    filled: Callable[[torch.Tensor], None] | None = None,
    free: int | None = None,
) -> ModelWeights:
    """Loads the weights, all into RAM or where `where` says. `extra`: bytes that will be needed besides (cache,
    activations), counted in the memory check; `prepare` sees the memory after it is reserved and before it is filled,
    `filled` every part of it that has its final bytes. `free`: bytes of RAM that may be taken; None: what is free.

    With `where` the caller has checked the memory of every tier.
    """
    if where is None:
        require_memory({"weights": checkpoint.weight_bytes, "KV cache and activations": extra}, SMALLER, free)
    weights = allocate(checkpoint.spec, checkpoint.formats, where=where)
    if prepare is not None:
        prepare(weights)
    tasks = list(_tasks(checkpoint, weights))
    total, done = sum(t.nbytes for t in tasks), 0
    for task, rows in in_order(tasks, _Task.read):
        if rows is not None:
            task.put(rows, ops)
        if filled is not None:
            filled(task.into.data)
        done += task.nbytes
        if progress is not None:
            progress(done, total)
    return weights


@dataclass(frozen=True)
class _Task:
    """A run of rows to read, and the matrix that it fills; with a column, a matrix that is stored the other way
    round."""

    entry: Entry
    first: int
    into: Matrix
    column: int | None = None

    @property
    def nbytes(self) -> int:
        row = self.entry.row_bytes if self.column is None else self.into.cols * self.entry.dtype.itemsize
        return self.into.rows * row

    @property
    def is_packed(self) -> bool:
        """Whether what is stored are the bytes that are wanted."""
        return self.entry.dtype == torch.uint8 or FORMAT_OF_DTYPE.get(self.entry.dtype) == self.into.format.name

    def read(self) -> torch.Tensor | None:
        """The rows, or None where they could be read straight into their place."""
        if self.column is not None:
            block = safetensors.read_rows(self.entry, self.first, self.into.cols)
            return block[:, self.column : self.column + self.into.rows].T.contiguous()
        if not self.is_packed or self.into.data.device.type != "cpu":
            return safetensors.read_rows(self.entry, self.first, self.into.rows)
        safetensors.read_into(self.entry, self.first * self.entry.row_bytes, self.into.data.view(-1))
        return None

    def put(self, rows: torch.Tensor, ops: Ops) -> None:
        """Puts rows that were read into their place: packed, and on another device by a copy of this piece."""
        data = self.into.data
        packed = rows.view(torch.uint8).view(data.shape) if self.is_packed else ops.quantize(rows, self.into.format)
        data.copy_(packed)


def _tasks(checkpoint: Checkpoint, weights: ModelWeights) -> Iterator[_Task]:
    """Every piece of every tensor in file order, cut into chunks; proves that each target is filled exactly once."""
    if checkpoint.is_converted:
        wanted = converted.targets(weights)
    else:
        wanted = targets(checkpoint.spec, checkpoint.names, weights)
    for name in sorted(wanted, key=lambda n: (checkpoint.entries[n].path, checkpoint.entries[n].offset)):
        entry, pieces = checkpoint.entries[name], wanted[name].pieces
        covered = sum(_Task(entry, piece.first, piece.into, piece.column).nbytes for piece in pieces)
        assert covered == entry.nbytes, f"{name}: pieces cover {covered} of {entry.nbytes} bytes"
        for piece in pieces:
            if piece.column is not None:
                yield _Task(entry, piece.first, piece.into, piece.column)
                continue
            step = max(1, CHUNK_BYTES // entry.row_bytes)
            for start in range(0, piece.into.rows, step):
                stop = min(start + step, piece.into.rows)
                yield _Task(entry, piece.first + start, piece.into.slice_rows(start, stop))


def _check_entry(entry: Entry, target: Target) -> None:
    if entry.shape != target.shape:
        raise CheckpointError(
            f"{entry.path}: tensor '{entry.name}' has shape {list(entry.shape)}, the config asks for "
            f"{list(target.shape)}: config and weights do not belong together"
        )
    if entry.dtype not in FORMAT_OF_DTYPE:
        raise CheckpointError(
            f"{entry.path}: tensor '{entry.name}' is of type {safetensors.NAMES[entry.dtype]}, readable are "
            "F32, F16 and BF16: get the unquantised checkpoint (it can be quantised while loading)"
        )


def resolve_formats(
    spec: ModelSpec, wanted: dict[str, Target], entries: dict[str, Entry], options: LoadOptions
) -> Formats:
    """The formats asked for, with "native" read off the headers; raises OptionError where rows are no whole blocks."""
    asked = {"experts": options.expert_format, "dense": options.dense_format, "embed": "native"}
    native = {group: _native(entries, [n for n, t in wanted.items() if t.group == group]) for group in asked}
    formats = Formats(**{g: _choose(format, options.plain_format, native[g]) for g, format in asked.items()})
    check_rows(spec, formats)
    return formats


def _choose(asked: str, plain: str, stored: Format) -> Format:
    """The format asked for; "native" is that of the dtype option, or failing that as stored."""
    name = plain if asked == "native" else asked
    return stored if name == "native" else find_format(name)


def check_rows(spec: ModelSpec, formats: Formats) -> None:
    """Raises OptionError where the rows of a matrix are no whole number of blocks."""
    for size, what in ((spec.hidden, "hidden size"), (spec.moe.width, "expert width")):
        _check_fits(formats.experts, size, what, "--expert-format")
    shared = [spec.moe.shared_width] if any(spec.is_moe) else []
    widths = [spec.hidden, spec.attention.q_rows, *shared, *([] if all(spec.is_moe) else [spec.dense_width])]
    for size in widths:
        _check_fits(formats.dense, size, "row length", "--dense-format")


def find_format(name: str) -> Format:
    """The format of that name; raises OptionError with the names there are."""
    if name not in FORMATS:
        raise OptionError(f"weight format '{name}' is unknown; there are native, {', '.join(FORMATS)}")
    return FORMATS[name]


def _check_fits(format: Format, size: int, what: str, option: str) -> None:
    if not format.fits(size):
        raise OptionError(
            f"{option} {format.name} packs {format.block} weights to a block, but this model's {what} {size} is no "
            f"multiple of it: use {option} bf16"
        )


def _native(entries: dict[str, Entry], members: list[str]) -> Format:
    """The type in which all of these tensors are stored; float32, which holds them all, where they differ."""
    found = {FORMAT_OF_DTYPE.get(entries[name].dtype, "f32") for name in members if name in entries}
    return FORMATS[found.pop()] if len(found) == 1 else FORMATS["f32"]


def _with_generation_config(spec: ModelSpec, directory: Path) -> ModelSpec:
    """Adds the end tokens of generation_config.json, which chat models often list only there."""
    path = directory / "generation_config.json"
    if not recognise.is_named(path):
        return spec
    try:
        more = read_eos(json.loads(path.read_text(encoding="utf-8")).get("eos_token_id"))
    except OSError as error:
        raise CheckpointError(f"{path} {recognise.what_is(path) or f'cannot be read: {error.strerror}'}") from error
    except (ValueError, AttributeError, RecursionError) as error:
        what = recognise.what_is(path) or f"is damaged ({error}): download it again"
        raise CheckpointError(f"{path} {what}") from error
    return replace(spec, eos_ids=tuple(dict.fromkeys((*spec.eos_ids, *more))))
