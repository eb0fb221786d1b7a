"""How a model's makers sample from it: what generation_config.json, or the metadata of a GGUF file, says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import regular
from . import gguf_set

NAMES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
OF_GGUF = {
    "temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "penalty_repeat": "repetition_penalty",
}  # fmt: skip


def read(path: Path) -> dict[str, float]:
    """Sampling parameters by name, of a directory or a GGUF file; those that are not said are left out. What is no
    number is left out too: it is advice, and no reason to refuse a model."""
    if path.is_file():
        return _of_gguf(gguf_set.of_path(path).metadata) if gguf_set.is_gguf(path) else {}
    try:
        config = json.loads(regular.text(path / "generation_config.json"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(config, dict):
        return {}
    if config.get("do_sample") is False:
        return {"temperature": 0.0}
    return _numbers({name: config.get(name) for name in NAMES})


def _of_gguf(metadata: Mapping[str, Any]) -> dict[str, float]:
    return _numbers({name: metadata.get(f"general.sampling.{key}") for key, name in OF_GGUF.items()})


def _numbers(given: Mapping[str, Any]) -> dict[str, float]:
    kept = {k: v for k, v in given.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    return {name: value for name, value in kept.items() if value >= 0}
