"""`headrace bench` in a terminal: loads, runs, shows, saves, draws, compares. The table goes to standard output."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ....errors import OptionError
from ...bandwidth_model.profile import Profile
from ...bench import bench
from ...bench.grid import Grid
from ...bench.random_weights import random_llm
from ...llm import LLM
from ...measure import other_load
from ...speculation.speculation import NONE_PAYS
from .. import generate_command, generate_report
from ..tables import Screen
from . import bench_curves, bench_drafts, bench_plot, bench_report


def load(model: str, options: dict[str, Any], is_random: bool, layers: int | None, placement: str | None = None) -> LLM:
    """The model, or one of its shape with random weights, with a bar and the start-up table; placed as a test says."""
    options = options if placement is None else {**options, **bench.placed(placement, options)}
    if layers is not None and not is_random:
        raise OptionError("--layers cuts a model of random weights: add --random-weights")
    with generate_command.load_progress() as bars:
        more = {**bars, **options}
        llm = random_llm(model, layers=layers, **more) if is_random else LLM(model, **more)
    generate_command.start_up(llm)
    return llm


def draw(files: Sequence[Path], path: Path) -> int:
    """One picture of results that files have; nothing runs. Returns the exit status."""
    bench_plot.check(path, None)
    bench_plot.save([bench_report.load(file) for file in files], [file.name for file in files], path)
    return 0


def run(
    load_as: Callable[[str], LLM],
    model: str,
    tests: Grid,
    *,
    save_to: Path | None,
    old: dict[str, Any] | None,
    plot: Callable[[dict[str, Any]], None] | None = None,
) -> int:
    """Runs the tests on the model as each placement loads it, one at a time, and shows them; returns the exit status, 1
    if a test became slower than in `old`. plot: draws the result."""
    rows: list[bench.Row] = []
    busy = 0.0
    llm: LLM | None = None
    profile: Profile | None = None
    for placement in tests.placements:
        llm = None
        gc.collect()  # the memory of the last one goes before the next one is loaded
        llm = load_as(placement)
        profile = generate_command.ensure_profile(llm, before=profile)
        llm.predictions.tell = lambda text: None  # the table shows it
        others = other_load.Strangers()
        rows += bench.run(llm, tests, placement, lambda text: generate_command.say(text, "dim"))
        busy = max(busy, others.were_in_the_way())
        if llm.recorder is not None:
            llm.close()
    assert llm is not None, "no placement"
    found = bench_report.as_json(llm, model, rows, busy)
    if save_to is not None:
        bench_report.save(found, save_to)
    _show(llm, rows)
    if busy:
        generate_command.say(
            f"other processes took {busy:.1f} cores meanwhile, so that these speeds are too low: run it again when "
            "nothing else runs"
        )
    if plot is not None:
        plot(found)
    if old is None:
        return 0
    lines, status = bench_report.compare(old, found)
    for line in lines:
        generate_command.say(line)
    return status


def _show(llm: LLM, rows: list[bench.Row]) -> None:
    """The tables, and what a reader of them must know."""
    out = Screen()
    out.print(bench_report.table(llm, rows))
    for table in (bench_report.tier_table(rows), bench_drafts.predicted(rows), bench_drafts.table(rows)):
        if table is not None:
            out.print(table)
    if idle := [bench_drafts.name(row) for row in rows if row.drafts is not None and not row.drafts.drafted]:
        generate_command.say(f"nothing was drafted in {', '.join(idle)}: {NONE_PAYS}", "dim")
    for line in bench_report.remarks(llm, rows):
        generate_command.say(line, "dim")
    if len(llm.parts.devices) > 1:
        generate_command.say(str(generate_report.remark(llm)), "dim")


def plotting(path: Path | None, tests: Grid, beside: Sequence[Path]) -> Callable[[dict[str, Any]], None] | None:
    """What draws a result, and those of the files beside it; None without a path. Raises OptionError, before anything
    runs, for what will not be drawn."""
    if path is None:
        return None
    bench_plot.check(path, tests)
    others, names = [bench_report.load(file) for file in beside], [file.name for file in beside]
    bench_curves.check(others, names)
    return lambda found: bench_plot.save([found, *others], ["now", *names], path)
