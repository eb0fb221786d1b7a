"""Ctrl-C in the first seconds, while modules are imported: one line, whatever import it meets."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

PATIENCE = 120  # seconds, on a machine that others use too
SAID = "headrace: interrupted\n"

SWALLOWS = """
import sys, time
sys.stdout.write("imports")
sys.stdout.flush()
try:
    time.sleep(60)
except BaseException:  # as C code does that imports
    pass
raise ImportError("it went on")
"""


def listen() -> None:
    """A shell's background jobs are started deaf to Ctrl-C, and so would their children be."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(*words: str, place: Path | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *words], text=True, cwd=place, preexec_fn=listen, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_an_import_that_swallows_it(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text(SWALLOWS)
    with start("-m", "headrace", "plan", "demo", place=tmp_path) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.read(7) == "imports"
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert (process.returncode, said) == (130, SAID)


@pytest.mark.parametrize("module", ["click", "rich", "uvicorn", "numpy.version", "torch.torch_version"])
def test_a_server_that_begins(module: str) -> None:
    """When this module has been imported, and others are to come."""
    with start("-X", "importtime", "-m", "headrace", "serve", "demo", "--port", "0", "--no-measure") as process:
        try:
            assert process.stderr is not None
            assert any(line.split("|")[-1].strip() == module for line in iter(process.stderr.readline, ""))
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == 130, said[-2000:]
    assert said.endswith(SAID)
    assert "Traceback" not in said


def test_a_process_that_is_deaf_stays_so() -> None:
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from headrace.engine.terminal.interrupts import as_ever, during_imports\n"
        "during_imports(); as_ever(); print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert found.stdout == "True\n"
