"""`headrace perplexity` in a terminal: reads the text, scores it once or under many settings; results go to standard
output."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ....errors import OptionError
from ...bench.quality import sweep as sweeping
from ...bench.quality.options import Asked
from ...bench.quality.perplexity import Perplexity, check, perplexity
from .. import generate_command
from ..load import load_model
from ..tables import Screen
from . import sweep_report


def show(model: str, file: Path, asked: Asked, config: dict[str, Any], *, as_json: bool) -> int:
    """Scores a file's text and prints what was found."""
    if asked.sweep:
        return _sweep(model, file, asked, config, as_json=as_json)
    text = text_of(file)
    ids: list[int] = []

    def check_text(admission: Any) -> None:
        ids.extend(admission.encode(text))
        check(ids, asked.window, admission.limit, asked.stride)

    llm = load_model(model, as_json, config, check_text)
    found = perplexity(llm, ids, asked.window, asked.stride, len(text.encode()))
    print(json.dumps(asdict(found)) if as_json else line(found))
    return 0


def line(found: Perplexity) -> str:
    """What was found, for a person."""
    more = [] if found.bits_per_byte is None else [f"{found.bits_per_byte:.4f} bits per byte"]
    parts = [f"perplexity {value(found)} over {found.tokens} tokens", *more, f"{found.tok_s:.0f} tokens/s"]
    return ", ".join(parts)


def value(found: Perplexity) -> str:
    """A perplexity with its standard error."""
    return f"{found.value:.4f}" + ("" if found.error is None else f" +- {found.error:.4f}")


def text_of(file: Path) -> str:
    """What a text file holds; raises OptionError where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise OptionError(f"cannot read {file}: {reason}; give a UTF-8 text file") from error


def _sweep(model: str, file: Path, asked: Asked, config: dict[str, Any], *, as_json: bool) -> int:
    """Measures every setting, prints the table, draws the plot."""
    from ...llm import LLM

    asked.check_against(config)
    if asked.plot is not None:
        from .. import plots

        plots.check(asked.plot)
    text = text_of(file)
    trained, settings = sweeping.settings(model, config, asked.axes)

    def check_text(admission: Any) -> None:
        check(admission.encode(text), asked.window, admission.limit, asked.stride)

    def load(setting: sweeping.Setting) -> LLM:
        return LLM(model, check=check_text, **{**config, **setting})

    with said_once():
        found = sweeping.run(load, settings, trained, text, asked, lambda text: generate_command.say(text, "dim"))
    if as_json:
        print(json.dumps(sweep_report.as_json(found, model)))
    else:
        Screen().print(sweep_report.table(found, file.name))
    if asked.plot is not None:
        from . import sweep_plot

        sweep_plot.save(found, asked.plot, Path(model).name)
    return 0


@contextmanager
def said_once() -> Iterator[None]:
    """Warnings of loads that are alike come once: a sweep loads a model many times."""
    seen: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        count = len(seen)
        seen.add(record.getMessage())
        return len(seen) > count

    log = logging.getLogger("headrace")
    log.addFilter(is_new)
    try:
        yield
    finally:
        log.removeFilter(is_new)
