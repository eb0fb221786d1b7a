"""What the tests of bad input share: how a refusal has to look, and how a checkpoint is damaged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from headrace import HeadraceError
from headrace.loaders.weights.checkpoint import LoadOptions, open_directory

ABSENT = object()


@contextmanager
def refused(kind: type[HeadraceError], *said: str) -> Iterator[None]:
    """The body raises an error of exactly this kind, on one line, that says all of these."""
    with pytest.raises(HeadraceError) as caught:
        yield
    message = str(caught.value)
    assert type(caught.value) is kind, f"{type(caught.value).__name__}: {message}"
    assert [s for s in said if s not in message] == [], message
    assert "\n" not in message


def edit_json(path: Path, **changes: Any) -> None:
    """Changes keys of a JSON object in a file (ABSENT: removes them)."""
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ABSENT}))


def read(directory: Path, **options: Any) -> None:
    """Reads a checkpoint as far as its headers, with options of loading."""
    open_directory(directory, LoadOptions(**options))
