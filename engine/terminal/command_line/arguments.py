"""Arguments and flags that several commands have, and no dataclass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .options import FieldOption

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
HUB = ("revision", "offline", "cache_dir")  # fields of the config that say where a model is looked for


def a_file(*names: str, help: str, panel: str | None = None, repeats: bool = False) -> Decorator:
    """An option that takes a path, or several; panel: of --help."""
    more = {"multiple": True, "help": f"{help}; may be repeated"} if repeats else {"help": help}
    return click.option(*names, metavar="FILE", type=Path, default=None, cls=FieldOption, panel=panel, **more)


MODEL = "directory, GGUF file, hub id, or 'demo'"
model_argument = click.argument("model", metavar="MODEL", help=MODEL)
json_flag = click.option("--json", "as_json", is_flag=True, help="print one JSON object instead of text and tables")
