"""The profile of a machine: what `bench/calibrate.py` measured, saved for this hardware. Read without torch, by
plans too."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import psutil

from ...errors import OptionError
from ...kernels import FORMATS, Format, isa
from ...kernels.context import Context
from ...loaders.memory import GB
from ...loaders.quants.by_format import ByFormat
from .. import writable

MAKE = "name another file, or make this one by headrace measure --profile FILE"
ELSEWHERE = "set XDG_CACHE_HOME to a directory that can be written"
STALE = "the profile of this machine was measured with other kernels"


@dataclass(frozen=True, kw_only=True)
class FormatRates:
    """Of a profile what is by format. busy: cores that other processes took meanwhile."""

    linear: dict[str, float]
    experts: dict[str, float]
    batch: dict[str, dict[str, float]]
    crowd: dict[str, dict[str, float]]
    busy: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Bandwidths in bytes per second, by format: of single matrices (`linear`) and of whole experts (`experts`). Which
    formats there are depends on the models that were run; of others rates are estimated (`estimate`).

    batch, crowd: bandwidths of matrices and of experts that several tokens ("4", "16") are multiplied by at once, by
    format. attention: bytes of a bf16 cache per second, by queries on a key: query heads to a key/value head x tokens
    ("1", "8", "512"). stream_by_threads: plain reads by so many threads.
    layer_s, layer_batch, shared_s, pass_s, logit_s, row_s: seconds that a layer takes besides what it reads, with one
    token and with several ("4", "128"); that a shared expert adds to it; a pass; each of its logits; each of its
    sequences but the first (`bench/overhead.py`).
    disk, nodes, copies, notes: other ways into memory (`measure/link_rates.py`). together: two of them, or experts and
    one of them, at once (`measure/contention.py`), by their names with " + " between: the rate of each while the other
    runs, by its name, and alone, by its name and " alone". pace_s, undisturbed, busy: of the measurement itself: the
    pace of the undisturbed machine (`measure/quiet_samples.py`), the share of samples that were taken at it, and the
    cores that other processes took. kernels: which were measured (`isa.kernels_digest`). Empty and 0: not measured.
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
    crowd: dict[str, dict[str, float]] = field(default_factory=dict)
    attention: dict[str, float] = field(default_factory=dict)
    stream_by_threads: dict[str, float] = field(default_factory=dict)
    layer_s: float = 0.0
    layer_batch: dict[str, float] = field(default_factory=dict)
    shared_s: float = 0.0
    pass_s: float = 0.0
    logit_s: float = 0.0
    row_s: float = 0.0
    disk: dict[str, float] = field(default_factory=dict)
    nodes: dict[str, float] = field(default_factory=dict)
    copies: dict[str, float] = field(default_factory=dict)
    together: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    pace_s: float = 0.0
    undisturbed: float = 1.0
    busy: float = 0.0
    kernels: str = ""

    @property
    def is_stale(self) -> bool:
        """Whether it was measured with other kernels than those that run."""
        return self.kernels != isa.kernels_digest()

    def rates(self, experts: bool) -> dict[str, float]:
        """Bytes per second of every format there is, measured or estimated."""
        measured = self.experts if experts else self.linear
        found = {name: estimate(name, measured) for name in FORMATS}
        return {name: rate for name, rate in found.items() if rate is not None}

    def experts_rate(self, read: ByFormat, tokens: float = 1.0) -> float:
        """Bytes per second of experts in these formats that serve so many tokens each."""
        rates = {name: estimate(name, self.experts) for name, _ in read.parts}
        seconds = (size / (rates[name] or self.stream) * self.slowdown(name, tokens, True) for name, size in read.parts)
        return read.total / sum(seconds)

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of these formats that were not measured."""
        return [name for name in dict.fromkeys(names) if name not in self.experts]

    def estimates(self, names: Iterable[str]) -> dict[str, str]:
        """Of these formats those whose rates are estimated, with the one that is taken for each."""
        found = {name: nearest(name, self.experts) for name in self.missing(names)}
        return {name: other for name, other in found.items() if other is not None}

    def slowdown(self, format: str, tokens: float, experts: bool = False) -> float:
        """Time of a matrix (or of experts) with so many tokens over its time with one: 1 as long as arithmetic hides
        behind memory.

        Linear between the measured numbers of tokens, proportional to the tokens above them.
        """
        one, many = (self.experts, self.crowd) if experts and self.crowd else (self.linear, self.batch)
        known = nearest(format, one)
        points = [(1.0, 1.0)]
        points += [(float(n), max(1.0, one[known] / rates[known])) for n, rates in many.items() if known in rates]
        return along(points, tokens) if len(points) > 1 else 1.0

    def with_formats(self, more: FormatRates) -> Profile:
        """The same with the rates of formats that were measured since."""
        return replace(
            self,
            linear={**self.linear, **more.linear},
            experts={**self.experts, **more.experts},
            batch=_joined(self.batch, more.batch),
            crowd=_joined(self.crowd, more.crowd),
        )

    def cache_seconds_per_byte(self, intensity: float) -> float:
        """Of attention over a bf16 cache; `intensity`: FLOPs for a byte, which is how many queries meet a key.

        A byte costs its way from memory and its arithmetic, one after the other: linear between the measured points.
        """
        if len(self.attention) < 2:
            return 1 / self.linear["bf16"]
        points = [(float(queries), 1 / rate) for queries, rate in self.attention.items()]
        if intensity > points[0][0]:
            return along(points, intensity)
        (low, fast), (high, slow) = points[:2]
        return max(fast + (slow - fast) / (high - low) * (intensity - low), min(slow, fast))

    def more_tokens(self, tokens: float) -> float:
        """Seconds that a layer takes besides what it reads with so many tokens, less those with one."""
        points = [(1.0, self.layer_s), *((float(n), max(s, self.layer_s)) for n, s in self.layer_batch.items())]
        return along(points, tokens) - self.layer_s if self.layer_batch else 0.0


def _joined(one: Mapping[str, dict[str, float]], other: Mapping[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Rates by tokens and format, of both."""
    return {tokens: {**rates, **other.get(tokens, {})} for tokens, rates in one.items()}


def mean_queries(queries: float, context: float) -> float:
    """How many of a sequence's new tokens see a key of a cache that holds `context` tokens at the end, on average: the
    first new token sees all but the others."""
    return queries * (1 - (queries - 1) / (2 * max(context, queries))) if queries > 1 else 1.0


def along(points: list[tuple[float, float]], x: float) -> float:
    """Linear between points of rising x, from the first on; beyond the last proportional to x."""
    for (low, before), (high, after) in pairwise(points):
        if x <= high:
            return before + (after - before) * (x - low) / (high - low)
    last, value = points[-1]
    return value * max(1.0, x / last)


# ---- formats that were not measured
#
#   rate = rate of the measured one that is most alike x min(1, bytes a weight here / bytes a weight there)
#
# So an estimate takes as many bytes a second, and no more weights: where memory bounds kernels their bytes are alike,
# where unpacking does their weights. Alike are floats to floats alone and blocks to blocks, the more so the nearer the
# bits of their codes are, then whether a code is a byte, whether a table says its value, the weights to a factor.


ROW = 4096  # weights


def _bytes_per_weight(format: Format) -> float:
    """Scales and all, in a row as that of most models."""
    return format.row_bytes(ROW) / ROW


def nearest(name: str, measured: Collection[str]) -> str | None:
    """The measured format whose kernel is the most like that of `name`: itself, if it was measured; None for a name
    that is no format, or where nothing like it was measured."""
    if name in measured:
        return name
    if name not in FORMATS:
        return None
    one = FORMATS[name]
    alike = (other for other in FORMATS.values() if other.name in measured and other.is_block == one.is_block)
    found = min(alike, key=lambda other: _distance(one, other), default=None)
    return None if found is None else found.name


def _distance(one: Format, other: Format) -> tuple[int, bool, bool, bool]:
    is_byte, has_table = (one.bits == 8) != (other.bits == 8), bool(one.codes.table) != bool(other.codes.table)
    return abs(one.bits - other.bits), is_byte, has_table, one.scales.per != other.scales.per


def estimate(name: str, measured: Mapping[str, float]) -> float | None:
    """Bytes per second of a format, measured or estimated; None: neither."""
    known = nearest(name, measured)
    if known is None or known == name:
        return None if known is None else measured[known]
    return measured[known] * min(1.0, _bytes_per_weight(FORMATS[name]) / _bytes_per_weight(FORMATS[known]))


def cpu_name() -> str:
    """The processor's own name for itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def hardware_key(context: Context) -> str:
    """A short name of everything that a profile depends on: processor, memory, and the context's ISA and threads."""
    facts = [cpu_name(), round(psutil.virtual_memory().total / GB), context.isa, context.threads, os.cpu_count()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def cache_folder() -> Path:
    """The user's, of what headrace keeps for later starts."""
    home = os.path.expanduser("~")
    if home == "~":  # a user without one, as containers have them
        home = f"/tmp/headrace-{os.getuid()}"
    return Path(os.environ.get("XDG_CACHE_HOME") or f"{home}/.cache") / "headrace"


def profile_path(key: str) -> Path:
    """Where the profile of some hardware is kept, and beside it whatever else is measured once."""
    return cache_folder() / f"machine-{key}.json"


def load_profile(context: Context, file: Path | None = None) -> Profile | None:
    """The saved profile of this hardware in this context, or None if it was not measured yet (or by another version).
    It may be of other kernels (`is_stale`). file: where it is, if not in its usual place; OptionError for one that
    holds something else."""
    key = hardware_key(context)
    path = profile_path(key) if file is None else file
    try:
        profile = Profile(**json.loads(path.read_text(encoding="utf-8")))
        complete = set(profile.linear) == set(profile.experts) >= {"bf16"}
        complete = complete and len(profile.attention) > 2 and bool(profile.batch) and bool(profile.crowd)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        if file is None:
            return None
        raise OptionError(f"profile {file} cannot be read ({error}): {MAKE}") from error
    if complete and profile.key == key:
        return profile
    if file is not None:
        of = f"{profile.cpu}, {profile.isa}, {profile.threads} threads" if complete else "another version"
        raise OptionError(f"profile {file} is of {of}, this is {cpu_name()}, {context.isa}, {context.threads}: {MAKE}")
    return None


def save_profile(profile: Profile, file: Path | None = None) -> Path:
    """Writes the profile where `load_profile` finds it; returns the path. Raises OSError."""
    path = profile_path(profile.key) if file is None else file
    if error := writable.keep(path, json.dumps(asdict(profile), indent=2)):
        raise error
    return path
