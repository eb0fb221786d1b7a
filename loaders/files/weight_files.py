"""Which safetensors files of a folder may be the model's weights: by what is there, not by one layout.

There may be an index of shards, one file, whole sets of shards, files by any name, and all of that beside each other or
left over from before. So there are candidates, the likeliest first, and headers prove which holds the whole model:
those of a run against its config (`weights/whole_model.py`), those of a plan by what it computes from them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from ...errors import CheckpointError, listed
from . import headers, recognise
from .headers import INDEX, SINGLE, Stored, read_index

SUFFIX = ".safetensors"
INDICES = "*.safetensors.index*.json"
SHARD = re.compile(r"(.*?)[-_.]?(\d+)[-_]of[-_](\d+)(.*)\.safetensors")
OTHERS = ("adapter_model*", "training_args*", "optimizer*", "scheduler*", "headrace*")  # not a model's own


@dataclass(frozen=True)
class WeightSet:
    """Files that may be the whole model; `where`: the file of a tensor, by an index; is_all: every weight file there
    is, where none alone is likely."""

    files: tuple[str, ...]
    where: Mapping[str, str] = field(default_factory=dict)
    index: str = ""
    is_all: bool = False

    @property
    def label(self) -> str:
        """What to call it."""
        more = len(self.files) - 1
        files = self.files[0] + (f" and {more} more" if more else "")
        return f"the files of {self.index}" if self.index else files


@dataclass(frozen=True)
class Problem:
    """Why files are not the model, in a few words and as an error; is_likely: of files likelier than those after."""

    what: str
    error: CheckpointError
    is_likely: bool = True


def ranked(names: Collection[str], indices: Mapping[str, Mapping[str, str]]) -> list[list[WeightSet]]:
    """The sets of files that may be the model, likeliest first; those of one rank are equally likely.

    names: of the files there are; indices: their maps, by name and in order. First come indices whose files are all
    there, then model.safetensors, shards called model-*, other whole sets and files, and last all files together."""
    kept = _kept(names)
    ranks = [
        [WeightSet(tuple(sorted({*where.values()})), where, index)]
        for index, where in indices.items()
        if where and {*where.values()} <= {*names}
    ]
    if SINGLE in names:
        ranks.append([WeightSet((SINGLE,))])
    whole = [WeightSet(tuple(shards)) for count, shards in _counted(kept) if len(shards) >= count]
    first = [one for one in whole if one.files[0].startswith("model")]
    others = [WeightSet((name,)) for name in kept if name != SINGLE and not SHARD.fullmatch(name)]
    ranks += [first, [one for one in whole if one not in first] + others]
    if len(kept) > 1:
        ranks.append([WeightSet(tuple(kept), is_all=True)])
    return [rank for rank in ranks if rank]


def _kept(names: Iterable[str]) -> list[str]:
    mine = (name for name in names if name.endswith(SUFFIX) and "/" not in name)
    return sorted(name for name in mine if not any(fnmatch(name, other) for other in OTHERS))


def _counted(names: Iterable[str]) -> list[tuple[int, list[str]]]:
    """Names that count parts, a list for each set, and of how many it should be."""
    sets: defaultdict[tuple[str, int, str], list[str]] = defaultdict(list)
    for name in names:
        if match := SHARD.fullmatch(name):
            sets[match[1], int(match[3]), match[4]].append(name)
    return [(count, shards) for (_, count, _), shards in sets.items()]


def find(directory: Path) -> tuple[list[list[WeightSet]], list[Problem]]:
    """The candidates of a folder, and what is wrong with others that its files speak of."""
    names = [
        str(p.relative_to(directory)) for end in ("", "*/") for p in directory.glob(f"{end}*{SUFFIX}") if p.is_file()
    ]
    indices: dict[str, dict[str, str]] = {}
    problems = []
    for index in sorted(directory.glob(INDICES), key=lambda p: (p.name != INDEX, p.name)):
        try:
            indices[index.name] = where = _read(index)
        except CheckpointError as error:
            problems.append(Problem(f"{index.name} cannot be read", error))
            continue
        if missing := sorted({*where.values()} - {*names}):
            said = CheckpointError(_incomplete(directory, missing, len({*where.values()})))
            problems.append(Problem(f"{index.name} names files that are not there", said))
    for path in directory.glob(f"*{SUFFIX}"):
        if path.name not in names:
            gone = CheckpointError(f"{path} {recognise.what_is(path) or 'is no file'}")
            problems.append(Problem(f"{path.name} is no file", gone, path.name == SINGLE))
    for count, shards in _counted(_kept(names)):
        if len(shards) < count and not indices:
            why = recognise.what_folder(directory) or "finish the download"
            said = CheckpointError(f"{directory} has {len(shards)} of {count} shards, as {shards[0]}: {why}")
            problems.append(Problem(f"{shards[0]} is of a set that is not whole", said, False))
    return ranked(names, indices), problems


def headers_of(directory: Path) -> list[Stored]:
    """The tensors of a folder's weights; empty if there are none, or not all (a config alone can be planned).

    Raises CheckpointError where several sets of files hold the same tensors, or none can be read."""
    ranks, problems = find(directory)
    failed: list[CheckpointError] = []
    for rank in ranks:
        if problems and not rank[0].index and len(rank[0].files) == 1 and rank[0].files != (SINGLE,):
            continue  # it may be a part
        if problems and rank[0].is_all:
            continue
        try:
            found = [t for one in rank for name in one.files for t in headers.of_file(directory / name).tensors]
        except CheckpointError as error:
            failed.append(error)
            continue
        tensors = {tensor.name: tensor for tensor in found}
        if len(tensors) < len(found) and (len(rank) > 1 or rank[0].is_all):
            raise several(directory, rank)
        return list(tensors.values())
    if failed:
        raise failed[0]
    return []


def several(directory: object, sets: Collection[WeightSet]) -> CheckpointError:
    """The error for files that hold the same tensors."""
    some = listed([one.label for one in sets] if len(sets) > 1 else next(iter(sets)).files)
    return CheckpointError(f"{directory} has several sets of weights ({some}): leave one of them there")


def _read(index: Path) -> dict[str, str]:
    """The map of an index, after a look at what it is."""
    if what := recognise.what_is(index):
        raise CheckpointError(f"{index} {what}")
    return read_index(index)


def _incomplete(directory: Path, missing: list[str], count: int) -> str:
    """What to say of shards that are missing: why, where that can be seen."""
    first = directory / missing[0]
    if first.is_symlink():
        return f"{first} {recognise.what_is(first)}"
    started = recognise.begun(first)
    why = f"{started} was begun: finish the download" if started else recognise.what_folder(directory)
    return (
        f"{directory} misses {len(missing)} of {count} shards that its index names, first {first.name}: "
        f"{why or 'finish the download'}"
    )
