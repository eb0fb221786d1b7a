"""What `headrace doctor` says of traces that are kept."""

from __future__ import annotations

from ...llm import LLM
from ...traces import recorder, stored
from ..trace import list_command


def lines(llm: LLM | None) -> list[str]:
    """How many there are, and whether this model has one."""
    found = stored.kept()
    said = [f"{list_command.line(found)} (headrace trace list)"] if found else []
    if llm is None or not any(llm.spec.is_moe):
        return said
    digest = recorder.digest(llm.spec, llm.parts.weights)
    path = stored.stored_trace(digest)
    return [*said, stored.advice(digest, llm.name) if path is None else f"this model's trace: {path}"]
