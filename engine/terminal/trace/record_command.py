"""`headrace trace record`: runs a model on prompts and keeps what it routed. The text goes nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ....errors import OptionError
from ...config import SamplingParams
from ...traces import reader, stored
from ...units import size
from ..generate_command import say


def prompts_of(path: Path) -> list[str]:
    """The prompts of a file, one a line; empty lines are none. Raises OptionError where there is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise OptionError(f"cannot read {path}: {reason}; give a UTF-8 text file, a prompt a line") from error
    found = [line for line in lines if line.strip()]
    if not found:
        raise OptionError(f"{path} has no prompt: write one on each line")
    return found


def file_for(output: Path | None) -> Path:
    """Where to record: what the user named, else in the user's cache. Raises OptionError."""
    return stored.new_file() if output is None else output


def run(
    llm: Any, prompts: list[str], params: SamplingParams, to: Path, *, is_named: bool = True, store: bool = False
) -> int:  # fmt: skip
    """Completes all prompts, closes the model and with it the trace, and says what there is. store: keep it as the
    model's trace too; one for which nobody named a file is kept anyway."""
    is_kept = store or not is_named
    try:
        with llm:
            llm.generate(prompts, params)
        found = reader.read(to)
        kept = stored.keep(to, move=not is_named) if is_kept else to
    finally:
        if not is_named:
            to.unlink(missing_ok=True)
    prompt = len(found) - int(found.generated.sum())
    lost = f", {found.lost} tokens were left out" if found.lost else ""
    to = to if is_named else kept
    say(f"wrote {to}: {prompt} tokens of prompts, {len(found) - prompt} generated{lost}; headrace trace stats {to}")
    if is_kept:
        say(f"kept for {found.header.model}: {size(kept.stat().st_size)}; headrace trace replay {kept} --policy auto")
    return 0
