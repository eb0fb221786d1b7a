"""What `headrace trace replay --policy auto` says: the choice, and why."""

from __future__ import annotations

from typing import Any

from ...planning.best_policy import Best
from ...units import size
from ..tables import Screen


def show(out: Screen, best: Best) -> None:
    """A line for the choice, and one for each reason."""
    out.print(f"auto for {size(best.budget)}: {best.choice}", soft_wrap=True)
    for reason in best.reasons:
        out.print(f"  {reason}", soft_wrap=True)


def as_json(best: Best) -> dict[str, Any]:
    """One object; tokens per second are predicted, `more` those with twice the budget."""
    rows = {
        "chosen": best.chosen, "all_ram": best.row("all-ram"), "fixed": best.fixed, "moving": best.moving,
        "optimum": best.rows[-1], "more": best.more,
    }  # fmt: skip
    speeds = {
        name: {"policy": row.policy, "tok_s": row.tokens_per_s, "hit_rate": row.counts.hit_rate}
        for name, row in rows.items()
        if row is not None
    }
    return {
        "budget": best.budget, "choice": best.choice, "gain": best.gain, "compared": speeds,
        "is_more_useless": best.is_more_useless, "is_no_cache_as_good": best.is_no_cache_as_good,
        "reasons": list(best.reasons),
    }  # fmt: skip
