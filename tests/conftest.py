"""What test files share: tiny checkpoints, built once a session, and a cache directory that is not the user's."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before anything imports Triton: this process runs its kernels in numpy (test_gpu_kernels.py).
os.environ["TRITON_INTERPRET"] = "1"
# Before anything imports rich or typer: what a test reads depends on nobody's terminal.
os.environ.update(COLUMNS="80", LINES="25", TERM="dumb", NO_COLOR="1", LC_ALL="C.UTF-8")
os.environ.update(dict.fromkeys(("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "TERMINAL_WIDTH", "LANGUAGE"), ""))

import fake_cuda
import pytest
import tiny
import tiny_hub
import tiny_tokenizer
import torch
from fake_hub import FakeHub
from refusals import edit_json
from transformers import PreTrainedModel

from headrace import cli
from headrace.engine.bandwidth_model import profile as profiles
from headrace.engine.bandwidth_model.profile import Profile
from headrace.engine.measure import tile_thresholds
from headrace.kernels import FORMATS, cpu
from headrace.kernels.isa import kernels_digest

# (exit status, standard output, standard error) of a command
Run = Callable[..., tuple[int, str, str]]

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
    """Machine profiles go to a directory of the test, never to the user's. How many tokens make tiles worth while is
    not measured again for every test."""
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    if built_in := cpu.tile_tokens():
        tile_thresholds.save(built_in)
    return path


@pytest.fixture
def make(checkpoints: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """make("qwen3_moe", vocab_size=99) copies that checkpoint and changes its config (ABSENT: key removed)."""

    def copy(variant: str = "qwen3_moe", **config: Any) -> Path:
        directory = tmp_path / "model"
        shutil.copytree(checkpoints(variant), directory)
        edit_json(directory / "config.json", **config)
        return directory

    return copy


@pytest.fixture(scope="session")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a tokenizer, a chat template and a long context."""
    directory = tmp_path_factory.mktemp("talker")
    tiny.build("qwen3_moe", directory, max_position_embeddings=1 << 16)
    tiny_tokenizer.save(directory)
    return directory


@pytest.fixture
def profile(cache_home: Path) -> Iterator[Profile]:
    """A saved profile of this machine, so that no command measures it: every kernel reads 10 GB/s."""
    threads = cpu.threads()
    rates = dict.fromkeys(FORMATS, 1e10)
    made = Profile(
        key=profiles.hardware_key(), cpu="test", isa=cpu.isa(), threads=threads, memory_bytes=1, date="2000-01-01",
        stream=1e10, linear=rates, experts=rates, attention={"1": 1e10, "8": 1e10, "512": 1e10},
        batch={"4": rates, "16": rates}, crowd={"2": rates, "16": rates}, kernels=kernels_digest(),
    )  # fmt: skip
    for count in {1, threads, os.cpu_count() or 1}:
        cpu.set_threads(count)
        profiles.save_profile(dataclasses.replace(made, key=profiles.hardware_key(), threads=count))
    cpu.set_threads(threads)
    yield made
    cpu.set_threads(threads)


@pytest.fixture
def run(profile: Profile, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""

    def command(*arguments: object, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["headrace", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        status: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code or 0
        return status, *capsys.readouterr()

    return command


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A hub on this machine that serves a tiny model."""
    yield from tiny_hub.serve(monkeypatch, tmp_path)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """An empty cache for what comes from the hub."""
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The driver's library whose streams are threads (`fake_cuda.py`), compiled once."""
    return str(fake_cuda.build(tmp_path_factory.mktemp("cuda")))


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where that library writes its calls."""
    path = tmp_path / "calls"
    path.touch()
    monkeypatch.setenv("FAKE_CUDA_LOG", str(path))
    return path
