"""`headrace trace replay` in a terminal: what policies would have done with a trace; everything to standard output."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from ....errors import OptionError
from ...bandwidth_model import machine_file
from ...planning import best_policy, replays
from ...planning.best_policy import Best
from ...planning.replays import Replays
from ...policies.replay.replay import Replayed
from ...traces import reader
from ...traces.reader import Trace
from ...units import size
from .. import plots
from ..tables import Screen, new_table
from . import auto_report, replay_plot


@dataclass(frozen=True, kw_only=True)
class Machine:
    """As the command line says it. hardware: as `machine_file.find` takes it; second_vram, dense: sizes."""

    hardware: str | None
    second_vram: str | None
    dense: str
    in_turn: bool
    graphs: bool
    seeded: bool

    def replays(self, trace: Trace, with_prompts: bool) -> Replays:
        """The trace on it. Raises OptionError."""
        shape = replays.shape_of(trace.header)
        found = replays.of_trace(
            trace, machine_file.find(self.hardware), with_prompts, in_turn=self.in_turn,
            second_vram=replays.bytes_of("--second-vram", self.second_vram, shape),
            dense_bytes=replays.bytes_of("--dense", self.dense, shape) or 0, late=self.graphs,
        )  # fmt: skip
        return replays.seeded(found, trace) if self.seeded else found


def show(
    path: Path, policies: str | None, budgets: str | None, machine: Machine,
    *, hold_out: bool, with_prompts: bool, as_json: bool, plot_to: Path | None = None,
) -> int:  # fmt: skip
    """Replays, prints and draws; the exit status is 1 where the file could not be read to its end. A picture has the
    optimum, and without budgets more of them."""
    if plot_to is not None:
        plots.check(plot_to)
    trace = reader.read(path)
    names = [word.strip() for word in (policies or replays.USUAL).split(",") if word.strip()]
    if not names:
        raise OptionError("--policy names no policy; lru,admit2 are two")
    if machine.seeded and (hold_out or with_prompts or _is_auto(names)):
        raise OptionError("--seed-experts goes with policies by name, without --hold-out and --with-prompts")
    found = machine.replays(trace, with_prompts)
    sizes = replays.budgets_of(budgets, found.shape, replays.SHARES if plot_to is None else replays.CURVE)
    if plot_to is not None:
        replay_plot.check(plot_to, sizes)
        names += [] if replays.CEILING in names or _is_auto(names) else [replays.CEILING]
    best = [best_policy.choose(found, budget) for budget in sizes] if _is_auto(names) else []
    shown = found.halves()[1] if hold_out else found
    rows = [row for one in best for row in one.rows] if best else list(shown.rows(names, sizes))
    if as_json:
        said = {"auto": list(map(auto_report.as_json, best))} if best else {}
        rows_ = list(map(as_row, rows))
        print(json.dumps({**asdict(trace.header), "damage": trace.damage or None, **said, "rows": rows_}))
    else:
        _print(path, trace, found, rows, best)
    if plot_to is not None:
        parts = None if found.rates is None else machine_file.find(machine.hardware)
        where = "" if parts is None else f" on {parts.name}"
        title = f"{trace.header.model}: {found.choices.tokens} tokens{where}"
        replay_plot.save(rows, found.shape.nbytes, title, plot_to)
    return 1 if trace.damage else 0


def _print(path: Path, trace: Trace, found: Replays, rows: list[Replayed], best: list[Best]) -> None:
    out = Screen()
    header, tokens = trace.header, found.choices.tokens
    out.print(
        f"{header.model}: {tokens} tokens in {found.choices.passes} passes, {len(header.layers)} layers of "
        f"{header.experts} experts, {size(found.shape.nbytes)} in {header.formats['experts']}",
        soft_wrap=True,
    )  # fmt: skip
    if trace.damage:
        out.print(f"{path} was read up to here: {trace.damage}", soft_wrap=True)
    if found.rates is None:
        out.print(
            "no tokens/s: that takes the rates of a CPU, a GPU and its link (headrace measure, or --hardware "
            "rtx-4090,ddr5-5600-2ch)", soft_wrap=True,
        )  # fmt: skip
    out.print(table(rows))
    for one in best:
        auto_report.show(out, one)


def _is_auto(names: list[str]) -> bool:
    """Whether the best is asked for. Raises OptionError where others are too."""
    if "auto" in names and len(names) > 1:
        raise OptionError(f"--policy is {','.join(names)}, and auto compares all that there are: give it alone")
    return names == ["auto"]


def as_row(row: Replayed) -> dict[str, Any]:
    """One object; bytes and counts are of the whole trace."""
    return {
        "policy": row.policy, "budget": row.budget, "passes": row.passes, "tokens": row.tokens,
        "hit_rate": row.counts.hit_rate, "store_rate": row.counts.store_rate,
        **asdict(row.counts), "seconds": row.seconds, "tok_s": row.tokens_per_s,
    }  # fmt: skip


def table(rows: list[Replayed]) -> Table:
    """A row for each budget and policy; hits and what the CPU computed are shares of choices."""
    best = {row.budget: row.counts.hit_rate for row in rows if row.policy == "belady"}
    timed, stored = any(row.seconds for row in rows), any(row.counts.store_hits for row in rows)
    columns = ["budget", "policy", "hits", *(["GPU 2"] if stored else []), "CPU", "link", "DRAM"]
    shown = new_table(
        "replay; link and DRAM: bytes a token" + ("; best: belady's hits" if best else ""),
        *columns, *(["of best"] if best else []), *(["tok/s"] if timed else []),
    )  # fmt: skip
    for row in rows:
        counts, each = row.counts, max(1, row.counts.choices)
        cells = [
            size(row.budget), row.policy, f"{counts.hit_rate:.1%}",
            *([f"{counts.store_rate:.1%}"] if stored else []), f"{counts.on_cpu / each:.1%}",
            size(counts.link_bytes / row.tokens), size(counts.cpu_bytes / row.tokens),
        ]  # fmt: skip
        if best:
            cells.append(f"{counts.hit_rate / best[row.budget]:.0%}" if best.get(row.budget) else "-")
        if timed:
            cells.append("-" if row.tokens_per_s is None else f"{row.tokens_per_s:.1f}")
        shown.add_row(*cells)
    return shown
