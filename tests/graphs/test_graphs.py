"""Decode steps as graphs, experts through the mailbox: with a stand-in that replays by calling the step again."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from stand_in_gpu import InTurn, Replayed
from torch import Tensor

from headrace import LLM, SamplingParams
from headrace.engine.cuda_graphs.capture import DecodeGraphs, Static, TorchRecorder
from headrace.engine.cuda_graphs.mailbox_experts import MailboxExperts, copy_job
from headrace.engine.cuda_graphs.signals import Eager, MemOps, Signals
from headrace.engine.devices.cuda_driver import Driver
from headrace.engine.experts.backend import Chosen
from headrace.engine.ledger.passes import LayerWork
from headrace.engine.model.batch import Inputs, sizes_up_to
from headrace.engine.model.decoder import Ends, Output
from headrace.engine.model.kv_cache import PAGE, pages_for
from headrace.errors import DeviceError
from headrace.kernels import FORMATS, ExpertLayout, reference
from headrace.kernels.cases.case import RandomSource
from headrace.kernels.context import Context
from headrace.kernels.cpu.mailbox import Mailbox

CPU = torch.device("cpu")
PROMPTS = [[5, 9, 2, 7], [3], [11, 4, 4, 8, 1, 6], [2, 12], [8, 8, 8]]


class FakeRecorder:
    """Captures without running, as CUDA does."""

    handle = 0

    def __init__(self) -> None:
        self.calls: list[str] = []

    def run(self, step: Callable[[], None]) -> None:
        self.calls.append("run")
        step()

    def capture(self, step: Callable[[], None]) -> Replayed:
        self.calls.append("capture")
        return Replayed(step)

    def replay(self, graph: Replayed, meanwhile: Callable[[], None]) -> None:
        self.calls.append("replay")
        graph.replay()
        meanwhile()


class GraphDecoder:
    """Puts decode graphs and a mailbox before a loaded model's decoder; prompts go the old way."""

    def __init__(self, llm: LLM, most: int, timeout: float = 10.0, driver: Driver | None = None) -> None:
        layers = [(n, layer.experts) for n, layer in enumerate(llm.parts.weights.layers) if layer.experts is not None]
        numbers, banks = zip(*layers, strict=True)
        sizes = sizes_up_to(most)
        self.mailbox = Mailbox(
            banks, context=llm.parts.context, layers=numbers, top_k=llm.spec.moe.top_k, batches=sizes, timeout=timeout
        )
        self.llm, self.decoder, self.forward = llm, llm.parts.decoder, llm.parts.decoder.forward
        self.experts = self._experts(driver)
        self.recorder, self.steps = FakeRecorder(), 0
        self.graphs = DecodeGraphs(
            self.step,
            self.experts,
            self.recorder,
            sizes=sizes,
            pages=pages_for(llm.parts.kv_budget.max_context),
            spare_page=llm.loop.pages.allocate(1)[0],
            device=CPU,
        )
        with torch.inference_mode():
            self.graphs.capture()
        llm.parts.decoder.forward = self.run  # type: ignore[method-assign]

    def _experts(self, driver: Driver | None) -> MailboxExperts:
        """By hand, or in a stream of a driver."""
        way: Signals = Eager(None, self.mailbox)
        if driver is None:
            return MailboxExperts(self.mailbox, way, lambda: 0)
        driver.register(self.mailbox.memory.data_ptr(), self.mailbox.memory.nbytes)
        stream, way = driver.stream(), MemOps(driver, self.mailbox.memory)
        return MailboxExperts(self.mailbox, way, lambda: stream)

    def step(self, inputs: Inputs) -> Ends:
        return self.decoder.run(inputs, Answers(self.experts))

    def run(self, inputs: Inputs, *rest: Any) -> Output:
        if len(inputs.ids_T) > len(inputs.rows) or len(inputs.ids_T) > self.graphs.sizes[-1]:
            return self.forward(inputs, *rest)
        self.steps += 1
        return Output(self.graphs.run(inputs).logits.clone(), {})


class Answers:
    """The mailbox's experts as a backend by themselves; nobody asks what they read."""

    def __init__(self, mail: MailboxExperts) -> None:
        self.mail = mail

    def submit(self, layer: int, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Any:
        return layer, ids_TK, self.mail.submit(layer, x_TD, ids_TK, weights_TK)

    def collect(self, job: Any) -> tuple[Tensor, Chosen]:
        layer, ids_TK, posted = job
        return self.mail.collect(posted), Chosen(layer, ids_TK)

    def work(self, chosen: Chosen) -> LayerWork:
        raise AssertionError("a step that is replayed was asked what it read")


@pytest.fixture
def model(built: Any) -> Iterator[LLM]:
    with LLM(str(built.directory("qwen2_moe")), max_context=96, max_sequences=5) as llm:
        yield llm


def tokens(llm: LLM, prompts: list[list[int]], new: int = 12) -> list[list[int]]:
    done = llm.generate(prompts, SamplingParams(max_new_tokens=new, ignore_eos=True))
    return [one.token_ids for one in done]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_same_tokens_as_without_graphs(model: LLM, count: int) -> None:
    wanted = tokens(model, PROMPTS[:count])
    decode = GraphDecoder(model, 8)
    assert tokens(model, PROMPTS[:count]) == wanted
    assert decode.steps >= 11
    runs = [graph.runs for graph in decode.graphs.graphs]
    assert sum(runs) == decode.steps
    assert runs[sizes_up_to(count)[-1].bit_length() - 1] >= 11
    assert decode.recorder.calls[:8] == ["run", "capture"] * 4
    decode.mailbox.close()


def test_sequences_that_end_early_change_the_size(model: LLM) -> None:
    params = [SamplingParams(max_new_tokens=n, ignore_eos=True) for n in (3, 20, 7)]
    wanted = [one.token_ids for one in model.generate(PROMPTS[:3], params)]
    decode = GraphDecoder(model, 4)
    assert [one.token_ids for one in model.generate(PROMPTS[:3], params)] == wanted
    assert all(graph.runs for graph in decode.graphs.graphs)
    decode.mailbox.close()


def test_the_same_tokens_through_a_driver_s_stream(model: LLM, library: str) -> None:
    wanted = tokens(model, PROMPTS[:2])
    driver = InTurn(library)
    decode = GraphDecoder(model, 2, driver=driver)
    assert tokens(model, PROMPTS[:2]) == wanted
    decode.mailbox.close()
    driver.unregister(decode.mailbox.memory.data_ptr())


def test_padding_reads_no_expert(model: LLM) -> None:
    """Three sequences in a graph of four: the bytes are those of the experts that three tokens chose."""
    decode = GraphDecoder(model, 4)
    chosen: list[set[int]] = []
    inner = decode.experts.submit

    def submit(layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Any:
        chosen.append(set(ids[:3].flatten().tolist()))
        return inner(layer, x, ids, weights)

    decode.experts.submit = submit  # type: ignore[method-assign]
    tokens(model, PROMPTS[:3], 2)
    layers = len(decode.mailbox.banks)
    assert decode.experts.bytes_read(2) == sum(map(len, chosen[-layers:])) * decode.mailbox.banks[0].layout.bytes
    decode.mailbox.close()


def test_a_failed_step_gives_no_token(model: LLM) -> None:
    decode = GraphDecoder(model, 1)
    inner = decode.experts.submit

    def submit(layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Any:
        return inner(layer, x, torch.full_like(ids, 99), weights)

    decode.experts.submit = submit  # type: ignore[method-assign]
    with pytest.raises(DeviceError, match="expert id 99"):
        tokens(model, PROMPTS[:1])
    decode.mailbox.close()


def test_what_cannot_be_captured_is_named(model: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: FakeRecorder, step: Callable[[], None]) -> None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(FakeRecorder, "capture", refuse)
    with pytest.raises(DeviceError, match=r"step of 2 sequences cannot be captured .*not permitted.*'eager'"):
        GraphDecoder(model, 2)


# Pieces


def test_sizes_are_powers_of_two() -> None:
    assert [sizes_up_to(n) for n in (1, 2, 3, 8, 9)] == [[1], [1, 2], [1, 2, 4], [1, 2, 4, 8], [1, 2, 4, 8, 16]]


def inputs_of(count: int, width: int) -> Inputs:
    generator = torch.Generator().manual_seed(count)

    def some(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.randint(1, 90, shape, generator=generator).to(dtype)

    static = Static(count, width, 0, CPU).inputs
    places = dataclasses.replace(
        static.places, positions_T=some(count), slots_T=some(count, dtype=torch.int64), tables_SM=some(count, width),
        contexts_S=some(count),
    )  # fmt: skip
    return dataclasses.replace(static, ids_T=some(count, dtype=torch.int64), places=places)


def test_inputs_keep_their_places_and_are_padded() -> None:
    static = Static(4, 6, 50, CPU)
    before = [static.inputs.ids_T.data_ptr(), static.inputs.places.tables_SM.data_ptr(), static.padding_B.data_ptr()]
    for count in (4, 1, 3):
        given = inputs_of(count, 5)
        static.load(given)
        now, places = static.inputs, static.inputs.places
        assert torch.equal(now.ids_T[:count], given.ids_T)
        assert torch.equal(places.positions_T[:count], given.places.positions_T)
        assert torch.equal(places.slots_T[:count], given.places.slots_T)
        assert torch.equal(places.contexts_S[:count], given.places.contexts_S)
        assert torch.equal(places.tables_SM[:count, :5], given.places.tables_SM)
        assert places.starts_S1.tolist() == [0, 1, 2, 3, 4]
        assert now.rows.tolist() == [0, 1, 2, 3]
        assert (places.tables_SM[count:] == 50).all()
        assert places.contexts_S[count:].tolist() == [1] * (4 - count)
        assert places.slots_T[count:].tolist() == [50 * PAGE + n for n in range(4 - count)]
        assert static.padding_B.tolist() == [False] * count + [True] * (4 - count)
        assert [now.ids_T.data_ptr(), places.tables_SM.data_ptr(), static.padding_B.data_ptr()] == before


def test_experts_of_other_tiers_are_left_out() -> None:
    """A bank with three of five experts, as `local` numbers them: what is posted is their part of the sum."""
    source = RandomSource(torch.Generator().manual_seed(2))
    whole = source.bank(ExpertLayout(format=FORMATS["bf16"], hidden=32, width=32), 5)
    mine = dataclasses.replace(whole, data=whole.data[[4, 0, 2]].contiguous())
    mailbox = Mailbox([mine], context=Context(), layers=[7], top_k=2, batches=[2])
    local = torch.tensor([1, -1, 2, -1, 0], dtype=torch.int32)
    experts = MailboxExperts(mailbox, Eager(None, mailbox), lambda: 0, {7: local})
    x = torch.randn(2, 32, generator=source.generator)
    ids, weights = torch.tensor([[0, 1], [2, 4]], dtype=torch.int32), torch.tensor([[0.3, 0.7], [0.6, 0.4]])
    experts.use(0, torch.tensor([False, False]))
    mailbox.begin(0)
    y = experts.collect(experts.submit(7, x, ids, weights))
    wanted = reference.experts(x, torch.tensor([[0, -1], [2, 4]], dtype=torch.int32), weights, whole)
    assert (y - wanted).norm() < 0.01 * wanted.norm()
    assert experts.bytes_read(0) == 3 * mine.layout.bytes
    mailbox.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_local", [False, True])
def test_the_kernel_writes_the_job_that_copies_do(dtype: torch.dtype, has_local: bool) -> None:
    pytest.importorskip("triton", reason="the GPU kernels need Triton", exc_type=ImportError)
    from headrace.kernels.gpu.pack import pack

    g = torch.Generator().manual_seed(4)
    for tokens, hidden, top_k in ((1, 40, 1), (3, 1100, 3), (4, 2048, 8)):
        x = torch.randint(-99, 99, (tokens, hidden), generator=g).float()  # bfloat16 holds these
        ids = torch.randint(0, 9, (tokens, top_k), generator=g).to(torch.int32)
        weights, padding = torch.rand(tokens, top_k, generator=g), torch.arange(tokens) >= 2
        local = torch.tensor([3, -1, 0, 2, -1, 1, -1, 4, 5], dtype=torch.int32) if has_local else None
        slots = [(torch.full_like(ids, 77), torch.zeros_like(weights), torch.zeros_like(x, dtype=dtype)) for _ in "ab"]
        for write, slot in zip((copy_job, pack), slots, strict=True):
            write(slot, x, ids, weights, local, padding)
        assert all(map(torch.equal, *slots))
        assert (slots[0][0][2:] == -1).all()


class FakeCuda:
    """The part of torch.cuda that `TorchRecorder` uses; writes down what is called."""

    def __init__(self) -> None:
        self.calls: list[object] = []
        cuda = self

        class Stream:
            cuda_stream = 1234

            def __init__(self, device: torch.device) -> None:
                cuda.calls.append(("stream", str(device)))

            def synchronize(self) -> None:
                cuda.calls.append("synchronize")

            def wait_stream(self, other: str) -> None:
                cuda.calls.append(f"after {other}")

        class Event:
            def __init__(self, blocking: bool) -> None:
                assert blocking, "the waiting thread would spin"

            def record(self, stream: Stream) -> None:
                cuda.calls.append("record")

            def synchronize(self) -> None:
                cuda.calls.append("sleep")

        class CUDAGraph:
            def replay(self) -> None:
                cuda.calls.append("replay")

        self.Stream, self.Event, self.CUDAGraph = Stream, Event, CUDAGraph

    def current_stream(self, device: torch.device) -> str:
        return f"what {device} was given"

    def graph_pool_handle(self) -> str:
        return "pool"

    @contextlib.contextmanager
    def stream(self, stream: object) -> Iterator[None]:
        self.calls.append("enter")
        yield
        self.calls.append("leave")

    @contextlib.contextmanager
    def graph(self, graph: object, **options: Any) -> Iterator[None]:
        assert options.pop("stream").cuda_stream == 1234
        self.calls.append(("capture", options))
        yield
        self.calls.append("captured")


def test_how_torch_is_asked() -> None:
    cuda = FakeCuda()
    recorder = TorchRecorder(torch.device("cuda", 1), cuda)
    assert recorder.handle == 1234
    recorder.run(lambda: cuda.calls.append("step"))
    graph = recorder.capture(lambda: cuda.calls.append("step"))
    recorder.replay(graph, lambda: cuda.calls.append("meanwhile"))
    options = {"pool": "pool", "capture_error_mode": "thread_local"}
    assert cuda.calls == [
        ("stream", "cuda:1"), "after what cuda:1 was given", "enter", "step", "leave", "synchronize",
        ("capture", options), "step", "captured",
        "after what cuda:1 was given", "enter", "replay", "record", "leave", "meanwhile", "sleep",
    ]  # fmt: skip


def test_the_device_is_waited_for_whatever_the_host_does_meanwhile() -> None:
    cuda = FakeCuda()
    recorder = TorchRecorder(torch.device("cuda", 0), cuda)

    def fails() -> None:
        raise ValueError("made up")

    with pytest.raises(ValueError, match="made up"):
        recorder.replay(cuda.CUDAGraph(), fails)
    assert cuda.calls[-1] == "sleep"
