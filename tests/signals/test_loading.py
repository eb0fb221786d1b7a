"""Ctrl-C and SIGTERM while a server loads its model: it ends at once, with the status and the line of what was
interrupted."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

PATIENCE = 120  # seconds, on a machine that others use too
SLOW = """
import sys, time
from headrace.engine import llm

class Slow(llm.LLM):
    def __init__(self, model, progress=None, **options):
        {before}
        super().__init__(model, progress=progress, **options)

llm.LLM = Slow
from headrace.cli import main
from headrace.engine.terminal.interrupts import during_imports
during_imports()
sys.argv[1:] = ["serve", "demo", "--port", "0", "--no-measure"]
main()
"""
SAY = "sys.stdout.write('loads'); sys.stdout.flush()"
HANGS = f"{SAY}; time.sleep(600)"
GOES_ON = f"{SAY}\n        while True: progress(1, 2); time.sleep(0.01)"
LATE = f"{SAY}; time.sleep(1)"


def listen() -> None:
    """A shell's background jobs are started deaf to Ctrl-C, and so would their children be."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("load", [HANGS, GOES_ON, LATE], ids=["hangs", "goes on", "ends meanwhile"])
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_server_that_loads(sent: signal.Signals, load: str) -> None:
    command = [sys.executable, "-c", SLOW.format(before=load)]
    with subprocess.Popen(
        command, text=True, preexec_fn=listen, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.read(5) == "loads"
            process.send_signal(sent)
            rest, said = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert "Traceback" not in said
    if sent is signal.SIGINT:
        assert (process.returncode, rest, said.split("\n")[-2:]) == (130, "", ["headrace: interrupted", ""])
    else:
        assert (process.returncode, rest) == (-signal.SIGTERM, "")
