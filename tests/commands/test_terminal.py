"""What happens between a user and a running command: a chat, and Ctrl-C."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_tokenizer
from busy import HANG_S
from terminal import folded

from headrace.engine.core.loop import Loop
from headrace.engine.terminal import generate_command

# (exit status, standard output, standard error) of a command
Run = Callable[..., tuple[int, str, str]]
QUESTION = "How much water does a mill wheel of this size need in a day?"


def passes(path: Path) -> list[dict[str, Any]]:
    """The lines of a ledger file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- chat


def test_chat(run: Run, talker: Path, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    script = f"{QUESTION}\n\nAnd in a week?\n/reset\n{QUESTION}\n/exit\nnever read\n"
    status, out, err = run("generate", talker, "-i", "-n", 20, "--ignore-eos", "--ledger", ledger, stdin=script)
    assert status == 0
    assert len(out.splitlines()) >= 3  # an answer may hold line breaks itself
    assert "bytes read per token" in folded(err)
    turns = [p for p in passes(ledger) if p["phase"] == "prefill"]
    assert len(turns) == 3
    first, second, third = turns
    assert first["tokens"] == first["context"] == len(QUESTION) + 3
    assert second["context"] > first["context"] + len("And in a week?")
    assert second["context"] - second["tokens"] >= 32  # at least a page was not computed again
    assert third["context"] == first["context"]


def test_answers_of_a_chat_leave_room_for_the_next_question(run: Run, talker: Path) -> None:
    script = "x\ny\n/exit\n"
    status, _, err = run("generate", talker, "-i", "--max-context", 64, "--ignore-eos", stdin=script)
    assert status == 0
    first, second = (int(n) for n in re.findall(r"cut after (\d+) tokens: -n allows more", err))
    assert 0 < second < first < 32  # half of what is left each time


def test_chat_ends_with_the_input(run: Run, talker: Path) -> None:
    assert run("generate", talker, "-i", stdin="")[0] == 0


def test_chat_goes_on_after_a_question_that_is_too_long(run: Run, talker: Path) -> None:
    script = f"{'x' * 200}\nshort\n/exit\n"
    status, out, err = run("generate", talker, "-i", "-n", 10, "--max-context", 64, "--ignore-eos", stdin=script)
    assert status == 0
    assert "the context holds 64" in err
    assert "/reset" in err
    assert out.strip()


def test_chat_needs_a_template(run: Run, talker: Path, tmp_path: Path) -> None:
    tiny.build("qwen3_moe", tmp_path)
    tiny_tokenizer.save(tmp_path, template=None)
    status, _, err = run("generate", tmp_path, "-i", stdin="Hello\n")
    assert status == 1
    assert "no chat template" in err.splitlines()[-1]


# ---- Ctrl-C


def listen() -> None:
    """A shell's background jobs are started deaf to Ctrl-C, and so would their children be."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupt(arguments: list[object], after: int) -> tuple[int, str, str]:
    """Runs a command in a process of its own and sends Ctrl-C after so many bytes of output."""
    command = [sys.executable, "-m", "headrace", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=listen)
    try:
        assert process.stdout is not None
        seen = process.stdout.read(after)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=HANG_S)
    finally:
        process.kill()
    return process.returncode, (seen + out).decode(), err.decode()


@pytest.mark.usefixtures("profile")
def test_ctrl_c_ends_the_text_and_not_the_account(talker: Path, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    options = ["-n", 60000, "--ignore-eos", "--ledger", ledger]
    status, out, err = interrupt(["generate", talker, "Hello", *options], after=40)
    assert status == 130
    assert "Traceback" not in err
    assert "bytes read per token" in folded(err)
    assert "not measured" not in err
    lines = passes(ledger)  # every line is whole
    assert lines[0]["phase"] == "prefill"
    assert 40 <= len(out.strip("\n")) <= len(lines)
    assert {p["tokens"] for p in lines[1:]} == {1}


def test_ctrl_c_between_commands_leaves_quietly(run: Run, talker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generate_command, "ensure_profile", stop)
    status, out, err = run("generate", talker, "Hello")
    assert (status, out) == (130, "")
    assert "Traceback" not in err


def test_ctrl_c_stops_a_batch(run: Run, talker: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:

    step, ledger = Loop.step, tmp_path / "ledger.jsonl"

    def step_or_stop(self: Loop) -> Any:
        if len(self.ledger.passes) == 4:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Loop, "step", step_or_stop)
    status, out, err = run("generate", talker, "One", "Two", "--ledger", ledger)
    assert status == 130
    assert out.count("--- prompt") == 2, "each prompt's text so far is printed"
    assert "bytes read per token" in folded(err)
    assert len(passes(ledger)) == 4


# ---- bars


def test_kernels_that_are_compiled_have_a_bar_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    """After the one of weights, and only if there are any."""
    with generate_command.load_progress() as bars:
        bars["progress"](5, 5)
    assert "compiling" not in capsys.readouterr().err
    with generate_command.load_progress() as bars:
        bars["progress"](5, 5)
        for done in (1, 57):
            bars["compiling"](done, 57)
    said = folded(capsys.readouterr().err)
    assert said.index("loading") < said.index("compiling kernels") < said.index("57/57")
