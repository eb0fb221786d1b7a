"""What `gpu_suite.py` measures of the whole machine: `headrace measure`, the GPU's links and memory included, alone and
together with the CPU's experts. Saved as that command does, so that the models' part predicts and decides by it. Needs
headrace as it is installed, with its C++ extension; without, it says so.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch


def measure(quick: bool = False) -> dict[str, Any]:
    """The profile, where it was saved or why not; {"problem": why} where nothing could be measured, {"skipped": why}
    without the extension."""
    try:
        from headrace.engine.bandwidth_model import profile as profiles
        from headrace.engine.bench import calibrate
        from headrace.errors import HeadraceError
        from headrace.kernels.context import Context
    except ImportError as error:
        return {"skipped": f"headrace is not installed with its C++ extension ({error}): pip install ."}
    threads = torch.get_num_threads()
    try:
        found = calibrate.measure(Context(), quick=quick)
    except HeadraceError as error:
        return {"problem": str(error)}
    finally:
        torch.set_num_threads(threads)  # as the other parts want it
    try:
        profiles.save_profile(found)
    except OSError as error:
        return {**asdict(found), "problem": f"not saved: {error.strerror} ({error.filename})"}
    return asdict(found)


def show(found: dict[str, Any]) -> list[str]:
    """Lines for the screen."""
    if "skipped" in found:
        return [f"measure: {found['skipped']}"]
    lines = [f"measure: {found['problem']}"] if "problem" in found else []
    if "stream" not in found:
        return lines
    from headrace.engine.bandwidth_model import contention

    experts = ", ".join(f"{rate / 1e9:.1f} {name}" for name, rate in found["experts"].items())
    copies = ", ".join(f"{rate / 1e9:.1f} {name}" for name, rate in found["copies"].items())
    lines += [
        f"experts, GB/s: {experts}; a plain read {found['stream'] / 1e9:.1f}, {found['threads']} threads",
        f"copies, GB/s: {copies}",
        *contention.lines(found["together"]),
        f"others took {found['busy']:.2f} cores, {found['undisturbed']:.0%} of samples undisturbed",
    ]
    return lines + found["notes"]


def failures(found: dict[str, Any]) -> list[str]:
    """Why nothing was measured, or not kept."""
    return [found["problem"]] if "problem" in found else []
