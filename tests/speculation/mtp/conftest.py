"""Checkpoints with a layer for multi-token prediction, copied beside those without."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mtp_models import Twin, add, layer_tensors

Checkpoints = Callable[[str], Path]
With = Callable[..., Path]


@pytest.fixture(scope="session")
def with_mtp(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> With:
    """with_mtp(variant, way) is a directory with the layer of `twin(variant)`."""
    made: dict[tuple[str, str], Path] = {}

    def found(variant: str, way: str = "in it") -> Path:
        if (variant, way) not in made:
            path = tmp_path_factory.mktemp("mtp") / "model"
            shutil.copytree(checkpoints(variant), path)
            add(variant, path, layer_tensors(variant, checkpoints(variant)), way)
            made[variant, way] = path
        return made[variant, way]

    return found


@pytest.fixture(scope="session")
def twin(checkpoints: Checkpoints, oracle: Callable[[str], Any]) -> Callable[[str], Twin]:
    """The layer as transformers computes it."""
    made: dict[str, Twin] = {}

    def found(variant: str) -> Twin:
        if variant not in made:
            made[variant] = Twin(variant, oracle(variant), layer_tensors(variant, checkpoints(variant)))
        return made[variant]

    return found
