"""Errors meant for users: each names the thing, the value and the remedy. Our own mistakes are plain `assert`s.

Everything derives from `HeadraceError`, which the command line prints as one line, without a traceback.
This file imports nothing, so that every layer may raise from it.
"""

from __future__ import annotations


class HeadraceError(Exception):
    """Base of every error that a user can cause and mend."""


class OptionError(HeadraceError, ValueError):
    """An option, parameter or environment variable has a value that cannot be used."""


class ConfigError(HeadraceError):
    """A model's config.json misses a key, or has a value that this engine does not support."""


class CheckpointError(HeadraceError):
    """A weight file is missing, damaged, or does not hold the tensors that the config promises."""


class TokenizerError(HeadraceError):
    """The tokenizer is missing, unreadable, or does not belong to the model."""


class HubError(HeadraceError):
    """A model could not be fetched from the hub."""


class MemoryNeeded(HeadraceError, MemoryError):
    """What was asked for does not fit into the memory that is free; raised before any of it is taken."""


class ContextOverflow(HeadraceError, ValueError):
    """Prompt plus new tokens do not fit into the context."""


class DeviceError(HeadraceError):
    """A GPU, its driver, or the hand-off of experts between GPU and CPU is missing or has failed."""
