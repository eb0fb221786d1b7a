"""headrace runs mixture-of-experts language models on one machine, and accounts for every byte that a token needs.

from headrace import LLM, SamplingParams

llm = LLM("demo")
print(llm.generate("In the beginning", SamplingParams(max_new_tokens=40))[0].text)
"""

from __future__ import annotations

from headrace.engine.config import EngineConfig, SamplingParams
from headrace.engine.llm import LLM
from headrace.engine.results import Chunk, Completion
from headrace.errors import (
    CheckpointError,
    ConfigError,
    ContextOverflow,
    HeadraceError,
    HubError,
    MemoryNeeded,
    OptionError,
    TokenizerError,
)

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "CheckpointError",
    "Chunk",
    "Completion",
    "ConfigError",
    "ContextOverflow",
    "EngineConfig",
    "HeadraceError",
    "HubError",
    "MemoryNeeded",
    "OptionError",
    "SamplingParams",
    "TokenizerError",
]
