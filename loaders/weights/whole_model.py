"""Finds the files of a folder that hold the whole model, and its tensors by the names that the family gives them.

The likeliest files are tried first; headers prove whether every tensor is there. What is read in another way than it
stands in the folder is said.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from ...errors import CheckpointError
from ..families import Family, TensorNames
from ..families.quantisation import Quantisation
from ..files import recognise, safetensors, weight_files
from ..files.entry import Entry
from ..files.weight_files import Problem, WeightSet
from ..quantised.gather import gather, without_zero_biases
from ..spec import ModelSpec
from . import left_over, stored_names, tied_head
from .mtp import find as mtp_find
from .mtp import of_folder
from .mtp.asked import MtpAsked
from .tables import row_table
from .targets import Target, empty_targets


@dataclass(frozen=True, kw_only=True)
class WholeModel:
    """A model whose tensors are all there: where each lies, by the names of `names`, and where it goes."""

    spec: ModelSpec
    names: TensorNames
    entries: dict[str, Entry]
    wanted: dict[str, Target]
    mtp_names: TensorNames | None = None  # of the layer for multi-token prediction, which is then in all of it


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """Files that hold every tensor of a model, and what is to be said of its names."""

    files: WeightSet
    model: WholeModel
    notes: list[str]


def find(
    directory: Path,
    family: Family,
    spec: ModelSpec,
    ignored: Collection[str],
    notes: list[str],
    how: Quantisation | None = None,
    mtp: MtpAsked | None = None,
) -> WholeModel:
    """The model of a folder. ignored: names of tensors, or patterns of them, that are taken for absent. how: its
    weights are quantised. mtp: its layer for multi-token prediction is taken with it. Raises CheckpointError where no
    files hold all of it, several do, or tensors are left over that may matter."""
    ranks, problems = weight_files.find(directory)
    for rank in ranks:
        tried = [_try(directory, files, family, spec, ignored, how) for files in rank]
        whole = [one for one in tried if isinstance(one, _Candidate)]
        if len(whole) > 1:
            raise weight_files.several(directory, [one.files for one in whole])
        if whole:
            notes += _choice(whole[0], problems) + whole[0].notes
            return _finished(directory, whole[0].model, family, notes, how, mtp)
        problems += [one for one in tried if isinstance(one, Problem)]
    if problems:
        raise problems[0].error
    what = recognise.what_folder(directory) or "get the safetensors version"
    raise CheckpointError(f"{directory} has no weights in safetensors files: {what}")


def _try(
    directory: Path,
    files: WeightSet,
    family: Family,
    spec: ModelSpec,
    ignored: Collection[str],
    how: Quantisation | None,
) -> _Candidate | Problem:
    """Whether files hold the whole model, by their headers."""
    notes: list[str] = []
    try:
        entries = stored_names.canonical(safetensors.read_set(directory, files), family.tensors, notes)
        entries = entries if how is None else gather(entries, how, notes)
    except CheckpointError as error:
        return Problem(f"{files.label} cannot be read", error)
    entries = _without_ignored(entries, ignored, notes)
    names = tied_head.names_as_stored(stored_names.as_stored(entries, family, spec, notes), spec, entries)
    wanted = empty_targets(spec, names)
    missing = [name for name in wanted if name not in entries]
    if missing:
        lacks = left_over.missing(directory, missing, entries, wanted, family)
        return Problem(f"{files.label} lacks {len(missing)} tensors of the model", lacks)
    return _Candidate(
        files=files, model=WholeModel(spec=spec, names=names, entries=entries, wanted=wanted), notes=notes
    )


def _choice(chosen: _Candidate, problems: list[Problem]) -> list[str]:
    """What to say of files that were not the likeliest ones, or not as their index says."""
    files, entries = chosen.files, chosen.model.entries.values()
    if files.is_all:
        return [f"all {len(files.files)} safetensors files are read as one model"]
    if likely := [one.what for one in problems if one.is_likely]:
        return [f"{likely[0]}: {files.label} {'is' if len(files.files) == 1 else 'are'} read instead"]
    moved = [one.name for one in entries if not str(one.path).endswith(files.where.get(one.name, ""))]
    return [f"{len(moved)} tensors, as {moved[0]}, lie in other files than {files.index} says"] if moved else []


def _finished(
    directory: Path,
    found: WholeModel,
    family: Family,
    notes: list[str],
    how: Quantisation | None,
    mtp: MtpAsked | None,
) -> WholeModel:
    """The chosen model, its head looked at and nothing of it left over."""
    spec = tied_head.as_stored(found.spec, found.names, found.entries, notes)
    if spec is not found.spec:
        found = replace(found, spec=spec, wanted=empty_targets(spec, found.names))
    found = replace(found, entries=without_zero_biases(found.entries, found.wanted, notes))
    kept = row_table.find(directory, found.entries, spec, found.names)
    known = {*found.wanted, *(name for parts in kept.values() for name in parts)}
    ahead = None if mtp is None else of_folder.find(directory, found.entries, family, spec, mtp, notes, how)
    entries = found.entries
    if ahead is not None:
        entries, known = mtp_find.renamed(entries, family.tensors, spec), known | ahead.known
    left_over.check(directory, known, entries, family, spec, notes)
    if ahead is None:
        return found
    return replace(
        found, spec=replace(spec, mtp=ahead.layer), entries={**found.entries, **ahead.entries},
        wanted={**found.wanted, **ahead.wanted}, mtp_names=ahead.names,
    )  # fmt: skip


def _without_ignored(entries: dict[str, Entry], patterns: Collection[str], notes: list[str]) -> dict[str, Entry]:
    """The tensors without those that the user has ignored, which is said."""
    kept = {
        name: entry for name, entry in entries.items() if not any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    if count := len(entries) - len(kept):
        first = next(name for name in entries if name not in kept)
        notes.append(f"{count} tensors are ignored, as {first}: the model computes as if they had not been trained")
    return kept
