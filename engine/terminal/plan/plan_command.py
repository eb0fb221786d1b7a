"""`headrace plan` in a terminal: finds model and machine, plans, prints; the plan to standard output."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ....loaders import model_source
from ...bandwidth_model import machine_file
from ...planning.experts_per_token import with_experts
from ...planning.inspection import here
from ...planning.options import Options
from ...planning.plan import make, refuse_if_too_large
from .. import plots
from ..tables import Screen
from . import article_tables, plan_report


def show(
    model: str,
    hardware: str | None,
    options: Options,
    where: dict[str, Any],
    *,
    shorten: bool = False,
    as_json: bool = False,
    plot_to: Path | None = None,
    trace_from: Path | None = None,
) -> int:
    """Plans and prints; `where` is how to look for a model on the hub; `shorten`: a context longer than the model has
    is cut. Files that are not whole are planned, and it says so. Raises MemoryNeeded, after printing, if the model fits
    nowhere."""
    if plot_to is not None:
        plots.check(plot_to)
    machine = machine_file.find(hardware)
    source = model_source.find(model, **where)
    if problem := here.problem_of_files(source):
        source = replace(source, notes=(*source.notes, f"does not run here: {problem}"))
    longest = source.described.architecture.context
    if shorten and options.context > longest:
        options = replace(options, context=longest)
    distinct = None
    if trace_from is not None:
        from ...planning import routing_trace

        run = with_experts(source, options.experts_per_token)
        distinct = routing_trace.load(trace_from, run.described.architecture)
    plan = make(source, machine, options, distinct)
    if as_json:
        print(json.dumps(plan_report.as_json(plan)))
    else:
        out = Screen()
        for piece in plan_report.tables(plan):
            out.print(piece, soft_wrap=isinstance(piece, str))
    refuse_if_too_large(plan)
    if plot_to is not None:
        from . import plan_plot

        plan_plot.save(plan, plot_to)
    return 0


def show_articles() -> int:
    """Prints the worked numbers of the three articles."""
    out = Screen()
    for piece in article_tables.tables():
        out.print(piece)
    return 0
