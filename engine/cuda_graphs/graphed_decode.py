"""Decode by graphs, for a model that is loaded: builds mailbox, way of posting and graphs, and runs steps through them.

    outside of the graph    bytes of the pass, embedding rows where they lie in RAM, inputs into their places
    in the graph            all layers, experts of both sides, the head
    after it                the likeliest tokens are there (`step_results.py`), and what was chosen, for the ledger:
                            the same account as the eager path's, of the rows that are sequences (rows that pad a batch
                            cross the link too, and are not counted)

Prefill goes by the eager path, and so does a pass whose choices are changed from outside (`Decoder.choose`), since a
graph would not ask again.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import DeviceError
from ...kernels.context import Context
from ...kernels.cpu.mailbox import TIMEOUT, Mailbox
from ...kernels.packed import ExpertBank
from ...loaders.weights.model_weights import TierBanks
from ..devices.cuda_driver import Driver
from ..devices.device import Device
from ..experts.backend import Chosen
from ..experts.cache.cached_experts import CachedExperts, tiers_of
from ..experts.cache.graph_steps import CachedSteps
from ..experts.tiered import TieredExperts
from ..ledger.passes import CPU_DRAM, GPU_HBM, LayerWork
from ..ledger.timers import Spans
from ..model.batch import Inputs, sizes_up_to
from ..model.decoder import Decoder, Ends, Output
from ..placement.placement import Placement, Tier
from . import signals
from .capture import DecodeGraphs, Graph, nothing
from .gpu_runtime import Runtime
from .graph_experts import GraphedExperts, numbers
from .mailbox_experts import MailboxExperts
from .signals import SignalChoice
from .step_results import StepResults


class Captured(NamedTuple):
    """Steps of all sizes: graphs, and their spans if they are timed."""

    graphs: list[Graph]
    timed: list[Spans]


class GraphedDecode:
    """Decode steps of up to `sequences` sequences of at most `pages` pages; `spare_page` of the cache belongs to none,
    nor does `spare_slot` of recurrent states, of a model that has such.

    Captures when it is built: each size runs once and compiles what is new. Raises DeviceError where the driver or the
    capture refuses. context: of the experts in RAM. timeout: seconds without progress after which a step counts as
    failed. with_weights: steps bring the weights of choices too, for a trace.
    """

    def __init__(
        self,
        decoder: Decoder,
        experts: TieredExperts | CachedExperts,
        way: SignalChoice,
        runtime: Runtime,
        *,
        context: Context,
        sequences: int,
        pages: int,
        spare_page: int,
        spare_slot: int | None = None,
        timeout: float = TIMEOUT,
        with_weights: bool = False,
    ) -> None:
        tiered = tiers_of(experts)
        self.steps = steps_of(experts, tiered.main)
        self.decoder, self.tiered, self.runtime, self.context = decoder, tiered, runtime, context
        self.sizes, self.timeout = sizes_up_to(_most(sequences, tiered)), timeout
        self.recorder = runtime.recorder()
        main, spec = decoder.device_inputs, decoder.spec
        mail = self._mail(way, tiered.banks, tiered.placement)
        self.mailbox = None if mail is None else mail.mailbox
        self.timers = tiered.timers
        self.kept: dict[bool, Captured] = {}  # steps with stamps, and without, while the others are in use
        self.experts = GraphedExperts(experts, mail, self.sizes, self.steps, runtime.launches.apart)
        self.results = StepResults(runtime.driver, self.sizes, self.experts.kept, spec.moe.top_k, with_weights)
        self.graphs = DecodeGraphs(
            self._step,
            self.experts,
            self.recorder,
            sizes=self.sizes,
            pages=pages,
            spare_page=spare_page,
            spare_slot=spare_slot,
            device=main.device.place,
            hidden=spec.hidden if main.table is not main.device else 0,
            windows=len(decoder.cache.windows),
        )
        try:
            self._capture()
        except BaseException:
            self.close()
            raise

    def _capture(self) -> None:
        with torch.inference_mode(), self.decoder.device_inputs.device.current():
            self.graphs.capture()

    def time_tiers(self, wanted: bool) -> None:
        """From now on steps have stamps between what the GPU does, or none. Each is a node of the graph: they are not
        free, so that a run does without unless it asks. Captured when first asked for; no step may be under way."""
        graphs, experts = self.graphs, self.experts
        if wanted == bool(experts.timed):
            return
        self.kept[not wanted] = Captured(graphs.graphs, experts.timed)
        if wanted in self.kept:
            graphs.graphs, experts.timed = self.kept[wanted]
            return
        experts.timed = [Spans(self.runtime.stream()) for _ in self.sizes]
        try:
            self._capture()
        except BaseException:
            graphs.graphs, experts.timed = self.kept[not wanted]
            raise

    def _step(self, inputs: Inputs) -> Ends:
        """What is captured: a pass from its inputs to its ends, and what the host will want of it. Stamps lie between
        kernels, so that those of a timed step wait for each other in the usual way."""
        spans, number = self.experts.spans, self.experts.batch
        assert number is not None, "a step before its size is known"
        if spans is not None:
            spans.begin()
        with self.runtime.launches.within(spans is None):
            ends = self.decoder.run(inputs, self.experts)
            self.results.write(number, ends.logits, self.experts.chosen, self.decoder.ops)
        if spans is not None:
            spans.span(GPU_HBM)
        return ends

    def _mail(
        self, way: SignalChoice, banks: Sequence[TierBanks | None], placement: Placement
    ) -> MailboxExperts | None:
        """The mailbox with all layers that have experts in RAM, its memory registered; None without such."""
        in_ram = {n: b.banks[Tier.CPU.value] for n, b in enumerate(banks) if b and Tier.CPU.value in b.banks}
        if not in_ram:
            return None
        runtime, main = self.runtime, self.decoder.device_inputs.device
        mailbox = self._mailbox(in_ram)
        memory = mailbox.memory
        try:
            runtime.driver.register(memory.data_ptr(), memory.nbytes)
        except DeviceError:
            mailbox.close()
            raise
        self._release = weakref.finalize(self, _close, mailbox, runtime.driver)
        return MailboxExperts(
            mailbox,
            signals.make(way.name, runtime.driver, mailbox),
            lambda: self.recorder.handle,
            self._in_ram(list(in_ram), placement, main),
            runtime.pack,
            runtime.launches.apart,
        )

    def _in_ram(self, layers: Sequence[int], placement: Placement, main: Device) -> dict[int, Tensor]:
        """Of layers that have some experts elsewhere, on the device: the number in RAM of those that the CPU is to
        compute."""
        if self.steps is not None:
            return {layer: self.steps.in_ram(layer) for layer in layers if self.steps.is_split(layer)}
        split = [layer for layer in layers if placement.tiers_of(layer) != (Tier.CPU,)]
        return {layer: numbers(placement, layer, Tier.CPU, main) for layer in split}

    def _mailbox(self, in_ram: dict[int, ExpertBank]) -> Mailbox:
        return Mailbox(
            list(in_ram.values()),
            context=self.context,
            layers=list(in_ram),
            top_k=self.decoder.spec.moe.top_k,
            batches=self.sizes,
            timeout=self.timeout,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the mailbox."""
        return 0 if self.mailbox is None else int(self.mailbox.memory.nbytes)

    def takes(self, sequences: int) -> bool:
        """Whether a decode step of so many sequences can run as a graph."""
        return self.decoder.choose is None and self.graphs.number_for(sequences) is not None

    def forward(self, inputs: Inputs, meanwhile: Callable[[], None] = nothing) -> Output:
        """A decode step, one token of each sequence; its logits are there until the next step, and so are its hidden
        states, where the decoder goes on. meanwhile: what the host does while the device works. Raises DeviceError
        where its experts could not be computed."""
        count = len(inputs.ids_T)
        assert len(inputs.rows) == count, f"{len(inputs.rows)} rows of logits for {count} sequences"
        (entered, read), before = self.decoder.enter(inputs), self._cpu_seconds()
        if self.steps is not None:
            self.steps.refresh()
        self.timers.span(None)
        ends = self.graphs.run(entered, partial(self._meanwhile, meanwhile))
        self.timers.span(None)
        self.timers.spend(CPU_DRAM, self._cpu_seconds() - before)
        if self.experts.spans is not None:
            self.timers.add(self.experts.spans)
        number = self.graphs.number_for(count)
        assert number is not None, f"{count} sequences, captured for {self.sizes}"
        chosen = self.experts.choices(number, count, self.results.places[number], self.results.with_weights)
        likeliest, each = self.results.likeliest(number, count), chosen.each
        if self.steps is not None:
            each = self.steps.over(each)
        return Output(ends.logits, read, partial(self._layers, each), likeliest, chosen=each, hidden=ends.hidden)

    def _meanwhile(self, books: Callable[[], None]) -> None:
        """What the host does while the device works: books of the step before, and the policy of a cache."""
        books()
        if self.steps is not None:
            self.steps.meanwhile()

    def _cpu_seconds(self) -> float:
        """Of the mailbox's work, by its own clock."""
        return 0.0 if self.mailbox is None else self.mailbox.busy_s

    def _layers(self, each: Callable[[], list[Chosen]]) -> list[LayerWork]:
        """What the experts of a step read, and what crossed for them; the same account as of a step by hand."""
        return [self.experts.work(one) for one in each()]

    def close(self) -> None:
        """Ends the mailbox's threads and takes registrations back; no step may be under way."""
        if self.mailbox is not None:
            self._release()
        self.results.close()


def steps_of(experts: TieredExperts | CachedExperts, main: Device) -> CachedSteps | None:
    """Where a cache's experts lie, for steps that are graphs."""
    return CachedSteps(experts.cache, main, experts.store) if isinstance(experts, CachedExperts) else None


def _most(sequences: int, tiered: TieredExperts) -> int:
    """Sequences of the largest step: one whose experts in RAM are all copied goes by the eager path, which copies."""
    first = tiered.offload.stream_from
    if first is None or Tier.CPU not in tiered.placement.tiers:
        return sequences
    return min(sequences, first - 1)


def _close(mailbox: Mailbox, driver: Driver) -> None:
    mailbox.close()
    try:
        driver.unregister(mailbox.memory.data_ptr())
    except DeviceError:  # the process may be ending, with the driver gone before us
        return
