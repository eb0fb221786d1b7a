"""Models that can be planned by name alone: the sizes of released checkpoints, in `catalogue.json`.

An entry is a config.json cut down to what decides on sizes, with the names of checkpoints on the hub that have them.
Every total is held against the published one by `tests/planning/test_architectures.py`.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Model:
    """One entry; `note` says which of its values are not certain."""

    name: str
    config: dict[str, Any]
    note: str = ""


@cache
def _entries() -> dict[str, Any]:
    entries: dict[str, Any] = json.loads(Path(__file__).with_name("catalogue.json").read_text(encoding="utf-8"))
    return entries


def names() -> list[str]:
    """The names of all entries."""
    return list(_entries())


def find(name: str) -> Model:
    """The entry of that name, or of a checkpoint on the hub that it stands for; KeyError if there is none."""
    wanted = name.lower()
    for key, entry in _entries().items():
        known = (key, *entry["aliases"])
        if wanted in (n.lower() for n in known) or wanted in (n.split("/")[-1].lower() for n in known):
            return Model(name=key, config=entry["config"], note=entry.get("note", ""))
    raise KeyError(name)


def aliases(name: str) -> tuple[str, ...]:
    """Names of checkpoints on the hub that the entry of that name stands for; KeyError if there is none."""
    return tuple(_entries()[find(name).name]["aliases"])


def nearest(name: str) -> list[str]:
    """Names of the catalogue that look like `name`."""
    by_lower = {key.lower(): key for key in _entries()}
    return [by_lower[n] for n in difflib.get_close_matches(name.split("/")[-1].lower(), by_lower, n=3, cutoff=0.4)]
