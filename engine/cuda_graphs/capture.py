"""Decode steps as graphs: one for each batch size, captured once, replayed with new inputs in the same places.

    load      token ids, positions, pages of this step into tensors that never move, padded to a captured size
    begin     the mailbox is told which size comes
    replay    the whole step, experts on the CPU included (`mailbox_experts.py`), without Python; its last nodes copy
              logits, and hidden states that something goes on from, into tensors that never move either
    check     a wait that could not be satisfied ended all the same: then the logits are of no use, and this raises

Who captures and replays is a `Recorder`: torch's CUDA graphs, or a stand-in that calls the step again, so that all of
this runs without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from ...errors import DeviceError, HeadraceError, first_words
from ..model.batch import Inputs
from ..model.decoder import Ends
from ..model.kv_cache import PAGE
from ..model.staging import Parts, Shape, StagingBuffer, parts

Step = Callable[[Inputs], Ends]  # a forward pass


def nothing() -> None:
    """The host has nothing to do meanwhile."""


class Launches:
    """How kernels of a step are launched: here each in the usual way, after all of the one before it has ended."""

    def within(self, wanted: bool) -> AbstractContextManager[None]:
        """Within it, if `wanted`, a kernel may be made ready while the one before it runs."""
        return nullcontext()

    def apart(self) -> None:
        """What comes next waits in the usual way for what came before."""


class Graph(Protocol):
    """A captured step."""

    def replay(self) -> None:
        """Enqueues it."""


class Recorder(Protocol):
    """Runs and captures steps in a stream of its own, after what the caller's stream was given before."""

    @property
    def handle(self) -> int:
        """The stream, for the driver."""

    def run(self, step: Callable[[], None]) -> None:
        """Runs it and waits for its end."""

    def capture(self, step: Callable[[], None]) -> Graph:
        """Records it; on a GPU nothing of it runs."""

    def replay(self, graph: Graph, meanwhile: Callable[[], None]) -> None:
        """Replays it and waits for its end; `meanwhile` is called when it was given to the device."""


class TorchRecorder:
    """CUDA graphs of torch, which share one pool of memory: only one runs at a time. `cuda` is torch.cuda.

    The thread that waits for a replay sleeps: if it span, it would take a core from a team that has a thread for each.
    """

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self.cuda, self.device = cuda, device
        self.stream = cuda.Stream(device)
        self.pool = cuda.graph_pool_handle()
        self.over = cuda.Event(blocking=True)

    @property
    def handle(self) -> int:
        """The stream, for the driver."""
        return int(self.stream.cuda_stream)

    def run(self, step: Callable[[], None]) -> None:
        self.stream.wait_stream(self.cuda.current_stream(self.device))
        with self.cuda.stream(self.stream):
            step()
        self.stream.synchronize()

    def capture(self, step: Callable[[], None]) -> Graph:
        """Errors of this thread alone end a capture: others may load modules or copy meanwhile."""
        graph: Graph = self.cuda.CUDAGraph()
        with self.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            step()
        return graph

    def replay(self, graph: Graph, meanwhile: Callable[[], None]) -> None:
        self.stream.wait_stream(self.cuda.current_stream(self.device))  # the inputs are copied there
        with self.cuda.stream(self.stream):
            graph.replay()
            self.over.record(self.stream)
        try:
            meanwhile()
        finally:
            self.over.synchronize()


class Static:
    """The inputs of a decode step of `size` sequences with tables of `pages` pages, in places that never change.

    Rows without a sequence write and read the spare page, and are marked in `padding_B`. hidden: of embedding rows that
    are looked up before the step, 0 where the step does that. spare_slot: of recurrent states, what the spare page is
    of the cache; None: the model has none. windows: as in `Shape`; there page 0 is the spare one. A step costs one copy
    (`model/staging.py`).
    """

    def __init__(
        self,
        size: int,
        pages: int,
        spare_page: int,
        place: torch.device,
        hidden: int = 0,
        spare_slot: int | None = None,
        windows: int = 0,
    ) -> None:
        self.size, self.pages, self.spare_page, self.spare_slot = size, pages, spare_page, spare_slot
        self.shape = Shape(
            tokens=size, sequences=size, pages=pages, rows=size, hidden=hidden, is_padded=True,
            has_states=spare_slot is not None, windows=windows,
        )  # fmt: skip
        self.staging = StagingBuffer(place, self.shape)
        self.there = torch.zeros(self.shape.nbytes, dtype=torch.uint8, device=place)
        found = parts(self.there, self.shape)
        assert found.padding_T is not None, "padding that is not marked"
        self.inputs, self.padding_B = found.inputs(torch.zeros(size, dtype=torch.int64), ()), found.padding_T
        self.count = -1  # sequences of the last step: rows behind them are as they are to be
        self.load(None)

    def load(self, inputs: Inputs | None) -> None:
        """Brings the inputs of a step into their places; None: no sequences at all."""
        to, count = self.staging.open(self.shape), 0 if inputs is None else len(inputs.ids_T)
        if count != self.count:
            self._pad(to, count)
            self.count = count
        if inputs is not None:
            self._load(to, inputs, count)
        self.staging.send(self.there)

    def _pad(self, to: Parts, count: int) -> None:
        """What does not change from step to step of so many sequences."""
        places, rest = to.places, slice(count, self.size)
        places.starts_S1.copy_(torch.arange(self.size + 1))
        to.rows.copy_(torch.arange(self.size))
        if to.ids_T is not None:
            to.ids_T[rest] = 0
        places.positions_T[rest], places.contexts_S[rest] = 0, 1
        places.slots_T[rest] = self.spare_page * PAGE + torch.arange(self.size - count) % PAGE
        places.tables_SM[rest] = self.spare_page
        for window in places.windows:
            window.slots_T[rest] = torch.arange(self.size - count) % PAGE
            window.tables_SM[rest] = 0
        if places.states_S is not None and self.spare_slot is not None:
            places.states_S[rest] = self.spare_slot
        assert to.padding_T is not None, "padding that is not marked"
        to.padding_T.copy_(torch.arange(self.size) >= count)

    def _load(self, to: Parts, inputs: Inputs, count: int) -> None:
        """The sequences' own rows."""
        places, now = to.places, inputs.places
        places.slots_T[:count].copy_(now.slots_T)
        places.positions_T[:count].copy_(now.positions_T)
        places.contexts_S[:count].copy_(now.contexts_S)
        places.tables_SM[:count, : now.tables_SM.shape[1]].copy_(now.tables_SM)
        for to_window, window in zip(places.windows, now.windows, strict=True):
            to_window.slots_T[:count].copy_(window.slots_T)
            to_window.tables_SM[:count, : window.tables_SM.shape[1]].copy_(window.tables_SM)
        if places.states_S is not None:
            assert now.states_S is not None, "a step without slots of states"
            places.states_S[:count].copy_(now.states_S)
        if to.ids_T is not None:
            to.ids_T[:count].copy_(inputs.ids_T)
        if to.x_TD is not None:
            assert inputs.x_TD is not None, "a step whose embedding rows were not looked up"
            to.x_TD[:count].copy_(inputs.x_TD)


class StepExperts(Protocol):
    """The experts of captured steps: those of several batch sizes, one of which is at work at a time."""

    @property
    def batches(self) -> list[int]:
        """The sizes."""

    def use(self, batch: int, padding_B: Tensor) -> None:
        """What is submitted from now on is of the `batch`-th size; rows where `padding_B` is set read no expert."""

    def begin(self, batch: int, patient: bool = False) -> None:
        """A step of this size is about to run; patient: there may be any time between two layers."""

    def check(self) -> None:
        """Raises DeviceError if the step that ran has no result."""


class DecodeGraphs:
    """Decode steps of up to `sizes[-1]` sequences. `sizes` are the batch sizes of the experts, in their order.

    step: the forward pass, which calls `experts` and does nothing else that must happen again in a replay (so it books
    nothing). pages: of the longest sequence. spare_page: a page of the cache that belongs to no sequence. hidden,
    spare_slot, windows: as in `Static`.
    """

    def __init__(
        self,
        step: Step,
        experts: StepExperts,
        recorder: Recorder,
        *,
        sizes: Sequence[int],
        pages: int,
        spare_page: int,
        device: torch.device,
        hidden: int = 0,
        spare_slot: int | None = None,
        windows: int = 0,
    ) -> None:
        assert list(sizes) == experts.batches, f"{sizes}, and experts for {experts.batches}"
        assert sorted(sizes) == list(sizes), f"sizes {sizes}"
        self.step, self.experts, self.recorder, self.sizes = step, experts, recorder, list(sizes)
        self.statics = [Static(n, pages, spare_page, device, hidden, spare_slot, windows) for n in self.sizes]
        self.ends: dict[int, Ends] = {}  # by size what its last step handed out, whoever captured it
        self.graphs: list[Graph] = []

    def capture(self) -> None:
        """Captures every size, the largest first: its memory then serves the others too. Each runs once before, so
        that kernels are compiled and buffers there, with the mailbox at work. Raises DeviceError where one cannot be
        captured."""
        graphs = {}
        for number in reversed(range(len(self.sizes))):
            try:
                graphs[number] = self._capture(number)
            except HeadraceError:
                raise
            except Exception as error:  # torch raises RuntimeErrors, Triton's compiler and launcher all kinds
                raise DeviceError(
                    f"a decode step of {self.sizes[number]} sequences cannot be captured in a graph "
                    f"({first_words(error)}): run with handoff 'eager', which needs no graph"
                ) from error
        self.graphs = [graphs[n] for n in range(len(self.sizes))]

    def _capture(self, number: int) -> Graph:
        static = self.statics[number]
        static.load(None)
        self.experts.use(number, static.padding_B)

        def step() -> None:
            ends = self.step(static.inputs)
            if (kept := self.ends.get(number)) is None:
                self.ends[number] = Ends(ends.logits.clone(), None if ends.hidden is None else ends.hidden.clone())
                return
            kept.logits.copy_(ends.logits)
            if kept.hidden is not None and ends.hidden is not None:
                kept.hidden.copy_(ends.hidden)

        self.experts.begin(number, patient=True)
        self.recorder.run(step)
        self.experts.check()
        return self.recorder.capture(step)

    def number_for(self, sequences: int) -> int | None:
        """The smallest captured size that holds so many sequences, or None."""
        return next((n for n, size in enumerate(self.sizes) if size >= sequences), None)

    def run(self, inputs: Inputs, meanwhile: Callable[[], None] = nothing) -> Ends:
        """A decode step: one token of each sequence. What it hands out, of a row each, is there until the next step of
        this size. meanwhile: what the host does while the device works. Raises DeviceError where its experts could not
        be computed."""
        count = len(inputs.ids_T)
        number = self.number_for(count)
        assert number is not None, f"{count} sequences, captured for {self.sizes}"
        assert self.graphs, "run before capture"
        self.statics[number].load(inputs)
        self.experts.use(number, self.statics[number].padding_B)
        self.experts.begin(number)
        self.recorder.replay(self.graphs[number], meanwhile)
        self.experts.check()
        logits, hidden = self.ends[number]
        return Ends(logits[:count], None if hidden is None else hidden[:count])
