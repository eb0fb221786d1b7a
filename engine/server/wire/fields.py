"""Fields that requests of several APIs share, and how they are read. Unknown fields are ignored, null means absent."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import msgspec

from ....errors import OptionError
from ...config import SamplingParams
from .errors import ApiError, bad_request

MOST_STOPS, MOST_STOP, MOST_CHOICES = 16, 1024, 8  # stop strings, characters of one, answers
MOST_MESSAGES, MOST_TOOLS = 10_000, 1024
EFFORTS_OFF = ("none",)
SWITCHES = ("enable_thinking", "thinking")  # of templates, which take any text for true, "false" too
# A character of two halves, or a half alone, behind any number of backslashes that are escaped.
_HALVES = re.compile(
    rb"(?<!\\)((?:\\\\)*)(?:(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)
T = TypeVar("T")


class Sampled(msgspec.Struct, kw_only=True):
    """How tokens are chosen, by the names that clients of OpenAI's API, vLLM and llama.cpp use."""

    model: str | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    logit_bias: dict[str, float] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    priority: int | None = None
    cache_salt: str | None = None
    n: int | None = None
    headrace: bool | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | bool | None = None
    guided_json: dict[str, Any] | bool | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    structured_outputs: dict[str, Any] | None = None


class StreamOptions(msgspec.Struct, kw_only=True):
    """What a stream has besides text."""

    include_usage: bool | None = None


class Streamed(Sampled, kw_only=True):
    """What requests of OpenAI's chat and completions have in common."""

    stream_options: StreamOptions | None = None
    return_progress: bool | None = None
    timings_per_token: bool | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk of counts."""
        return bool(self.stream_options and self.stream_options.include_usage)


def check_sizes(messages: Sequence[Any], tools: Sequence[Any] | None) -> None:
    """Raises ApiError for no message, or more messages or tools than anybody needs."""
    if not messages:
        raise bad_request("messages is empty: give at least one", "messages")
    if len(messages) > MOST_MESSAGES or len(tools or ()) > MOST_TOOLS:
        raise bad_request(f"give at most {MOST_MESSAGES} messages and {MOST_TOOLS} tools")


def prompt_end(add_generation_prompt: bool | None, continue_final_message: bool | None) -> dict[str, Any]:
    """How a conversation's prompt ends: with what opens an answer, unless that is not wanted, or with the text of the
    last message. Raises ApiError for both."""
    if continue_final_message and add_generation_prompt:
        raise bad_request(
            "continue_final_message and add_generation_prompt exclude each other: give one of them",
            "continue_final_message",
        )
    continues = bool(continue_final_message)
    return {"add_generation_prompt": not continues and add_generation_prompt is not False, "continues": continues}


def running(wanted: Sampled) -> dict[str, Any]:
    """What an answer is started with, by any API: before whom it runs, and with whom it shares."""
    return {"priority": wanted.priority or 0, "salt": wanted.cache_salt}


def read(body: bytes, kind: type[T]) -> T:
    """A request of a kind; raises ApiError that names the field."""
    try:
        return msgspec.json.decode(body.removeprefix(codecs.BOM_UTF8) or b"{}", type=kind)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$")
        param = place.rstrip("`").lstrip(".") or None
        raise bad_request(f"{param or 'the request'}: {message}", param) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if (mended := whole_characters(body)) != body:
            return read(mended, kind)
        raise bad_request(f"the body is no JSON: {error}") from None
    except RecursionError:
        raise bad_request("the body is nested too deeply") from None


def whole_characters(body: bytes) -> bytes:
    """A body without halves of characters: JavaScript counts some as two, and whoever cuts a text there sends one half,
    which is in every later request of that conversation. The character that stands for what cannot be read takes its
    place."""
    return _HALVES.sub(lambda found: found[1] + (found[2] or b"\\ufffd"), body)


def choices(wanted: Sampled) -> int:
    """How many answers are asked for."""
    count = 1 if wanted.n is None else wanted.n
    if not 1 <= count <= MOST_CHOICES:
        raise bad_request(f"n is {count}; it must be from 1 to {MOST_CHOICES}", "n")
    return count


def sampling(wanted: Sampled, defaults: SamplingParams, new: int | None, **more: Any) -> SamplingParams:
    """How tokens are chosen: as asked, else as the model's own defaults say. new: most new tokens; None, 0, -1: as many
    as fit. Raises ApiError."""
    if new is not None and new < -1:
        message = f"max_tokens is {new}: give at least 1, or leave it out (as 0 or -1) for what the context leaves"
        raise ApiError(400, message, param="max_tokens")
    given = {
        "temperature": wanted.temperature,
        "top_p": wanted.top_p,
        "top_k": wanted.top_k,
        "min_p": wanted.min_p,
        "repetition_penalty": first(wanted.repetition_penalty, wanted.repeat_penalty),
        "presence_penalty": wanted.presence_penalty,
        "frequency_penalty": wanted.frequency_penalty,
        "seed": wanted.seed,
        "stop": stops(wanted.stop),
        "stop_token_ids": wanted.stop_token_ids,
        "include_stop_str_in_output": wanted.include_stop_str_in_output,
        "logit_bias": bias(wanted.logit_bias),
        "ignore_eos": wanted.ignore_eos,
        "min_tokens": wanted.min_tokens,
        "max_new_tokens": new if new is not None and new > 0 else None,
        **more,
    }
    try:
        return replace(defaults, **{name: value for name, value in given.items() if value is not None})
    except OptionError as error:
        raise ApiError(400, str(error), param=str(error).split(" ", 1)[0]) from None


def stops(stop: str | list[str] | None) -> tuple[str, ...] | None:
    """Stop strings; empty ones are none."""
    if stop is None:
        return None
    found = tuple(one for one in ([stop] if isinstance(stop, str) else stop) if one)
    if len(found) > MOST_STOPS:
        raise bad_request(f"stop has {len(found)} strings; give {MOST_STOPS} at most", "stop")
    if (longest := max(map(len, found), default=0)) > MOST_STOP:
        raise bad_request(f"a string of stop has {longest} characters; give {MOST_STOP} at most", "stop")
    return found


def bias(by_id: dict[str, float] | None) -> dict[str, float] | None:
    """Biases, which must name ids."""
    if bad := next((key for key in by_id or () if not key.isdecimal()), None):
        raise bad_request(f"logit_bias names {bad!r}; give token ids", "logit_bias")
    return by_id or None


def first(*values: T | None) -> T | None:
    """The first that was given."""
    return next((one for one in values if one is not None), None)


def template_arguments(
    effort: str | None, kwargs: dict[str, Any] | None, thinking: bool | None = None
) -> dict[str, Any]:
    """What goes to the template besides messages and tools. effort: of reasoning; "none" turns it off. Raises
    ApiError."""
    given = {name: value for name, value in (kwargs or {}).items() if value is not None}
    if wrong := next((name for name in SWITCHES if not isinstance(given.get(name, True), bool)), None):
        where = f"chat_template_kwargs.{wrong}"
        raise bad_request(f"{where} is {given[wrong]!r}: give true or false, without quotes", where)
    found: dict[str, Any] = {}
    if effort is not None:
        found["reasoning_effort"] = effort
        if effort in EFFORTS_OFF:
            found |= {"enable_thinking": False, "thinking": False}
    if thinking is not None:
        found |= {"enable_thinking": thinking, "thinking": thinking}
    return {**found, **given}
