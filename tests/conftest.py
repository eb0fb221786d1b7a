"""What test files share: tiny checkpoints, built once a session, and a cache directory that is not the user's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from transformers import PreTrainedModel

# Tiny tensors gain nothing from more threads, and where other programs run too, threads that wait cost a lot.
torch.set_num_threads(1)


class Built:
    """The variants of `tiny` that were asked for so far. Tests only read these directories."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.models: dict[str, PreTrainedModel] = {}

    def directory(self, variant: str) -> Path:
        """The checkpoint of a variant."""
        self.model(variant)
        return self.base / variant

    def model(self, variant: str) -> PreTrainedModel:
        """transformers' model of the same weights."""
        if variant not in self.models:
            self.models[variant] = tiny.build(variant, self.base / variant)
        return self.models[variant]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="session")
def checkpoints(built: Built) -> Callable[[str], Path]:
    """checkpoints("qwen3_moe") is the directory of that variant."""
    return built.directory


@pytest.fixture(scope="session")
def oracle(built: Built) -> Callable[[str], PreTrainedModel]:
    """oracle("qwen3_moe") is transformers' model of the same weights."""
    return built.model


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Machine profiles go to a directory of the test, never to the user's."""
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    return path
