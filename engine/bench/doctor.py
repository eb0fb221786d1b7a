"""`headrace doctor`: what bounds a step now, what each cause costs in tokens per second, and what to do first.

A short decode run (with a model) gives the time of a step; the profile divides it. A loss is what the run would gain if
the time of that cause were gone: 1 / (t - t_cause) - 1 / t. Without a model causes are shown by their share of time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

from ...kernels.context import Context
from ..bandwidth_model.profile import Profile
from ..devices.host import cpu_kernels
from ..ledger.passes import CPU_DRAM, FIXED
from ..ledger.summary import summarise
from ..llm import LLM
from . import checks
from .bench import run
from .checks import Finding
from .decoding import without_drafts
from .grid import Grid
from .system_facts import gather

TOKENS, ROUNDS = 32, 3
SMALL = 0.03  # of a step's time: less is noise


@dataclass(frozen=True, kw_only=True)
class Step:
    """A decode step of one sequence, in seconds: measured, and what the profile says of it. `plain_s`: a plain read of
    the same bytes, the least that this memory allows."""

    measured_s: float
    memory_s: float
    fixed_s: float
    plain_s: float

    @property
    def unexplained_s(self) -> float:
        return self.measured_s - self.memory_s - self.fixed_s

    @property
    def bound(self) -> str:
        """What takes most of the time."""
        parts = {CPU_DRAM: self.memory_s, "fixed costs": self.fixed_s, "what is not explained": self.unexplained_s}
        return max(parts, key=lambda name: parts[name])


@dataclass(frozen=True, kw_only=True)
class Loss(Finding):
    """One line of the diagnosis; `tok_s` is None where the loss is not known."""

    tok_s: float | None = None


def short_run(llm: LLM) -> Step:
    """Decodes a little. The model needs a profile."""
    assert llm.predictions.profile is not None, "a run without a profile"
    tests = Grid(prompt=(0,), new=(TOKENS,), rounds=ROUNDS)
    with llm.ledger.recording() as passes, without_drafts(llm):
        row = next(iter(run(llm, tests)))
    total = summarise(passes, "decode")
    terms = [p.predicted.terms for p in passes if p.phase == "decode" and p.predicted]

    def mean(term: str) -> float:
        return sum(one.get(term, 0.0) for one in terms) / max(1, total.tokens)

    return Step(
        measured_s=1 / row.tok_s,
        memory_s=mean(CPU_DRAM),
        fixed_s=mean(FIXED),
        plain_s=row.bytes_per_token[CPU_DRAM]["total"] / llm.predictions.profile.stream,
    )


def diagnose(findings: Iterable[Finding], step: Step | None, in_caches: bool = False) -> list[Loss]:
    """Losses, the largest known first. Of a model that the caches hold no time is divided: memory does not bound it."""
    found = [Loss(**vars(finding)) for finding in findings]
    if step is not None and not in_caches:
        found += list(_of_step(step))
    if step is not None:
        found = [_priced(loss, step.measured_s) for loss in found]
    return sorted(found, key=lambda loss: -(loss.share or 0.0))


def _of_step(step: Step) -> Iterable[Loss]:
    """What the division of a step shows."""
    parts = (
        (
            step.unexplained_s,
            "slower than the profile",
            "the run took longer than bytes and fixed costs explain",
            "look what else runs on this machine, then headrace measure",
        ),
        (
            step.fixed_s,
            "fixed costs",
            "calls, parallel regions, norms and scheduling: no tier",
            "decode several sequences together (they share it)",
        ),
        (
            step.memory_s - step.plain_s,
            "kernels below a plain read",
            "the kernels that unpack weights read slower than a plain loop",
            "another --expert-format; headrace measure shows them side by side",
        ),
    )
    for seconds, cause, seen, remedy in parts:
        share = seconds / step.measured_s
        if share > SMALL:
            yield Loss(cause=cause, seen=seen, remedy=remedy, share=share)


def _priced(loss: Loss, seconds: float) -> Loss:
    if loss.share is None:
        return loss
    return replace(loss, tok_s=1 / (seconds * (1 - loss.share)) - 1 / seconds)


def findings(profile: Profile, context: Context) -> list[Finding]:
    """What the checks say of this machine and of runs in this context."""
    return checks.run(gather(profile, context, partial(cpu_kernels().region_ns, context)))
