"""`LLM`: a model that is loaded and generates.

    llm = LLM("demo")
    print(llm.generate("In the beginning", SamplingParams(max_new_tokens=40))[0].text)

`core/build.py` puts it together and `core/loop.py` runs it; here is what callers say and get.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import OptionError, brief
from ..loaders.spec import ModelSpec
from ..loaders.tokens.conversation import Message
from ..loaders.tokens.tokenizer import Tokenizer
from ..loaders.weights.checkpoint import Progress
from . import drafts_asked
from .bandwidth_model.reconcile import Reconciliation
from .config import EngineConfig, SamplingParams
from .core.build import Check, build
from .core.expected_time import ExpectedPasses
from .core.kv_on_disk import check_folder
from .core.loop import Loop, Sampler
from .core.weight_source import CheckpointFiles, OpenedOnce, WeightSource, name_of
from .experts.counts import Counted
from .generation.admission import Params, Prompt, Prompts, as_params, as_prompts
from .generation.chat import ChatCompletion, ChatStream
from .generation.completion_stream import CompletionGroup, CompletionStream
from .generation.outputs import Completion
from .generation.sampler import sample
from .generation.schedule.chunk_limit import ChunkLimit
from .generation.schedule.fair_share import DECODE_SHARE, FairShare
from .ledger.ledger import Ledger
from .model.decoder import Decoder
from .speculation.draft_model import DraftModel
from .speculation.drafter import CostlyDrafter, Drafter
from .speculation.drafts import most_states
from .speculation.lookup import PromptLookup
from .speculation.mtp.drafter import MtpDrafter
from .speculation.mtp.layer import MtpLayer
from .speculation.pass_times import PassTimes
from .speculation.speculation import Speculation
from .speculation.vocabulary import draft_vocabulary, expected
from .speculation.vocabulary.draft_vocabulary import DraftVocabulary
from .traces import writer
from .traces.recorder import Recorder, make_header
from .units import size

DRAFT_CONTEXT = 8192  # tokens, of a draft model where no max_context was given
_RENDERING = {"chat_template": "template", "chat_template_kwargs": "arguments"}  # names within the engine


class LLM:
    """A loaded model.

    model: the directory of a Hugging Face checkpoint, a hub id, "demo", or a source of weights. The options are the
    fields of `EngineConfig`.
    progress(done, total) is called with bytes while weights load, compiling(done, total) with kernels while those of a
    GPU are compiled, joining(here, total) with hosts while they are waited for. sampler(logits, sequences, ops) chooses
    the next tokens, as `SamplingParams` say if none is given. check(admission) sees which prompts are admitted before
    weights are loaded; what it raises ends the load. With the C++ kernels torch is limited to one thread in this
    process, since two thread pools on the same cores slow each other down.
    Raises a `HeadraceError` that names what is wrong: options, files, memory, hub.

    `parts` are what it is made of, `ledger` has the account of its passes, `predictions` what they are held against.
    """

    def __init__(
        self,
        model: str | bytes | os.PathLike[str] | WeightSource,
        *,
        progress: Progress | None = None,
        compiling: Progress | None = None,
        joining: Progress | None = None,
        sampler: Sampler = sample,
        check: Check | None = None,
        **options: Any,
    ) -> None:
        for name, call in (
            ("progress", progress),
            ("compiling", compiling),
            ("joining", joining),
            ("sampler", sampler),
        ):
            if call is not None and not callable(call):
                raise OptionError(f"{name} is {brief(call)}; it must be a function")
        self.config = EngineConfig(**options)
        if self.config.trace is not None:
            writer.check(self.config.trace)
        check_folder(self.config)
        self.source = _source(model)
        self.draft_model = self._draft_model()
        self.parts = parts = build(self.source, self.config, progress, check, compiling, joining)
        self.ledger = Ledger()
        way, formats = parts.signal_choice, parts.checkpoint.formats
        handoff_s = way.us * 1e-6 if parts.graphed is not None and way is not None and way.us is not None else None
        self.predictions = Reconciliation(
            self.ledger, parts.spec, formats, parts.kv_format, parts.weights, parts.devices, parts.kernels, handoff_s
        )
        self.predictions.disk_bytes_s, self.predictions.network = parts.disk_bytes_s, parts.network
        self.predictions.start(parts.profile)
        self.recorder = None if self.config.trace is None else self._recorder(self.config.trace)
        self.loop = Loop(parts, self.ledger, self.predictions.new_run, sampler, *self._beside_text(), self.recorder)
        if (speculation := self._speculation()) is not None:
            self.loop.speculate(speculation)
        self.admission = parts.admission
        self.vocabulary = parts.admission.vocabulary

    def _beside_text(self) -> tuple[ChunkLimit, FairShare]:
        """How prompts go beside requests that generate: as fast as they can, or so that these are not held up."""
        stall = self.config.prefill_stall_ms
        stall_s = None if stall is None else stall / 1e3
        limit = ChunkLimit(ExpectedPasses(self.parts, self.predictions), self.config.prefill_chunk, stall_s)
        return limit, FairShare(0.0 if stall is None else DECODE_SHARE)

    def _speculation(self) -> Speculation | None:
        """What guesses tokens and how far; None: nothing does. Not while a trace is recorded, in which refused tokens
        would stand among the others; nor, by itself, beside a GPU, whose passes of several tokens nothing predicts.
        Raises OptionError where it was asked for and cannot be."""
        asked, parts = self.config.speculate, self.parts
        is_auto = asked == "auto"
        if asked == "off" or self.config.trace is not None or (is_auto and not self.predictions.can_predict):
            return None
        moe, states = parts.spec.moe, self.loop.states
        times = PassTimes(ExpectedPasses(parts, self.predictions), moe.experts, moe.top_k)
        limit = None if states is None else most_states(states)
        own = None if parts.mtp is None else self._own_drafter(parts.mtp)
        drafter = own if own is not None and asked == "mtp" else self._drafter()
        behind = own if is_auto else None
        return Speculation(drafter, times, must_pay=is_auto, most_states=limit, behind=behind)

    def _own_drafter(self, layer: MtpLayer) -> MtpDrafter:
        """The model's own layer, with what its guesses should take where rates are known."""
        parts, model = self.parts, self.predictions.pass_model
        what, where = (layer.own, parts.weights.head, parts.spec.moe.top_k), parts.main.tier.channel
        known = None if model is None else expected.seconds(*what, model.machine, where)
        return MtpDrafter(layer, self._vocabulary(layer.decoder, *(known or ())))

    def _vocabulary(self, drafting: Decoder, rest_s: float = 0.0, row_s: float = 0.0) -> DraftVocabulary:
        """Among which tokens guesses of a decoder are chosen."""
        return draft_vocabulary.of_decoder(drafting, self.config.draft_vocabulary, rest_s, row_s)

    def _draft_model(self) -> LLM | None:
        """The second model that drafts, loaded before the first takes the memory that is left."""
        name, config = self.config.speculate, self.config
        if name in drafts_asked.WORDS:
            return None
        options: dict[str, Any] = {
            "speculate": "off", "device": "cpu", "kernels": config.kernels, "threads": config.threads,
            "no_measure": True, "max_sequences": config.max_sequences, "offline": config.offline,
            "cache_dir": config.cache_dir,
        }  # fmt: skip
        source = OpenedOnce(name)
        trained = source.open(EngineConfig(**options), {}, True).spec.context  # longer texts get no drafts
        return LLM(source, max_context=min(config.max_context or DRAFT_CONTEXT, trained), **options)

    def _drafter(self) -> Drafter | CostlyDrafter:
        """What was asked for; raises OptionError for a second model that cannot draft for this one."""
        small = self.draft_model
        if small is None:
            return PromptLookup()
        if small.spec.state_elements:
            raise OptionError(
                f"speculate: {small.name} has recurrent states, which refused tokens would spoil: give a model without"
            )
        if not _same_tokens(self, small):
            raise OptionError(
                f"speculate: the tokens of {small.name} are not those of {self.name}: give a model of the same "
                "vocabulary"
            )
        parts = small.parts
        return DraftModel(
            parts.decoder, parts.main, small.loop.pages, parts.config.prefill_chunk, parts.kv_budget.max_context,
            self._vocabulary(parts.decoder),
        )  # fmt: skip

    def _recorder(self, path: Path) -> Recorder:
        """A trace that is open; closing the model ends it."""
        parts = self.parts
        return Recorder(path, make_header(self.name, parts.spec, parts.checkpoint.formats, parts.weights))

    @property
    def name(self) -> str:
        """What people call the model: its directory's or its file's name, or the family's where there is none."""
        return name_of(self.source, self.parts.spec)

    @property
    def spec(self) -> ModelSpec:
        """What the model is."""
        return self.parts.spec

    @property
    def tokenizer(self) -> Tokenizer | None:
        """None where the model's directory has none."""
        return self.parts.tokenizer

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how the model's files were read, of what fell back, and of options without effect,
        a line each."""
        config, drafts = self.config, self.loop.drafts
        guesses = drafts is not None and not all(one.is_free for one in drafts.speculation.drafters)
        idle = drafts_asked.idle(config.mtp, config.draft_vocabulary, self.parts.mtp is not None, guesses)
        second = [] if self.draft_model is None else [_second(self.draft_model)]
        return (*self.parts.notes, *second, *idle)

    def generate(self, prompts: Prompts, params: Params = None) -> list[Completion]:
        """Completes prompts together, each text or a list of token ids; one Completion each, in their order.

        params: one for all, or one for each prompt, also as a dict of its fields; default greedy, 256 tokens. Raises
        ContextOverflow if a prompt and its new tokens do not fit into the context, OptionError for a prompt that is
        empty or holds unknown ids.
        """
        group = self.batch(prompts, params)
        group.run()
        return group.results

    def batch(self, prompts: Prompts, params: Params = None) -> CompletionGroup:
        """The requests of `generate` before they run: `run` completes them, and `results` is what there is at any time,
        also after an exception (Ctrl-C) ended the run."""
        many = as_prompts(prompts)
        each = as_params(params, len(many))
        requests = [self.admission.request(p, one) for p, one in zip(many, each, strict=True)]
        return CompletionGroup(lambda: self.loop.run(requests), lambda: self.loop.completions(requests))

    def stream(self, prompt: Prompt, params: Params = None) -> CompletionStream:
        """Completes one prompt and yields a `Chunk` per token; closing the stream ends the request cleanly.

        Several streams may be open at a time, and `generate` may be called in between: they share passes. Raises what
        `generate` raises, before the first chunk.
        """
        request = self.admission.request(prompt, as_params(params, 1)[0])
        return CompletionStream(self.loop.chunks(request), lambda: self.loop.completions([request])[0])

    def chat(self, messages: Seq[Message], params: Params = None, **rendering: Any) -> ChatCompletion:
        """Answers a conversation: messages {"role": ..., "content": ...}, rendered with the model's chat template.

        rendering: as of `chat_prompt`; dialect: how the model writes reasoning and calls, if its template does not say
        so; tool_choice: "auto" (calls that come are held to their tools), "none", "required", or a tool as in OpenAI's
        API. The answer's `message` goes into the conversation; the keys and values of a history that was answered
        before are reused. Raises TokenizerError without a template, OptionError for what no grammar can be made of.
        """
        stream = self.chat_stream(messages, params, **rendering)
        for _ in stream:
            pass
        return stream.result

    def chat_stream(
        self,
        messages: Seq[Message],
        params: Params = None,
        *,
        dialect: str | None = None,
        tool_choice: Any = None,
        **rendering: Any,
    ) -> ChatStream:
        """The same as it grows: an iterator of `headrace.loaders.tokens.dialects.events`. Raises what `chat` raises,
        before the first."""
        named = {_RENDERING.get(name, name): value for name, value in rendering.items()}
        if unknown := next((name for name in named if name not in ("tools", *_RENDERING.values())), None):
            raise OptionError(
                f"a chat has no {unknown!r}: it takes params, tools, tool_choice, dialect, {' and '.join(_RENDERING)}; "
                "how tokens are chosen is in params"
            )
        one = as_params(params, 1)[0]
        request, text = self.admission.answer(messages, one, dialect=dialect, tool_choice=tool_choice, **named)
        return ChatStream(self.loop.chunks(request), lambda: self.loop.completions([request])[0], text)

    def chat_prompt(
        self,
        messages: Seq[Message],
        *,
        tools: Any = None,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of a conversation, ready for the answer.

        messages: as in OpenAI's API; text may come in parts, calls with arguments as JSON text. tools: functions that
        the model may call. chat_template: the name of one of the model's templates, or a template's own text.
        chat_template_kwargs: what a template reads besides, as {"enable_thinking": False}. Raises TokenizerError.
        """
        return self.admission.chat(messages, tools=tools, template=chat_template, arguments=chat_template_kwargs)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text with the special tokens that the model expects; raises TokenizerError."""
        return self.admission.encode(text)

    def logits(self, token_ids: Prompt) -> Tensor:
        """Logits after every token of a text or of ids: float32 [tokens, vocabulary], computed in prefill chunks.

        Raises ContextOverflow if the text is longer than the context.
        """
        return self.loop.logits(self.admission.sequence(token_ids, SamplingParams(max_new_tokens=1)))

    @property
    def expert_counts(self) -> Counted:
        """How many tokens were routed to each expert so far: int64 [layers, experts], a copy. For any thread."""
        self.ledger.settle()
        return self.loop.counts.snapshot()

    def time_tiers(self, wanted: bool = True) -> None:
        """From now on passes say how long each tier worked, what the GPU waited for and what overlapped
        (`ledger/timers.py`). Beside a GPU that costs a launch for each part of a layer, and graphs are captured
        anew."""
        with self.loop.lock:
            if self.parts.graphed is not None:
                self.parts.graphed.time_tiers(wanted)
            self.parts.timers.is_on = wanted

    def __repr__(self) -> str:
        return f"LLM({self.name!r})"

    def __reduce__(self) -> Any:
        """Raises TypeError, as what cannot be copied does: pools and worker processes would copy a whole model."""
        raise TypeError("a loaded model cannot be pickled or copied: load it in each process, LLM(...)")

    def close(self) -> None:
        """Closes the ledger file and the trace, if there are such; ends the hand-off's threads and pinning, after which
        a model with graphs cannot decode. The memory goes with the object. Nothing of it in a forked child, whose
        parent goes on. Raises OptionError where the trace could not be written to its end."""
        if self.loop.lock.is_elsewhere:
            return
        self.loop.settle()
        self.ledger.close()
        with self.loop.lock:
            self.loop.close()
            self.parts.close()
        if self.recorder is not None:
            self.recorder.close()
        if self.draft_model is not None:
            self.draft_model.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _second(model: LLM) -> str:
    """For people: which model drafts, and what it takes."""
    parts = model.parts
    taken, longest = size(parts.weights.nbytes + parts.kv_budget.kv_bytes), parts.kv_budget.max_context
    return f"{model.name} drafts: {model.spec.family}, up to {taken} of RAM, for texts of up to {longest} tokens"


def _same_tokens(one: LLM, other: LLM) -> bool:
    """Whether ids of two models mean the same: of as many tokens, by the same texts where both have a tokenizer."""
    if one.spec.vocab != other.spec.vocab:
        return False
    mine, theirs = one.tokenizer, other.tokenizer
    return mine is None or theirs is None or mine.vocabulary() == theirs.vocabulary()


def _source(model: str | bytes | os.PathLike[str] | WeightSource) -> WeightSource:
    """Where weights come from: files by their path or name, or what is a source itself."""
    if isinstance(model, str | bytes | os.PathLike):
        return CheckpointFiles(os.fsdecode(model))
    if not (hasattr(model, "open") and hasattr(model, "load")):
        raise OptionError(f"a model is {brief(model)}: give a directory, a name on the hub, or 'demo'")
    return model
