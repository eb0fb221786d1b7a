"""`headrace bench` in a terminal: loads, runs, shows, saves, compares. The table goes to standard output."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from ..errors import OptionError
from . import bench, bench_report, console, report
from .bench_grid import Grid
from .llm import LLM
from .random_model import RandomLLM

WIDE = 120  # columns of a file or a pipe, which have no width of their own


def load(model: str, options: dict[str, Any], is_random: bool, layers: int | None, placement: str | None = None) -> LLM:
    """The model, or one of its shape with random weights, with a bar and the start-up table; placed as a test says."""
    options = options if placement is None else {**options, **bench.placed(placement, options)}
    if layers is not None and not is_random:
        raise OptionError("--layers cuts a model of random weights: add --random-weights")
    with console.load_progress() as progress:
        more = {"progress": progress, **options}
        llm = RandomLLM(model, layers=layers, **more) if is_random else LLM(model, **more)
    console.notes.print(report.startup_table(llm))
    return llm


def run(
    load_as: Callable[[str], LLM], model: str, tests: Grid, *, save_to: Path | None, old: dict[str, Any] | None
) -> int:
    """Runs the tests on the model as each placement loads it, one at a time, and shows them; returns the exit status, 1
    if a test became slower than in `old`."""
    rows: list[bench.Row] = []
    llm: LLM | None = None
    for placement in tests.placements:
        llm = None
        gc.collect()  # the memory of the last one goes before the next one is loaded
        llm = load_as(placement)
        console.ensure_profile(llm)
        llm.tell = lambda text: None  # the table shows it
        rows += bench.run(llm, tests, placement, lambda text: console.say(text, "dim"))
    assert llm is not None, "no placement"
    found = bench_report.as_json(llm, model, rows)
    if save_to is not None:
        bench_report.save(found, save_to)
    width = None if sys.stdout.isatty() else WIDE
    out = Console(highlight=False, markup=False, emoji=False, width=width)
    out.print(bench_report.table(llm, rows))
    tiers = bench_report.tier_table(rows)
    if tiers is not None:
        out.print(tiers)
    for line in bench_report.remarks(llm):
        console.say(line, "dim")
    if len(llm.devices) > 1:
        console.say(str(report.remark(llm)), "dim")
    if old is None:
        return 0
    lines, status = bench_report.compare(old, found)
    for line in lines:
        console.say(line)
    return status
