"""What `headrace doctor` prints."""

from __future__ import annotations

from rich.table import Table

from ...bandwidth_model import contention
from ...bandwidth_model.profile import Profile
from ...bench.doctor import Loss, Step
from ..tables import new_table


def table(losses: list[Loss]) -> Table:
    """What costs how much, and what to do about it."""
    shown = new_table("what slows this machine down", "cause", "loses")
    for column in ("seen", "what to do"):
        shown.add_column(column)
    for loss in losses:
        shown.add_row(loss.cause, _cost(loss), loss.seen, loss.remedy)
    return shown


def _cost(loss: Loss) -> str:
    if loss.tok_s is not None:
        return f"{loss.tok_s:.1f} tok/s"
    return "not known" if loss.share is None else f"{loss.share:.0%} of the time"


def headlines(step: Step | None, losses: list[Loss], profile: Profile, has_gpu: bool = False) -> list[str]:
    """What bounds a step now, what memory gives kernels and copies at once, and what to do first."""
    lines = [f"plain read: {profile.stream / 1e9:.1f} GB/s with {profile.threads} threads, {profile.isa}"]
    if step is not None:
        ms = {name: 1e3 * value for name, value in vars(step).items()}
        lines.append(
            f"decode: {1 / step.measured_s:.1f} tokens/s, {ms['measured_s']:.2f} ms a token: memory "
            f"{ms['memory_s']:.2f}, fixed costs {ms['fixed_s']:.2f}, not explained {1e3 * step.unexplained_s:+.2f}"
        )
        lines.append(f"bound by {step.bound} now; {1 / step.plain_s:.1f} tokens/s if the same bytes were only read")
    lines += contention.lines(profile.together)
    if has_gpu and not profile.together:
        lines.append("copies to the GPU beside the CPU's experts are not measured: headrace measure")
    first = next(iter(losses), None)
    lines.append("nothing found that slows this machine down" if first is None else f"first: {first.remedy}")
    return lines
