"""The tensors of a checkpoint as its headers name them, without weights: from a directory, a GGUF file, or the hub.

Only headers are read, from the hub by ranged requests; no torch. Loading has its own readers (`safetensors.py`), which
check offsets against the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import CheckpointError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class Stored:
    """One tensor: its name, type as the file calls it, shape and bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def of_directory(directory: Path) -> list[Stored]:
    """The tensors of the safetensors files of a directory; empty if it has none (a config alone can be planned)."""
    found: dict[str, Stored] = {}
    for path in _files(directory):
        found.update({tensor.name: tensor for tensor in read(path)})
    return list(found.values())


def _files(directory: Path) -> list[Path]:
    index = directory / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index} is damaged ({error!r}): download it again") from error
        missing = [name for name in names if not (directory / name).is_file()]
        return [] if missing else [directory / name for name in names]
    return [directory / SINGLE] if (directory / SINGLE).is_file() else []


def read(path: Path) -> list[Stored]:
    """The tensors of one safetensors file; raises CheckpointError if its header cannot be read."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= MAX_HEADER:
                raise CheckpointError(f"{path} is no safetensors file: its header would have {length} bytes")
            return list(entries(json.loads(file.read(length)), str(path)))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} has a damaged header ({error}): download it again") from error


def entries(header: Any, source: str) -> Iterable[Stored]:
    """The tensors of a parsed header."""
    if not isinstance(header, dict):
        raise CheckpointError(f"{source} has a {type(header).__name__} for a header, not an object: download it again")
    for name, raw in header.items():
        if name == "__metadata__":
            continue
        try:
            start, stop = raw["data_offsets"]
            yield Stored(name, str(raw["dtype"]), tuple(int(n) for n in raw["shape"]), int(stop) - int(start))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{source}: tensor '{name}' has an unreadable header entry {raw!r}") from error
