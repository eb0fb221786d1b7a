"""What is known of the hand-off on this machine from earlier starts: trials of the probe, and steps that were checked.

One file beside the machine's profile, for one GPU, driver and build of the kernels (its passport): what was found with
another one counts as not known. A check (`verify.py`) also holds for one model, placement and set of options
alone, which its digest names. A file that cannot be read or written only costs the next start its measurements.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...kernels.context import Context
from ...kernels.isa import kernels_digest
from .. import writable
from ..bandwidth_model.profile import ELSEWHERE, hardware_key, profile_path
from .gpu_runtime import Runtime
from .signals import VARIANTS, Trial

log = logging.getLogger("headrace")
KEPT = 64  # checks of so many models and placements, the latest


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Seconds of a decode step of one sequence: as a graph, and by hand."""

    graph_s: float
    eager_s: float

    @property
    def is_faster(self) -> bool:
        """Whether the graph is worth having."""
        return self.graph_s < self.eager_s

    def __str__(self) -> str:
        return f"a step {1e3 * self.graph_s:.2f} ms, by hand {1e3 * self.eager_s:.2f} ms"


def path() -> Path:
    """The file of this machine, whatever a run's context is: that is a part of what a check holds for."""
    key = hardware_key(Context())
    return profile_path(key).with_name(f"handoff-{key}.json")


def trials(runtime: Runtime) -> dict[str, Trial] | None:
    """Trials of an earlier start; None where there are none for this passport, or they are damaged."""
    try:
        found = {trial["name"]: Trial(**trial) for trial in _read(runtime)["trials"]}
    except (KeyError, TypeError):
        return None
    is_whole = set(found) == set(VARIANTS) and all(isinstance(t.us, int | float | None) for t in found.values())
    return found if is_whole else None


def keep_trials(runtime: Runtime, found: Mapping[str, Trial]) -> None:
    """Keeps trials."""
    _write(runtime, {**_read(runtime), "trials": [asdict(trial) for trial in found.values()]})


def check(runtime: Runtime, digest: str) -> StepTimes | None:
    """The times of a check that was passed at an earlier start, a graph the faster; None where there was none."""
    try:
        times = StepTimes(**_read(runtime)["checks"][digest])
    except (KeyError, TypeError):
        return None
    is_whole = all(isinstance(seconds, float) and seconds > 0 for seconds in asdict(times).values())
    return times if is_whole and times.is_faster else None


def keep_check(runtime: Runtime, digest: str, times: StepTimes) -> None:
    """Keeps the times of a check that was passed."""
    saved = _read(runtime)
    before = saved.get("checks")
    checks = {**(before if isinstance(before, dict) else {}), digest: asdict(times)}
    _write(runtime, {**saved, "checks": dict(list(checks.items())[-KEPT:])})


def digest(*parts: object) -> str:
    """What a check holds for, besides the passport: a digest of what these objects print as."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def _passport(runtime: Runtime) -> dict[str, object]:
    """What all of it holds for."""
    return {"gpu": runtime.name, "driver": list(runtime.driver.version), "kernels": kernels_digest()}


def _read(runtime: Runtime) -> dict[str, Any]:
    """What is kept for this passport; empty where nothing is."""
    try:
        saved = json.loads(path().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    passport = _passport(runtime)
    is_ours = isinstance(saved, dict) and all(saved.get(name) == value for name, value in passport.items())
    return saved if is_ours else {}


def _write(runtime: Runtime, saved: Mapping[str, Any]) -> None:
    text = json.dumps({**saved, **_passport(runtime)}, indent=2)
    if error := writable.keep(path(), text):
        log.warning("trials of the hand-off are not kept, and made at the next start too: %s; %s", error, ELSEWHERE)
