"""The hand-off of experts between a stream and the CPU: a thread that plays the GPU's part, results, and failures."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from busy import HANG_S, regions, undisturbed
from compiled import CompileError, compiled

from headrace.errors import DeviceError
from headrace.kernels import FORMATS, ExpertLayout, cpu, reference
from headrace.kernels.cases.case import RandomSource
from headrace.kernels.context import Context
from headrace.kernels.cpu import CpuOps
from headrace.kernels.cpu.mailbox import Mailbox, round_trip_us
from headrace.kernels.packed import ExpertBank

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "kernels/cpu"
RUNTIME = [KERNELS / "runtime" / f"{name}.cpp" for name in ("mailbox", "team", "numa")]
SOURCES = [ROOT / "tests/fakes/cpp/mailbox_test.cpp", *RUNTIME]
HEADERS = sorted(KERNELS.rglob("*.h"))
HIDDEN, WIDTH, EXPERTS, TOP_K = 96, 64, 8, 3


# A thread plays the GPU, in C++


def build(name: str, *flags: str) -> Path:
    """The standalone test."""
    return compiled(name, SOURCES, ["-std=c++17", "-O1", "-g", "-pthread", f"-I{KERNELS}", *flags], HEADERS)


@pytest.fixture(scope="module")
def program() -> Path:
    return build("plain", "-Wall", "-Wextra", "-Werror")


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same under ThreadSanitizer, which reports every pair of accesses that nothing orders."""
    source = tmp_path_factory.mktemp("mailbox") / "empty.cpp"
    source.write_text("int main() { return 0; }\n")
    try:
        empty = compiled("empty", [source], ["-fsanitize=thread"])
    except CompileError:
        pytest.skip("this compiler has no ThreadSanitizer")
    if subprocess.run([str(empty)], capture_output=True, check=False).returncode:
        pytest.skip("ThreadSanitizer does not run on this system")
    return build("watched", "-fsanitize=thread")


def run(program: Path, *args: str) -> str:
    """What it prints. A worker that died was never joined, which is no finding in that scenario."""
    env = {**os.environ, "TSAN_OPTIONS": "report_thread_leaks=0" if "dead" in args else ""}
    done = subprocess.run([str(program), *args], capture_output=True, text=True, check=False, timeout=HANG_S, env=env)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[:4000]}"
    return done.stdout + done.stderr


SCENARIOS = ["throws", "absent", "stops", "queued", "stuck", "dead"]


@pytest.mark.alone
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_wait_is_left_alone(program: Path, scenario: str) -> None:
    """Work that throws, a GPU that does not come, stops at any time, queued steps, a stuck and a dead worker."""
    assert run(program, scenario) == "ok\n"


@pytest.mark.alone
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_race_where_something_goes_wrong(watched: Path, scenario: str) -> None:
    assert run(watched, scenario) == "ok\n"


@pytest.mark.alone
def test_a_million_rounds_without_a_race(watched: Path) -> None:
    assert run(watched, "solo", "1000000") == "ok\n"


@pytest.mark.alone
def test_rounds_of_the_whole_team_without_a_race(watched: Path, program: Path) -> None:
    assert run(watched, "team", "2000") == "ok\n"
    assert run(program, "team", "20000") == "ok\n"


# The experts behind it


@pytest.fixture
def banks() -> list[ExpertBank]:
    source = RandomSource(torch.Generator().manual_seed(5))
    return [
        source.bank(ExpertLayout(format=FORMATS[name], hidden=HIDDEN, width=WIDTH), EXPERTS)
        for name in ("q4_0", "bf16", "q8_0")
    ]


def make(banks: list[ExpertBank], **options: object) -> Mailbox:
    chosen = {"context": Context(), "layers": [1, 2, 5], "top_k": TOP_K, "batches": [1, 4], **options}
    return Mailbox(banks, **chosen)  # type: ignore[arg-type]


def choice(tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights, ids = torch.rand(tokens, EXPERTS, generator=generator).topk(TOP_K)
    return torch.randn(tokens, HIDDEN, generator=generator), ids.to(torch.int32), weights


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_as_the_op(banks: list[ExpertBank], dtype: torch.dtype, threads: int) -> None:
    ops = CpuOps(Context(threads=threads))
    box = make(banks, context=ops.context, x_dtype=dtype)
    for step in range(40):
        batch = step % 2
        box.begin(batch)
        for layer, bank in enumerate(banks):
            x, ids, weights = choice(box.batches[batch], 10 * step + layer)
            slot = box.slot(layer, batch)
            slot.x_TD.copy_(x)
            slot.ids_TK.copy_(ids)
            slot.weights_TK.copy_(weights)
            box.post(slot)
            box.wait(slot)
            assert torch.equal(slot.y_TD, ops.experts(x.to(dtype).float(), ids, weights, bank)), (step, layer)
    box.check()
    assert box.box.served() == 40 * 3
    box.close()


@pytest.mark.alone
@undisturbed
def test_the_coordinator_keeps_the_time_of_its_work(banks: list[ExpertBank]) -> None:
    """Jobs are timed from when they are seen to their answer: the time between jobs is nobody's."""
    box = make(banks)
    for layer in range(3):
        box.slot(layer, 1).ids_TK.fill_(1)
    assert box.busy_s == 0
    start = time.perf_counter()
    box.play(1, 50, gap_ns=200_000)
    took, busy = time.perf_counter() - start, box.busy_s
    assert 0 < busy <= took - 150 * 200e-6
    box.play(1, 1)
    assert box.busy_s > busy
    box.close()


def test_experts_that_are_elsewhere_add_nothing(banks: list[ExpertBank]) -> None:
    """Ids of -1: what is left is the sum over the others; nothing left is zeros, whatever lay there."""
    box = make(banks)
    for mask in ([[1, 1, 1]] * 4, [[0, 1, 0]] * 4, [[0, 0, 0]] * 4, [[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]]):
        box.begin(1)
        for layer, bank in enumerate(banks):
            x, ids, weights = choice(4, layer)
            here = torch.tensor(mask, dtype=torch.bool)
            slot = box.slot(layer, 1)
            slot.x_TD.copy_(x)
            slot.ids_TK.copy_(ids.masked_fill(~here, -1))
            slot.weights_TK.copy_(weights)
            slot.y_TD.fill_(float("nan"))
            box.post(slot)
            box.wait(slot)
            wanted = reference.experts(x, slot.ids_TK, weights, bank)
            assert (slot.y_TD - wanted).norm() <= 0.02 * wanted.norm(), (mask, layer)
            assert not slot.y_TD[~here.any(1)].any()
    box.close()


def test_slots_lie_apart_and_on_lines(banks: list[ExpertBank]) -> None:
    box = make(banks, x_dtype=torch.bfloat16)
    slots = [box.slot(layer, batch) for batch in range(2) for layer in range(3)]
    places = sorted((p.data_ptr(), p.data_ptr() + p.nbytes) for s in slots for p in s[1:-2])
    assert [(s.ready.data_ptr(), s.done.data_ptr()) for s in slots] == [(s.address, s.address + 64) for s in slots]
    places += [(s.address, s.address + 128) for s in slots]
    places.sort()
    assert all(end <= start for (_, end), (start, _) in pairwise(places))
    assert all(start % 64 == 0 for start, _ in places)
    assert box.memory.data_ptr() % 4096 == 0
    assert box.memory.data_ptr() <= places[0][0]
    assert places[-1][1] <= box.memory.data_ptr() + box.memory.nbytes
    box.close()


def test_many_rounds_through_the_binding(banks: list[ExpertBank]) -> None:
    box = make(banks)
    for layer in range(3):
        x, ids, weights = choice(1, layer)
        for part, values in zip(box.slot(layer, 0)[1:4], (ids, weights, x), strict=True):
            part.copy_(values)
    assert box.play(0, 2000) > 0
    for layer, bank in enumerate(banks):
        x, ids, weights = choice(1, layer)
        assert torch.equal(box.slot(layer, 0).y_TD, CpuOps(Context()).experts(x, ids, weights, bank))
    assert box.box.served() == 6000
    box.close()
    assert round_trip_us(Context(), 4, 50) > 0


def test_a_bad_id_names_layer_and_id(banks: list[ExpertBank]) -> None:
    for bad in (EXPERTS, -2):
        box = make(banks)
        for layer in range(3):
            box.slot(layer, 0).ids_TK.fill_(0 if layer < 1 else bad)
        with pytest.raises(DeviceError, match=r"experts of layer 2 \(batch of 1\) failed: expert id " + str(bad)):
            box.play(0, 1)
        with pytest.raises(DeviceError, match="load the model again"):
            box.begin(0)
        box.close()
        with pytest.raises(DeviceError, match="closed"):
            box.check()


@pytest.mark.alone
@undisturbed
def test_a_team_that_is_held_up_ends_the_wait(banks: list[ExpertBank]) -> None:
    """Another op holds the team for longer than the timeout; the error says which layer waited, and how long."""
    context = Context(threads=1)
    box = make(banks, context=context, timeout=0.3)
    for layer in range(3):
        box.slot(layer, 1).ids_TK.fill_(1)
    box.play(1, 1)
    other = threading.Thread(target=cpu.region_ns, args=(context, regions(context, 1.5)))
    other.start()
    time.sleep(0.1)
    with pytest.raises(DeviceError, match=r"no result for .* layer 1 \(batch of 4\) within 0\.[3-9] s") as e:
        box.play(1, 1)
    assert other.is_alive(), "the wait ended because the team was free again"
    assert "\n" not in str(e.value)
    other.join()
    box.close()


@pytest.mark.alone
@undisturbed
def test_a_stream_that_stays_away_is_named(banks: list[ExpertBank]) -> None:
    box = make(banks, timeout=0.2)
    box.begin(0)
    slot = box.slot(0, 0)
    slot.ids_TK.fill_(-1)
    box.post(slot)
    box.wait(slot)
    time.sleep(0.5)
    with pytest.raises(DeviceError, match=r"GPU did not ask for .* layer 2 \(batch of 1\) within 0\.[2-4] s"):
        box.check()
    box.close()


@pytest.mark.alone
@undisturbed
def test_a_patient_step_waits_for_the_gpu_and_not_for_workers(banks: list[ExpertBank]) -> None:
    """A first run may compile kernels between two layers for longer than the timeout."""
    context = Context(threads=1)
    box = make(banks, context=context, timeout=0.2)
    box.begin(0, patient=True)
    for layer in range(2):
        box.slot(layer, 0).ids_TK.fill_(1)
    time.sleep(0.5)
    box.post(box.slot(0, 0))
    box.wait(box.slot(0, 0))
    time.sleep(0.5)
    box.check()
    other = threading.Thread(target=cpu.region_ns, args=(context, regions(context, 1.0)))
    other.start()
    time.sleep(0.1)
    box.post(box.slot(1, 0))
    with pytest.raises(DeviceError, match="no result for the experts of layer 2"):
        box.wait(box.slot(1, 0))
    other.join()
    box.close()


def test_a_wait_without_a_step_ends(banks: list[ExpertBank]) -> None:
    box = make(banks, timeout=0.1)
    box.post(box.slot(0, 0))
    with pytest.raises(DeviceError, match="was the step begun"):
        box.wait(box.slot(0, 0))
    box.close()
