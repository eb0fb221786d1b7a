"""Limits of memory, processor time and threads, read from files of a system that is made up for each test."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from refusals import refused

from headrace import EngineConfig, OptionError
from headrace.engine.bench import system_facts
from headrace.engine.devices import host
from headrace.kernels import limits
from headrace.loaders import memory

GIB = 1 << 30
V2_MOUNT = "30 23 0:26 {top} {at} rw - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNT = "31 23 0:27 {top} {at} rw,nosuid shared:9 - cgroup cgroup rw,{names}"


class System:
    """Files as /proc and /sys have them, below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "proc/self").mkdir(parents=True)

    def process(self, *groups: str, mounts: tuple[str, ...] = ()) -> None:
        """The groups that it is in, and where hierarchies are mounted."""
        (self.root / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in groups))
        (self.root / "proc/self/mountinfo").write_text("".join(f"{line}\n" for line in mounts))

    def group(self, at: str, **files: object) -> None:
        """A group's files; __ in a name stands for the dot."""
        folder = self.root / at.strip("/")
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            (folder / name.replace("__", ".")).write_text(f"{value}\n")


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(tmp_path)


# ---- memory


def test_nothing_limits_a_process_without_groups(system: System) -> None:
    assert limits.memory_left(system.root) is None
    assert limits.memory_limit(system.root) is None
    assert limits.cpu_quota(system.root) is None
    assert limits.default_threads(6, system.root) == 6


def test_a_namespace_of_its_own_in_version_2(system: System) -> None:
    system.process("0::/", mounts=(V2_MOUNT.format(top="/", at="/sys/fs/cgroup"),))
    system.group("/sys/fs/cgroup", memory__max=GIB, memory__current=GIB // 4, memory__high="max")
    assert limits.memory_left(system.root) == GIB * 3 // 4
    assert limits.memory_limit(system.root) == GIB


def test_the_least_of_all_groups_above_counts(system: System) -> None:
    system.process("0::/system.slice/batch/job_1/step_0", mounts=(V2_MOUNT.format(top="/", at="/sys/fs/cgroup"),))
    system.group("/sys/fs/cgroup/system.slice/batch/job_1/step_0", memory__max="max", memory__current=1000)
    system.group("/sys/fs/cgroup/system.slice/batch/job_1", memory__max=2 * GIB, memory__current=GIB)
    system.group("/sys/fs/cgroup/system.slice/batch", memory__max=8 * GIB, memory__current=8 * GIB - 5)
    system.group("/sys/fs/cgroup/system.slice", memory__max="max", memory__current=9 * GIB)
    assert limits.memory_left(system.root) == 5
    assert limits.memory_limit(system.root) == 2 * GIB


def test_file_cache_of_a_group_is_given_up(system: System) -> None:
    system.process("0::/a", mounts=(V2_MOUNT.format(top="/", at="/sys/fs/cgroup"),))
    stat = "anon 600\ninactive_file 300\nactive_file 50\nshmem 7"
    system.group("/sys/fs/cgroup/a", memory__max=1000, memory__current=950, memory__stat=stat)
    assert limits.memory_left(system.root) == 400


def test_a_soft_limit_that_slows_a_process_down_counts_too(system: System) -> None:
    system.process("0::/a", mounts=(V2_MOUNT.format(top="/", at="/sys/fs/cgroup"),))
    system.group("/sys/fs/cgroup/a", memory__max=1000, memory__high=700, memory__current=100)
    assert limits.memory_left(system.root) == 600


def test_version_1_as_a_container_shows_it(system: System) -> None:
    """The path is the host's, and the container's own group is what is mounted."""
    mount = V1_MOUNT.format(top="/docker/abc", at="/sys/fs/cgroup/memory", names="memory")
    system.process("4:memory:/docker/abc", "1:name=systemd:/docker/abc", mounts=(mount,))
    stat = "cache 80\ninactive_file 10\ntotal_inactive_file 60\ntotal_active_file 20"
    files = {"memory__limit_in_bytes": 1000, "memory__usage_in_bytes": 500, "memory__stat": stat}
    system.group("/sys/fs/cgroup/memory", **files)
    assert limits.memory_left(system.root) == 1000 - (500 - 80)


def test_version_1_writes_a_large_number_for_no_limit(system: System) -> None:
    system.process("4:memory:/", mounts=(V1_MOUNT.format(top="/", at="/sys/fs/cgroup/memory", names="memory"),))
    files = {"memory__limit_in_bytes": 9223372036854771712, "memory__usage_in_bytes": 500}
    system.group("/sys/fs/cgroup/memory", **files)
    assert limits.memory_left(system.root) is None


def test_both_versions_side_by_side(system: System) -> None:
    system.process(
        "5:memory:/m/inner", "2:cpu,cpuacct:/c", "0::/u",
        mounts=(
            V2_MOUNT.format(top="/", at="/sys/fs/cgroup/unified"),
            V1_MOUNT.format(top="/", at="/sys/fs/cgroup/memory", names="memory"),
            V1_MOUNT.format(top="/", at="/sys/fs/cgroup/cpu,cpuacct", names="cpu,cpuacct"),
        ),
    )  # fmt: skip
    system.group("/sys/fs/cgroup/memory/m", memory__limit_in_bytes=1000, memory__usage_in_bytes=100)
    system.group("/sys/fs/cgroup/memory/m/inner", memory__limit_in_bytes=5000, memory__usage_in_bytes=100)
    system.group("/sys/fs/cgroup/unified/u", memory__max=800, memory__current=100)
    system.group("/sys/fs/cgroup/cpu,cpuacct/c", cpu__cfs_quota_us=250000, cpu__cfs_period_us=100000)
    assert limits.memory_left(system.root) == 700
    assert limits.cpu_quota(system.root) == 2.5


def test_a_place_with_a_space_and_a_group_that_is_gone(system: System) -> None:
    system.process("0::/a b/gone (deleted)", mounts=(V2_MOUNT.format(top="/", at="/my\\040groups"),))
    system.group("/my groups/a b", memory__max=1000, memory__current=0)
    assert limits.memory_left(system.root) == 1000


def test_a_group_outside_of_the_namespace(system: System) -> None:
    system.process("0::/../other", mounts=(V2_MOUNT.format(top="/../..", at="/sys/fs/cgroup"),))
    system.group("/sys/fs/cgroup", memory__max=1000, memory__current=1)
    system.group("/sys/fs/other", memory__max=10, memory__current=1)
    assert limits.memory_left(system.root) == 999


def test_groups_of_others_do_not_count(system: System) -> None:
    system.process("0::/a", mounts=(V2_MOUNT.format(top="/", at="/sys/fs/cgroup"),))
    system.group("/sys/fs/cgroup/a", memory__max=1000, memory__current=0)
    system.group("/sys/fs/cgroup/ab", memory__max=10, memory__current=0)
    system.group("/sys/fs/cgroup/a/child", memory__max=10, memory__current=0)
    assert limits.memory_left(system.root) == 1000


def test_files_that_cannot_be_understood_limit_nothing(system: System) -> None:
    system.process("0::/a", "nonsense", mounts=("too short", V2_MOUNT.format(top="/", at="/sys/fs/cgroup")))
    system.group("/sys/fs/cgroup/a", memory__max="", memory__stat="x", cpu__max="0 0", pids__max="many")
    assert limits.memory_left(system.root) is None
    assert limits.cpu_quota(system.root) is None


@pytest.mark.parametrize(("what", "used"), [("Max address space", "VmSize"), ("Max data size", "VmData")])
def test_ulimit_of_memory(what: str, used: str, system: System) -> None:
    (system.root / "proc/self/limits").write_text(f"Limit  Soft Limit\n{what}   {GIB}   unlimited   bytes\n")
    (system.root / "proc/self/status").write_text(f"Name:\tx\n{used}:\t 1024 kB\n")
    assert limits.memory_left(system.root) == GIB - (1 << 20)


def test_free_memory_is_the_least_of_the_machine_and_the_limits(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=500, total=900))
    assert (memory.free_memory(system.root), memory.all_memory(system.root)) == (500, 900)
    system.process("0::/", mounts=(V2_MOUNT.format(top="/", at="/sys/fs/cgroup"),))
    system.group("/sys/fs/cgroup", memory__max=700, memory__current=300)
    assert (memory.free_memory(system.root), memory.all_memory(system.root)) == (400, 700)
    system.group("/sys/fs/cgroup", memory__max=100)
    assert memory.free_memory(system.root) == 0


# ---- processor time


@pytest.mark.parametrize(
    ("cpu_max", "quota", "threads"),
    [
        ("50000 100000", 0.5, 1), ("100000", 1.0, 1), ("250000 100000", 2.5, 2), ("400000 100000", 4.0, 4),
        ("9900000 100000", 99.0, 6), ("max 100000", None, 6), ("1000 100000", 0.01, 1),
    ],
)  # fmt: skip
def test_threads_stay_within_the_quota(cpu_max: str, quota: float | None, threads: int, system: System) -> None:
    system.process("0::/a/b", mounts=(V2_MOUNT.format(top="/", at="/sys/fs/cgroup"),))
    system.group("/sys/fs/cgroup/a", cpu__max=cpu_max)
    system.group("/sys/fs/cgroup/a/b", cpu__max="max 100000")
    assert limits.cpu_quota(system.root) == quota
    assert limits.default_threads(6, system.root) == threads


def test_no_quota_in_version_1(system: System) -> None:
    system.process("1:cpu:/", mounts=(V1_MOUNT.format(top="/", at="/sys/fs/cgroup/cpu", names="cpu"),))
    system.group("/sys/fs/cgroup/cpu", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000)
    assert limits.cpu_quota(system.root) is None


@pytest.mark.parametrize(
    ("stat", "seconds"), [("nr_periods 4\nthrottled_usec 2500000", 2.5), ("throttled_time 5", 5e-9)]
)
def test_stopped_time_is_read_in_the_units_of_both_versions(stat: str, seconds: float, tmp_path: Path) -> None:
    (tmp_path / "cpu.stat").write_text(stat)
    assert system_facts._stopped(tmp_path) == pytest.approx(seconds)


# ---- threads


def test_more_threads_than_the_group_may_have(system: System) -> None:
    system.process("0::/a/b", mounts=(V2_MOUNT.format(top="/", at="/sys/fs/cgroup"),))
    system.group("/sys/fs/cgroup/a", pids__max=64, pids__current=40)
    system.group("/sys/fs/cgroup/a/b", pids__max="max", pids__current=3)
    most, reason = limits.most_threads(system.root)
    assert most == 64 - 40 - limits.SPARE + 1
    assert "pids.max of the control group is 64, 40 are in use" in reason
    assert limits.default_threads(100, system.root) == most
    system.group("/sys/fs/cgroup/a", pids__max=10, pids__current=10)
    assert limits.default_threads(100, system.root) == 1


def test_ulimit_of_processes(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    (system.root / "proc/self/limits").write_text("Max processes             50         50     processes\n")
    (system.root / "proc/self/status").write_text("Threads:\t5\n")
    monkeypatch.setattr(limits.os, "geteuid", lambda: 1000)
    assert limits.most_threads(system.root) == (50 - 5 - limits.SPARE + 1, "ulimit -u is 50")
    monkeypatch.setattr(limits.os, "geteuid", lambda: 0)
    assert limits.most_threads(system.root)[0] >= limits.MOST_THREADS


def test_address_space_for_stacks(system: System) -> None:
    text = f"Max stack size  {8 << 20}  unlimited bytes\nMax address space  {GIB}  {GIB} bytes\n"
    (system.root / "proc/self/limits").write_text(text)
    (system.root / "proc/self/status").write_text(f"VmSize:\t {GIB // 2048} kB\n")
    assert limits.most_threads(system.root) == (32, f"ulimit -v is {GIB >> 10}")


@pytest.mark.parametrize("threads", [100_000, 10**30, 0, -1])
def test_numbers_of_threads_that_cannot_be(threads: int) -> None:
    with refused(OptionError, f"threads is {threads}"):
        EngineConfig(threads=threads)


def test_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "most_threads", lambda: (7, "pids.max of the control group is 9, 3 are in use"))
    assert EngineConfig(threads=7).threads == 7
    with refused(OptionError, "threads is 8", "at most 7", "pids.max of the control group is 9", "leave it out"):
        EngineConfig(threads=8)


def test_more_threads_than_cores_are_remarked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "CORES", 4)
    monkeypatch.setattr(host, "THREADS", 2)
    monkeypatch.setattr(limits, "cpu_quota", lambda: 2.5)
    assert host.crowding(2) == ""
    assert "threads is 3, and this process may use 4 cores (its control group has the time of 2.5)" in host.crowding(3)


# ---- the whole program, where a mount namespace can be had


SHOWN = (
    "from headrace.loaders.memory import free_memory; from headrace.kernels.context import THREADS; "
    "print(free_memory(), THREADS)"
)
SCRIPT = f"""set -e
mount -t tmpfs none /sys/fs/cgroup
mkdir -p /sys/fs/cgroup/job/step
echo 1000000000 > /sys/fs/cgroup/job/memory.max
echo 400000000 > /sys/fs/cgroup/job/memory.current
echo "50000 100000" > /sys/fs/cgroup/job/cpu.max
echo "0::/job/step" > "$1/cgroup"
mount --bind "$1/cgroup" /proc/$$/cgroup
exec {sys.executable} -c "{SHOWN}"
"""


def test_a_process_in_a_job(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespace can be had here")
    command = [unshare, "-m", "bash", "-c", SCRIPT, "bash", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    if "mount" in done.stderr:
        pytest.skip(f"nothing can be mounted here: {done.stderr}")
    free, threads = map(int, done.stdout.split())
    assert free <= 600_000_000
    assert threads == 1
