"""The terminal that tests and their child processes find, wherever they run; and its text without line breaks.

A table breaks cells and titles where columns end, and their width depends on the longest word: the name of an
instruction set, a path, a number. So tests ask for words in `folded` text of a terminal wide enough for any cell.
"""

from __future__ import annotations

from collections.abc import MutableMapping

WIDTH = 400
FIXED = {
    "COLUMNS": str(WIDTH), "LINES": "100", "TERM": "dumb", "NO_COLOR": "1", "TTY_COMPATIBLE": "0",
    "LC_ALL": "C.UTF-8", "LANGUAGE": "en", "PYTHONUTF8": "1",
}  # fmt: skip
# What rich, typer or pytest take for a wish for colours or for another width.
ABSENT = (
    "FORCE_COLOR", "PY_COLORS", "CLICOLOR", "CLICOLOR_FORCE", "COLORTERM", "TERMINAL_WIDTH", "GITHUB_ACTIONS",
    "TTY_INTERACTIVE", "JUPYTER_COLUMNS", "JUPYTER_LINES", "PYTHONIOENCODING", "PYTHONWARNINGS",
    "PYTHONDONTWRITEBYTECODE",  # every child would compile all modules anew
)  # fmt: skip


def settle(environ: MutableMapping[str, str]) -> None:
    """Gives an environment that terminal. Consoles read it when they are made."""
    environ.update(FIXED)
    for name in ABSENT:
        environ.pop(name, None)


def folded(text: object) -> str:
    """The words of a text with single spaces between them, wherever lines were broken."""
    return " ".join(str(text).split())
