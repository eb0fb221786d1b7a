"""`headrace plan --plot`: where the time of a token goes by placement, tokens/s over the batch, and over the
context."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ....errors import OptionError
from ...bandwidth_model import roofline
from ...placement.placement import channel
from ...planning import layouts as placing
from ...planning.plan import Plan, best_of, needs, rate
from ...planning.speed import Model, Workload
from .. import plots

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def save(plan: Plan, path: Path) -> None:
    """Writes the figure; raises OptionError where there is nothing to draw, or the file cannot be written."""
    plots.check(path)
    if plan.best is None or plan.best.decode is None:
        raise OptionError("--plot needs times: name a machine that the model fits with --hardware")
    draws = plots.pyplot()
    figure, axes = draws.subplots(1, 3, figsize=(16, 5))
    _stacked(axes[0], plan)
    _over_batch(axes[1], plan)
    _over_context(axes[2], plan)
    figure.suptitle(f"{plan.source.name} on {plan.hardware.name if plan.hardware else ''}")
    plots.write(draws, figure, path)


def _stacked(axis: Any, plan: Plan) -> None:
    """Time of a decode step stacked by tier; tiers that overlap reach above the step's own time, the mark."""
    shown = [r for r in plan.rated if r.decode is not None]
    names = [r.placement.name for r in shown]
    steps = [r.decode["mid"] for r in shown if r.decode is not None]
    below = [0.0] * len(shown)
    for tier in dict.fromkeys(t for step in steps for t in step.terms):
        heights = [1e3 * step.terms.get(tier, 0.0) for step in steps]
        axis.bar(names, heights, bottom=below, label=tier)
        below = [b + h for b, h in zip(below, heights, strict=True)]
    axis.plot(names, [1e3 * step.seconds for step in steps], "k_", markersize=30, label="step")
    axis.set(title="time of a decode step", ylabel="ms")
    axis.legend(loc="lower left")


def _over_batch(axis: Any, plan: Plan) -> None:
    """Tokens/s over the batch, as far as the cache fits, with the batch from which an expert is bound by compute."""
    points = [(batch, speed) for batch in BATCHES if (speed := _tok_s(plan, plan.options.context, batch)) is not None]
    axis.plot([b for b, _ in points], [s for _, s in points], "o-")
    axis.set(title="decode over batch", xlabel="sequences", ylabel="tokens/s", xscale="log", ylim=(0, None))
    crossover = crossover_batch(plan)
    if crossover is not None:
        axis.axvline(crossover, linestyle="--", label=f"experts bound by compute from {crossover:.0f}")
        axis.legend()


def crossover_batch(plan: Plan) -> float | None:
    """Sequences from which the experts of a layer are bound by the compute of the device that has them."""
    assert plan.best is not None
    assert plan.hardware is not None
    layers = plan.model.moe_layers
    if not layers:
        return None
    tier, experts = plan.best.placement.experts[layers[-1]], plan.model.layers[layers[-1]].experts
    term = channel(tier if tier.startswith("gpu") else "cpu")
    if experts is None or term not in plan.hardware.memories:
        return None
    read = plan.storage.layers[layers[-1]].expert_in
    tokens = roofline.crossover(read, experts.elements, term, plan.hardware, experts=True)
    return None if tokens is None else tokens * experts.count / experts.top_k


def _over_context(axis: Any, plan: Plan) -> None:
    top = plan.model.context
    contexts = [c for c in (2**i for i in range(8, 22)) if c <= top]
    points = [(c, s) for c in contexts if (s := _tok_s(plan, c, plan.options.batch)) is not None]
    axis.plot([c for c, _ in points], [s for _, s in points], "o-")
    axis.set(title="decode over context", xlabel="tokens", ylabel="tokens/s", xscale="log", ylim=(0, None))


def _tok_s(plan: Plan, context: int, batch: int) -> float | None:
    """Tokens/s of the best placement at another point, which may be another one there; None where none fits."""
    assert plan.hardware is not None
    prompt = min(plan.options.prompt, context)
    work = Workload(context=context, batch=batch, prompt=prompt, kv=plan.options.kv)
    engine = Model(plan.model, plan.storage, plan.hardware, plan.distinct)
    demand = needs(plan.model, work, plan.hardware)
    placed = placing.choices(plan.storage, plan.hardware, demand)
    found = best_of([rate(engine, demand, work, p) for p in placed], work).decode_tok_s(batch)
    return None if found is None else found.mid
