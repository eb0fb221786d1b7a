"""A machine from a JSON file, or from the profile that was measured on this one.

    {"name": "my box", "gpus": [{"name": "RTX 3090", "memory_gb": 24, "bandwidth_gbs": 936, "bf16_tflops": 71,
     "pcie": "4.0x16"}], "cpu": {"name": "EPYC", "memory_gb": 512, "channels": 8, "mts": 3200, "cores": 32}}

"sustained_gbs" says what was measured, and then no range is assumed; a string is a part of the catalogue. A profile of
`headrace measure` is taken only on the hardware that it was measured on.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import OptionError
from ...kernels import FORMATS
from ...kernels.context import Context
from ...loaders.memory import all_memory
from .hardware import CORE_FLOPS, FIXED, Device, Hardware, Range, core_flops, device, exactly, parse, part, positive
from .profile import STALE, Profile, hardware_key, load_profile

KEYS = {
    "name", "kind", "memory_gb", "bandwidth_gbs", "sustained_gbs", "bf16_tflops", "pcie", "channels", "mts", "cores",
    "isa", "source",
}  # fmt: skip
TOP = {"name", "gpus", "cpu", "disk", "sync_us", "fixed_ms"}


def find(text: str | None) -> Hardware | None:
    """The machine that --hardware means: this one (None), a file, or names of parts. None if this one was not
    measured."""
    if text is None:
        return this_machine()
    path = Path(text).expanduser()
    if text.endswith(".json") or path.is_file():
        return read_file(path)
    return parse(text, _this_cpu() if "this" in (word.strip() for word in text.split(",")) else None)


def _this_cpu() -> Device:
    found = this_machine()
    if found is None or found.cpu is None:
        raise OptionError("--hardware 'this' is not measured yet: run headrace measure, or name its memory")
    return found.cpu


def unknown_gpus() -> int:
    """NVIDIA GPUs that this machine has; a profile does not know them."""
    folder = Path("/proc/driver/nvidia/gpus")
    return sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0


def this_machine() -> Hardware | None:
    """The CPU of this machine by its saved profile; None if it was not measured yet."""
    profile = load_profile(Context())
    return None if profile is None else of_profile(profile)


def of_profile(profile: Profile) -> Hardware:
    """A measured CPU: bandwidths of the real kernels, by format."""
    cpu = Device(
        name=profile.cpu,
        kind="cpu",
        memory=min(profile.memory_bytes, all_memory()),
        nominal=profile.stream,
        bandwidth=Range(profile.stream * 0.7, profile.stream * 0.85, profile.stream),
        flops=core_flops(profile.isa).times(profile.threads),
        by_format=profile.rates(experts=True),
        dense_by_format=profile.rates(experts=False),
        estimates=profile.estimates(FORMATS),
        slowdown=profile.slowdown if profile.batch else None,
        cache_s=profile.cache_seconds_per_byte,
        source=f"measured {profile.date}",
        doubt=f"{STALE}: run headrace measure" if profile.is_stale else "",
    )
    return Hardware(
        name=f"this machine ({profile.cpu})",
        cpu=cpu,
        fixed=exactly(profile.pass_s) if profile.pass_s else FIXED["cpu"],
        layer=exactly(profile.layer_s),
        more_tokens=profile.more_tokens,
        shared=exactly(profile.shared_s),
        logit=exactly(profile.logit_s),
        row=exactly(profile.row_s),
        measured=True,
    )


def read_file(path: Path) -> Hardware:
    """A machine from a JSON file; raises OptionError for what is missing, unknown, or measured elsewhere."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"cannot read {path}: {error.strerror}; name parts, or give a file that is there") from error
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{path} is not valid JSON ({error}); docs/bandwidth-model.md has an example") from error
    if not isinstance(values, dict):
        raise OptionError(f"{path} holds a {type(values).__name__} where an object is needed")
    return _from_profile(values, path) if "key" in values and "stream" in values else _from_values(values, path)


def _from_profile(values: dict[str, Any], path: Path) -> Hardware:
    try:
        profile = Profile(**values)
    except TypeError as error:
        raise OptionError(f"{path} is no profile of this version ({error}): run headrace measure again") from error
    if profile.key != hardware_key(Context()):
        raise OptionError(
            f"{path} is the profile of other hardware: {profile.cpu}, {profile.isa}, {profile.threads} threads, "
            f"{profile.memory_bytes / 1e9:.0f} GB. Measure this machine (headrace measure), or name parts for that one"
        )
    return of_profile(profile)


def _from_values(values: dict[str, Any], path: Path) -> Hardware:
    if unknown := sorted(set(values) - TOP):
        raise OptionError(f"{path} has unknown keys {', '.join(unknown)}; there are {', '.join(sorted(TOP))}")
    gpus = tuple(_device(entry, "gpu", path) for entry in values.get("gpus", []))
    cpu = _device(values["cpu"], "cpu", path) if values.get("cpu") else None
    disk = _device(values["disk"], "disk", path) if values.get("disk") else None
    if not gpus and cpu is None:
        raise OptionError(f"{path} has neither gpus nor a cpu: nothing there computes")
    made = Hardware(name=str(values.get("name", path.stem)), gpus=gpus, cpu=cpu, disk=disk)
    made = replace(made, fixed=FIXED["gpu" if gpus else "cpu"])
    if "sync_us" in values:
        made = replace(made, sync=exactly(_number(values["sync_us"], "sync_us", path) * 1e-6))
    if "fixed_ms" in values:
        made = replace(made, fixed=exactly(_number(values["fixed_ms"], "fixed_ms", path) * 1e-3))
    return made


def _device(entry: Any, kind: str, path: Path) -> Device:
    if isinstance(entry, str):
        return part(entry)
    if not isinstance(entry, dict):
        raise OptionError(f"{path}: a {kind} is {json.dumps(entry)}: give an object, or the name of a part")
    if unknown := sorted(set(entry) - KEYS):
        raise OptionError(
            f"{path}: a {kind} has unknown keys {', '.join(unknown)}; there are {', '.join(sorted(KEYS))}"
        )
    has_channels = kind == "cpu" and {"channels", "mts"} <= set(entry)
    missing = [] if "bandwidth_gbs" in entry or has_channels else ["bandwidth_gbs"]
    if missing := [*missing, *([] if "memory_gb" in entry or kind != "gpu" else ["memory_gb"])]:
        raise OptionError(f"{path}: a {kind} has no {' and no '.join(missing)}")
    for key in ("memory_gb", "bandwidth_gbs", "sustained_gbs", "bf16_tflops", "channels", "mts", "cores"):
        if key in entry:
            _number(entry[key], key, path)
    if entry.get("isa", "avx2") not in CORE_FLOPS:
        raise OptionError(f"{path}: isa is {entry['isa']!r}; there are {', '.join(CORE_FLOPS)}")
    return device({"kind": kind, "name": kind, **entry})


def _number(value: Any, key: str, path: Path) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise OptionError(f"{path}: {key} is {json.dumps(value)}: give a number")
    return positive(f"{path}: {key}", float(value))
