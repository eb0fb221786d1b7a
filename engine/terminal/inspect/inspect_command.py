"""`headrace inspect` in a terminal: finds the model, reads its headers, prints; everything to standard output."""

from __future__ import annotations

import json
from typing import Any

from ....errors import SeveralModels
from ....loaders import model_source
from ...planning.inspection import facts
from ..tables import Screen
from . import inspect_report


def show(model: str, where: dict[str, Any], *, as_json: bool = False) -> int:
    """Prints what a model is, or which ones a name may mean; `where` is how to look for it on the hub."""
    out = Screen()
    try:
        found = facts.make(model_source.find(model, dense=True, with_text=True, **where))
    except SeveralModels as several:
        if as_json:
            print(json.dumps({"models": [{"name": name, "bytes": nbytes} for name, nbytes in several.choices]}))
        else:
            out.print(inspect_report.choices_table(model, several.choices))
        return 0
    if as_json:
        print(json.dumps(inspect_report.as_json(found)))
    else:
        for piece in inspect_report.tables(found):
            out.print(piece, soft_wrap=isinstance(piece, str))
    return 0
