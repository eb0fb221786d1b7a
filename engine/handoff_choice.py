"""How this run hands experts to the CPU in decode: from what was asked, the placement, and what the machine can do.

    auto, eager        by hand, layer by layer (`handoff.py`); nothing is tried
    memop, hostfunc    steps are graphs (`graphed.py`); a probe must have shown that it works here

`auto` takes eager until a captured step has run on a real GPU: what no one has seen work is not taken unasked. The
probe costs seconds, so what it found is kept beside the machine's profile, for this GPU, driver and build of the
kernels; a way that did not work is tried again the next time.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from ..errors import OptionError
from ..kernels.isa import kernels_digest
from . import posting
from .config import GRAPHED
from .gpu_runtime import Runtime
from .placement import Placement, Tier
from .posting import VARIANTS, Choice, Trial
from .profile import hardware_key, profile_path

UNTRIED = "auto takes it until a captured step has run on a GPU; memop and hostfunc can be asked for"


def decide(asked: str, placement: Placement, runtime: Runtime | None, problem: str, layers: int) -> Choice:
    """The way to take, and why. `problem`: why there is no runtime. layers: of the model.

    Raises OptionError where graphs were asked for and the placement or the device has none, DeviceError where the
    machine cannot do what was asked for.
    """
    if asked not in GRAPHED:
        return Choice(name="eager", reason="asked for" if asked == "eager" else UNTRIED)
    if Tier.GPU1 in placement.tiers:
        raise OptionError(
            f"handoff is {asked!r}: its graphs are of one GPU, and placement {placement.name} uses two: take handoff "
            "'eager', or leave out the second GPU"
        )
    if runtime is None:
        raise OptionError(
            f"handoff is {asked!r}, which the stream of a GPU does; {problem}: take handoff 'eager', or --device cuda"
        )
    if Tier.CPU not in placement.tiers:
        return Choice(name=asked, reason="no expert is in RAM: graphs, and nothing to hand over")
    return posting.choose(trials(asked, runtime, layers), asked)


def trials(asked: str, runtime: Runtime, layers: int) -> dict[str, Trial]:
    """What the probe found, now or at an earlier start on this machine."""
    found = _saved(runtime)
    if found is None or asked not in found or found[asked].us is None:
        found = posting.probe(runtime.driver.path, runtime.number, layers)
        _save(runtime, found)
    return found


def _path() -> Path:
    key = hardware_key()
    return profile_path(key).with_name(f"handoff-{key}.json")


def _passport(runtime: Runtime) -> dict[str, object]:
    """What the times hold for."""
    return {"gpu": runtime.name, "driver": list(runtime.driver.version), "kernels": kernels_digest()}


def _save(runtime: Runtime, found: dict[str, Trial]) -> None:
    """Keeps trials. A folder that cannot be written only costs the next start a probe."""
    text = json.dumps({**_passport(runtime), "trials": [asdict(trial) for trial in found.values()]}, indent=2)
    try:
        _path().parent.mkdir(parents=True, exist_ok=True)
        _path().write_text(text + "\n", encoding="utf-8")
    except OSError:
        return


def _saved(runtime: Runtime) -> dict[str, Trial] | None:
    """Trials of an earlier start; None where there are none for this GPU, driver and build, or they are damaged."""
    try:
        saved = json.loads(_path().read_text(encoding="utf-8"))
        kept = saved.pop("trials")
        found = {trial["name"]: Trial(**trial) for trial in kept}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    is_whole = set(found) == set(VARIANTS) and all(isinstance(t.us, int | float | None) for t in found.values())
    return found if saved == _passport(runtime) and is_whole else None
