"""How this run is to hand experts to the CPU in decode: from what was asked, the placement, and the machine.

    eager              by hand, layer by layer (`experts/host_buffers.py`); nothing is tried
    memop, hostfunc    steps are graphs (`graphed_decode.py`), and so with spin; a probe must have shown that it works
    auto               of these three the fastest by the probe, if one works; eager where graphs cannot be

What comes out of `auto` is a candidate: `verify.py` captures it, holds it against the eager path on the model
itself, and takes the faster. The probe's time by hand is no part of the choice: its jobs come from a stream in which
nothing else was launched, so it has none of the launches of a layer's kernels, which are what a graph saves. The probe
costs seconds, so what it found is kept (`saved_trials.py`). A way that did not work is tried again the next time that
someone asks for it by name.
"""

from __future__ import annotations

from typing import NamedTuple

from ...errors import OptionError
from ..config import GRAPHED, EngineConfig
from ..experts.offload_plan import OffloadPlan
from ..placement.placement import Placement, Tier
from . import saved_trials, signals
from .gpu_runtime import Runtime
from .signals import SignalChoice, Trial

EAGER = "eager"
NOTHING_TO_HAND_OVER = "graphs"  # the way's name where no expert lies in RAM


class Obstacle(NamedTuple):
    """Why decode steps cannot be graphs, and what would change that."""

    why: str
    remedy: str


def may_capture(config: EngineConfig, runtime: Runtime | None) -> bool:
    """Whether memory for graphs is to be counted."""
    return config.wants_graphs or (config.handoff == "auto" and runtime is not None)


def decide(
    config: EngineConfig, placement: Placement, offload: OffloadPlan, runtime: Runtime | None, problem: str, layers: int
) -> SignalChoice:
    """The way to take, and why. `problem`: why there is no runtime. layers: of the model.

    Raises OptionError where graphs were asked for and options, placement or device have none, DeviceError where the
    machine cannot do what was asked for.
    """
    asked = config.handoff
    if asked == EAGER:
        return SignalChoice(name=EAGER, reason="asked for")
    found = obstacle(config, placement, offload, runtime, problem)
    if found is not None:
        if asked == "auto":
            return SignalChoice(name=EAGER, reason=found.why)
        raise OptionError(f"handoff is {asked!r}: {found.why}: take handoff 'eager', or {found.remedy}")
    assert runtime is not None, "graphs without a runtime"
    if Tier.CPU not in placement.tiers:
        name = NOTHING_TO_HAND_OVER if asked == "auto" else asked
        return SignalChoice(name=name, reason="no expert is in RAM: graphs, and nothing to hand over")
    return _candidate(trials(asked, runtime, layers), asked)


def obstacle(
    config: EngineConfig, placement: Placement, offload: OffloadPlan, runtime: Runtime | None, problem: str
) -> Obstacle | None:
    """What keeps decode steps from being graphs."""
    if Tier.DISK in placement.tiers:
        return Obstacle("experts on a disk are read between the layers of a step, and a graph waits for nothing",
                        "a placement with all experts in memory")  # fmt: skip
    if Tier.NET in placement.tiers:
        return Obstacle("hosts are waited for between the layers of a step, and a graph waits for nothing",
                        "a run without hosts")  # fmt: skip
    if runtime is None:
        return Obstacle(f"graphs are what the stream of a GPU runs, and {problem}", "--device cuda")
    if config.kernels == "reference":
        return Obstacle("experts that a graph asks for are computed by the C++ kernels, and kernels is 'reference'",
                        "kernels 'cpu'")  # fmt: skip
    if Tier.CPU in placement.tiers and offload.streams(1):
        return Obstacle(
            "stream_from 1 copies the experts of every step, which graphs do not", "a stream_from of 2 or more"
        )
    return None


def _candidate(found: dict[str, Trial], asked: str) -> SignalChoice:
    """What was asked for, or the best way in a graph. `auto` ends no start: without any it is eager, which needs none
    of this."""
    if asked == "auto" and all(found[name].us is None for name in GRAPHED):
        return SignalChoice(name=EAGER, reason=f"no way to hand over works in a graph here ({signals.told(found)})")
    return signals.choose(found, asked)


def trials(asked: str, runtime: Runtime, layers: int) -> dict[str, Trial]:
    """What the probe found, now or at an earlier start on this machine."""
    found = saved_trials.trials(runtime)
    if found is None or (asked in found and found[asked].us is None):
        found = signals.probe(runtime.driver.path, runtime.number, layers)
        saved_trials.keep_trials(runtime, found)
    return found
