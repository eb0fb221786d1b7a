"""Which safetensors files of a folder are the model's weights: by what is there, not by one layout.

Shards of an index, or one file; where an index and the files do not agree, whole sets of shards, and files by any name.
Whether they hold the whole model is proved later, by their headers.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path

from ...errors import CheckpointError, listed
from . import headers, recognise
from .headers import INDEX, SINGLE, Stored, read_index

SHARD = re.compile(r"(.+)-(\d{4,5})-of-(\d{4,5})\.safetensors")
OTHERS = ("adapter_model*", "training_args*", "optimizer*", "scheduler*", "*.fp32.*", "headrace*")  # not a model's own


def find(directory: Path, *, whole: bool = True) -> tuple[list[Path], dict[str, str], list[str]]:
    """The files with the weights, the map from tensor to file of an index that holds, and what is to be said of them.

    Empty where there is no weight file. Raises CheckpointError where some are missing and nothing stands for them;
    unless the whole is needed, there are none then.
    """
    indices = sorted(directory.glob("*.safetensors.index*.json"), key=lambda p: (p.name != INDEX, p.name))
    problems = []
    for index in indices:
        where = _read(index)
        missing = [name for name in sorted(set(where.values())) if not (directory / name).is_file()]
        if where and not missing:
            return [directory / name for name in sorted(set(where.values()))], where, []
        problems.append((index, missing, len(set(where.values()))))
    files = _without_index(directory)
    if files and not problems:
        return files, {}, []
    if files:
        stale, read = problems[0][0].name, listed([path.name for path in files], 2)
        return files, {}, [f"{stale} names files that are not there: {read} is read instead"]
    if whole and problems:
        raise CheckpointError(_incomplete(directory, *problems[0]))
    if whole and (parts := [path.name for path in directory.glob("*.safetensors") if SHARD.fullmatch(path.name)]):
        raise CheckpointError(f"{directory} has {len(parts)} shards, as {parts[0]}, and not all: finish the download")
    return [], {}, []


def headers_of(directory: Path) -> list[Stored]:
    """The tensors of a folder's weight files; empty if it has none, or not all (a config alone can be planned)."""
    files, _, _ = find(directory, whole=False)
    return list({tensor.name: tensor for path in files for tensor in headers.of_file(path).tensors}.values())


def _read(index: Path) -> dict[str, str]:
    """The map of an index, after a look at what it is."""
    if what := recognise.what_is(index):
        raise CheckpointError(f"{index} {what}")
    return read_index(index)


def _without_index(directory: Path) -> list[Path]:
    """The whole file, or a whole set of shards, or the files there are."""
    files = [directory / name for name in by_name([path.name for path in directory.iterdir()], str(directory))]
    if dangling := next((path for path in files if not path.is_file()), None):
        raise CheckpointError(f"{dangling} {recognise.what_is(dangling) or 'is no file'}")
    return files


def by_name(names: Collection[str], where: str) -> list[str]:
    """Of the names of files those of the weights, where no index says it; `where` is the name that errors give.

    The usual one, a whole set of shards, or the only file; none of a set that lacks some. Raises CheckpointError where
    there are several.
    """
    if SINGLE in names:
        return [SINGLE]
    kept = sorted(n for n in names if n.endswith(".safetensors") and not any(fnmatch(n, one) for one in OTHERS))
    sets: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
    for name in kept:
        if match := SHARD.fullmatch(name):
            sets[match[1], int(match[3])].append(name)
    whole = [shards for (_, count), shards in sets.items() if len(shards) == count]
    found = [*whole, *([name] for name in kept if not SHARD.fullmatch(name))]
    if len(found) > 1:
        some = listed([files[0] for files in found])
        raise CheckpointError(f"{where} has several sets of weights ({some}): leave one of them there")
    return found[0] if found else []


def _incomplete(directory: Path, index: Path, missing: list[str], count: int) -> str:
    """What to say of shards that are missing: why, where that can be seen."""
    if not count:
        return f"{index} names no files: download it again"
    first = directory / missing[0]
    if first.is_symlink():
        return f"{first} {recognise.what_is(first)}"
    started = next((p.name for p in directory.glob(f"{first.name}*") if p.name.endswith(recognise.PARTIAL)), None)
    why = f"{started} was begun: finish the download" if started else recognise.what_folder(directory)
    return (
        f"{directory} misses {len(missing)} of {count} shards that its index names, first {first.name}: "
        f"{why or 'finish the download'}"
    )
