"""The driver's calls, the ways to hand a job over, the probe and the choice: on a driver without a GPU, whose streams
are threads, through the same library calls as on a real one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from busy import HANG_S

from headrace import LLM
from headrace.engine.cuda_graphs import gpu_runtime, signal_probe, signals
from headrace.engine.cuda_graphs.beside.second_gpu import SecondGpu
from headrace.engine.cuda_graphs.signals import VARIANTS, Trial, choose
from headrace.engine.devices.cuda_driver import HOST_REGISTER, MEM_OPS_64, WAIT_64, WRITE_64, Driver, DriverError, MemOp
from headrace.errors import DeviceError, OptionError
from headrace.kernels import FORMATS, ExpertLayout, load
from headrace.kernels.cases.case import RandomSource
from headrace.kernels.context import Context
from headrace.kernels.cpu.mailbox import Mailbox

HIDDEN, WIDTH, EXPERTS, TOP_K = 64, 32, 6, 2


@pytest.fixture
def driver(library: str, log: Path) -> Driver:
    found = Driver(library)
    found.make_current(0)
    return found


@pytest.fixture
def mailbox(driver: Driver) -> Iterator[Mailbox]:
    source = RandomSource(torch.Generator().manual_seed(5))
    layout = ExpertLayout(format=FORMATS["q8_0"], hidden=HIDDEN, width=WIDTH)
    box = Mailbox(
        [source.bank(layout, EXPERTS) for _ in range(3)],
        context=Context(),
        layers=[0, 1, 2],
        top_k=TOP_K,
        batches=[1, 4],
    )
    driver.register(box.memory.data_ptr(), box.memory.nbytes)
    yield box
    box.close()
    driver.unregister(box.memory.data_ptr())


# Calls


def test_what_the_driver_says_of_itself(driver: Driver) -> None:
    assert driver.version == (13, 1)
    assert driver.devices == 1
    assert [driver.attribute(0, n) for n in (MEM_OPS_64, HOST_REGISTER, 1)] == [1, 1, 0]
    with pytest.raises(DriverError, match="cuDeviceGet"):
        driver.make_current(3)


def test_without_a_driver_the_error_says_what_to_do() -> None:
    with pytest.raises(DeviceError, match=r"no NVIDIA driver on this machine.*--device cpu") as error:
        Driver("libno-such-driver.so.1")
    assert "\n" not in str(error.value)


def test_a_library_without_the_calls_is_too_old() -> None:
    with pytest.raises(DeviceError, match="too old: it has no cuInit"):
        Driver("libc.so.6")


def test_a_stream_writes_and_waits(driver: Driver) -> None:
    memory = torch.zeros(8192, dtype=torch.uint8)
    start = -memory.data_ptr() % 4096
    words = memory[start : start + 4096].view(torch.int64)
    driver.register(words.data_ptr(), words.nbytes)
    at, stream = driver.device_pointer(words.data_ptr()), driver.stream()
    assert driver.device_pointer(words[2:].data_ptr()) == at + 16
    driver.write(stream, at, 2**40 + 7)
    driver.wait(stream, at, 2**40 + 7)
    driver.wait(stream, at, 5)  # reached, not equal
    driver.batch(stream, [MemOp(WRITE_64, at + 8, 3), MemOp(WAIT_64, at + 8, 3), MemOp(WRITE_64, at + 16, -1 % 2**64)])
    driver.synchronize(stream)
    assert words[:4].tolist() == [2**40 + 7, 3, -1, 0]
    driver.destroy_stream(stream)
    with pytest.raises(DriverError) as error:
        driver.write(0, words.data_ptr(), 1)  # the host's address
    assert error.value.code == 1
    assert "cuStreamWriteValue64_v2: CUDA_ERROR_INVALID_VALUE (said the fake driver)" in str(error.value)
    with pytest.raises(DriverError, match="ALREADY_REGISTERED"):
        driver.register(words.data_ptr(), 64)
    driver.unregister(words.data_ptr())
    with pytest.raises(DriverError, match="cuMemHostUnregister: error 713"):
        driver.unregister(words.data_ptr())


@pytest.mark.parametrize(("chosen", "wanted"), [(None, "32"), ("8", "8")])
def test_streams_get_queues_of_their_own(
    chosen: str | None, wanted: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before CUDA starts, by torch or by the driver; a user's number stays."""
    for start in (lambda: Driver(library), lambda: LLM("demo", device="cuda")):
        monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", chosen or "")
        if chosen is None:
            monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS")
        with contextlib.suppress(OptionError):  # torch sees no GPU
            start()
        assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == wanted


# Jobs through streams


def fill(mailbox: Mailbox, batch: int, seed: int) -> list[torch.Tensor]:
    """Writes a job for each layer; what the op gives for them."""
    generator, wanted = torch.Generator().manual_seed(seed), []
    for layer, bank in enumerate(mailbox.banks):
        slot = mailbox.slot(layer, batch)
        weights, ids = torch.rand(len(slot.x_TD), EXPERTS, generator=generator).topk(TOP_K)
        slot.x_TD.normal_(generator=generator)
        slot.ids_TK.copy_(ids)
        slot.weights_TK.copy_(weights)
        wanted.append(load("cpu").experts(slot.x_TD, slot.ids_TK, slot.weights_TK, bank))
    return wanted


def results(mailbox: Mailbox, batch: int) -> list[torch.Tensor]:
    return [mailbox.slot(layer, batch).y_TD.clone() for layer in range(3)]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_way_brings_the_op_s_results(driver: Driver, mailbox: Mailbox, name: str) -> None:
    way, stream = signals.make(name, driver, mailbox), driver.stream()
    assert way.name == name
    for seed in range(6):
        batch = seed % 2
        wanted = fill(mailbox, batch, seed)
        mailbox.begin(batch)
        for layer in range(3):
            slot = mailbox.slot(layer, batch)
            way.publish(stream, slot)
            way.await_result(stream, slot)
        driver.synchronize(stream)
        mailbox.check()
        assert all(map(torch.equal, results(mailbox, batch), wanted))
    driver.destroy_stream(stream)


@pytest.mark.parametrize("name", ["memop", "hostfunc"])
def test_a_graph_replays_with_new_jobs(driver: Driver, mailbox: Mailbox, name: str, log: Path) -> None:
    way, stream = signals.make(name, driver, mailbox), driver.stream()
    driver.begin_capture(stream)
    for layer in range(3):
        way.publish(stream, mailbox.slot(layer, 1))
        way.await_result(stream, mailbox.slot(layer, 1))
    graph = driver.end_capture(stream)
    assert mailbox.box.served() == 0, "a step that is being captured ran"
    for seed in range(10):
        wanted = fill(mailbox, 1, seed)
        mailbox.begin(1)
        driver.launch(graph, stream)
        driver.synchronize(stream)
        mailbox.check()
        assert all(map(torch.equal, results(mailbox, 1), wanted))
    driver.destroy_graph(graph)
    driver.destroy_stream(stream)
    calls = log.read_text().split("\n")
    one = {"memop": ["write 0", "write 1", "wait 1"], "hostfunc": ["host", "host"]}[name]
    first = calls.index("capture 1")
    assert calls[first : first + 2 + 3 * len(one)] == ["capture 1", *one * 3, f"graph of {3 * len(one)} nodes"]
    assert calls.count("launch") == 10


def test_a_lost_worker_frees_the_stream(driver: Driver, mailbox: Mailbox) -> None:
    """A job that fails must not leave the stream waiting: it ends, and the error is there for whoever asks."""
    way, stream = signals.make("memop", driver, mailbox), driver.stream()
    fill(mailbox, 0, 1)
    mailbox.slot(1, 0).ids_TK.fill_(EXPERTS)
    mailbox.begin(0)
    for layer in range(3):
        way.publish(stream, mailbox.slot(layer, 0))
        way.await_result(stream, mailbox.slot(layer, 0))
    driver.synchronize(stream)
    with pytest.raises(DeviceError, match="experts of layer 1"):
        mailbox.check()
    driver.destroy_stream(stream)


# Probe and choice


def tried(name: str, library: str, layers: int = 4, limit: float = HANG_S) -> Trial:
    return signals._tried(name, signals._started(name, library, 0, layers), limit)


def test_the_probe_times_every_way(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CUDA_HOST_US", "3000")
    trials = signals.probe(library, layers=4, stage=HANG_S)
    assert all(trials[name].us for name in ("memop", "hostfunc", "eager")), trials
    assert trials["spin"] == Trial(name="spin", problem="its kernels are launched by torch, which sees no GPU here")
    assert trials["hostfunc"].us > 6000  # two functions a job
    choice = choose(trials)
    assert choice.name == "memop"
    assert "fastest in a graph (memop " in choice.reason


@pytest.mark.parametrize(("where", "stage"), [("eager", signals.FIRST_JOB), ("graph", signals.CAPTURED)])
def test_a_way_that_hangs_is_killed(library: str, monkeypatch: pytest.MonkeyPatch, where: str, stage: str) -> None:
    monkeypatch.setenv("FAKE_CUDA_HANG", where)
    trial = tried("memop", library, limit=1.0)
    assert trial == Trial(name="memop", problem=f"no answer within 1 s ({stage})")


def test_what_the_device_lacks_is_said(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CUDA_NO_MEMOPS", "1")
    trial = tried("memop", library)
    assert "no 64-bit memory operations" in trial.problem
    assert "no NVIDIA driver" in tried("eager", "libno-such-driver.so.1").problem


def test_probes_are_started_together_and_asked_one_after_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each says that it is there before one is asked; whoever is asked says who began and who ended before."""
    program, log = tmp_path / "probe", tmp_path / "log"
    program.write_text(
        f'#!/bin/sh\necho "$3 there" >> {log}\nread line\nuntil [ $(grep -c there {log}) = 4 ]; do sleep 0.01; done\n'
        f'echo "$3 begins" >> {log}\nsleep 0.05\necho "$3 ends" >> {log}\necho \'{{"us": 1.0}}\'\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(signals.sys, "executable", str(program))
    assert all(trial.us == 1.0 for trial in signals.probe("none").values())
    said = [line for line in log.read_text().splitlines() if "there" not in line]
    assert said == [f"{name} {what}" for name in VARIANTS for what in ("begins", "ends")]


def test_a_probe_that_dies_is_said(library: str) -> None:
    trial = tried("memop", library, layers=-3)
    assert trial.problem.startswith("the probe ended (start): IndexError")


def test_what_others_print_is_no_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Lines of libraries between the probe's own; and a process that cannot be started is a problem, not an error."""
    program = tmp_path / "probe"
    said = ["loading cuda", '{"stage": "first job"}', "3", '{"us": 7.5}']
    program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in said))
    program.chmod(0o755)
    monkeypatch.setattr(signals.sys, "executable", str(program))
    assert signals.probe("none")["memop"] == Trial(name="memop", us=7.5)
    monkeypatch.setattr(signals.sys, "executable", str(tmp_path / "no such program"))
    found = signals.probe("none")["memop"]
    assert found.us is None
    assert found.problem.startswith("the probe could not be run: FileNotFoundError")


def test_the_choice_and_its_reason() -> None:
    works = {name: Trial(name=name, us=us) for name, us in zip(VARIANTS, (5.0, 60.0, 9.0, 3.0), strict=True)}
    assert choose(works) == signals.SignalChoice(
        name="memop", reason="fastest in a graph (memop 5.0 us; hostfunc 60.0 us; spin 9.0 us; eager 3.0 us)", us=5.0
    )
    broken = {**works, "memop": Trial(name="memop", problem="hangs")}
    assert choose(broken).name == "spin"
    assert choose({**broken, "hostfunc": Trial(name="hostfunc", us=8.9)}).name == "hostfunc"
    assert choose({**works, "spin": Trial(name="spin", us=4.9)}).name == "spin"
    broken["spin"] = Trial(name="spin", problem="sees no GPU")
    assert choose(broken).name == "hostfunc"
    assert choose(works, "eager") == signals.SignalChoice(
        name="eager", reason="asked for (memop 5.0 us; hostfunc 60.0 us; spin 9.0 us; eager 3.0 us)", us=3.0
    )
    alone = {**broken, "hostfunc": Trial(name="hostfunc", problem="no")}
    assert choose(alone).name == "eager"
    assert "no other works (memop: hangs; hostfunc: no; spin: sees no GPU; eager 3.0 us)" in choose(alone).reason
    with pytest.raises(DeviceError, match="'memop' does not work here"):
        choose(broken, "memop")
    with pytest.raises(DeviceError, match="no hand-off"):
        choose({"memop": broken["memop"]})
    with pytest.raises(OptionError, match="choose one of auto, memop, hostfunc, spin, eager"):
        choose(works, "shout")


def test_the_probe_s_jobs_choose_no_expert() -> None:
    box = signal_probe.empty_mailbox(2)
    box.slot(1, 0).y_TD.fill_(3.0)
    box.play(0, 1)
    assert not box.slot(1, 0).y_TD.any()
    box.close()


def test_dependent_launches_are_for_who_asks_and_has_them() -> None:
    """Compute capability 9.0, Triton's kernels, and a variable of the environment."""
    pytest.importorskip("triton", reason="dependent launches are Triton's", exc_type=ImportError)
    asked = {"HEADRACE_DEPENDENT_LAUNCHES": "1"}
    assert isinstance(gpu_runtime.launches("gpu", (9, 0), asked), gpu_runtime.DependentLaunches)
    for backend, capability, environment in (("gpu", (8, 9), asked), ("gpu", (9, 0), {}), ("reference", (9, 0), asked)):
        assert not isinstance(gpu_runtime.launches(backend, capability, environment), gpu_runtime.DependentLaunches)


def test_launches_behind_a_copy_between_two_gpus_wait_in_the_usual_way() -> None:
    """The second one's first, and the first one's behind its own copies and behind the second one's work."""
    done: list[str] = []

    def device(name: str) -> Any:
        def put(x: torch.Tensor) -> torch.Tensor:
            done.append(f"to {name}")
            return x

        def experts(x_TD: torch.Tensor, *_: object) -> torch.Tensor:
            done.append("experts")
            return x_TD

        return SimpleNamespace(is_cuda=False, put=put, ops=SimpleNamespace(experts=experts))

    local: Any = {0: torch.zeros(4, dtype=torch.int32)}
    second = SecondGpu(device("first"), device("second"), {0: None}, local, lambda: done.append("apart"))  # type: ignore[dict-item]
    x, ids = torch.zeros(1, 8), torch.zeros(1, 2, dtype=torch.int32)
    second.collect(second.submit(0, x, ids, torch.ones(1, 2), torch.zeros(1).bool()))
    assert done == ["to second"] * 3 + ["apart", "experts", "apart", "to first", "apart"]
