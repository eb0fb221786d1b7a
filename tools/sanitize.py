"""Runs the C++ under a sanitizer of the compiler: `python tools/sanitize.py address|undefined|thread [tests ...]`.

The extension is built with the sanitizer into a Python of its own below build/, which sees what .venv has besides
headrace. Kernels of instruction sets that this machine has not stay as they are, with HEADRACE_ISA=avx2 all others do.
Without arguments for pytest the slice below runs: every kernel on every instruction set of this machine, the
whole forward pass, the team of threads, reading of files, replays. Of threads it is a smaller one, since it is slower
by far: ops from several threads at once, teams, models that take turns, experts and the KV cache on disk. Reports go
to files, since pytest keeps what a process writes, and are shown at the end; one of them is an error.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from headrace.kernels.isa import available_isas

ROOT = Path(__file__).resolve().parent.parent
SLICE = (
    "tests/kernels/test_kernels.py", "tests/kernels/test_kernels_machine.py", "tests/kernels/test_team_waits.py",
    "tests/kernels/races", "tests/kernels/attention", "tests/kernels/test_limits.py", "tests/kernels/test_numa.py",
    "tests/generation/test_generate.py", "tests/generation/test_two_models.py", "tests/generation/test_demo.py",
    "tests/experts", "tests/policies", "tests/disk",
)  # fmt: skip
OF_THREADS = (
    "tests/kernels/races", "tests/kernels/test_team_waits.py", "tests/generation/test_two_models.py",
    "tests/disk/test_disk_counts.py::test_whatever_a_policy_does_no_bit_changes",
    "tests/generation/reuse/test_kv_disk.py::test_a_later_run_goes_on_bit_for_bit",
)  # fmt: skip
# Python and torch keep what they allocated: leaks are looked for by counting, elsewhere. What they were not compiled
# for, the sanitizers cannot see: races within torch's own threads would be false.
OPTIONS = {
    "address": {
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:halt_on_error=1:exitcode=99:allocator_may_return_null=1"
    },
    "undefined": {"UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:exitcode=99"},
    # Locks of Python hand tensors from thread to thread: without those of other libraries every hand-over is a report.
    "thread": {
        "TSAN_OPTIONS": "halt_on_error=0:exitcode=99:ignore_noninstrumented_modules=0:die_after_fork=0:"
        f"report_signal_unsafe=0:suppressions={ROOT / 'tools' / 'races_of_others.txt'}"
    },
}
MOST = 20_000  # characters of a report that are shown
LIBRARY = {"address": "libasan.so", "undefined": "libubsan.so", "thread": "libtsan.so"}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in OPTIONS:
        raise SystemExit(f"which sanitizer: {', '.join(OPTIONS)}")
    kind, chosen = sys.argv[1], sys.argv[2:] or list(OF_THREADS if sys.argv[1] == "thread" else SLICE)
    python = build(kind)
    reports = python.parents[2] / "reports"
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir()
    # Of the C++ library too: Python has it not, and what throws is looked for when the process starts.
    preloaded = ":".join(_library(name) for name in (LIBRARY[kind], "libstdc++.so"))
    # Kernels of a sanitized build are slow: no test of this slice waits for a time.
    ((name, options),) = OPTIONS[kind].items()
    env = {
        **os.environ,
        name: f"{options}:log_path={reports / 'of'}",
        "LD_PRELOAD": preloaded,
        "HEADRACE_SANITIZER": kind,
    }
    ended = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen], cwd=ROOT, env=env, check=False
    )
    for report in sorted(reports.iterdir()):
        print(f"{report}\n{report.read_text(errors='replace')[:MOST]}")
    raise SystemExit(ended.returncode or int(any(reports.iterdir())))


def _library(name: str) -> str:
    """Where the compiler has it."""
    asked = [os.environ.get("CXX", "g++"), f"-print-file-name={name}"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def build(kind: str) -> Path:
    """A Python whose headrace was compiled with the sanitizer. What did not change is not compiled again."""
    folder = ROOT / "build" / f"sanitize-{kind}"
    python = folder / "venv" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        # As a path, not as a site folder: the editable install in it stays unseen.
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        (folder / "venv" / "lib" / version / "site-packages" / "others.pth").write_text(
            sysconfig.get_path("purelib") + "\n"
        )
    isas = os.environ.get("HEADRACE_ISA") or ";".join(available_isas())
    settings = (
        f"build-dir={folder / 'cmake'}", f"cmake.define.HEADRACE_SANITIZE={kind}",
        f"cmake.define.HEADRACE_SANITIZE_ISAS={isas}",
    )  # fmt: skip
    options = [part for one in settings for part in ("--config-settings", one)]
    install = [python, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--force-reinstall", "."]
    subprocess.run([*install, *options], cwd=ROOT, check=True)
    return python


if __name__ == "__main__":
    main()
