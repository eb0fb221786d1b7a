"""Reads a config.json key by key, and refuses what nobody asked for.

Class defaults of a model library are not the checkpoint's values, so a key that a family needs must be there. A key
that no family knows stops the load by name: it may change the model. This file knows keys and types, not what they
mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ...errors import ConfigError, brief, listed, short
from .. import regular
from ..files import recognise

# Keys that cannot change what the forward pass computes, as patterns of names: bookkeeping, training, generation.
BOOKKEEPING = """
    _* architectures auto_map model_type name_or_path *_version dtype torch_dtype unsloth_* *_commit* base_model*
    tokenizer_* processor_* image_size is_decoder is_encoder_decoder cross_attention_* add_cross_attention
    tie_encoder_decoder id2label label2id num_labels problem_type task_specific_params finetuning_task return_dict*
    use_return_dict output_attentions output_hidden_states output_router_logits output_scores torchscript pruned_heads
    chunk_size_feed_forward attn_implementation use_cache use_flash_attn* use_bfloat16 use_fused_* fused_*
    cache_implementation max_window_layers *_token_id *_token_ids *_token_index mrope_* mtp_* num_nextn_predict_layers
    num_mtp_* use_mtp
"""
TRAINING = """
    *dropout* initializer_* *init_std* init_method* *aux_loss* *z_loss* *_loss_coef* router_jitter_noise
    input_jitter_noise jitter_eps gradient_* *_lr learning_rate weight_decay seq_aux pretraining_tp* *tensor_parallel*
    ep_size *capacity_factor* *_update_speed* finetuned training_* pretrain*
"""
GENERATION = """
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p
    typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences suppress_tokens begin_suppress_tokens exponential_decay_length_penalty remove_invalid_values
    prefix forced_*
"""
HARMLESS = tuple((BOOKKEEPING + TRAINING + GENERATION).split())


def says_nothing(value: object) -> bool:
    """Whether a value switches nothing on: null, false, 0, 1, "none", or nothing but such values."""
    if isinstance(value, dict):
        return all(map(says_nothing, value.values()))
    if isinstance(value, list):
        return all(map(says_nothing, value))
    return value is not True and value in (None, False, 0, 1, "", "none", "default")


class ConfigReader:
    """One config.json; remembers which keys were read, so that `finish` can name the rest.

    ignored: keys that are taken for absent, "rope_scaling.factor" or "factor" inside of another. notes: what a user
    should know of how it was read, a line each."""

    def __init__(self, values: dict[str, Any], source: str, ignored: Collection[str] = ()) -> None:
        self.values = without(values, ignored)
        self.source = source
        self.seen: set[str] = set()
        self.notes: list[str] = []

    @classmethod
    def open(cls, path: Path, ignored: Collection[str] = ()) -> ConfigReader:
        """Reads the file; raises ConfigError if it is missing or is no JSON object."""
        if path.is_symlink() and not path.exists():
            raise ConfigError(f"{path} {recognise.what_is(path)}")
        if not path.is_file():
            what = recognise.what_folder(path.parent) if path.parent.is_dir() else "there is no such directory"
            raise ConfigError(f"no config.json in {path.parent}: {what or 'give the directory of a model'}")
        try:
            values = json.loads(regular.text(path, "utf-8-sig"))  # editors on Windows put a mark in front
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            what = recognise.what_is(path) or f"is not valid JSON ({error}): download it again"
            raise ConfigError(f"{path} {what}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path} holds a {type(values).__name__} where a JSON object is needed")
        if "error" in values and "model_type" not in values:
            raise ConfigError(f"{path} is an answer of a server ({brief(values['error'], 40)}): {recognise.AGAIN}")
        return cls(values, str(path), ignored)

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
            wanted = " or ".join(map(json.dumps, supported))
            self.refuse(self.bad(name, value, wanted, remedy or self.way_round([name])))

    def refuse(self, error: ConfigError) -> None:
        """Stops a load for what changes results; a plan, where it changes no size, goes on."""
        raise error

    def bad(self, name: str, value: object, wanted: str, remedy: str = "") -> ConfigError:
        remedy = remedy or "this checkpoint cannot be run as it is"
        return ConfigError(
            f"{self.source}: {name} is {short(json.dumps(value, default=str), 60)}, supported is {wanted}; {remedy}"
        )

    def limited(self, context: int, name: str) -> int:
        """The context of a model whose attention would be another one past the tokens that the key says."""
        window = self.integer(name)
        if window >= context:
            return context
        self.notes.append(
            f"{name} is {window}, which changes nothing up to {window} tokens: the context ends there; "
            f"--ignore-config-keys {name} lifts that, where the model was trained without it"
        )
        return window

    def way_round(self, names: Iterable[str]) -> str:
        """How a user has keys ignored."""
        return f"if that changes nothing that matters to you, pass --ignore-config-keys {','.join(names)}"

    def finish(self) -> None:
        """Raises ConfigError if a key was neither read nor is known to be harmless, unless its value says nothing."""
        unknown = [n for n in sorted(set(self.values) - self.seen) if not self.is_harmless(n, self.values[n])]
        if unknown:
            names = listed([f"{n} = {short(json.dumps(self.values[n], default=str), 40)}" for n in unknown], 3)
            raise ConfigError(
                f"{self.source} has keys that this family does not know: {names}. They may change what the model "
                f"computes; {self.way_round(unknown)}"
            )

    @staticmethod
    def is_harmless(name: str, value: object) -> bool:
        """Whether a key that nobody reads can be passed over."""
        return says_nothing(value) or any(fnmatchcase(name, pattern) for pattern in HARMLESS)


def without(values: dict[str, Any], ignored: Collection[str], path: str = "") -> dict[str, Any]:
    """The values without those that are ignored, at any depth: by their name, or their path with dots."""
    kept = {name: value for name, value in values.items() if not {name, path + name} & {*ignored}}
    return {
        name: without(value, ignored, f"{path}{name}.") if isinstance(value, dict) else value
        for name, value in kept.items()
    }
