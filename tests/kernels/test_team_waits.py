"""How the team of threads waits: awake as long as work is expected, asleep afterwards; and where its caller runs.

Who else uses the cores may send a worker to sleep at any time, which is a count of its own (`gave_way`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from busy import HANG_S

from headrace.kernels import FORMATS, ExpertLayout, cpu
from headrace.kernels.context import Context
from headrace.kernels.cpu.mailbox import Mailbox
from headrace.kernels.packed import ExpertBank

ROOT = Path(__file__).parents[2]
TWO = Context(threads=2)
PAUSE_S = 0.01  # 200 times as long as a worker looks where nothing is expected
LAYERS = 4


def mailbox(spin: float) -> Mailbox:
    """Jobs of one token for all experts of a tiny layer."""
    bank = ExpertBank.empty(ExpertLayout(format=FORMATS["q8_0"], hidden=64, width=32), 2)
    bank.data.zero_()
    box = Mailbox([bank] * LAYERS, context=TWO, layers=range(LAYERS), top_k=2, batches=[1], spin=spin, timeout=HANG_S)
    for layer in range(LAYERS):
        slot = box.slot(layer, 0)
        slot.ids_TK.copy_(torch.tensor([[0, 1]]))
        slot.weights_TK.fill_(0.5)
        slot.x_TD.fill_(1.0)
    return box


@pytest.fixture
def patient() -> Iterator[Mailbox]:
    """In a step its workers spin for longer than any test takes."""
    box = mailbox(HANG_S)
    yield box
    box.close()


def answer(box: Mailbox, layer: int) -> None:
    slot = box.slot(layer, 0)
    box.post(slot)
    box.wait(slot)


def wait_until_asleep() -> None:
    end = time.monotonic() + HANG_S
    while cpu.team_sleeps(TWO).asleep == 0:
        assert time.monotonic() < end, "the worker does not go to sleep"
        time.sleep(0.001)


def wait_for_the_end(box: Mailbox) -> None:
    while box.box.steps_left():
        time.sleep(0.001)


def test_in_a_step_no_worker_sleeps(patient: Mailbox) -> None:
    cpu.region_ns(TWO, 1)
    wait_until_asleep()
    patient.begin(0)
    answer(patient, 0)  # wakes the worker up
    before = cpu.team_sleeps(TWO)
    for layer in range(1, LAYERS - 1):
        time.sleep(PAUSE_S)
        answer(patient, layer)
    after = cpu.team_sleeps(TWO)
    assert after.slept == before.slept
    assert after.asleep <= after.gave_way - before.gave_way


def test_after_a_step_workers_sleep(patient: Mailbox) -> None:
    for _ in range(2):
        patient.begin(0)
        for layer in range(LAYERS):
            answer(patient, layer)
        wait_for_the_end(patient)
        wait_until_asleep()
    before = cpu.team_sleeps(TWO)
    cpu.region_ns(TWO, 1)
    assert cpu.team_sleeps(TWO).woken > before.woken
    wait_until_asleep()
    assert cpu.team_sleeps(TWO).slept > before.slept


def test_a_step_that_stands_still_lets_workers_sleep() -> None:
    """After the time that a mailbox says; the next job wakes them."""
    box = mailbox(0.002)
    box.begin(0)
    answer(box, 0)
    wait_until_asleep()
    assert box.box.steps_left() == 1
    before = cpu.team_sleeps(TWO).woken
    answer(box, 1)
    assert cpu.team_sleeps(TWO).woken == before + 1
    box.close()


def test_a_hand_off_that_is_closed_in_a_step_expects_nothing(patient: Mailbox) -> None:
    patient.begin(0)
    answer(patient, 0)
    patient.close()
    wait_until_asleep()


def test_work_is_expected_until_nobody_does() -> None:
    with cpu.expect_work(HANG_S):
        with cpu.expect_work(HANG_S):
            cpu.region_ns(TWO, 1)
        before = cpu.team_sleeps(TWO).slept
        time.sleep(PAUSE_S)
        cpu.region_ns(TWO, 1)
        assert cpu.team_sleeps(TWO).slept == before
    wait_until_asleep()


@pytest.mark.alone
def test_workers_give_way_to_whoever_computes_on_their_cores() -> None:
    """Programs that keep every CPU busy: a worker that offers its core gets it back late, and sleeps from then on."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        cpu.region_ns(TWO, 1)
        wait_until_asleep()
        before = cpu.team_sleeps(TWO)
        with cpu.expect_work(HANG_S):
            cpu.region_ns(TWO, 1)
            wait_until_asleep()
            after = cpu.team_sleeps(TWO)
        assert after.slept == before.slept
        assert after.gave_way > before.gave_way
    finally:
        for program in busy:
            program.kill()
            program.wait()


def test_a_forked_child_expects_nothing() -> None:
    code = """
import os, time
from headrace.kernels import cpu
from headrace.kernels.context import Context
two = Context(threads=2)
with cpu.expect_work(3600):
    cpu.region_ns(two, 1)
    child = os.fork()
    if child == 0:
        cpu.region_ns(two, 1)
        while cpu.team_sleeps(two).asleep == 0:
            time.sleep(0.001)
        os._exit(7)
    print(os.waitpid(child, 0)[1] >> 8, cpu.team_sleeps(two).slept)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=True)
    assert done.stdout.split() == ["7", "0"]


PINNED = """
import os, sys
from pathlib import Path
sys.path[:0] = ["tests/kernels", "tests/helpers"]
from test_team_waits import TWO, answer, mailbox
from headrace.kernels import _cpu, cpu

def masks():
    return {one.name: os.sched_getaffinity(int(one.name)) for one in Path("/proc/self/task").iterdir()}

def new_threads(make):
    before = masks()
    made = make()
    return made, [name for name, mask in masks().items() if name not in before and len(mask) == 1]

def working():
    box = mailbox(0.0)
    box.begin(0)
    answer(box, 0)
    return box

if _cpu.default_threads() < 2:
    sys.exit("one core")
_, [worker] = new_threads(lambda: cpu.region_ns(TWO, 1))
first, [coordinator] = new_threads(working)
apart = masks()[coordinator] != masks()[worker]
second, beside = new_threads(working)  # may run on the worker's core, which then goes to the other one
first.close()
third, [again] = new_threads(working)
print(apart, beside, masks()[again] != masks()[worker])
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are looked at as Linux shows them")
def test_a_coordinator_has_the_core_that_workers_left() -> None:
    """One at a time: a second one beside it is left to the scheduler, and the next one gets the core."""
    command = [sys.executable, "-c", PINNED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False, cwd=ROOT)
    if "one core" in done.stderr:
        pytest.skip("on one core nothing is pinned")
    assert done.stdout.split() == ["True", "[]", "True"], done.stderr
