"""One text scored by one model under several settings: experts a token, formats of the experts or of the cache, or each
pair of them.

Every setting is a load of its own. Speed is that of a short prompt and a short generation from the same text, as the
ledger's passes say; with several rounds all settings are timed in turn, forwards and backwards, so that what else the
machine does falls on all of them.
"""

from __future__ import annotations

import gc
import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ....loaders.families import experts_per_token as used
from ....loaders.weights.checkpoint import Checkpoint
from ...config import EngineConfig, SamplingParams
from ...core.weight_source import CheckpointFiles
from ...ledger import in_formats
from ...ledger.passes import MEMORIES
from ...ledger.summary import summarise
from ...llm import LLM
from ...memory import kv_budget
from ..passport import passport
from .options import CACHES, FORMATS, Asked, Axis
from .perplexity import Perplexity, Scores, change, of_scores, score

PROMPT, NEW, REPEATS = 256, 64, 3  # tokens of a prompt and of its completion, and how many count of a load
ALL = 8  # experts a token up to which each number is tried

Setting = dict[str, Any]  # fields of `EngineConfig`


@dataclass(frozen=True, kw_only=True)
class Point:
    """What one setting gave. expert_format: as asked for, stored_as: what most experts have; expert_bytes: of all
    routed experts; kv_format: of the cache; bytes_per_token: that a decoded token read; rates are tokens per second,
    medians of the samples. change: of the perplexity against that of the base, as a share, and its standard error from
    the differences of each token."""

    experts_per_token: int
    is_trained: bool
    expert_format: str
    stored_as: str
    expert_bytes: int
    kv_format: str
    bytes_per_token: int
    prefill_tok_s: float
    decode_tok_s: float
    prefill_samples: tuple[float, ...]
    decode_samples: tuple[float, ...]
    perplexity: Perplexity
    change: float
    change_error: float | None


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """All points in the order of the settings. trained: experts a token that the model was trained with; base: the
    point that the others are held against, the first with that number; passport: of the machine."""

    trained: int
    base: int
    points: tuple[Point, ...]
    passport: dict[str, Any]


class Speed(NamedTuple):
    """Of one completion: tokens per second, and bytes that a decoded token read."""

    prefill: float
    decode: float
    read: int


@dataclass
class _Seen:
    """What is known of a setting so far."""

    facts: dict[str, Any] = field(default_factory=dict)
    scores: Scores | None = None
    speeds: list[Speed] = field(default_factory=list)


def settings(model: str, config: Setting, axes: Sequence[Axis]) -> tuple[int, list[Setting]]:
    """The trained number of experts, and every combination of the axes' values, the usual ones where none are given.
    Reads headers alone; raises OptionError for a value that the model cannot have."""
    found = _opened(model, {**config, "experts_per_token": None})
    trained, most = found.spec.moe.top_k, used.most_experts(found.spec.moe)
    values = {name: given or usual(name, trained, most) for name, given in axes}
    for count in values.get("experts_per_token", ()):
        used.check(int(count), trained, most, str(found.directory))
    for name in values.get("expert_format", ()):
        _opened(model, {**config, "expert_format": name})
    for name in values.get("kv_format", ()):
        kv_budget.kv_format(EngineConfig(kv_format=str(name)), found.spec, found.formats)
    return trained, [dict(zip(values, one, strict=True)) for one in itertools.product(*values.values())]


def usual(name: str, trained: int, most: int) -> tuple[int | str, ...]:
    """The values of an axis that makes a curve: formats from large to small, or numbers up to `most`; of many the
    powers of two, the trained number and the last."""
    if name != "experts_per_token":
        return {"expert_format": FORMATS, "kv_format": CACHES}[name]
    if most <= ALL:
        return tuple(range(1, most + 1))
    powers = (1 << i for i in range(most.bit_length()))
    return tuple(sorted({one for one in powers if one <= most} | {trained, most}))


def run(
    load: Callable[[Setting], LLM],
    all_settings: Sequence[Setting],
    trained: int,
    text: str,
    asked: Asked,
    tell: Callable[[str], None] = lambda line: None,
) -> Sweep:
    """Loads, scores and times every setting, one at a time; `tell` is given the name of each before, and what it gave
    behind, so that a sweep that does not come to its end was not for nothing."""
    seen = [_Seen() for _ in all_settings]
    about: dict[str, Any] = {}
    for turn in range(asked.rounds):
        order = range(len(seen)) if turn % 2 == 0 else reversed(range(len(seen)))
        for i in order:
            tell(f"round {turn + 1} of {asked.rounds}: {named(all_settings[i])}")
            about = _visit(load, all_settings[i], text, asked, seen[i])
            tell(_said(seen[i]))
            gc.collect()  # the memory of this one goes before the next one is loaded
    base = next((i for i, one in enumerate(seen) if one.facts["experts_per_token"] == trained), 0)
    points = tuple(_point(one, seen[base], trained) for one in seen)
    return Sweep(trained=trained, base=base, points=points, passport=about)


def named(setting: Setting) -> str:
    """A setting as its options."""
    return ", ".join(f"{name.replace('_', '-')} {value}" for name, value in setting.items())


def _said(seen: _Seen) -> str:
    """What a setting gave so far, in a line."""
    scored: Perplexity = seen.facts["perplexity"]
    prefill, decode = (statistics.median(many) for many in list(zip(*seen.speeds, strict=True))[:2])
    return f"perplexity {scored.value:.4f}, {prefill:.0f} tokens/s of a prompt, {decode:.1f} of generated text"


def _opened(model: str, config: Setting) -> Checkpoint:
    """The headers of a model, checked for a config."""
    return CheckpointFiles(model).open(EngineConfig(**config), {}, show_progress=True)


def _visit(load: Callable[[Setting], LLM], setting: Setting, text: str, asked: Asked, seen: _Seen) -> dict[str, Any]:
    """Loads a setting, scores the text if that was not done, and times it; gives the machine's passport."""
    with load(setting) as llm:
        ids = llm.encode(text)
        if seen.scores is None:
            seen.scores = score(llm, ids, asked.window, asked.stride)
            seen.facts = {**_facts(llm), "perplexity": of_scores(seen.scores, len(text.encode()))}
        seen.speeds += _speeds(llm, ids)
        return passport(llm.parts.context)


def _facts(llm: LLM) -> dict[str, Any]:
    formats = llm.parts.checkpoint.formats
    layers = in_formats.of_model(llm.spec, formats).layers
    return {
        "experts_per_token": llm.spec.moe.top_k,
        "expert_format": llm.config.expert_format,
        "kv_format": llm.parts.kv_format.name,
        "stored_as": formats.names["experts"],
        "expert_bytes": round(sum(layer.experts * layer.expert.total for layer in layers)),
    }


def _speeds(llm: LLM, ids: list[int]) -> list[Speed]:
    """Completions of different parts of the text, after one that does not count."""
    limit = llm.parts.kv_budget.max_context
    length = max(1, min(PROMPT, limit // 2, len(ids) // (REPEATS + 1)))
    params = SamplingParams(max_new_tokens=max(2, min(NEW, limit - length)), ignore_eos=True)
    starts = [i * length % (len(ids) - length + 1) for i in range(REPEATS + 1)]
    return [_speed(llm, ids[start : start + length], params) for start in starts][1:]


def _speed(llm: LLM, prompt: list[int], params: SamplingParams) -> Speed:
    with llm.ledger.recording() as passes:
        llm.generate([prompt], params)
    prefill, decode = (summarise(passes, phase) for phase in ("prefill", "decode"))
    per_token = decode.bytes_per_token()
    read = sum(per_token.get(memory, {}).get("total", 0) for memory in MEMORIES)
    return Speed(prefill.tok_s, decode.tok_s, read)


def _point(seen: _Seen, base: _Seen, trained: int) -> Point:
    assert seen.scores is not None
    assert base.scores is not None, "a setting that was not scored"
    changed, error = change(seen.scores, base.scores)
    return Point(
        **seen.facts,
        change=changed,
        change_error=error,
        is_trained=seen.facts["experts_per_token"] == trained,
        bytes_per_token=round(statistics.mean(one.read for one in seen.speeds)),
        prefill_tok_s=statistics.median(one.prefill for one in seen.speeds),
        decode_tok_s=statistics.median(one.decode for one in seen.speeds),
        prefill_samples=tuple(one.prefill for one in seen.speeds),
        decode_samples=tuple(one.decode for one in seen.speeds),
    )
