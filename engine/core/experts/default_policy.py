"""Where experts lie that a GPU has no room for, where nobody said it: some in VRAM for good, or in a cache there.

A cache takes RAM for all experts, and has cost nobody anything yet that a replay does not know; so it is chosen where
a trace of the model is kept, and a replay of it says that it is faster. The reason is a line of the start-up table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from ....errors import HeadraceError, MemoryNeeded
from ....loaders.weights.checkpoint import Checkpoint
from ...bandwidth_model.profile import Profile
from ...config import EngineConfig
from ...devices.device import Device
from ...memory.memory_plan import MemoryPlan
from ...placement.placement import Tier
from ...planning import best_policy
from ...policies.replay.replay import Rates
from ...traces import stored
from .expert_policy import AUTO, Run

FOR_GOOD = "what fits is in VRAM for good"
Again = Callable[[EngineConfig], MemoryPlan]


def decide(
    config: EngineConfig,
    checkpoint: Checkpoint,
    found: Mapping[Tier, Device],
    profile: Profile | None,
    plan: MemoryPlan,
    again: Again,
    name: str,
) -> tuple[EngineConfig, MemoryPlan]:
    """The options and the plan with what was decided, if there was anything to decide. again: the plan of other
    options; name: of the model."""
    said = config.policy, config.placement, config.n_cpu_moe, config.shares, config.hosts
    gpu, is_said = found.get(Tier.GPU0), config.cpu_moe or any(one is not None for one in said)
    if gpu is None or is_said or Tier.CPU not in plan.placement.tiers:
        return config, plan
    run = Run(config, checkpoint, gpu, profile, name)
    if not run.has_rates:  # a GPU that is played has none unless its link was said
        why = f"{FOR_GOOD}: rates of this machine are not known, by which a cache is chosen: headrace measure"
        return config, replace(plan, why=why if gpu.is_cuda else "")
    try:
        cached = replace(config, policy=AUTO)
        other = again(cached)
    except MemoryNeeded:
        return config, replace(plan, why=f"{FOR_GOOD}: a cache takes all experts in RAM, which does not hold them")
    is_better, why = _compared(run, other, plan)
    return (cached, replace(other, why=why)) if is_better else (config, replace(plan, why=why))


def _compared(run: Run, other: MemoryPlan, plan: MemoryPlan) -> tuple[bool, str]:
    """Whether a cache is better than what would lie there for good, by a trace; and why."""
    path = stored.of_name(run.name)
    if path is None:
        record = "headrace trace record MODEL --prompts FILE --store"
        return False, f"{FOR_GOOD}: no trace is kept for {run.name}: {record}; --policy auto finds out while it runs"
    try:
        replays = run.replays(path, _rates(run, plan))
        best = best_policy.choose(replays, other.cache_at_start)
    except HeadraceError as error:  # of another model of this name
        return False, f"{FOR_GOOD}: {error}"
    still, chosen = best.row("first-layers"), best.chosen
    there, here = still.tokens_per_s or 0.0, chosen.tokens_per_s or 0.0
    what = f"{here:.1f} tokens/s are predicted of a cache by {best.choice}, {there:.1f} without"
    if here < there * (1 + best_policy.GAIN):
        return False, f"{FOR_GOOD}: {what}"
    return True, f"a cache in VRAM was chosen: {what}"


def _rates(run: Run, plan: MemoryPlan) -> Rates:
    """By the bytes of the other weights."""
    return run.rates(plan.memory[Tier.GPU0].needed["common weights"])
