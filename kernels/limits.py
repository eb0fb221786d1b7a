"""What this process may take of the machine: memory, processor time, threads.

Containers, batch systems and systemd limit processes by control groups (version 1, version 2, or both side by side). A
limit of any group on the way from the process up to the root binds, so all of them are read; `ulimit` binds one process
besides. `root` is where the system's files are looked for. What a system does not tell does not bind.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path("/")
MOST_THREADS = 1024  # or four to each CPU of the machine; more is a mistake, whatever the system allows
SPARE = 8  # threads besides a team: of readers, of torch, of a hand-off
MAPS = 4  # of memory that a thread takes: its stack, a guard, its heap
UNTIL_UNLIMITED = 1 << 60  # version 1 writes a number above this for no limit


def memory_left(root: Path = ROOT) -> int | None:
    """Bytes that this process may still take by the groups it is in and by ulimit, file cache counted as free; None
    where nothing limits it."""
    left = [limit - used for limit, used in (*_group_memory(root), *_ulimit_memory(root))]
    return None if not left else max(0, min(left))


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes that this process may have in all; None where nothing limits it."""
    return min((limit for limit, _ in (*_group_memory(root), *_ulimit_memory(root))), default=None)


def cpu_quota(root: Path = ROOT) -> float | None:
    """How many CPUs' time the groups allow, such as 2.5; None where they do not limit it."""
    found = [share for group in groups("cpu", root) for share in _shares(group)]
    return min(found, default=None)


def default_threads(cores: int, root: Path = ROOT) -> int:
    """One thread a core, within the quota: a team that uses it up is stopped in the midst of its work, so half a CPU
    is one thread, 2.5 are two."""
    quota = cpu_quota(root)
    return max(1, min(cores, cores if quota is None else int(quota), most_threads(root)[0]))


def most_threads(root: Path = ROOT) -> tuple[int, str]:
    """How many threads a team may have, the caller included, and what says so."""
    return min((max(1, count), reason) for count, reason in _thread_limits(root))


def groups(controller: str, root: Path = ROOT) -> list[Path]:
    """The folders of the groups that this process is in, from its own to the root's, of one controller ("memory",
    "cpu", "pids"); of both versions where there are both."""
    found: list[Path] = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        names, _, path = line.partition(":")[2].partition(":")
        if not names or controller in names.split(","):
            mounted = _folders(_mounts(controller if names else "", root), path)
            usual = [("/", point) for point in _usual_places(controller, names, root)]
            found += mounted or _folders(usual, path)
    return list(dict.fromkeys(found))


def _folders(mounts: Iterable[tuple[str, Path]], path: str) -> list[Path]:
    """What there is of a group and those above it in hierarchies that are mounted: (group, place) of each."""
    found = []
    for top, point in mounts:
        below = path.removeprefix(top.rstrip("/")) if f"{path}/".startswith(f"{top.rstrip('/')}/") else ""
        outside = ".." in below.split("/")  # of our namespace: not to be seen from here
        own = point if outside else point / below.strip("/")
        found += [folder for folder in (own, *own.parents) if folder.is_relative_to(point) and folder.is_dir()]
    return found


def _mounts(controller: str, root: Path) -> Iterator[tuple[str, Path]]:
    """Where a controller of version 1 is mounted, or version 2 (""): the group at its top, and the place."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        words, kind, options = before.split(" "), after.partition(" ")[0], after.rpartition(" ")[2].split(",")
        if len(words) > 4 and kind == ("cgroup" if controller else "cgroup2") and controller in (*options, ""):
            top, point = (re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), word) for word in words[3:5])
            yield top, root / point.lstrip("/")


def _usual_places(controller: str, names: str, root: Path) -> list[Path]:
    """Where hierarchies are when the list of mounts does not say it."""
    base = root / "sys/fs/cgroup"
    return [base / names, base / controller] if names else [base, base / "unified"]


def _group_memory(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use of each group in bytes, without the file cache that is given up when memory is asked for."""
    for group in groups("memory", root):
        limits = [_number(group / name) for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
        used = [_number(group / name) for name in ("memory.current", "memory.usage_in_bytes")]
        stat = dict(line.split(" ", 1) for line in _text(group / "memory.stat").splitlines() if " " in line)
        kinds = ("inactive_file", "active_file")
        cache = sum(int(stat.get(f"total_{kind}", stat.get(kind, "0"))) for kind in kinds)
        taken = max(0, next((count for count in used if count is not None), 0) - cache)
        yield from ((limit, taken) for limit in limits if limit is not None and limit < UNTIL_UNLIMITED)


def _ulimit_memory(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use by `ulimit -v` and `ulimit -d`, bytes."""
    for what, used in (("Max address space", "VmSize"), ("Max data size", "VmData")):
        if (limit := _ulimit(what, root)) is not None:
            yield limit, 1024 * _status(used, root)


def _shares(group: Path) -> Iterator[float]:
    """CPUs that a group may use by its quota of either version."""
    quota, _, period = _text(group / "cpu.max").partition(" ")
    old = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
    for allowed, of in ((quota, period or "100000"), old):
        if allowed.isdigit() and of.isdigit() and int(of):
            yield int(allowed) / int(of)


def _thread_limits(root: Path) -> Iterator[tuple[int, str]]:
    """Threads that a team may have, by each that limits them."""
    yield max(MOST_THREADS, 4 * (os.cpu_count() or 1)), "more would only wait for each other"
    for group in groups("pids", root):
        if (limit := _number(group / "pids.max")) is not None:
            used = _number(group / "pids.current") or 1
            yield limit - used - SPARE + 1, f"pids.max of the control group is {limit}, {used} are in use"
    processes = _ulimit("Max processes", root)
    if processes is not None and os.geteuid() != 0:  # root is not held to it
        yield processes - _status("Threads", root) - SPARE + 1, f"ulimit -u is {processes}"
    for name, each in (("kernel/threads-max", 1), ("kernel/pid_max", 1), ("vm/max_map_count", MAPS)):
        if (limit := _number(root / "proc/sys" / name)) is not None:
            yield limit // each, f"/proc/sys/{name} is {limit}"
    space, stack = _ulimit("Max address space", root), _ulimit("Max stack size", root) or 8 << 20
    if space is not None:
        yield (space - 1024 * _status("VmSize", root)) // (2 * stack), f"ulimit -v is {space >> 10}"


def _ulimit(what: str, root: Path) -> int | None:
    """A soft limit of this process."""
    found = re.search(rf"^{what} +(\d+)", _text(root / "proc/self/limits"), re.MULTILINE)
    return int(found[1]) if found else None


def _status(what: str, root: Path) -> int:
    """A number of /proc/self/status, 0 where it has none."""
    found = re.search(rf"^{what}:\s+(\d+)", _text(root / "proc/self/status"), re.MULTILINE)
    return int(found[1]) if found else 0


def _number(path: Path) -> int | None:
    """The number in a file; None where it holds a word ("max") or is not there."""
    text = _text(path)
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    """What a file holds; nothing where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").strip()
    except OSError:
        return ""
