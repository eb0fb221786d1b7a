"""A tiny model on the fake hub, and how tests fetch it: in pieces small enough to be compared byte by byte."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_hub import FakeHub, Files
from huggingface_hub import constants

from headrace.errors import HubError
from headrace.loaders.hub import download
from headrace.loaders.hub.locate import locate

MODEL = "org/tiny-moe"
MIB = 1 << 20


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


SHARDS = {f"model-0000{n}-of-00002.safetensors": noise(n, 3 * MIB) for n in (1, 2)}
FIRST, SECOND = SHARDS
NEEDED: Files = {
    "config.json": b'{"model_type": "mixtral"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"a": 1}' * 999,
    "tokenizer_config.json": b'{"model_max_length": 9}',
    "special_tokens_map.json": b"{ }",
    "chat_template.jinja": "é {{ messages }}".encode(),
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a.weight": FIRST, "b.weight": SECOND, "c.weight": FIRST}}
    ).encode(),
    **SHARDS,
}
UNNEEDED: Files = dict.fromkeys(
    (
        "README.md",
        ".gitattributes",
        "pytorch_model-00001-of-00001.bin",
        "model-q4.gguf",
        "original/consolidated.00.pth",
        "consolidated.safetensors",
        "onnx/model.onnx",
        "model.safetensors",
        "model-00003-of-00002.safetensors",
        "tokenizer.model",
        "adapter/config.json",
    ),
    b"x" * 100_000,
)


def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A hub with MODEL, for a fixture: the only one that can be reached, and without the user's login and cache."""
    monkeypatch.setattr(download, "BACKOFF_S", 0.01)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "must-not-be-used"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with FakeHub() as server:
        server.add(MODEL, NEEDED | UNNEEDED)
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server
    assert not (tmp_path / "must-not-be-used").exists()


def fetch(cache: Path, model: str = MODEL, **options: Any) -> Path:
    return locate(model, cache_dir=cache, show_progress=False, **options)


def refusal(cache: Path, model: str = MODEL, **options: Any) -> str:
    with pytest.raises(HubError) as caught:
        fetch(cache, model, **options)
    return str(caught.value)


def marks(files: Files) -> dict[str, str]:
    """A hash for each file, so that a failing test shows names and not megabytes."""
    return {name: hashlib.sha256(data).hexdigest()[:8] for name, data in files.items()}


def content(directory: Path) -> dict[str, str]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return marks({str(path.relative_to(directory)): path.read_bytes() for path in files})
