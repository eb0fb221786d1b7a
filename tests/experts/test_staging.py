"""A pass's inputs go up by one copy, from a buffer that is not written again before that copy is done."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from headrace import LLM, SamplingParams
from headrace.engine.cuda_graphs.capture import Static
from headrace.engine.devices.device import Device
from headrace.engine.ledger.timers import Timers
from headrace.engine.model.batch import Inputs
from headrace.engine.model.inputs import DeviceInputs, largest_pass
from headrace.engine.model.staging import ALIGN, Shape, StagingBuffer, parts, shape_of
from headrace.engine.placement.placement import Tier
from headrace.kernels import reference
from headrace.kernels.decoder_layer import Pages, Piece, Places

CPU, ELSEWHERE = torch.device("cpu"), torch.device("meta")
SHAPES = [
    Shape(tokens=1, sequences=1, pages=1, rows=1),
    Shape(tokens=7, sequences=3, pages=5, rows=2),
    Shape(tokens=16, sequences=1, pages=3, rows=0, hidden=24),
    Shape(tokens=5, sequences=5, pages=2, rows=5, hidden=33),
    Shape(tokens=2, sequences=2, pages=1, rows=2, has_states=True),
    Shape(tokens=9, sequences=2, pages=3, rows=1, hidden=8, has_states=True, cuts=3),
    Shape(tokens=7, sequences=3, pages=5, rows=2, windows=1),
    Shape(tokens=9, sequences=2, pages=3, rows=1, hidden=8, has_states=True, cuts=3, windows=2),
]


def some_pass(shape: Shape, seed: int = 0) -> Inputs:
    """A pass of this shape with other values for every seed."""
    generator = torch.Generator().manual_seed(seed)

    def some(*size: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.randint(1, 1 << 20, size, generator=generator).to(dtype)

    T, S, longs = shape.tokens, shape.sequences, torch.int64
    places = Places(
        positions_T=some(T), slots_T=some(T, dtype=longs), tables_SM=some(S, shape.pages), starts_S1=some(S + 1),
        contexts_S=some(S), states_S=some(S) if shape.has_states else None,
        pieces=tuple(
            Piece(first=n, last=n + 1, states_S=some(1), starts_S1=some(2), contexts_S=some(1), slot=n, keep=None)
            for n in range(shape.cuts)
        ),
        windows=tuple(Pages(some(T, dtype=longs), some(S, shape.pages)) for _ in range(shape.windows)),
    )  # fmt: skip
    x_TD = torch.randn(T, shape.hidden, generator=generator) if shape.hidden else None
    return Inputs(
        ids_T=some(T, dtype=longs), places=places, spans=((T, seed),), rows=some(shape.rows, dtype=longs), x_TD=x_TD
    )


def tensors(inputs: Inputs) -> dict[str, Tensor]:
    found = {name: t for name, t in vars(inputs.places).items() if isinstance(t, Tensor)}
    found |= {"ids": inputs.ids_T, "rows": inputs.rows}
    for kind, window in enumerate(inputs.places.windows):
        found |= {f"slots of window {kind}": window.slots_T, f"tables of window {kind}": window.tables_SM}
    for piece in inputs.places.pieces:
        found |= {f"{name} of the piece {piece.first}": t for name, t in vars(piece).items() if isinstance(t, Tensor)}
    return found if inputs.x_TD is None else {**found, "x": inputs.x_TD}


def is_same(one: Inputs, other: Inputs) -> bool:
    a, b = tensors(one), tensors(other)
    return set(a) == set(b) and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_comes_out_is_what_went_in(shape: Shape) -> None:
    staging, given = StagingBuffer(CPU, max(shape, SHAPES[3], key=lambda one: one.nbytes)), some_pass(shape, 3)
    assert shape_of(given) == shape
    found = staging.take(given)
    assert is_same(found, given)
    assert found.spans == given.spans
    assert (found.ids_T is given.ids_T) == bool(shape.hidden), "ids whose rows were looked up stay"
    assert all(t.is_contiguous() for t in tensors(found).values())


@pytest.mark.parametrize("shape", SHAPES)
def test_every_part_begins_like_a_tensor_of_its_own(shape: Shape) -> None:
    block = torch.zeros(shape.nbytes + ALIGN, dtype=torch.uint8)
    block = block[-block.data_ptr() % ALIGN :][: shape.nbytes]
    found = parts(block, shape)
    for part in tensors(found.inputs(torch.zeros(0), (), some_pass(shape).places.pieces)).values():
        assert part.numel() == 0 or part.data_ptr() % ALIGN == 0 or part.data_ptr() == 0


def test_blocks_of_other_passes_do_not_change() -> None:
    """The same buffer several times: what went up before is kept by whoever has it."""
    staging = StagingBuffer(CPU, SHAPES[1])
    given = [some_pass(SHAPES[seed % 2], seed) for seed in range(6)]
    found = [staging.take(one) for one in given]
    assert all(map(is_same, found, given))


def test_a_pass_that_is_too_large_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="the buffer has"):
        StagingBuffer(CPU, SHAPES[0]).take(some_pass(SHAPES[3]))


# ---- one copy


class Crossings(TorchDispatchMode):
    """Counts copies of torch that bring something from RAM to another device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        from_ram = any(isinstance(a, Tensor) and a.device == CPU for a in args)
        self.count += from_ram and isinstance(out, Tensor) and out.device == ELSEWHERE
        return out


@pytest.mark.parametrize("shape", SHAPES)
def test_an_eager_pass_costs_one_copy(shape: Shape) -> None:
    ops: Any = reference
    device = Device(tier=Tier.GPU0, place=ELSEWHERE, backend="gpu", ops=ops, name="elsewhere", free=1)
    main = DeviceInputs(device=device, table=device, timers=Timers(), staging=StagingBuffer(ELSEWHERE, shape))
    given = some_pass(shape)
    with Crossings() as crossed:
        found = main.take(given)
    assert crossed.count == 1
    assert {t.device for name, t in tensors(found).items() if name != "ids" or not shape.hidden} == {ELSEWHERE}
    with Crossings() as crossed:
        device.put(given.rows)
        device.put(given.places.slots_T)
    assert crossed.count == 2, "that copies are seen at all"


@pytest.mark.parametrize("hidden", [0, 16])
def test_a_graphed_step_costs_one_copy(hidden: int) -> None:
    static = Static(4, 6, 50, ELSEWHERE, hidden)
    with Crossings() as crossed:
        static.load(some_pass(Shape(tokens=3, sequences=3, pages=5, rows=3, hidden=hidden)))
    assert crossed.count == 1
    assert static.padding_B.device == static.inputs.places.tables_SM.device == ELSEWHERE


@pytest.mark.parametrize("placement", ["cpu-moe", "gpu"])
def test_every_pass_of_a_model_sends_one_block(placement: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    inner = StagingBuffer.copy

    def copy(self: StagingBuffer, there: Tensor, here: Tensor) -> None:
        sent.append(len(here))
        inner(self, there, here)

    monkeypatch.setattr(StagingBuffer, "copy", copy)
    options: dict[str, Any] = {"max_context": 96, "max_sequences": 3, "prefill_chunk": 16}
    llm = LLM("demo", device="simulated", placement=placement, **options)
    assert not sent
    prompts = [list(range(3, 43)), [4, 5], [7]]
    params = SamplingParams(max_new_tokens=6, ignore_eos=True)
    tokens = [one.token_ids for one in llm.generate(prompts, params)]
    assert len(sent) == len(llm.ledger.passes)
    booked = [done.bytes["h2d"]["inputs"] for done in llm.ledger.passes]
    parts_of_a_pass = 8
    assert all(size - ALIGN * parts_of_a_pass < book <= size for size, book in zip(sent, booked, strict=True))
    assert llm.logits(prompts[0]).shape[0] == 40, "logits of all rows fit, too"
    assert tokens == [one.token_ids for one in LLM("demo", **options).generate(prompts, params)]


# ---- reuse


class LateBuffer(StagingBuffer):
    """Copies come late, in a thread of their own; the mark is set when they are done. Where nobody heeds it, they come
    after `heed`."""

    def __init__(self, largest: Shape, heeds: bool) -> None:
        super().__init__(CPU, largest)
        self.jobs: queue.Queue[Callable[[], None]] = queue.Queue()
        self.gate = threading.Event()
        self.event = LateEvent(self.jobs, heeds)  # type: ignore[assignment]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            self.jobs.get()()

    def heed(self) -> None:
        """All was given; from now on the mark is heeded."""
        self.gate.set()
        self.event.heeds = True  # type: ignore[attr-defined]

    def copy(self, there: Tensor, here: Tensor) -> None:
        def late() -> None:
            if self.event.heeds:  # type: ignore[attr-defined]
                time.sleep(0.01)
            else:
                assert self.gate.wait(20)
            there.copy_(here)

        self.jobs.put(late)


class LateEvent:
    def __init__(self, jobs: queue.Queue[Callable[[], None]], heeds: bool) -> None:
        self.jobs, self.heeds, self.last = jobs, heeds, threading.Event()
        self.last.set()

    def set(self) -> None:
        self.last = threading.Event()
        self.jobs.put(self.last.set)

    def wait(self) -> None:
        if self.heeds:
            assert self.last.wait(20)


@pytest.mark.parametrize("heeds", [True, False])
def test_the_buffer_is_not_written_before_its_copy_is_done(heeds: bool) -> None:
    """And that the test can fail: without waiting, passes get the values of later ones."""
    staging = LateBuffer(SHAPES[1], heeds)
    given = [some_pass(SHAPES[1], seed) for seed in range(4)]
    found = [staging.take(one) for one in given]
    staging.heed()
    staging.event.wait()
    assert all(map(is_same, found, given)) == heeds


@pytest.mark.parametrize("heeds", [True, False])
def test_the_same_holds_for_steps_of_a_graph(heeds: bool) -> None:
    """A step's inputs are read after its copy; the next step is loaded meanwhile."""
    static, given = Static(2, 5, 9, CPU), Shape(tokens=2, sequences=2, pages=5, rows=2)
    static.staging = LateBuffer(static.shape, heeds)
    seen: list[Tensor] = []
    for seed in range(3):
        static.load(some_pass(given, seed))
        static.staging.jobs.put(lambda: seen.append(static.inputs.ids_T.clone()))
    static.staging.event.set()
    static.staging.heed()
    static.staging.event.wait()
    assert all(map(torch.equal, seen, [some_pass(given, seed).ids_T for seed in range(3)])) == heeds


def test_a_buffer_for_the_largest_pass() -> None:
    """40 tokens in all of 3 sequences, the longest of 70 tokens: 3 pages; logits of every row."""
    shape = largest_pass(40, 3, 70, hidden=8, has_states=False)
    assert shape == Shape(tokens=40, sequences=3, pages=3, rows=40, hidden=8)
    wanted = 40 * 8 + 40 * 8 + 192 + 64 + 64 + 64 + 40 * 8 * 4
    assert shape.nbytes == wanted
    more = largest_pass(40, 3, 70, hidden=8, has_states=True)
    assert more.nbytes == wanted + 64 + 6 * 3 * 64, "slots, and three parts of each of two pieces of a sequence"


def test_rows_without_a_sequence_have_the_spare_slot() -> None:
    static = Static(4, 6, 50, CPU, spare_slot=77)
    given = some_pass(Shape(tokens=3, sequences=3, pages=5, rows=3, has_states=True))
    static.load(given)
    assert static.inputs.places.states_S is not None
    assert given.places.states_S is not None
    assert static.inputs.places.states_S.tolist() == [*given.places.states_S.tolist(), 77]
    static.load(None)
    assert static.inputs.places.states_S.tolist() == [77] * 4
