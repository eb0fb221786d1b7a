"""Every message of an error, as the code writes it, in one file that can be read through: messages.txt.

    HEADRACE_WRITE_MESSAGES=1 python -m pytest tests/test_messages.py

writes it anew. A value is shown as {its expression}. Read what changed as somebody who sees it for the first time: it
names the thing, the value and what to do, on one line.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace import errors

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).with_name("messages.txt")
KINDS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
LONGEST, OF_A_VALUE = 300, 20  # characters: of a message, and of a value in it
MANY = re.compile(r"\{[^{}]*\}")


def text_of(node: ast.expr) -> str:
    """A message as it is written: text, values in braces, whichever branch of a condition with a bar between."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text_of, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    if isinstance(node, ast.IfExp):
        return f"({text_of(node.body)}|{text_of(node.orelse)})"
    value = node.value if isinstance(node, ast.FormattedValue) else node
    return "{" + ast.unparse(value).replace("{", "(").replace("}", ")") + "}"


def messages() -> Iterator[tuple[str, str]]:
    """File and message of every error that the product makes."""
    for folder in ("engine", "kernels", "loaders"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Name)
                    and node.func.id in KINDS
                    and node.args
                ):
                    yield str(path.relative_to(ROOT)), f"{node.func.id}: {text_of(node.args[0])}"


def written() -> str:
    lines, last = [], ""
    for path, message in messages():
        if path != last:
            lines.append(f"\n{path}")
        last = path
        lines.append(f"  {message}")
    return "\n".join(lines).lstrip() + "\n"


def test_messages_are_those_that_were_read_through() -> None:
    if os.environ.get("HEADRACE_WRITE_MESSAGES"):
        GOLDEN.write_text(written(), encoding="utf-8")
    assert written() == GOLDEN.read_text(encoding="utf-8"), "read the new messages, then write the file anew"


@pytest.mark.parametrize("message", sorted({message for _, message in messages()}))
def test_a_message_is_one_short_line(message: str) -> None:
    said = MANY.sub("x" * OF_A_VALUE, message.split(": ", 1)[1])
    assert "\n" not in said
    assert len(said) <= LONGEST, f"{len(said)} characters: {message}"
