"""Calls of the `tokenizers` library on what a stranger's file made of it.

The library checks little of a tokenizer.json when it is read. Whatever is wrong shows when text comes: as an error of
no class of its own, as a panic of Rust, which Python's `except Exception` does not see, or, where steps replace one
text by a longer one time and again, as memory that is not there, which ends the process.

A regular expression in it may try one way after another. The library gives up behind 10 million tries at one place of
a text, an error after tenths of a second, but a text has many places: so texts are encoded and decoded by the calls for
several, which leave Python to other threads meanwhile, and in the thread that calls.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tokenizers

from ...errors import HeadraceError, TokenizerError, short, visible

Steps = list[dict[str, Any]]
PANIC = "PanicException"  # of a module that cannot be imported
INNER = ("decoders", "pretokenizers", "normalizers")  # where a sequence keeps its steps
# Read by the library at each call. With a pool of threads, which is its default, as many slow texts as there are cores
# would stop all others. Who set it has reasons.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
MOST_GROWTH = 256  # times that all replacements together may make a text longer


@contextmanager
def guarded(what: str) -> Iterator[None]:
    """Raises TokenizerError, which begins with `what`, for whatever the library raises in the body."""
    try:
        yield
    except (HeadraceError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise  # a signal
        why = short(visible(str(error)), 200)
        raise TokenizerError(
            f"{what}: {why}; its tokenizer files do not fit each other: fetch them again, or take those of another copy"
        ) from error


def steps_of(part: Any) -> Steps:
    """A tokenizer's decoder, pre-tokenizer or normalizer as its serialised steps, sequences flattened; none of None.
    Its state alone: the tokenizer's holds every token."""
    return [] if part is None else _flat(json.loads(part.__getstate__()))


def _flat(state: dict[str, Any]) -> Steps:
    if state["type"] != "Sequence":
        return [state]
    return [step for key in INNER for inner in state.get(key, ()) for step in _flat(inner)]


def check_growth(core: tokenizers.Tokenizer, source: str) -> None:
    """Raises TokenizerError for steps that make a text, or an answer, far longer than it was."""
    for what, part in (("normalizer", core.normalizer), ("decoder", core.decoder)):
        times = 1.0
        for step in steps_of(part):
            if step["type"] == "Replace":
                times *= _growth(step["pattern"].get("String", ""), step["content"])
        if times > MOST_GROWTH:
            raise TokenizerError(
                f"the {what} of {source} makes text {times:.3g} times as long, {MOST_GROWTH} times is the most: "
                "fetch its tokenizer files again"
            )


def _growth(old: str, new: str) -> float:
    """How much longer a text may become; "" for what may stand between any two characters, as a regular expression."""
    if not old:
        return 1.0 + len(new.encode())
    return max(1.0, len(new.encode()) / len(old.encode()))
