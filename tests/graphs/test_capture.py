"""Decode steps captured under the rules that torch 2.11 and Triton have for it, and each of these rules by itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from capture_rules import NOT_PERMITTED, NOT_PINNED, Cuda, refused
from mtp_models import add, layer_tensors
from torch import Tensor

pytest.importorskip("triton", reason="the GPU kernels need Triton", exc_type=ImportError)
from triton.runtime.interpreter import InterpretedFunction

from headrace import LLM
from headrace.engine.cuda_graphs import gpu_runtime, signals, verify
from headrace.engine.cuda_graphs.capture import TorchRecorder
from headrace.engine.cuda_graphs.gpu_runtime import Runtime
from headrace.engine.cuda_graphs.graphed_decode import GraphedDecode
from headrace.engine.cuda_graphs.signals import VARIANTS, Trial
from headrace.engine.devices import device as devices
from headrace.engine.devices.cuda_driver import Driver
from headrace.engine.devices.device import Device
from headrace.engine.devices.streams import HostStream
from headrace.engine.placement.placement import Tier
from headrace.kernels import gpu, load
from headrace.kernels.cpu.mailbox import Mailbox, pages
from headrace.kernels.gpu.pack import pack
from headrace.kernels.gpu.pointwise import gated_add_

META = torch.device("meta")


@pytest.fixture
def cuda(library: str, log: Path, monkeypatch: pytest.MonkeyPatch) -> Cuda:
    driver = Driver(library)
    driver.make_current(0)
    made = Cuda(driver)
    monkeypatch.setattr(InterpretedFunction, "run", partial_method(made.launches))
    return made


def partial_method(launch: Callable[..., None]) -> Callable[..., None]:
    def run(self: Any, *args: Any, **kwargs: Any) -> None:
        launch(self, *args, **kwargs)

    return run


@pytest.fixture
def pinned(cuda: Cuda) -> Iterator[Tensor]:
    """Registered memory of the host: float32 [1024]."""
    memory = pages(4096)
    cuda.driver.register(memory.data_ptr(), memory.nbytes)
    yield memory.view(torch.float32)
    cuda.driver.unregister(memory.data_ptr())


@pytest.fixture
def there() -> Tensor:
    """Memory of the device: float32 [1024]."""
    return torch.empty(1024, device=META)


# ---- the rules


def test_copies_are_between_the_device_and_registered_memory(cuda: Cuda, pinned: Tensor, there: Tensor) -> None:
    pageable = torch.zeros(1024)
    assert refused(lambda: there.copy_(pinned, non_blocking=True), cuda) == ""
    assert refused(lambda: pinned.copy_(there, non_blocking=True), cuda) == ""
    assert refused(lambda: pinned[512:].to(META, non_blocking=True), cuda) == ""
    assert refused(lambda: there.copy_(there + 1), cuda) == ""
    assert refused(lambda: there.copy_(pageable, non_blocking=True), cuda) == NOT_PINNED
    assert refused(lambda: pageable.copy_(there, non_blocking=True), cuda) == NOT_PINNED
    assert refused(lambda: pageable.to(META, non_blocking=True), cuda) == NOT_PINNED
    assert refused(lambda: there.cpu(), cuda) == NOT_PINNED
    assert refused(lambda: torch.tensor([1, 2], device=META), cuda) == NOT_PINNED


def test_the_first_byte_of_the_storage_counts(cuda: Cuda, there: Tensor) -> None:
    """A slice on a page boundary, registered, of memory that begins before it."""
    whole = torch.zeros(3 * 4096, dtype=torch.uint8)
    first = -(whole.data_ptr() + 1) % 4096 + 1
    part = whole[first : first + 4096]
    cuda.driver.register(part.data_ptr(), part.nbytes)
    assert refused(lambda: there.copy_(part.view(torch.float32), non_blocking=True), cuda) == NOT_PINNED
    cuda.driver.unregister(part.data_ptr())


def test_no_copy_is_waited_for(cuda: Cuda, pinned: Tensor, there: Tensor) -> None:
    assert refused(lambda: there.copy_(pinned), cuda) == NOT_PERMITTED
    assert refused(lambda: pinned.copy_(there), cuda) == NOT_PERMITTED
    assert refused(lambda: pinned.to(META), cuda) == NOT_PERMITTED


def test_no_value_is_asked_for(cuda: Cuda, there: Tensor) -> None:
    asking: list[Callable[[], object]] = [
        lambda: there[0].item(), lambda: there.tolist(), lambda: bool(there[0]), lambda: int(there[0]),
        lambda: there.nonzero(), lambda: there.unique(), lambda: there[there > 0], lambda: torch.bincount(there.int()),
        lambda: there.masked_select(there > 0),
    ]  # fmt: skip
    assert [refused(ask, cuda) for ask in asking] == [NOT_PERMITTED] * len(asking)
    assert refused(lambda: there[there.long()].masked_fill(there > 0, -1), cuda) == ""
    assert refused(lambda: torch.ones(3).tolist(), cuda) == "", "the host's own"


def test_no_pinned_memory_is_taken(cuda: Cuda) -> None:
    assert refused(lambda: torch.empty(8, pin_memory=True), cuda) == NOT_PERMITTED
    assert refused(lambda: torch.zeros(8).pin_memory(), cuda) == NOT_PERMITTED


def test_nothing_is_waited_for(cuda: Cuda) -> None:
    stream, event = cuda.Stream(), cuda.Event()
    event.record(stream)
    for wait in (stream.synchronize, event.synchronize, event.query, cuda.synchronize):
        wait()
        assert refused(wait, cuda) == NOT_PERMITTED


def test_kernels_ran_before_and_read_registered_memory(cuda: Cuda, pinned: Tensor) -> None:
    rows = torch.empty(4, 256, device=META)
    assert "_gated_add is launched for the first time" in refused(lambda: gated_add_(rows, rows), cuda)
    gated_add_(rows, rows)
    assert refused(lambda: gated_add_(rows, rows), cuda) == ""
    assert refused(lambda: gated_add_(rows, pinned.view(4, 256)), cuda) == ""
    with pytest.raises(ValueError, match=r"Pointer argument \(at 1\) cannot be accessed from Triton"):
        gated_add_(rows, torch.zeros(4, 256))


# ---- decode steps


def graphed(
    model: str, cuda: Cuda, monkeypatch: pytest.MonkeyPatch, way: str = "memop", **options: Any
) -> tuple[LLM, list[GraphedDecode]]:
    """A model on the stand-in, with its decode steps captured and nothing computed."""
    made: list[GraphedDecode] = []

    def find(config: Any, host: Device) -> dict[Tier, Device]:
        gpu = Device(tier=Tier.GPU0, place=META, backend="gpu", ops=load("gpu"), name="meta", free=10**9)
        return {Tier.CPU: host, Tier.GPU0: gpu}

    def runtime(device: Device) -> tuple[Runtime, str]:
        def recorder() -> TorchRecorder:
            return TorchRecorder(META, cuda)

        return Runtime(driver=cuda.driver, number=0, name="meta", recorder=recorder, pack=pack, stream=HostStream), ""

    def start(how: Any, steps: Any, build: Callable[[], GraphedDecode]) -> Any:
        made.append(build())
        return made[0], how.choice

    works = {name: Trial(name=name, us=5.0) for name in VARIANTS}
    monkeypatch.setattr(signals, "probe", lambda *_: works)
    monkeypatch.setattr(devices, "find", find)
    monkeypatch.setattr(gpu_runtime, "find", runtime)
    monkeypatch.setattr(verify, "start", start)
    return LLM(model, device="cuda", max_context=64, max_sequences=3, handoff=way, **options), made


@pytest.mark.parametrize("options", [{"cpu_moe": True}, {"n_cpu_moe": 2}, {"placement": "gpu"}], ids=str)
@pytest.mark.parametrize(
    "variant", ["qwen3_moe", "qwen2_moe", "granitemoe", "gpt_oss", "deepseek_v2-groups", "deepseek_v3", "qwen3_next"]
)
def test_decode_steps_can_be_captured(
    variant: str, options: dict[str, Any], built: Any, cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Experts in RAM, on the GPU and on both, with a shared expert and without, with every kind of mixer and router."""
    llm, made = graphed(str(built.directory(variant)), cuda, monkeypatch, **options)
    with llm:
        assert len(made[0].graphs.graphs) == 3
        if made[0].mailbox is not None:
            assert made[0].mailbox.box.served() == 3 * len(made[0].mailbox.layers), "each size ran once"


def test_steps_with_kernels_that_wait_can_be_captured(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody posts here, since no kernel runs: that a step has an answer is left out."""
    monkeypatch.setattr(Mailbox, "check", lambda self: None)
    llm, made = graphed("demo", cuda, monkeypatch, way="spin", cpu_moe=True)
    with llm:
        assert len(made[0].graphs.graphs) == 3
        names = cuda.launches.names
        layers = llm.spec.moe_layers
        assert names.count("_post") == names.count("_wait") == 2 * 3 * layers, "each size runs once and is captured"
        assert names[-1] == "_best", "the likeliest tokens are found in the graph"


def test_the_mailbox_begins_where_its_storage_does(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch and the driver speak of the same byte; and all of it is registered."""
    llm, made = graphed("demo", cuda, monkeypatch, cpu_moe=True)
    with llm:
        mailbox = made[0].mailbox
        assert mailbox is not None
        assert mailbox.memory.untyped_storage().data_ptr() == mailbox.memory.data_ptr()
        assert mailbox.memory.untyped_storage().nbytes() == mailbox.memory.nbytes
        assert mailbox.memory.data_ptr() % 4096 == 0
        assert all(map(cuda.registered, (mailbox.memory.data_ptr(), mailbox.memory[-8:].data_ptr())))


# ---- nodes

BEFORE = ["_norm_linear", "_decode_placed", "_linear_one", "_norm_route"]  # a token's experts, grouped-query attention
IN_RAM = ["_add_rmsnorm", *BEFORE]  # x is brought up to date from the host's memory, by one kernel
EXPERTS, JOB = ["_gate_up", "_down"], ["_pack", "batch", "wait"]
# Of a layer with experts that is neither the first nor the last: in VRAM, and beside experts in RAM. A copy of this is
# in docs/gpu-kernels.md.
NODES = {
    ("gpt_oss", 2): (6, 8),
    ("granitemoe", 1): (6, 8),
    ("olmoe", 1): (8, 10),
    ("exaone_moe", 2): (10, 11),
    ("qwen2_moe", 1): (11, 12),
    ("llama4_text", 3): (18, 17),
    ("gemma4_text", 2): (23, 24),
    ("deepseek_v3", 1): (25, 26),
    ("qwen3_next", 1): (22, 23),
}


def layers_of(cuda: Cuda, monkeypatch: pytest.MonkeyPatch, model: str, **options: Any) -> list[list[str]]:
    """The nodes of each layer of a step of one sequence, the last one's with the end of the step."""
    whole = gpu.attention_block

    def marked(*args: Any) -> Any:
        cuda.nodes.append("|")
        return whole(*args)

    with monkeypatch.context() as patch:
        patch.setattr(gpu, "attention_block", marked)
        llm, _ = graphed(model, cuda, patch, **options)
    with llm:
        return [part.split() for part in " ".join(cuda.captured[-1]).split("|")[1:]]  # the smallest size comes last


@pytest.mark.parametrize("is_in_ram", [False, True])
def test_a_layer_of_grouped_query_attention_has_few_nodes(
    is_in_ram: bool, built: Any, cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most 8 in VRAM and 9 beside experts in RAM are wanted."""
    options: dict[str, Any] = {"cpu_moe": True} if is_in_ram else {"placement": "gpu"}
    first, *between, last = layers_of(cuda, monkeypatch, str(built.directory("gpt_oss")), **options)
    assert first == [*BEFORE, *(JOB if is_in_ram else EXPERTS)]
    assert between == [[*IN_RAM, *JOB] if is_in_ram else first] * 2
    ends = ["_add_rmsnorm", "_linear_one", "_best", *([] if is_in_ram else ["stack", "copy_"])]
    assert last[: len(between[0])] == between[0]
    assert last[len(between[0]) :][: len(ends)] == ends, "the likeliest token is found in the graph"


@pytest.mark.parametrize(("variant", "layer"), NODES)
def test_nodes_of_every_mixer(
    variant: str, layer: int, built: Any, cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(built.directory(variant))
    in_vram = layers_of(cuda, monkeypatch, model, placement="gpu")[layer]
    in_ram = layers_of(cuda, monkeypatch, model, cpu_moe=True)[layer]
    assert (len(in_vram), len(in_ram)) == NODES[variant, layer], f"{in_vram}, {in_ram}"


@pytest.mark.parametrize("options", [{"cpu_moe": True}, {"placement": "gpu"}], ids=str)
@pytest.mark.parametrize("variant", ["qwen3_moe", "deepseek_v3", "qwen3_next"])
def test_hidden_states_for_a_layer_that_drafts_are_one_more_node(
    variant: str, options: dict[str, Any], built: Any, cuda: Cuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A copy at the end of a step; where the layer is not used, a step is as it is of a model without."""
    plain, model = built.directory(variant), tmp_path / "model"
    shutil.copytree(plain, model)
    add(variant, model, layer_tensors(variant, plain))
    without = layers_of(cuda, monkeypatch, str(plain), **options)
    assert layers_of(cuda, monkeypatch, str(model), speculate="off", **options) == without
    *between, last = layers_of(cuda, monkeypatch, str(model), speculate="mtp", **options)
    assert between == without[:-1]
    assert last == [*without[-1], "copy_"]
