"""`headrace bench`: prefill and decode speed, with the bytes behind them, against the prediction and the ceiling.

Every test runs once unmeasured, then `rounds` times; medians over rounds count. Times are those of the ledger's passes:
scheduling, forward, sampling and bookkeeping, without text. A prompt is new in every round, so that its keys are in no
cache; the tokens before a decode run (`depth`) are the same, so that they are computed once.

Beside a GPU one more round has the clock of the tiers on, which costs launches: it says where the time goes, and counts
for no rate.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...errors import MemoryNeeded
from ...loaders.quants.by_format import ByFormat
from ..bandwidth_model import roofline, tier_rates
from ..bandwidth_model.pass_model import PassModel
from ..config import SamplingParams
from ..generation.schedule.scheduler import WATERMARK
from ..ledger import in_formats
from ..ledger.pass_bytes import DENSE, EXPERTS, KV
from ..ledger.passes import CPU_DRAM, Bytes, Pass
from ..ledger.residual import TierTimes, tier_times
from ..ledger.summary import summarise
from ..llm import LLM
from ..measure import plain_read
from ..model.kv_cache import pages_for
from ..placement.placement import parse
from ..planning.speed import Drafted
from ..units import size
from . import decoding
from .decoding import InTurns, Once, passes, prompt
from .grid import Grid
from .random_weights import is_cut, whole_spec


@dataclass(frozen=True, kw_only=True)
class Row:
    """One test. Rates are tokens per second of all sequences together, by round; bytes and times are per token.

    whole_tok_s: what the uncut model would do, where layers were left out; None where all ran. tiers: where the time
    goes in a run with a GPU. crossover: of decode, sequences from which arithmetic is predicted to bound the weights of
    "dense" and of "experts", where rates are known. gains: what drafts are predicted to gain here; drafts: what those
    gained that were asked for. All else is without drafts. plain_read: bytes per second that RAM gave between the
    rounds, the median; None where too little lies there, or nothing is predicted.
    """

    test: str
    batch: int
    depth: int
    placement: str
    rounds: tuple[float, ...]
    bytes_per_token: Bytes
    predicted_tok_s: float | None
    residual_ms: float | None
    share_of_ceiling: float | None
    whole_tok_s: float | None
    tiers: TierTimes | None = None
    crossover: dict[str, float] = field(default_factory=dict)
    gains: tuple[Drafted, ...] = ()
    drafts: InTurns | None = None
    plain_read: float | None = None

    @property
    def tok_s(self) -> float:
        return statistics.median(self.rounds)

    @property
    def error(self) -> float | None:
        """Predicted time over measured time, less one: above 0 is a model that is slower than the machine."""
        return None if self.predicted_tok_s is None else self.tok_s / self.predicted_tok_s - 1


def room(tests: Grid) -> dict[str, int]:
    """The options that give a cache room for all tests: a few sequences more than decode together, where the pages that
    admission leaves free are as many."""
    pages, sequences = pages_for(tests.context), tests.sequences
    while _free(sequences * pages, tests) < _pages(tests):
        sequences += 1
    return {"max_context": tests.context, "max_sequences": sequences}


def _pages(tests: Grid) -> int:
    """Of the largest batch at its end."""
    return tests.sequences * pages_for(tests.longest)


def _free(pages: int, tests: Grid) -> int:
    """Those that its last sequence finds."""
    return pages if tests.sequences == 1 else pages - int(WATERMARK * pages)


def _check_room(llm: LLM, tests: Grid) -> None:
    """Raises MemoryNeeded where the largest batch would never decode together."""
    budget = llm.parts.kv_budget
    if _free(budget.pages, tests) < _pages(tests):
        page = budget.kv_bytes / budget.pages
        raise MemoryNeeded(
            f"{tests.sequences} sequences of {tests.longest} tokens take {size(_pages(tests) * page)} of KV cache, "
            f"{size(_free(budget.pages, tests) * page)} are there: lower --batch, --depth or --new"
        )


def placed(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that load a model for placement `name`; what is about GPUs is left out on the CPU."""
    if name == "cpu":
        gpu_alone = {"tensor_split": None, "vram_limit": None, "stream_from": "auto", "policy": None}
        return {"device": "cpu", "placement": None, **gpu_alone, "pinned_limit": None, "handoff": "auto"}
    policy = parse(name)
    may_split = policy.kind == "auto" or (policy.kind == "layers" and policy.layers is not None)
    return {"placement": name, "tensor_split": options.get("tensor_split") if may_split else None}


def run(
    llm: LLM, tests: Grid, placement: str = "cpu", tell: Callable[[str], None] = lambda text: None
) -> Iterator[Row]:
    """Runs every test on a model that was placed so, and yields its row; `tell` is given the name of each before.
    Raises MemoryNeeded where the cache has no room for the largest batch."""
    _check_room(llm, tests)
    for tokens in filter(None, tests.prompt):
        tell(f"{placement}: prompt of {tokens} tokens")
        once = _prefill(llm, tokens)
        rounds, read = _rounds(llm, once, tests.rounds)
        yield _row(llm, f"pp{tokens}", 1, 0, placement, rounds, "prefill", _timed(llm, once, tests.rounds), read)
    for new in filter(None, tests.new):
        for depth in tests.depth:
            for batch in tests.batch:
                tell(f"{placement}: {new} new tokens, batch {batch}, after {depth}")
                yield _decode(llm, tests.rounds, placement, new, batch, depth)


def _prefill(llm: LLM, tokens: int) -> Once:
    """A prompt, after one that does not count."""
    params = SamplingParams(max_new_tokens=1, ignore_eos=True)

    def once(turn: int) -> list[Pass]:
        return passes(llm, [prompt(llm, tokens, ("prompt", turn))], params, "prefill")

    once(-1)
    return once


def _decode(llm: LLM, rounds: int, placement: str, new: int, batch: int, depth: int) -> Row:
    """Steps without drafts; then, where something drafts, with them and without in turns."""
    with decoding.without_drafts(llm):
        once = decoding.once(llm, new, batch, depth)
        found, read = _rounds(llm, once, rounds)
        timed = _timed(llm, once, rounds)
    row = _row(llm, f"tg{new}", batch, depth, placement, found, "decode", timed, read)
    gains = decoding.predicted_gains(llm, batch, max(depth, 1) + new // 2)
    return replace(row, gains=gains, drafts=decoding.in_turns(llm, new, batch, depth, rounds))


def _rounds(llm: LLM, once: Once, count: int) -> tuple[list[list[Pass]], float | None]:
    """The passes of each round, and what RAM gave a plain read between them."""
    found, reads = list[list[Pass]](), list[float | None]()
    for turn in range(count):
        found.append(once(turn))
        reads.append(_plain_read(llm))
    known = [one for one in reads if one is not None]
    return found, statistics.median(known) if known else None


def _plain_read(llm: LLM) -> float | None:
    """Of the weights, on the CPU alone; of a model of which less lies in RAM than a cache may hold, the profile's."""
    parts, profile = llm.parts, llm.predictions.profile
    if profile is None or len(parts.devices) > 1:
        return None
    return plain_read.of_weights(parts.context, parts.weights.named().values()) or profile.stream


def _timed(llm: LLM, once: Once, turn: int) -> list[Pass]:
    """One more round with the tiers timed; none on the CPU alone."""
    if len(llm.parts.devices) == 1:
        return []
    was_on = llm.parts.timers.is_on
    llm.time_tiers()
    try:
        return once(turn)
    finally:
        llm.time_tiers(was_on)


def _row(
    llm: LLM,
    test: str,
    batch: int,
    depth: int,
    placement: str,
    rounds: list[list[Pass]],
    phase: str,
    timed: list[Pass],
    read: float | None,
) -> Row:
    each = [summarise(passes, phase) for passes in rounds]
    typical = sorted(each, key=lambda s: s.tok_s)[len(each) // 2]
    together = summarise([p for passes in rounds for p in passes], phase)
    per_token = together.bytes_per_token()
    rate = statistics.median(s.tok_s for s in each)
    predicted = together.predicted_tok_s
    return Row(
        test=test,
        batch=batch,
        depth=depth,
        placement=placement,
        rounds=tuple(s.tok_s for s in each),
        bytes_per_token=per_token,
        predicted_tok_s=predicted,
        residual_ms=None if predicted is None else 1e3 / rate - 1e3 / predicted,
        share_of_ceiling=None if read is None else per_token[CPU_DRAM]["total"] * rate / read,
        whole_tok_s=_of_the_whole(llm, typical.tok_s, rounds[0], phase),
        tiers=tier_times(summarise(timed, phase)),
        crossover=crossovers(llm, per_token) if phase == "decode" else {},
        plain_read=read,
    )


def crossovers(llm: LLM, read: Bytes) -> dict[str, float]:
    """By group: sequences from which arithmetic bounds its weights, in the memory that most of its bytes were read
    from. With many sequences an expert has top_k of `experts` parts of their tokens."""
    model = llm.predictions.pass_model
    if model is None:
        return {}
    groups = {DENSE: ByFormat.sum([model.sizes.dense, model.sizes.head])}
    if model.experts:
        groups[EXPERTS] = ByFormat.sum(one.times(layers) for one, layers in model.experts.items())
    memories, found = model.machine.memories, {}
    for group, weights in groups.items():
        term = max(memories, key=lambda name: read.get(name, {}).get(group, 0))
        count = roofline.weights_of(weights)
        tokens = roofline.crossover(weights, count, term, model.machine, group == EXPERTS)
        if tokens is not None:
            moe = model.spec.moe
            found[group] = tokens * moe.experts / moe.top_k if group == EXPERTS else tokens
    return found


def _of_the_whole(llm: LLM, rate: float, passes: list[Pass], phase: str) -> float | None:
    """The rate of the uncut model, from that of its first layers.

    Decode takes longer by the ratio of the predictions for the bytes of both, prefill, which computes more than it
    reads, by that of the layers' bytes. None where no layer was left out, without a prediction, or beside a GPU.
    """
    profile, parts = llm.predictions.profile, llm.parts
    if not is_cut(llm) or profile is None or len(parts.devices) > 1:
        return None
    grown = growth(llm)
    if phase == "prefill":
        return rate / grown[EXPERTS]
    here = sum(p.predicted_s or 0.0 for p in passes)
    predict = PassModel(whole_spec(llm), parts.checkpoint.formats, parts.kv_format, tier_rates.of_cpu(profile))
    found = (predict(replace(p, bytes=scaled(p.bytes, grown), by_layer=())) for p in passes)
    whole = sum(one.seconds for one in found if one is not None)
    return rate * here / whole


def growth(llm: LLM) -> dict[str, float]:
    """By group: bytes of the whole model's layers over those of the layers that are there."""
    spec = whole_spec(llm)
    whole, here = (in_formats.of_model(one, llm.parts.checkpoint.formats) for one in (spec, llm.spec))
    experts = [sum(layer.expert.total for layer in one.layers) for one in (whole, here)]
    return {
        EXPERTS: experts[0] / experts[1],
        DENSE: whole.dense.total / here.dense.total,
        KV: spec.kv_elements_per_token / max(1, llm.spec.kv_elements_per_token),
    }


def scaled(read: Bytes, grown: dict[str, float]) -> Bytes:
    """Bytes of a pass with each group as many times larger."""
    return {
        tier: {group: round(size * grown.get(group, 1.0)) for group, size in groups.items()}
        for tier, groups in read.items()
    }
