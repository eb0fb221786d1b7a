"""The loop: schedule, forward, sample, commit. Requests of any number of callers and threads share its passes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator
from collections.abc import Sequence as Seq
from contextlib import nullcontext
from functools import partial
from typing import cast

import torch
from torch import Tensor

from ...kernels import Ops
from ..devices.host import use_torch_threads
from ..experts.counts import ExpertCounts
from ..generation.outputs import Chunk, Completion
from ..generation.request import Request
from ..generation.sampler import WithArgmax, sample
from ..generation.schedule.batch import DECODE, Batch
from ..generation.schedule.chunk_limit import ChunkLimit
from ..generation.schedule.fair_share import FairShare
from ..generation.schedule.inputs import make_inputs
from ..generation.schedule.kept_states import Keeps, KeptStates
from ..generation.schedule.scheduler import Scheduler
from ..generation.schedule.state_slots import StateSlots
from ..generation.sequence import Sequence
from ..ledger.ledger import Ledger
from ..ledger.passes import CPU_DRAM, DISK, GPU_HBM, NET, Bytes, Pass
from ..model.batch import Inputs
from ..model.decoder import Output
from ..model.kv_cache import PAGE
from ..model.segment import CacheLost
from ..model.windows import Windows
from ..speculation.drafts import Drafts
from ..speculation.row_kernels import row_kernels
from ..speculation.speculation import Speculation
from ..speculation.verify import first_rows
from ..traces.recorder import Recorder
from .bookkeeping import Bookkeeping, Closed
from .kv_on_disk import open_disk
from .parts import EngineParts
from .scoring.all_logits import all_logits
from .turn import Turn

Sampler = Callable[[Tensor, list[Sequence], Ops], list[int]]


class Loop:
    """Runs a model that is built. at_start is called when a request comes and none is under way; sampler(logits,
    sequences, ops) chooses the next token of each. limit, share: of prompts beside those that generate. recorder: of a
    trace.

    Whoever brings or cancels a request leaves a command, and waits for nobody: commands are carried out between two
    passes."""

    def __init__(
        self,
        parts: EngineParts,
        ledger: Ledger,
        at_start: Callable[[], None],
        sampler: Sampler = sample,
        limit: ChunkLimit | None = None,
        share: FairShare | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.parts, self.ledger, self.at_start, self.sampler = parts, ledger, at_start, sampler
        self.pages = parts.page_table()
        self.states = StateSlots(parts.config.max_sequences) if parts.spec.state_elements else None
        self.kept = None if self.states is None else KeptStates(self.states, parts.decoder.cache.copy_state)
        chunk, most = parts.config.prefill_chunk, parts.config.max_sequences
        self.windows = Windows(parts.kv_budget.windows, max(chunk, most))
        self.disk = open_disk(parts, self.pages, self.states, self.windows)
        self.scheduler = Scheduler(
            self.pages, chunk, most, self.states, limit=limit, share=share, disk=self.disk, windows=self.windows
        )
        self.drafts: Drafts | None = None
        self.commands: deque[Callable[[], None]] = deque()
        self.eos_ids = parts.eos_ids
        self.counts = ExpertCounts(len(parts.spec.layers), parts.spec.moe.experts)
        self.books = Bookkeeping(ledger, self.counts, recorder)
        self.requests: dict[int, Request] = {}
        self.joins_forced = True  # whether tokens that a grammar forces share a pass
        self.lock = Turn()  # held for a pass

    def run(self, requests: Seq[Request]) -> None:
        """Completes requests together; then raises the error of one that has such."""
        try:
            for request in requests:
                if request.is_open:
                    self.start(request)
            while any(r.is_open for r in requests):
                self._step_unless(lambda: not any(r.is_open for r in requests))
            for request in requests:
                if request.error is not None:  # its own, the others are complete
                    raise request.error
        finally:
            self._end(requests)

    def chunks(self, request: Request) -> Generator[Chunk, None, None]:
        """A request's chunks as they come; it begins when the first is asked for, so that a stream that is never read
        takes nothing."""
        self.lock.check()
        self.start(request)
        try:
            while request.chunks or request.is_open:
                self.lock.check()
                if request.chunks:
                    yield request.chunks.popleft()
                else:
                    self._step_unless(lambda: bool(request.chunks) or not request.is_open)
            if request.error is not None:  # of another request's pass, in which it was
                raise request.error
        finally:
            self._end([request])

    def completions(self, requests: Seq[Request]) -> list[Completion]:
        """What there is so far of requests."""
        self.books.settle()
        return [request.completion() for request in requests]

    def start(self, request: Request) -> None:
        """Lets a request run from the next pass on."""
        self.commands.append(partial(self._take_in, request))

    def cancel(self, request: Request) -> None:
        """Ends a request before the next pass; what it computed stays known to later prompts."""
        self.commands.append(partial(self._take_out, request))

    def carry_out(self) -> None:
        """Carries out the commands that came meanwhile. The caller has the turn."""
        while self.commands:
            self.commands.popleft()()

    def _take_in(self, request: Request) -> None:
        if not self.requests:
            self.at_start()
        self.requests[request.sequence.id] = request
        request.sequence.ends = self.eos_ids
        self.scheduler.add(request.sequence)

    def _take_out(self, request: Request) -> None:
        """Forgets a request; one that did not end by itself was interrupted: closed, or an error was raised."""
        if self.requests.pop(request.sequence.id, None) is not None and request.is_open:
            request.interrupt()
            self._finish(request.sequence)

    def _finish(self, sequence: Sequence) -> None:
        """Takes a sequence out of the passes; the state that a next turn goes on from is kept."""
        if self.disk is not None:
            self.disk.keep_state(sequence.kept)
        if self.drafts is not None:
            self.drafts.speculation.forget(sequence)
        self.scheduler.finish(sequence)

    def speculate(self, speculation: Speculation) -> None:
        """From the next pass on drafts are verified."""
        self.drafts = Drafts(speculation, self.scheduler, self.states, self.parts.decoder.cache.copy_state)
        self.scheduler.drafts = speculation

    def close(self) -> None:
        """Writes what is to be kept on disk. The caller has the turn."""
        if self.disk is not None:
            self.disk.close()

    def _end(self, requests: Seq[Request]) -> None:
        """Forgets requests. Those that a forked child got with its memory are its parent's."""
        if self.lock.is_elsewhere:
            return
        with self.lock:
            for request in requests:
                self.cancel(request)
            self.carry_out()
            self.settle()

    def settle(self) -> None:
        """Books what was put off, and writes it. Raises OptionError where the ledger's file cannot be written."""
        self.books.settle()
        self.books.write()

    def _step_unless(self, done: Callable[[], bool]) -> None:
        """One pass, unless another thread's pass has brought meanwhile what the caller waits for."""
        with self.lock:
            self.lock.check_outermost()
            self.carry_out()
            if not done():
                try:
                    self.step()
                except Exception as error:
                    self._end_spoiled(error)
                    raise

    def _end_spoiled(self, error: Exception) -> None:
        """A pass has failed half-way. The next one writes the same keys and values anew, but recurrent states have
        moved on: no request of the pass can go on with them."""
        if self.states is None:
            return
        running = {sequence.id for sequence in self.scheduler.running}
        for request in [one for id, one in self.requests.items() if id in running]:
            request.error = error
            self.cancel(request)
        self.carry_out()

    def step(self) -> None:
        """One forward pass; every request that got a token keeps it until its owner asks.

        Tokens are appended as soon as the pass is committed, and what may raise (a full disk under the ledger) comes
        last: an error must not cost the other requests of the pass a token.
        """
        self._between_passes()
        start = self.books.start()
        use_torch_threads(self.parts.torch_threads)
        parts, batch = self.parts, self._next_batch()
        if batch is None:
            return
        done, is_graph = self._open_pass(batch), parts.graphed is not None and self._is_graph(batch)
        if self.books.kept is not None and not is_graph:
            self.books.settle_meanwhile()
        parts.timers.begin()
        with torch.inference_mode(), parts.main.current():
            keeps = None if self.kept is None else self.kept.before(batch, self.scheduler.running)
            if batch.drafts and self.drafts is not None:
                self.drafts.before(batch)
            inputs = make_inputs(batch, keeps=keeps)
            out = self._forward(inputs, is_graph, batch)
            if out is None:
                return  # the next pass begins anew
            ready = [batch.sequences[i] for i in batch.ready]
            first, rows = first_rows(out.logits, batch)
            tokens = self.sampler(first, ready, self._ops(out)) if ready else []
            parts.timers.span(GPU_HBM)
        parts.main.wait()
        self.scheduler.commit(batch, time.perf_counter() - start)
        if batch.drafts and self.drafts is not None:
            self._push(ready, tokens)
            done.accepted = self._verify(batch, out, rows, self.drafts)
            self._keep(batch, keeps)
            done.measured_s = time.perf_counter() - start
        else:
            self._keep(batch, keeps)
            done.measured_s = time.perf_counter() - start
            self._push(ready, tokens)
        if self.drafts is not None:
            self.drafts.hand_out(done, batch, inputs.spans, out.hidden)
        accounts = [self.requests[sequence.id].account for sequence in batch.sequences]
        for sequence in ready:
            self._force(self.requests[sequence.id])
            if sequence.finish_reason is not None:
                self._finish(sequence)
        self._book(Closed(done, out, self._sampled(ready), accounts, inputs, batch.generated), is_graph)
        if self.drafts is not None:
            self.drafts.saw(batch, done)
        self.books.write()

    def _between_passes(self) -> None:
        """What was asked for meanwhile, and what may have become of the caches."""
        self.carry_out()
        self.pages.between_passes()
        self.look_after_layers()

    def look_after_layers(self) -> None:
        """Before a pass: who holds layers may be another now, and caches empty. Raises DeviceError where nobody does.
        The caller has the turn."""
        beyond = self.parts.decoder.beyond
        if beyond is not None and beyond.begin(is_idle=not self.scheduler.running):
            self.scheduler.forget()

    def _verify(self, batch: Batch, out: Output, rows: list[int], drafts: Drafts) -> int:
        """Gives sequences the tokens of their drafts that hold, and one more each; how many held."""
        try:
            with torch.inference_mode(), self.parts.main.current():
                return drafts.settle(batch, out.logits, rows, self.sampler, self._ops(out), self._take)
        except Exception:
            for sequence in [s for s in batch.sequences if s.finish_reason is not None]:
                self._finish(sequence)  # it has all that it asked for
            raise

    def _book(self, closed: Closed, is_graph: bool) -> None:
        done, timers = closed.done, self.parts.timers
        if is_graph:
            done.times = timers.end(done.measured_s)
            self.books.keep(closed)
        else:
            self.books.book(closed, timers.end)

    def _push(self, ready: list[Sequence], tokens: list[int]) -> None:
        """Gives sequences their next tokens: all of them first, whatever becomes of one's text. Failed ones end."""
        for sequence, token in zip(ready, tokens, strict=True):
            if sequence.failure is None:
                sequence.tokens.append(token)
        for sequence in ready:
            self.requests[sequence.id].push(self.eos_ids, self.scheduler.passed_at)

    def _take(self, sequence: Sequence, token: int) -> bool:
        """Gives a sequence its next token; whether it goes on."""
        self._push([sequence], [token])
        return sequence.finish_reason is None

    def _force(self, request: Request) -> None:
        """Appends the tokens that a grammar leaves no choice in: the next pass computes them together. Not where the
        likelihood of each is wanted: then the sampler takes them one by one."""
        sequence, constraint = request.sequence, request.sequence.constraint
        if (
            constraint is None
            or not constraint.is_awake
            or not self.joins_forced
            or sequence.params.logprobs is not None
        ):
            return
        for token in constraint.forced() if request.is_open else ():
            if not constraint.follow(token):
                return
            sequence.tokens.append(token)
            sequence.forced += 1
            request.push(self.eos_ids, self.scheduler.passed_at)
            if not request.is_open:
                return

    def _next_batch(self) -> Batch | None:
        """The next pass. None: all that could run waits for the disk, and has waited a moment."""
        if self.disk is not None:
            self.disk.put_in()
        batch = self.scheduler.next_batch()
        if batch is None and self.disk is not None and any(s.is_being_read for s in self.scheduler.waiting):
            self.disk.wait()
            return None
        assert batch is not None, "a sequence is unfinished, but nothing can run"
        return batch

    def _keep(self, batch: Batch, keeps: Keeps | None) -> None:
        """Makes known which recurrent states were kept in a pass."""
        if self.kept is None or keeps is None:
            return
        keeps = {i: keep for i, keep in keeps.items() if batch.sequences[i].failure is None}
        self.kept.after(batch, keeps)
        if self.disk is not None:
            for i, keep in keeps.items():
                self.disk.keep_state(batch.sequences[i].digests[keep.tokens // PAGE - 1])

    def _ops(self, out: Output) -> Ops:
        """What the sampler computes with."""
        ops = self.parts.main.ops
        return ops if out.likeliest is None else cast(Ops, WithArgmax(ops, out.logits, out.likeliest))

    def _open_pass(self, batch: Batch) -> Pass:
        return Pass(
            index=self.books.next_index,
            phase=batch.phase,
            sequences=[s.id for s in batch.sequences],
            tokens=batch.tokens,
            context=sum(batch.contexts),
            forced=batch.forced,
            drafted=batch.drafted,
            again=batch.again,
        )

    def _sampled(self, ready: list[Sequence]) -> Bytes:
        """What sampling took from the device."""
        greedy = sum(sequence.params.is_plain_greedy for sequence in ready)
        return self.parts.decoder.device_inputs.sample_bytes(greedy, len(ready) - greedy, self.parts.spec.vocab)

    def _is_graph(self, batch: Batch) -> bool:
        """Whether a pass is one of the decode graphs, if there are any."""
        graphed = self.parts.graphed
        return graphed is not None and batch.is_plain_decode and graphed.takes(batch.tokens)

    def _forward(self, inputs: Inputs, is_graph: bool, batch: Batch) -> Output | None:
        """A pass. Of a graph, the pass before is booked while it runs. None: layers elsewhere lost their caches."""
        parts, decoding = self.parts, batch.generated
        if parts.expert_cache is not None:
            parts.expert_cache.begin(decoding, is_graph)
        if len(parts.devices) == 1:
            start = time.perf_counter()
            kept = None if self.books.recorder is None else (len(inputs.ids_T), parts.spec.moe.top_k)
            try:
                with row_kernels(parts.main.ops) if batch.drafts and batch.phase == DECODE else nullcontext():
                    out = parts.decoder.forward(inputs, self.counts.tally(decoding, kept))
            except CacheLost:
                return None
            waited = parts.timers.spent.get(DISK, 0.0) + parts.timers.spent.get(NET, 0.0)
            parts.timers.spend(CPU_DRAM, time.perf_counter() - start - waited)
            return out
        if is_graph and parts.graphed is not None:
            return parts.graphed.forward(inputs, self.books.settle_meanwhile)
        return parts.decoder.forward(inputs)

    def logits(self, sequence: Sequence) -> Tensor:
        """Logits after every token of a sequence: float32 [tokens, vocabulary], in prefill chunks, outside of the
        ledger. Raises MemoryNeeded where open requests leave no room for it."""
        with self.lock:
            use_torch_threads(self.parts.torch_threads)
            return all_logits(self, sequence)
