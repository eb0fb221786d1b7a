"""`headrace doctor` in a terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ....errors import OptionError
from ....kernels.context import Context
from ...bandwidth_model.profile import Profile, load_profile
from ...bench import doctor
from ...llm import LLM
from .. import generate_command
from ..bench import bench_report
from ..tables import Screen
from . import doctor_table, kept_traces


def run(load: Callable[[], LLM] | None, file: Path | None = None) -> int:
    """Checks, runs the model that `load` gives if there is one, prints; `file`: of the profile, if not in its usual
    place. Raises OptionError without a profile."""
    llm = load() if load is not None else None
    context = Context() if llm is None else llm.parts.context
    profile = _profile(llm, file)
    step = None if llm is None else doctor.short_run(llm)
    in_caches = llm is not None and llm.predictions.in_caches
    losses = doctor.diagnose(doctor.findings(profile, context), step, in_caches)
    out = Screen()
    for line in doctor_table.headlines(step, losses, profile, torch.cuda.is_available()):
        out.print(line, soft_wrap=True)
    if llm is not None:
        out.print(f"weights: {bench_report.formats(llm)}", soft_wrap=True)
        if llm.predictions.estimates:
            generate_command.say(llm.predictions.estimates, "dim")
    if in_caches:
        generate_command.say(
            "this model fits into the CPU's caches: memory does not bound it, so its time is not divided", "dim"
        )
    if losses:
        out.print(doctor_table.table(losses))
    for line in kept_traces.lines(llm):
        out.print(line, soft_wrap=True)
    return 0


def _profile(llm: LLM | None, file: Path | None = None) -> Profile:
    """The saved profile; measured now, whoever computes beside, if there is none of these kernels."""
    if llm is not None:
        llm.predictions.tell = lambda text: None  # the diagnosis says it
        generate_command.ensure_profile(llm, even_if_busy=True)
        if llm.predictions.profile is None:
            raise OptionError(
                "this machine could not be measured, and without that there is no diagnosis: try when nothing else runs"
            )
        return llm.predictions.profile
    found = generate_command.current(load_profile(Context(), file), Context(), even_if_busy=True, file=file)
    assert found is not None, "not measured, and nobody was in the way"
    return found
