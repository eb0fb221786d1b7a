"""Loads a checkpoint directory: names -> tensors, streamed one piece at a time into their final, packed place.

Everything that can be wrong is found in the headers before memory is taken: missing, left-over and misshapen tensors,
formats that do not fit, memory that is not there. Then pieces are read in file order by two reader threads, a little
ahead of the packing. Knows files and packed weights, not where they will be computed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ...errors import CheckpointError
from ...kernels import FORMATS, Format, Ops
from ...kernels.packed import FORMAT_OF_DTYPE, Matrix
from .. import regular
from ..architecture.by_name.text_part import text_part
from ..families import Family, TensorNames, quantisation, read_eos, spec_of
from ..families.config_reader import ConfigReader
from ..files import recognise, safetensors
from ..files.entry import Entry
from ..files.read_ahead import in_order
from ..files.safetensors import ReadInto
from ..memory import require_memory
from ..spec import ModelSpec
from . import chosen_formats, converted, whole_model
from .chosen_formats import LoadOptions
from .mixers.target import Change
from .model_weights import Formats, Held, ModelWeights, Where, allocate
from .mtp import of_folder
from .tables import row_table
from .tables.row_table import RowTable
from .targets import Target, of_mtp, targets

CHUNK_BYTES = 32 << 20
SMALLER = "choose a smaller --expert-format or --dense-format (q8_0, q4_0), or free memory"
ON_DISK = "--placement disk"
Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A directory that was read as far as its headers: enough to plan, nothing loaded yet.

    directory: or the GGUF file, which holds the tokenizer too. names: of its tensors. notes: what a user
    should know of how it was read, a line each. pairs_of_halves: rows of queries and keys are stored in pairs, one of
    either half of a head, and are put into the order of halves. mtp_names: of the layer for multi-token prediction, if
    the spec has one."""

    directory: Path
    family: Family
    spec: ModelSpec
    names: TensorNames
    formats: Formats
    entries: dict[str, Entry]
    is_converted: bool
    notes: tuple[str, ...] = ()
    pairs_of_halves: bool = False
    mtp_names: TensorNames | None = None

    @property
    def weight_bytes(self) -> int:
        """Bytes that the packed weights will take."""
        return allocate(self.spec, self.formats, "meta").nbytes


def open_directory(directory: Path, options: LoadOptions) -> Checkpoint:
    """Reads config and headers and checks them against each other; raises ConfigError or CheckpointError."""
    config = ConfigReader.open(directory / "config.json", options.ignore_config_keys)
    config.values, taken = text_part(quantisation.with_file_beside(config.values, directory))
    config.notes += taken
    family, spec = spec_of(config, options.experts_per_token)
    spec = _with_generation_config(spec, directory)
    if converted.is_converted(directory):
        formats = converted.read_formats(directory, options.expert_format, options.dense_format)
        entries = safetensors.read_header(directory / converted.WEIGHTS, converted.origin(directory))
        spec = converted.with_head(spec, entries, config.notes)
        converted.check(entries, allocate(spec, formats, "meta"), directory)
        ahead = of_folder.find(directory, {}, family, spec, options.mtp, config.notes) if options.mtp else None
        if ahead is not None:
            spec, entries = replace(spec, mtp=ahead.layer), {**entries, **ahead.entries}
        return Checkpoint(
            directory=directory, family=family, spec=spec, names=family.tensors, formats=formats, entries=entries,
            is_converted=True, notes=tuple(config.notes), mtp_names=None if ahead is None else ahead.names,
        )  # fmt: skip
    stored = quantisation.read(config)
    found = whole_model.find(directory, family, spec, options.ignore_tensors, config.notes, stored, options.mtp)
    entries = fitted(found.entries, found.wanted)
    formats = chosen_formats.resolve(found.spec, found.wanted, entries, options)
    for name, target in found.wanted.items():
        check_entry(entries[name], target)
    return Checkpoint(
        directory=directory, family=family, spec=found.spec, names=found.names, formats=formats, entries=entries,
        is_converted=False, notes=tuple(config.notes), pairs_of_halves=family.neighbours, mtp_names=found.mtp_names,
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
    held: Held | None = None,
    read: ReadInto | None = None,
) -> ModelWeights:
    """Loads the weights, all into RAM or where `where` says. `extra`: bytes that will be needed besides (cache,
    activations), counted in the memory check; `prepare` sees the memory after it is reserved and before it is filled,
    `filled` every part of it that has its final bytes. `free`: bytes of RAM that may be taken; None: what is free.
    `read`: how bytes come from the files.

    With `where` or `held`, the part of the model to be loaded, the caller has checked the memory. What lies on the meta
    device is not loaded.
    """
    if where is None and held is None:
        remedy = f"{SMALLER}, or leave experts in the file ({ON_DISK})"
        require_memory({"weights": checkpoint.weight_bytes, "KV cache and activations": extra}, remedy, free)
    weights = allocate(checkpoint.spec, checkpoint.formats, where=where, held=held)
    weights.tables.update(_tables(checkpoint))
    if prepare is not None:
        prepare(weights)
    tasks = list(_tasks(checkpoint, weights))
    total, done = sum(t.nbytes for t in tasks), 0
    for task, rows in in_order(tasks, lambda task: task.read(read)):
        if rows is not None:
            task.put(rows, ops)
        if filled is not None:
            filled(task.into.data)
        done += task.nbytes
        if progress is not None:
            progress(done, total)
    if checkpoint.pairs_of_halves:
        _order_halves(_targets(checkpoint, weights))
    return weights


def _targets(checkpoint: Checkpoint, weights: ModelWeights) -> dict[str, Target]:
    """Every tensor that is read, and where it goes."""
    if checkpoint.is_converted:
        found = converted.targets(weights)
    else:
        found = targets(checkpoint.spec, checkpoint.names, weights)
    if weights.mtp is not None and checkpoint.mtp_names is not None:
        found |= of_mtp(checkpoint.spec, checkpoint.mtp_names, weights.mtp)
    return found


def _tables(checkpoint: Checkpoint) -> dict[int, RowTable]:
    """By layer, tables of which rows are read where they lie."""
    entries = checkpoint.entries
    found = row_table.find(checkpoint.directory, entries, checkpoint.spec, checkpoint.names)
    return {layer: RowTable([entries[name] for name in parts]) for layer, parts in found.items()}


def _order_halves(wanted: Mapping[str, Target]) -> None:
    """Puts the rows of each head, stored as (0, r), (1, r + 1) ..., into the order 0, 1 ... r, r + 1: a row is a row in
    every format, so packed ones move as they are."""
    for target in wanted.values():
        for piece in target.pieces if target.heads else ():
            data = piece.into.data
            rows = data.view(torch.float32).view(-1, 1) if len(target.shape) == 1 else data  # a bias is one row
            by_head = rows.view(target.heads, -1, 2, rows.shape[1])
            rows.copy_(by_head.transpose(1, 2).reshape(rows.shape))


@dataclass(frozen=True)
class Task:
    """Rows to read, first, first + step, ..., and the matrix that they fill; with a column, a matrix that is stored the
    other way round. change: what becomes of the values."""

    entry: Entry
    first: int
    into: Matrix
    column: int | None = None
    step: int = 1
    change: Change = ""

    @property
    def nbytes(self) -> int:
        if self.column is None:
            return self.into.rows * self.entry.row_bytes
        return self.into.rows * self.into.cols * self.entry.row_bytes // self.entry.shape[-1]

    @property
    def is_packed(self) -> bool:
        """Whether what is stored are the bytes that are wanted."""
        if self.entry.blocks or self.change:
            return False
        return self.entry.dtype == torch.uint8 or FORMAT_OF_DTYPE.get(self.entry.dtype) == self.into.format.name

    @property
    def is_straight(self) -> bool:
        """Whether the bytes that are wanted are one run of the file's."""
        return self.column is None and self.step == 1 and self.entry.packed is None and self.is_packed

    def read(self, by: ReadInto | None = None) -> torch.Tensor | None:
        """The rows, or None where they could be read straight into their place. by: how bytes come from the file; a
        weight that several tensors hold reads them its own way."""
        if self.column is not None:
            rows = self._rows(self.into.cols, by)
            return rows if self.entry.blocks else self._columns(rows)
        if self.step > 1:
            return self._rows(self.step * (self.into.rows - 1) + 1, by)[:: self.step].contiguous()
        if not self.is_straight or self.into.data.device.type != "cpu":
            return self._rows(self.into.rows, by)
        (by or safetensors.read_into)(self.entry, self.first * self.entry.row_bytes, self.into.data.view(-1))
        return None

    def _rows(self, count: int, by: ReadInto | None) -> torch.Tensor:
        """So many rows from the first on, as they are stored, or as a quantised weight is packed."""
        packed = self.entry.packed
        return packed.rows(self.first, count) if packed else safetensors.read_rows(self.entry, self.first, count, by)

    def _columns(self, rows: torch.Tensor) -> torch.Tensor:
        """The columns that are wanted, as rows."""
        assert self.column is not None
        columns = rows[:, self.column :: self.step][:, : self.into.rows].T.contiguous()
        return columns.flatten().view(columns.shape)  # also where there is one: `contiguous` keeps its stride

    def put(self, rows: torch.Tensor, ops: Ops) -> None:
        """Puts rows that were read into their place: packed, and on another device by a copy of this piece."""
        data, into = self.into.data, self.into
        if self.change:
            rows = CHANGES[self.change](rows.float())
        if self.entry.blocks and self.column is not None:
            packed = ops.quantize(self._columns(self._unpacked(rows, ops)), into.format)
        elif self.entry.blocks:
            stored = FORMATS[self.entry.blocks]
            packed = _in_format(rows if self.entry.packed else ops.repack(rows, stored, into.cols), stored, into, ops)
        elif self.is_packed:
            packed = rows.view(torch.uint8).view(data.shape)
        else:
            packed = ops.quantize(rows, into.format)
        data.copy_(packed)

    def _unpacked(self, rows: torch.Tensor, ops: Ops) -> torch.Tensor:
        """Values of rows that were read of a tensor in blocks."""
        stored, cols = FORMATS[str(self.entry.blocks)], self.entry.shape[-1]
        packed = rows if self.entry.packed else ops.repack(rows, stored, cols)
        return ops.dequantize(Matrix(stored, len(rows), cols, packed))


CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "plus one": lambda x: x + 1,
    "minus exp": lambda x: -x.exp(),
    "whole numbers": lambda x: x,  # stored as such, and float32 here, which has all of them below 2^24
    "over root": lambda x: x * x.shape[-1] ** -0.5,  # of a router's norm: what comes out is divided by the root
}


def _in_format(packed: torch.Tensor, stored: Format, into: Matrix, ops: Ops) -> torch.Tensor:
    """Packed rows as they are, or in another format where that was asked for."""
    if stored is into.format:
        return packed
    return ops.quantize(ops.dequantize(Matrix(stored, into.rows, into.cols, packed)), into.format)


def _tasks(checkpoint: Checkpoint, weights: ModelWeights) -> Iterator[Task]:
    """Every piece of every tensor in file order, cut into chunks; proves that each target is filled exactly once."""
    wanted = _targets(checkpoint, weights)
    for name in sorted(wanted, key=lambda n: (checkpoint.entries[n].path, checkpoint.entries[n].offset)):
        entry, target = checkpoint.entries[name], wanted[name]
        tasks = [Task(entry, p.first, p.into, p.column, p.step, target.change) for p in target.pieces]
        covered = sum(task.nbytes for task in tasks)
        assert covered == entry.nbytes, f"{name}: pieces cover {covered} of {entry.nbytes} bytes"
        for task in tasks:
            if not task.into.data.is_meta:  # that stays in the file
                yield from chunks(task)


def chunks(task: Task) -> Iterator[Task]:
    """A task in parts of `CHUNK_BYTES`, but for a matrix that is stored the other way round."""
    if task.column is not None:
        yield task
        return
    most = max(1, CHUNK_BYTES // (task.entry.row_bytes * task.step))
    for start in range(0, task.into.rows, most):
        stop = min(start + most, task.into.rows)
        yield replace(task, first=task.first + start * task.step, into=task.into.slice_rows(start, stop))


def fitted(entries: Mapping[str, Entry], wanted: Mapping[str, Target]) -> dict[str, Entry]:
    """The entries, and where one that stays float32 differs from what is wanted in dims of 1 alone, of that shape:
    libraries keep or drop such dims of a vector or a convolution."""
    found = dict(entries)
    for name, target in wanted.items():
        sizes = [[size for size in shape if size != 1] for shape in (entries[name].shape, target.shape)]
        if not target.group and not entries[name].blocks and sizes[0] == sizes[1]:
            found[name] = replace(entries[name], shape=target.shape)
    return found


def check_entry(entry: Entry, target: Target) -> None:
    if entry.shape != target.shape:
        raise CheckpointError(
            f"{entry.path}: tensor '{entry.name}' has shape {list(entry.shape)}, the config asks for "
            f"{list(target.shape)}: config and weights do not belong together"
        )
    has_numbers = target.change == "whole numbers" and not entry.dtype.is_floating_point
    if not entry.blocks and entry.dtype not in FORMAT_OF_DTYPE and not has_numbers:
        raise CheckpointError(
            f"{entry.path}: tensor '{entry.name}' is of type {safetensors.NAMES[entry.dtype]}, readable are "
            "F32, F16 and BF16, and what quantization_config says: get the unquantised checkpoint (it can be quantised "
            "while loading)"
        )


def _with_generation_config(spec: ModelSpec, directory: Path) -> ModelSpec:
    """Adds the end tokens of generation_config.json, which chat models often list only there."""
    path = directory / "generation_config.json"
    if not recognise.is_named(path):
        return spec
    try:
        more = read_eos(json.loads(regular.text(path)).get("eos_token_id"))
    except OSError as error:
        raise CheckpointError(f"{path} {recognise.what_is(path) or f'cannot be read: {error.strerror}'}") from error
    except (ValueError, AttributeError, RecursionError) as error:
        what = recognise.what_is(path) or f"is damaged ({error}): download it again"
        raise CheckpointError(f"{path} {what}") from error
    return replace(spec, eos_ids=tuple(dict.fromkeys((*spec.eos_ids, *more))))
