"""headrace runs mixture-of-experts language models on one machine, and accounts for every byte that a token needs.

    from headrace import LLM, SamplingParams

    llm = LLM("demo")
    print(llm.generate("In the beginning", SamplingParams(max_new_tokens=40))[0].text)

The build maps this file to headrace/__init__.py; its imports are absolute because it lies in another folder here. Names
are imported when they are first used: a command that needs no model does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from headrace.errors import (
    CheckpointError,
    ConfigError,
    ContextOverflow,
    DeviceError,
    HeadraceError,
    HubError,
    MemoryNeeded,
    OptionError,
    TokenizerError,
)

if TYPE_CHECKING:
    from headrace.engine.config import EngineConfig, SamplingParams
    from headrace.engine.llm import LLM
    from headrace.engine.results import Chunk, Completion

__version__ = "0.1.0"

_WHERE = {
    "LLM": "llm",
    "EngineConfig": "config",
    "SamplingParams": "config",
    "Chunk": "results",
    "Completion": "results",
}

__all__ = [
    "LLM",
    "CheckpointError",
    "Chunk",
    "Completion",
    "ConfigError",
    "ContextOverflow",
    "DeviceError",
    "EngineConfig",
    "HeadraceError",
    "HubError",
    "MemoryNeeded",
    "OptionError",
    "SamplingParams",
    "TokenizerError",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'headrace' has no attribute {name!r}")
    return getattr(importlib.import_module(f"headrace.engine.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
