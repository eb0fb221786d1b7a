"""`LLM`: a model that is loaded and generates. The only place where the pieces are built and put together.

    llm = LLM("demo")
    print(llm.generate("In the beginning", SamplingParams(max_new_tokens=40))[0].text)

Building one: find the directory, read its headers, check memory, load, reserve the cache. One loop, `_step`, does the
rest: schedule, forward, sample, commit.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator
from collections.abc import Sequence as Seq
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import kernels
from ..errors import ContextOverflow, MemoryNeeded, OptionError, TokenizerError
from ..kernels.packed import ExpertBank
from ..loaders.hub import locate
from ..loaders.tokens.tokenizer import Tokenizer
from ..loaders.weights.checkpoint import Checkpoint, LoadOptions, Progress, load_weights, open_directory
from ..loaders.weights.model_weights import ModelWeights, TierBanks, Where
from .bandwidth_model import profile as profiles
from .bandwidth_model import tier_rates, tiered_pass
from .bandwidth_model.cpu_pass import Predictor
from .bandwidth_model.profile import STALE, Profile
from .bandwidth_model.tier_rates import Rates
from .bandwidth_model.tiered_pass import TierModel
from .config import EngineConfig, SamplingParams
from .cuda_graphs import gpu_runtime, saved_trials, signal_choice, verify
from .cuda_graphs.gpu_runtime import Runtime
from .cuda_graphs.graphed_decode import GraphedDecode
from .cuda_graphs.signals import Choice
from .devices import device, host, streams
from .devices.device import Device
from .experts.backend import CpuExperts, Experts
from .experts.host_buffers import HandOff
from .experts.tiered import TieredExperts
from .generation.completion_stream import Group, Stream
from .generation.outputs import Chunk, Completion
from .generation.request import Request
from .generation.sampler import sample
from .generation.scheduler import Batch, Scheduler, make_inputs
from .generation.sequence import Sequence, make_sequence
from .generation.stop_strings import TextBuilder
from .ledger.drift import Watch
from .ledger.ledger import CPU_DRAM, GPU_HBM, Ledger
from .ledger.timers import Clock
from .measure import tile_thresholds
from .memory import kv_budget
from .memory.expert_arena import ExpertMemory
from .memory.memory_plan import Fit, fit
from .memory.pinned import resolve_limit
from .model.decoder import Decoder
from .model.inputs import make_home
from .model.kv_cache import KVCache, PageTable, pages_for
from .placement.placement import Tier

Prompt = str | list[int]
log = logging.getLogger("headrace")
HANDOFF_TIMEOUT = 10.0  # seconds without progress after which a graphed step counts as failed
IN_CACHES = 64 << 20  # bytes of weights up to which DRAM does not bound a model
TORCH_THREADS = torch.get_num_threads()  # as the process had it before a model was loaded


class LLM:
    """A loaded model.

    model: the directory of a Hugging Face checkpoint, a hub id, or "demo". The options are the fields of
    `EngineConfig`.
    progress(done, total) is called with bytes while weights load. With the C++ kernels torch is limited to one thread
    in this process, since two thread pools on the same cores slow each other down.
    Raises a `HeadraceError` that names what is wrong: options, files, memory, hub.
    """

    def __init__(self, model: str, *, progress: Progress | None = None, **options: Any) -> None:
        self.config = _config(options)
        self.ops = self._load_kernels()
        self.devices = device.find(self.config, device.ram(self.ops, self.kernels))
        self.checkpoint = self._open(str(model), show_progress=progress is not None)
        self.spec = self.checkpoint.spec
        self.tokenizer = _load_tokenizer(self.checkpoint)
        self.kv_dtype = kv_budget.kv_dtype(self.config, self.checkpoint.formats)
        rates = profiles.load_profile() if self.kernels == "cpu" else None
        self.runtime, problem = self._find_runtime()
        graphs = signal_choice.may_capture(self.config, self.runtime)
        self.fit: Fit = fit(self.config, self.checkpoint, self.kv_dtype, self.devices, rates, graphs)
        self.room, self.placement = self.fit.room, self.fit.placement
        self.handoff_choice, self.memory = self._beside_a_gpu(problem)
        self.weights = self._load(progress)
        self.ledger = Ledger()
        self.clock = Clock(streams.of(self.home)[0] if len(self.devices) > 1 else None)
        self.tell: Callable[[str], None] = log.warning
        self.machine: Profile | None = None
        self.doubt: str | None = None
        self.tier_model: TierModel | None = None
        self.unpredicted = ""  # why there is no prediction, or none of prompts
        self._assemble()
        if self.kernels == "cpu":
            self.use_profile(rates)
            self.doubt = STALE if rates is not None and rates.is_stale else None

    def _open(self, model: str, show_progress: bool) -> Checkpoint:
        """Finds the model, downloading it if need be, and reads its headers."""
        directory = locate.locate(
            model,
            revision=self.config.revision,
            offline=self.config.offline,
            cache_dir=self.config.cache_dir,
            show_progress=show_progress,
        )
        return open_directory(directory, load_options(self.config))

    def _find_runtime(self) -> tuple[Runtime | None, str]:
        """What pinned memory and graphs need of a GPU, or None and the reason."""
        return gpu_runtime.find(self.devices[Tier.GPU0]) if Tier.GPU0 in self.devices else (None, "there is no GPU")

    def _beside_a_gpu(self, problem: str) -> tuple[Choice | None, ExpertMemory | None]:
        """How experts are to be handed over, decided before memory is taken; memory that can be pinned for those in
        RAM. Nothing of it on the CPU alone. problem: why there is no runtime."""
        if len(self.devices) == 1:
            return None, None
        limit, runtime = resolve_limit(self.config.pinned_limit), self.runtime
        moves, layers = self.fit.moves, self.spec.layers
        choice = signal_choice.decide(self.config, self.placement, moves, runtime, problem, layers)
        sizes = self.fit.bytes_in_ram
        return choice, ExpertMemory(sizes, runtime, problem, limit) if any(sizes) else None

    def _load(self, progress: Progress | None) -> ModelWeights:
        extra, memory = self.room.kv_bytes + self.room.work_bytes, self.memory
        filled = None if memory is None else memory.filled
        prepare = partial(self._prepare, in_parts=not self.checkpoint.is_converted)
        weights = load_weights(self.checkpoint, self.ops, progress, extra, prepare, self._where(), filled)
        if memory is not None:
            memory.finish()
        return weights

    def _where(self) -> Where | None:
        where = self.fit.where(self.devices)
        if where is None or self.memory is None:
            return where
        return replace(where, pools={Tier.CPU.value: self.memory.arena})

    def _prepare(self, weights: ModelWeights, in_parts: bool) -> None:
        """Memory is reserved, and nothing filled yet; in_parts: banks are filled by the matrix."""
        self._advise(weights)
        if self.memory is not None:
            self.memory.start(weights, in_parts)

    def _load_kernels(self) -> kernels.Ops:
        self.kernels = "cpu" if self.config.kernels == "auto" else self.config.kernels
        ops = kernels.load(self.kernels)
        if self.kernels == "cpu":
            host.set_threads(self.config.threads)
            host.cpu_kernels().set_activations(self.config.cpu_activations)
            tile_thresholds.use()
            torch.set_num_threads(1)
        else:
            torch.set_num_threads(self.config.threads or TORCH_THREADS)
        return ops

    def _advise(self, weights: ModelWeights) -> None:
        """Asks for huge pages under the large weights, from all nodes of memory, before they are filled; the start-up
        table says what was granted."""
        self.huge_pages = host.advise_huge(weights) if self.kernels == "cpu" else {}
        self.nodes = host.spread_over_nodes(weights) if self.kernels == "cpu" else 1

    @property
    def can_predict(self) -> bool:
        """Whether the bandwidths that were measured on this machine are those of everything that a pass reads."""
        return self.kernels == "cpu" and len(self.devices) == 1

    @property
    def home(self) -> Device:
        """The device of everything but the routed experts."""
        return self.devices[self.placement.home]

    def _assemble(self) -> None:
        table = self.devices[self.fit.table]
        self.decoder = Decoder(
            self.spec,
            self.weights,
            self.home.ops,
            self._make_experts(),
            KVCache(self.spec, self.room.pages + self.fit.spare_pages, self.kv_dtype, self.home.place),
            self.ledger,
            self.room.max_context,
            make_home(self.home, table, self.ledger, self.clock, self.config, self.spec, self.room.max_context),
        )
        self.pages = PageTable(self.room.pages)
        self.scheduler = Scheduler(self.pages, self.config.prefill_chunk, self.config.max_sequences)
        self.requests: dict[int, Request] = {}
        self.lock = threading.RLock()  # held for a pass; several threads may use one LLM
        self.next_id = 0
        self.graphed = self._graphs()

    def _graphs(self) -> GraphedDecode | None:
        """Decode steps as graphs, captured and checked now; None where steps run by hand."""
        choice, runtime, tiered = self.handoff_choice, self.runtime, self.decoder.experts
        if choice is None or choice.name == signal_choice.EAGER:
            return None
        assert runtime is not None, "graphs without a runtime"
        assert isinstance(tiered, TieredExperts), "graphs on the CPU alone"
        pages, spare_page = pages_for(self.room.max_context), self.room.pages
        build = partial(
            GraphedDecode,
            self.decoder,
            tiered,
            choice,
            runtime,
            sequences=self.config.max_sequences,
            pages=pages,
            spare_page=spare_page,
            timeout=HANDOFF_TIMEOUT,
        )
        how = verify.Start(
            asked=self.config.handoff, choice=choice, runtime=runtime, digest=self._handoff_digest(choice.name)
        )
        steps = verify.Steps(self.decoder, tiered, pages, spare_page)
        graphed, self.handoff_choice = verify.start(how, steps, build)
        if graphed is not None:
            tiered.moves = self.fit.moves.in_graphs()
            self.fit = replace(self.fit, moves=tiered.moves)
        return graphed

    def _handoff_digest(self, way: str) -> str:
        """What times of a decode step hold for, besides GPU, driver and kernels."""
        where, moves = self.placement.experts, self.fit.moves
        split = moves.split if isinstance(moves.split, int) else "tables"
        copies = moves.stream_from, split, moves.split_most, moves.piece
        room = self.room.max_context, self.config.max_sequences, self.kv_dtype
        rounding = self.config.cpu_activations
        return saved_trials.digest(way, self.spec, self.checkpoint.formats, where, copies, room, rounding)

    def _make_experts(self) -> Experts:
        """The experts behind the seam: all in RAM, or on the tiers of the placement."""
        banks = [layer.experts for layer in self.weights.layers]
        if len(self.devices) == 1:
            whole = [bank for bank in banks if not isinstance(bank, TierBanks)]
            assert len(whole) == len(banks), "split banks without a second tier"
            return CpuExperts(whole, self.ops, self.ledger)
        split = [bank for bank in banks if not isinstance(bank, ExpertBank)]
        assert len(split) == len(banks), "whole banks beside several tiers"
        self.handoff = HandOff(
            self.home,
            layers=self.spec.layers,
            tokens=max(self.config.prefill_chunk, self.config.max_sequences),
            hidden=self.spec.hidden,
            top_k=self.spec.moe.top_k,
        )
        self._drop_guesses()
        moves, clock = self.fit.moves, self.clock
        return TieredExperts(split, self.placement, self.devices, self.handoff, self.ledger, moves, clock)

    def time_tiers(self, wanted: bool = True) -> None:
        """From now on passes say how long each tier worked, what the GPU waited for and what overlapped
        (`ledger/timers.py`). Beside a GPU that costs a launch for each part of a layer, and graphs are captured
        anew."""
        with self.lock:
            if self.graphed is not None:
                self.graphed.time_tiers(wanted)
            self.clock.is_on = wanted

    def _drop_guesses(self) -> None:
        """No copies before choices where they would hold up the thread that launches the next layer."""
        moves = self.fit.moves
        if self.home.is_cuda and moves.stream_from is not None and self.memory is not None and not self.memory.is_whole:
            moves = moves.without_guesses("experts in RAM are not all pinned, and a copy holds up other work")
            self.fit = replace(self.fit, moves=moves)

    def use_profile(self, profile: Profile | None) -> None:
        """Takes the bandwidths that passes are held against from now on; None: no prediction. The caller knows what
        they are worth. Beside a GPU those of its memory and links come from the same profile, or are nominal."""
        self.doubt = None
        if len(self.devices) > 1:
            try:
                self.use_rates(tier_rates.find(profile, self.devices))
            except tier_rates.Unknown as reason:
                self.unpredicted, self.machine = str(reason), profile
                self.tier_model = self.ledger.predict = None
            return
        self.machine = profile
        formats, dtype = self.checkpoint.formats, self.kv_dtype
        self.ledger.predict = None if profile is None else Predictor(profile, formats, dtype, self.spec).of
        self.watch_run()

    def use_rates(self, rates: Rates) -> None:
        """Takes the rates of all tiers that passes are held against from now on; for a run with a GPU."""
        way, shared = self.handoff_choice, tiered_pass.shared_bytes(self.weights)
        handoff = way.us * 1e-6 if self.graphed is not None and way is not None and way.us is not None else None
        self.machine, self.unpredicted = rates.profile, ""
        self.tier_model = TierModel(self.spec, self.checkpoint.formats, rates, shared, handoff)
        self.ledger.predict = self.tier_model
        self.watch_run()

    def watch_run(self) -> None:
        """From now on one line to `tell` (a logger, if nothing else was set) if measured and predicted time of decode
        drift apart. Not for a model that the CPU's caches hold: no prediction of memory traffic is right for it."""
        is_watched = self.ledger.predict is not None and self.weights.nbytes >= IN_CACHES
        self.ledger.watch = Watch(lambda text: self.tell(text)) if is_watched else None

    def _tell_doubt(self) -> None:
        """Once, that what copies and predictions follow from may be off."""
        doubt, self.doubt = self.doubt, None
        if doubt is not None:
            self.tell(f"{doubt}, so that predictions may be off: run headrace measure")

    # ---- requests

    def generate(
        self, prompts: Prompt | Seq[Prompt], params: SamplingParams | Seq[SamplingParams] | None = None
    ) -> list[Completion]:
        """Completes prompts together, each text or a list of token ids; one Completion each, in their order.

        params: one for all, or one for each prompt; default greedy, 256 tokens. Raises ContextOverflow if a prompt and
        its new tokens do not fit into the context, OptionError for a prompt that is empty or holds unknown ids.
        """
        group = self.batch(prompts, params)
        group.run()
        return group.results

    def batch(self, prompts: Prompt | Seq[Prompt], params: SamplingParams | Seq[SamplingParams] | None = None) -> Group:
        """The requests of `generate` before they run: `run` completes them, and `results` is what there is at any time,
        also after an exception (Ctrl-C) ended the run."""
        many = _as_prompts(prompts)
        each = [params or SamplingParams()] * len(many) if isinstance(params, SamplingParams | None) else list(params)
        if len(each) != len(many):
            raise OptionError(f"{len(each)} sampling parameters for {len(many)} prompts: give one, or one for each")
        requests = [self._request(p, one) for p, one in zip(many, each, strict=True)]
        return Group(lambda: self._run(requests), lambda: [r.completion(self.ledger.passes) for r in requests])

    def _run(self, requests: list[Request]) -> None:
        """Completes requests together."""
        try:
            for request in requests:
                if request.is_open:
                    self._start(request)
            while any(r.is_open for r in requests):
                self._step_unless(lambda: not any(r.is_open for r in requests))
        finally:
            self._end(requests)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Stream:
        """Completes one prompt and yields a `Chunk` per token; closing the stream ends the request cleanly.

        Several streams may be open at a time, and `generate` may be called in between: they share passes. Raises what
        `generate` raises, before the first chunk.
        """
        request = self._request(prompt, params or SamplingParams())
        return Stream(self._chunks(request), lambda: request.completion(self.ledger.passes))

    def _chunks(self, request: Request) -> Generator[Chunk, None, None]:
        self._start(request)  # here, so that a stream that is never read takes nothing
        try:
            while request.chunks or request.is_open:
                if request.chunks:
                    yield request.chunks.popleft()
                else:
                    self._step_unless(lambda: bool(request.chunks) or not request.is_open)
        finally:
            self._end([request])

    def chat(self, messages: list[dict[str, str]], params: SamplingParams | None = None) -> Completion:
        """Answers a conversation: messages {"role": ..., "content": ...}, rendered with the model's chat template.

        The keys and values of a history that was answered before are reused. Raises TokenizerError without a template.
        """
        return self.generate([self.chat_prompt(messages)], params)[0]

    def ask(self, question: str, system: str | None = None) -> list[int]:
        """Token ids of a conversation of one question, after an optional system message."""
        start = [{"role": "system", "content": system}] if system else []
        return self.chat_prompt([*start, {"role": "user", "content": question}])

    def chat_prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a conversation, ready for the answer."""
        tokenizer = self._need_tokenizer("chat")
        return tokenizer.encode(tokenizer.render_chat(messages), add_special_tokens=False)

    def logits(self, token_ids: list[int]) -> Tensor:
        """Logits after every token of a text: float32 [tokens, vocabulary], computed in prefill chunks.

        Raises ContextOverflow if the text is longer than the context.
        """
        sequence = self._sequence(list(token_ids), SamplingParams(max_new_tokens=1))
        with self.lock:
            return self._logits(sequence)

    def _logits(self, sequence: Sequence) -> Tensor:
        need = pages_for(len(sequence.tokens))
        if need > self.pages.available:
            raise MemoryNeeded(
                f"{len(sequence.tokens)} tokens need {need} pages of the KV cache, {self.pages.available} are free: "
                "finish or close open streams first"
            )
        sequence.pages = self.pages.allocate(need)
        rows = []
        try:
            while sequence.pending:
                count = min(sequence.pending, self.config.prefill_chunk)
                batch = Batch([sequence], [count], is_prefill=True)
                with torch.inference_mode(), self.home.current():
                    rows.append(self.decoder.forward(make_inputs(batch, all_rows=True)).cpu())
                sequence.computed += count
        finally:
            self.pages.release(sequence.pages)
        return torch.cat(rows)

    # ---- the loop

    def _start(self, request: Request) -> None:
        with self.lock:
            if not self.requests:
                self._tell_doubt()
                self.watch_run()
            self.requests[request.sequence.id] = request
            self.scheduler.add(request.sequence)

    def _end(self, requests: list[Request]) -> None:
        """Forgets requests, and takes out those that did not end by themselves: closed, or an error was raised."""
        with self.lock:
            for request in requests:
                if self.requests.pop(request.sequence.id, None) is not None and request.is_open:
                    request.sequence.finish_reason = "interrupted"
                    self.scheduler.finish(request.sequence)

    def _step_unless(self, done: Callable[[], bool]) -> None:
        """One pass, unless another thread's pass has brought meanwhile what the caller waits for."""
        with self.lock:
            if not done():
                self._step()

    def _step(self) -> None:
        """One forward pass; every request that got a token keeps it until its owner asks.

        Tokens are appended as soon as the pass is committed, and what may raise (a full disk under the ledger) comes
        last: an error must not cost the other requests of the pass a token.
        """
        batch = self.scheduler.next_batch()
        assert batch is not None, "a sequence is unfinished, but nothing can run"
        start = time.perf_counter()
        self.clock.begin()
        phase = "prefill" if batch.is_prefill else "decode"
        self.ledger.begin(phase, [s.id for s in batch.sequences], batch.tokens, sum(batch.contexts))
        with torch.inference_mode(), self.home.current():
            logits = self._forward(batch)
            ready = [batch.sequences[i] for i in batch.ready]
            tokens = self._sample(logits, ready) if ready else []
            self.clock.lap(GPU_HBM)
        self.home.wait()
        self.scheduler.commit(batch)
        for sequence, token in zip(ready, tokens, strict=True):
            sequence.tokens.append(token)
        seconds = time.perf_counter() - start
        for sequence in ready:
            self.requests[sequence.id].push(self.eos_ids)
            if sequence.finish_reason is not None:
                self.scheduler.finish(sequence)
        self.ledger.end(seconds, self.clock.end(seconds))

    def _forward(self, batch: Batch) -> Tensor:
        """Logits of a pass: decode by graphs, if there are any."""
        inputs = make_inputs(batch)
        if len(self.devices) == 1:
            start = time.perf_counter()
            logits = self.decoder.forward(inputs)
            self.clock.spend(CPU_DRAM, time.perf_counter() - start)
            return logits
        if self.graphed is not None and not batch.is_prefill and self.graphed.takes(inputs):
            return self.graphed.forward(inputs)
        return self.decoder.forward(inputs)

    def _sample(self, logits: Tensor, ready: list[Sequence]) -> list[int]:
        """The next token of each sequence from its row of logits."""
        greedy = sum(sequence.params.is_plain_greedy for sequence in ready)
        self.decoder.home.book_samples(greedy, len(ready) - greedy, self.spec.vocab)
        return sample(logits, ready, self.home.ops)

    # ---- checks

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end a completion: of config, generation config, and failing those the tokenizer."""
        return self.spec.eos_ids or (tuple(self.tokenizer.eos_ids) if self.tokenizer is not None else ())

    def encode(self, text: str) -> list[int]:
        """Token ids of a text with the special tokens that the model expects; raises TokenizerError."""
        return self._need_tokenizer("text prompts").encode(text)

    def _need_tokenizer(self, purpose: str) -> Tokenizer:
        if self.tokenizer is None:
            raise TokenizerError(
                f"{self.checkpoint.directory} has no tokenizer.json, which {purpose} need: "
                "add it from the model's page, or give prompts as lists of token ids"
            )
        return self.tokenizer

    def _request(self, prompt: Prompt, params: SamplingParams) -> Request:
        return Request(self._sequence(prompt, params), TextBuilder(self.tokenizer, params.stop))

    def _sequence(self, prompt: Prompt, params: SamplingParams) -> Sequence:
        ids = self.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise OptionError("the prompt is empty, and this tokenizer adds no start token: give at least one token")
        bad = next((i for i in ids if not isinstance(i, int) or not 0 <= i < self.spec.vocab), None)
        if bad is not None:
            raise OptionError(f"token id {bad!r} is outside the vocabulary of {self.spec.vocab} tokens")
        if params.stop and self.tokenizer is None:
            self._need_tokenizer("stop strings")
        self._check_context(len(ids), params.max_new_tokens)
        self.next_id += 1
        return make_sequence(self.next_id - 1, ids, params)

    def _check_context(self, prompt: int, new: int) -> None:
        longest, limit = prompt + new, self.room.max_context
        if prompt > limit:
            raise ContextOverflow(
                f"the prompt has {prompt} tokens, the context holds {limit}: {self._context_remedy()}"
            )
        if longest > limit + 1:  # the last new token is never written to the cache
            raise ContextOverflow(
                f"{prompt} prompt tokens and {new} new ones are {longest}, the context holds {limit}: "
                f"lower max_new_tokens to {limit + 1 - prompt} or less, or {self._context_remedy()}"
            )

    def _context_remedy(self) -> str:
        if self.room.max_context < self.spec.context:
            return f"raise max_context (this model allows {self.spec.context}) or shorten the prompt"
        return "shorten the prompt (the model was not trained for more)"

    # ---- life time

    def close(self) -> None:
        """Closes the ledger file, if one is open; ends the hand-off's threads and pinning, after which a model with
        graphs cannot decode. The memory goes with the object."""
        self.ledger.close()
        with self.lock:
            if self.graphed is not None:
                self.graphed.close()
            if self.memory is not None:
                self.memory.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _config(options: dict[str, Any]) -> EngineConfig:
    unknown = sorted(set(options) - set(EngineConfig.__dataclass_fields__))
    if unknown:
        raise OptionError(f"unknown option {unknown[0]!r}; there are {', '.join(EngineConfig.__dataclass_fields__)}")
    return EngineConfig(**options)


def load_options(config: EngineConfig) -> LoadOptions:
    return LoadOptions(
        expert_format=config.expert_format,
        dense_format=config.dense_format,
        plain_format=config.plain_format,
        ignore_config_keys=config.ignore_config_keys,
    )


def _load_tokenizer(checkpoint: Checkpoint) -> Tokenizer | None:
    """The tokenizer, or None where there is none at all; one that does not fit the embedding is refused."""
    if not (checkpoint.directory / "tokenizer.json").is_file():
        return None
    tokenizer = Tokenizer.load(checkpoint.directory)
    tokenizer.check_fits(checkpoint.spec.vocab)
    return tokenizer


def _as_prompts(prompts: Prompt | Seq[Prompt]) -> list[Prompt]:
    """A list of prompts; a single text or a single list of ids counts as a list of one."""
    if isinstance(prompts, str):
        return [prompts]
    many = list(prompts)
    if many and all(isinstance(p, int) for p in many):
        return [many]  # type: ignore[list-item]  # all of them are ids, just checked
    odd = next((p for p in many if not isinstance(p, (str, list, tuple))), None)
    if odd is not None:
        raise OptionError(f"a prompt is {odd!r}: give text, or a list of token ids")
    return many  # type: ignore[return-value]
