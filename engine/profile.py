"""The profile of a machine: what `machine.measure` found, saved for this hardware. Read without torch, by plans too."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

import psutil

from ..kernels import FORMATS, isa
from ..loaders.memory import GB


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Bandwidths in bytes per second, by format: of single matrices (`linear`) and of whole experts (`experts`).

    batch: bandwidths of single matrices that several tokens ("4", "16") are multiplied by at once, by format.
    attention: bytes of a bf16 cache per second, by query heads to a key/value head ("1", "8"). stream_by_threads: plain
    reads by so many threads. layer_s, shared_s, pass_s: seconds that a layer, the shared expert of a layer, and a pass
    take besides what they read: calls, parallel regions, scheduling (`overhead.py`). Empty and 0: not measured.
    """

    key: str
    cpu: str
    isa: str
    threads: int
    memory_bytes: int
    date: str
    stream: float
    linear: dict[str, float]
    experts: dict[str, float]
    batch: dict[str, dict[str, float]] = field(default_factory=dict)
    attention: dict[str, float] = field(default_factory=dict)
    stream_by_threads: dict[str, float] = field(default_factory=dict)
    layer_s: float = 0.0
    shared_s: float = 0.0
    pass_s: float = 0.0

    def slowdown(self, format: str, tokens: float) -> float:
        """Time of a weight with so many tokens over its time with one: 1 as long as arithmetic hides behind memory.

        Linear between the measured numbers of tokens, proportional to the tokens above them.
        """
        points = [(1.0, 1.0)]
        points += [(float(n), max(1.0, self.linear[format] / rates[format])) for n, rates in self.batch.items()]
        for (low, before), (high, after) in pairwise(points):
            if tokens <= high:
                return before + (after - before) * (tokens - low) / (high - low)
        last, slowest = points[-1]
        return slowest * max(1.0, tokens / last) if self.batch else 1.0

    def cache_seconds_per_byte(self, intensity: float) -> float:
        """Of attention over a bf16 cache; `intensity`: FLOPs for a byte, which is query heads to a key/value head.

        A byte costs its way from memory and its arithmetic, one after the other: linear between the measured points.
        """
        if len(self.attention) < 2:
            return 1 / self.linear["bf16"]
        (low, slow), (high, fast) = ((float(k), 1 / rate) for k, rate in self.attention.items())
        slope = (fast - slow) / (high - low)
        return max(slow + slope * (intensity - low), min(slow, fast))


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
        complete = complete and len(profile.attention) == 2 and bool(profile.batch)
    except (OSError, ValueError, TypeError):
        return None
    return profile if complete and profile.key == key else None


def save_profile(profile: Profile) -> Path:
    """Writes the profile where `load_profile` finds it; returns the path."""
    path = profile_path(profile.key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(profile), indent=2) + "\n", encoding="utf-8")
    return path
