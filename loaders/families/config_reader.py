"""Reads a config.json key by key, and refuses what nobody asked for.

Class defaults of a model library are not the checkpoint's values, so a key that a family needs must be there. A key
that no family knows stops the load by name: it may change the model. This file knows keys and types, not what they
mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ...errors import ConfigError

# Keys that cannot change what the forward pass computes: bookkeeping, training and generation settings.
HARMLESS = frozenset(
    (
        "_attn_implementation_autoset", "_name_or_path", "architectures", "attention_dropout", "auto_map",
        "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id", "hidden_dropout", "id2label",
        "initializer_range",
        "is_encoder_decoder", "label2id", "max_window_layers", "model_type", "name_or_path", "output_attentions",
        "output_hidden_states", "output_router_logits", "pad_token_id", "problem_type", "return_dict",
        "router_aux_loss_coef", "router_jitter_noise", "task_specific_params", "tokenizer_class", "torch_dtype",
        "transformers_version", "unsloth_fixed", "unsloth_version", "use_cache",
    )
)  # fmt: skip


class ConfigReader:
    """One config.json; remembers which keys were read, so that `finish` can name the rest."""

    def __init__(self, values: dict[str, Any], source: str) -> None:
        self.values = values
        self.source = source
        self.seen: set[str] = set(HARMLESS)

    @classmethod
    def open(cls, path: Path) -> ConfigReader:
        """Reads the file; raises ConfigError if it is missing or is no JSON object."""
        if not path.is_file():
            raise ConfigError(f"no config.json in {path.parent}: give the directory of a Hugging Face checkpoint")
        try:
            values = json.loads(path.read_text(encoding="utf-8-sig"))  # editors on Windows put a mark in front
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path} is not valid JSON ({error}): download it again") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path} holds a {type(values).__name__} where a JSON object is needed")
        return cls(values, str(path))

    def get(self, *names: str) -> Any:
        """The value under the first of these spellings that is there and not null, else None."""
        self.seen.update(names)
        return next((self.values[n] for n in names if self.values.get(n) is not None), None)

    def require(self, *names: str) -> Any:
        value = self.get(*names)
        if value is None:
            raise ConfigError(
                f"{self.source} has no '{names[0]}'"
                + (f" (nor '{names[1]}')" if len(names) > 1 else "")
                + ": the value differs between checkpoints, so no default is taken; add it from the model's card"
            )
        return value

    def integer(self, *names: str, maximum: int = 2**48) -> int:
        value = self.require(*names)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= maximum:
            raise self.bad(names[0], value, f"a whole number from 1 to {maximum}")
        return value

    def number(self, *names: str) -> float:
        return self.positive(names[0], self.require(*names))

    def positive(self, name: str, value: object) -> float:
        """`value`, found under `name`, as a number; raises ConfigError if it is none, or not above 0."""
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf:
            return float(value)
        raise self.bad(name, value, "a number above 0")

    def flag(self, *names: str) -> bool:
        value = self.require(*names)
        if not isinstance(value, bool):
            raise self.bad(names[0], value, "true or false")
        return value

    def only(self, name: str, supported: Collection[Any], remedy: str = "") -> None:
        """Refuses any value of `name` that is not in `supported` (absent counts as null)."""
        self.seen.add(name)
        value = self.values.get(name)
        if value not in supported:
            raise self.bad(name, value, " or ".join(map(json.dumps, supported)), remedy)

    def bad(self, name: str, value: object, wanted: str, remedy: str = "") -> ConfigError:
        remedy = remedy or "this checkpoint cannot be run as it is"
        return ConfigError(
            f"{self.source}: {name} is {json.dumps(value, default=str)}, supported is {wanted}; {remedy}"
        )

    def finish(self, ignored: Collection[str] = ()) -> None:
        """Raises ConfigError if a key was neither read nor known to be harmless nor `ignored` by the user."""
        unknown = sorted(set(self.values) - self.seen - set(ignored))
        if unknown:
            names = ", ".join(f"{n} = {json.dumps(self.values[n], default=str)[:60]}" for n in unknown)
            raise ConfigError(
                f"{self.source} has keys that this family does not know: {names}. They may change what the model "
                f"computes; if they do not, pass --ignore-config-keys {','.join(unknown)}"
            )
