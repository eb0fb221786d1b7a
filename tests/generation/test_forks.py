"""Processes that are forked from one that has a model: an error where they use it, and no other difference."""

from __future__ import annotations

import subprocess
import sys

import pytest
from busy import HANG_S

BEGIN = """
import os, signal, subprocess, sys, threading, time
from headrace import LLM, HeadraceError, SamplingParams

def child(work):
    '''What `work` gives, or raises, in a forked process; HANGS if nothing comes.'''
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        signal.alarm(60)  # ends it if it hangs
        try:
            said = str(work())
        except HeadraceError as error:
            said = f"refused: {error}"
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    return said if os.waitpid(process, 0)[1] == 0 else "HANGS"

OPTIONS = dict(max_context=512, threads=2)
llm = LLM("demo", **OPTIONS)
some = SamplingParams(max_new_tokens=8, ignore_eos=True)
expected = llm.generate([[5, 6]], some)[0].token_ids
stop = threading.Event()

def run():
    while not stop.is_set():
        llm.generate([[7]], SamplingParams(max_new_tokens=300, ignore_eos=True))

busy = threading.Thread(target=run)
if sys.argv[1] == "busy":
    busy.start()
    time.sleep(0.2)
"""
END = """
stop.set()
if busy.ident:
    busy.join()
assert llm.generate([[5, 6]], some)[0].token_ids == expected, "the parent goes on"
"""


def printed(code: str, how: str = "busy") -> list[str]:
    """Lines that a process with a model prints; `how`: whether a pass is under way when it forks."""
    command = [sys.executable, "-c", BEGIN + code + END, how]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("how", ["busy", "idle"])
def test_a_child_that_uses_the_model_is_told_what_to_do(how: str) -> None:
    code = """
stream = llm.stream([5, 6], some)
next(stream)
print(child(lambda: llm.generate([[5, 6]], some)))
print(child(lambda: list(llm.stream([5, 6], some))))
if not busy.ident:  # else all of it may be there already
    print(child(lambda: list(stream)))
print(child(lambda: llm.logits([5, 6])))
print(child(lambda: llm.time_tiers()))
"""
    lines = printed(code, how)
    assert len(lines) == 4 + (how == "idle")
    for line in lines:
        assert line.startswith("refused: this model was loaded by process")
        assert "spawn" in line
        assert "load the model in the child" in line


def test_a_child_that_leaves_the_model_alone_works() -> None:
    code = """
stream = llm.stream([5, 6], some)
next(stream)
print(child(lambda: subprocess.run(["echo", "done"], capture_output=True, text=True).stdout.strip()))
print(child(lambda: llm.encode("Hello") == llm.encode("Hello")))
print(child(lambda: (stream.close(), llm.close())))
print(sum(1 for _ in stream) + 1)
import multiprocessing
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.map(abs, [-1, 2]))
"""
    assert printed(code) == ["done", "True", "(None, None)", "8", "[1, 2]"]


def test_a_child_may_load_a_model_of_its_own() -> None:
    code = 'print(child(lambda: LLM("demo", **OPTIONS).generate([[5, 6]], some)[0].token_ids == expected))'
    assert printed(code) == ["True"]
