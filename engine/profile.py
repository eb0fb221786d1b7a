"""The profile of a machine: what `machine.measure` found, saved for this hardware. Read without torch, by plans too."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from ..kernels import FORMATS, isa
from ..loaders.memory import GB


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Bandwidths in bytes per second, by format: of single matrices (`linear`) and of whole experts (`experts`)."""

    key: str
    cpu: str
    isa: str
    threads: int
    memory_bytes: int
    date: str
    stream: float
    linear: dict[str, float]
    experts: dict[str, float]


def cpu_name() -> str:
    """The processor's own name for itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def hardware_key() -> str:
    """A short name of everything that a profile depends on: processor, memory, ISA, threads."""
    facts = [cpu_name(), round(psutil.virtual_memory().total / GB), isa.isa(), isa.threads(), os.cpu_count()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def profile_path(key: str) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "headrace" / f"machine-{key}.json"


def load_profile() -> Profile | None:
    """The saved profile of this hardware, or None if it was not measured yet (or by another version)."""
    key = hardware_key()
    try:
        profile = Profile(**json.loads(profile_path(key).read_text(encoding="utf-8")))
        complete = set(profile.linear) == set(profile.experts) == set(FORMATS)
    except (OSError, ValueError, TypeError):
        return None
    return profile if complete and profile.key == key else None


def save_profile(profile: Profile) -> Path:
    """Writes the profile where `load_profile` finds it; returns the path."""
    path = profile_path(profile.key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(profile), indent=2) + "\n", encoding="utf-8")
    return path
