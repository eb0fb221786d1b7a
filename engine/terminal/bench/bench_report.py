"""What `headrace bench` shows and saves: a table, a JSON file with its passport, what got slower since an old one."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from ....errors import OptionError
from ... import writable
from ...bench.bench import Row
from ...bench.passport import passport
from ...bench.random_weights import RandomWeights, is_cut, whole_spec
from ...ledger.passes import CHANNELS, FIXED
from ...ledger.residual import TierTimes
from ...llm import LLM
from ...units import GB, size
from ..tables import new_table
from . import bench_drafts

SLOWER = 0.05  # a test has become slower if it lost more than this
KEY = ("test", "batch", "depth", "placement")
MACHINE = ("cpu", "isa", "threads")  # a speed is compared on the same ones only
MODEL = ("model", "layers", "formats")
ALIKE = 0.1  # of a plain read: memory that gives as near to what the profile has counts as the same
EXPERTS = "experts_per_token"  # an older result does not say it


def table(llm: LLM, rows: list[Row]) -> Table:
    """One row a test; rates are tokens per second of all sequences together, bytes and residual ms are of a token."""
    title = f"{llm.spec.family}, {len(llm.spec.layers)} layers, {formats(llm)}"
    columns = ("test", "batch", "bytes", "predicted", "tokens/s", "+-", "residual", "ceiling")
    shown = new_table(title, *columns)
    extrapolated = any(row.whole_tok_s is not None for row in rows)
    if extrapolated:
        shown.add_column(f"~{_layers(llm)} layers", justify="right")
    for row in rows:
        shown.add_row(*_cells(row), *([_number(row.whole_tok_s)] if extrapolated else []))
    return shown


def formats(llm: LLM) -> str:
    """What the weights are in, and what they take: experts q4_k/q6_k, dense q4_k, embedding bf16."""
    names = llm.parts.checkpoint.formats.names
    embed = "" if llm.spec.tied_head else f", embedding {names['embed']}"
    return f"experts {names['experts']}, dense {names['dense']}{embed}: {size(llm.parts.weights.nbytes)}"


def tier_table(rows: list[Row]) -> Table | None:
    """Where the time of a token goes, ms, predicted in brackets, a row for each test that used several tiers; None
    where none did."""
    timed = [(row, row.tiers) for row in rows if row.tiers is not None]
    if not timed:
        return None
    columns = [tier for tier in CHANNELS if any(tier in one.time_ms for _, one in timed)]
    shown = new_table("ms of a token by tier (predicted), with the clock on", "test", "batch", "ms", *columns)
    for name in ("side by side", "waits for", "idle", "outside", "differs most"):
        shown.add_column(name, justify="right")
    for row, one in timed:
        shown.add_row(bench_drafts.name(row), str(row.batch), f"{one.measured_ms:.2f}", *_tier_cells(one, columns))
    return shown


def _tier_cells(one: TierTimes, columns: list[str]) -> list[str]:
    predicted = one.predicted_time_ms

    def cell(measured: float, term: float | None) -> str:
        return f"{measured:.2f}" if predicted is None else f"{measured:.2f} ({term or 0.0:.2f})"

    waits = ", ".join(f"{tier} {wait:.2f}" for tier, wait in one.wait_ms.items()) or "-"
    fixed = None if predicted is None else predicted.get(FIXED)
    return [
        *(cell(one.time_ms.get(tier, 0.0), None if predicted is None else predicted.get(tier)) for tier in columns),
        cell(one.overlap_ms, one.predicted_overlap_ms), waits, f"{one.idle_ms:.2f}", cell(one.outside_ms, fixed),
        one.cause or "-",
    ]  # fmt: skip


def _cells(row: Row) -> list[str]:
    spread = (max(row.rounds) - min(row.rounds)) / 2
    residual = "-" if row.residual_ms is None else f"{row.residual_ms:+.3f}"
    share = "-" if row.share_of_ceiling is None else f"{row.share_of_ceiling:.0%}"
    return [
        bench_drafts.name(row), str(row.batch), bench_drafts.read(row.bytes_per_token), _number(row.predicted_tok_s),
        _number(row.tok_s), _number(spread), residual, share,
    ]  # fmt: skip


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _layers(llm: LLM) -> int:
    return len(whole_spec(llm).layers)


def remarks(llm: LLM, rows: list[Row]) -> list[str]:
    """What a reader of the table must know."""
    found = []
    if isinstance(llm.source, RandomWeights):
        found.append("random weights: speeds are those of the shape, the routing is close to uniform")
        if is_cut(llm):
            found.append(
                f"{len(llm.spec.layers)} of {len(whole_spec(llm).layers)} layers were run; the last column (~) is "
                "extrapolated, not measured"
            )
    found += filter(None, [llm.predictions.estimates, _other_memory(llm, rows)])
    found.append(
        "predicted: of a prompt it is extrapolated from the speed of 16 tokens; ceiling: a plain read of the same bytes"
    )
    return found


def _other_memory(llm: LLM, rows: list[Row]) -> str:
    """That memory gave another rate than the profile has, by which predictions go; "": it did not, or nobody knows."""
    profile, reads = llm.predictions.profile, [row.plain_read for row in rows if row.plain_read is not None]
    if profile is None or not reads or abs((read := statistics.median(reads)) / profile.stream - 1) <= ALIKE:
        return ""
    return (
        f"memory gave a plain read {read / GB:.0f} GB/s between the rounds, "
        f"{profile.stream / GB:.0f} when it was measured: predictions go by the latter, ceilings by the former"
    )


def as_json(llm: LLM, model: str, rows: list[Row], busy: float) -> dict[str, Any]:
    """Everything about a run; rates are tokens per second, bytes and times per token. busy: cores that other processes
    took meanwhile."""
    return {
        "model": model,
        "family": llm.spec.family,
        "layers": len(llm.spec.layers),
        "whole_layers": _layers(llm),
        "experts_per_token": llm.spec.moe.top_k,
        "random_weights": isinstance(llm.source, RandomWeights),
        "formats": llm.parts.checkpoint.formats.names,
        "weight_bytes": llm.parts.weights.nbytes,
        "gpus": [one.name for one in llm.parts.devices.values() if not one.is_host],
        "profile": None
        if llm.predictions.profile is None
        else {"date": llm.predictions.profile.date, "stream": llm.predictions.profile.stream},
        "speculate": llm.config.speculate,
        "busy": busy,
        "rows": [_row_as_json(row) for row in rows],
        "passport": passport(llm.parts.context),
    }


def _row_as_json(row: Row) -> dict[str, Any]:
    found = {**asdict(row), "tok_s": row.tok_s, "is_extrapolated": row.whole_tok_s is not None}
    if row.drafts is not None:
        found["drafts"].update(bench_drafts.medians(row.drafts))
    return found


def save(found: dict[str, Any], path: Path) -> None:
    """Writes a result; raises OptionError if it cannot be written."""
    try:
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise writable.refusal(path, "the result", error) from error


def _is_row(row: dict[str, Any]) -> bool:
    """Whether it has a test's name and numbers. Raises KeyError and TypeError for what is none."""
    rates = [row["tok_s"], *(row.get("rounds") or []), row.get("predicted_tok_s") or 1.0]
    is_named = isinstance(row["test"], str) and isinstance(row["placement"], str)
    is_counted = isinstance(row["batch"], int) and isinstance(row["depth"], int) and row["batch"] > 0
    return is_named and is_counted and all(0 < rate < math.inf for rate in rates)


def load(path: Path) -> dict[str, Any]:
    """An old result; raises OptionError for a file that is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        is_one = isinstance(found["passport"], dict) and isinstance(found["formats"], dict)
        if found["rows"] and all(map(_is_row, found["rows"])) and is_one and all(key in found for key in MODEL):
            return dict(found)
    except OSError as error:
        raise OptionError(f"cannot read {path}: {error.strerror}; name a result of headrace bench --json") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise OptionError(f"{path} is no result of headrace bench --json ({error!r})") from error
    raise OptionError(f"{path} is no result of headrace bench --json: it has no rows, model or passport")


def compare(old: dict[str, Any], new: dict[str, Any]) -> tuple[list[str], int]:
    """Lines about every test that both have, and the exit status: 1 if one lost more than 5 %.

    Raises OptionError if the two are of different machines or models, or share no test.
    """
    differing = [f"{key} {old[key]!r}, now {new[key]!r}" for key in MODEL if old[key] != new[key]]
    if EXPERTS in old and EXPERTS in new and old[EXPERTS] != new[EXPERTS]:
        differing.append(f"{EXPERTS} {old[EXPERTS]!r}, now {new[EXPERTS]!r}")
    then, now = old["passport"], new["passport"]
    differing += [f"{k} {then.get(k)!r}, now {now.get(k)!r}" for k in MACHINE if then.get(k) != now.get(k)]
    if differing:
        raise OptionError(f"the old result cannot be compared, it has another {'; '.join(differing)}: run it as now")
    before = {tuple(row[key] for key in KEY): row["tok_s"] for row in old["rows"]}
    lines, status = [], 0
    for row in new["rows"]:
        was = before.get(tuple(row[key] for key in KEY))
        if was is None:
            continue
        change = row["tok_s"] / was - 1
        is_slower = change < -SLOWER
        status |= is_slower
        name = f"{row['test']} batch {row['batch']} depth {row['depth']} {row['placement']}"
        lines.append(f"{name}: {was:.1f} -> {row['tok_s']:.1f} tokens/s ({change:+.1%}){' SLOWER' * is_slower}")
    if not lines:
        raise OptionError("the old result has none of these tests: run it with the same -p, -n, -b and --depth")
    return lines, int(status)
