"""headrace runs mixture-of-experts language models on one machine, and accounts for every byte that a token needs.

    from headrace import LLM, SamplingParams

    llm = LLM("demo")
    print(llm.generate("In the beginning", SamplingParams(max_new_tokens=40))[0].text)

Names are imported when they are first used: a command that needs no model does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import (
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
    from .engine.config import EngineConfig, SamplingParams
    from .engine.generation.chat import ChatCompletion
    from .engine.generation.outputs import Chunk, Completion
    from .engine.llm import LLM

__version__ = "0.1.0"

_WHERE = {
    "LLM": "llm",
    "EngineConfig": "config",
    "SamplingParams": "config",
    "ChatCompletion": "generation.chat",
    "Chunk": "generation.outputs",
    "Completion": "generation.outputs",
}

__all__ = [
    "LLM",
    "ChatCompletion",
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
    return getattr(importlib.import_module(f".engine.{_WHERE[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
