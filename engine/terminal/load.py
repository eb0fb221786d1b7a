"""Loading a model for a command."""

from __future__ import annotations

from typing import Any


def load_model(model: str, quiet: bool, options: dict[str, Any], check: Any = None) -> Any:
    """The loaded model, with a progress bar and the start-up table unless `quiet`. check: of what is to be run."""
    from ..llm import LLM
    from . import generate_command

    if quiet:
        llm = LLM(model, check=check, **options)
        generate_command.say_notes(llm)
        return llm
    with generate_command.load_progress() as bars:
        llm = LLM(model, **bars, check=check, **options)
    generate_command.start_up(llm)
    return llm
