"""GET /metrics: what Prometheus reads. Names are vLLM's behind `headrace_`, so that boards can be taken over; bytes,
seconds of passes and the ratio to predictions are our own.

Everything is read when somebody asks; a pass costs one sum, a request that ended five.
"""

from __future__ import annotations

from collections import Counter as Sums
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ...experts.counts import by_tier, hottest
from ...ledger import guesses
from ...ledger.passes import Pass
from ...ledger.summary import PHASES, summarise
from ..generation import Generation
from ..page.passes import newest
from ..page.totals import Totals
from ..service import Service
from .gaps import Gaps

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
HOTTEST = (1, 5, 10, 20, 50)  # per cent of the experts whose share of the choices is told
LOOKED_AT = 64  # passes that the ratio to predictions is taken from
HISTOGRAMS = {
    "time_to_first_token_seconds": "from the request to its first token",
    "time_per_output_token_seconds": "between tokens of a request, on average",
    "e2e_request_latency_seconds": "from the request to its last token",
    "request_queue_time_seconds": "until a request first ran",
    "request_prefill_time_seconds": "from there to its first token",
    "request_decode_time_seconds": "from its first token to its last",
}


class Metrics(Collector):
    """Counts what a service does."""

    def __init__(self, service: Service, totals: Totals) -> None:
        self.service, self.totals = service, totals
        self.registry = CollectorRegistry()
        self.times = {
            name: Histogram(f"headrace_{name}", about, buckets=SECONDS, registry=self.registry)
            for name, about in HISTOGRAMS.items()
        }
        self.gaps = Gaps()
        self.bytes: Sums[tuple[str, str]] = Sums()
        self.seconds: Sums[str] = Sums()
        self.forced = self.drafted = self.accepted = 0
        self.guesses = guesses.NONE
        self.registry.register(self)
        service.ended.append(self.end)
        service.llm.ledger.listeners.append(self.passed)

    def text(self) -> bytes:
        """What is exposed; may take a while, and needs no particular thread."""
        found: bytes = generate_latest(self.registry)
        return found

    def passed(self, done: Pass) -> None:
        """A pass is booked; in the thread of the engine."""
        self.seconds[done.phase] += done.measured_s  # type: ignore[assignment]
        self.forced += done.forced
        self.drafted += done.drafted
        self.accepted += done.accepted
        self.guesses += done.guesses
        for tier, groups in done.bytes.items():
            for group, size in groups.items():
                self.bytes[tier, group] += size

    def end(self, generation: Generation) -> None:
        """A request has ended."""
        if generation.first is None:
            return
        self.gaps += generation.gaps
        begun, last = generation.submitted + generation.queued_s, generation.last or generation.first
        seconds = {
            "time_to_first_token_seconds": generation.first - generation.submitted,
            "e2e_request_latency_seconds": last - generation.submitted,
            "request_queue_time_seconds": generation.queued_s,
            "request_prefill_time_seconds": max(0.0, generation.first - begun),
            "request_decode_time_seconds": last - generation.first,
        }
        made = len(generation.request.sequence.completion)
        if made > 1:
            seconds["time_per_output_token_seconds"] = (last - generation.first) / (made - 1)
        for name, value in seconds.items():
            self.times[name].observe(value)

    def collect(self) -> Iterable[Metric]:
        """Called by the library when somebody asks."""
        service, loop = self.service, self.service.llm.loop
        running = len(loop.scheduler.running)
        yield gauge("num_requests_running", "requests that run", running)
        yield gauge("num_requests_waiting", "requests that wait", max(0, len(service.open) - running))
        pages = loop.pages
        free = len(pages.free) + len(pages.idle)
        yield gauge("kv_cache_usage_perc", "share of the cache's pages that requests hold", 1 - free / pages.total)
        yield gauge("kv_cache_pages_idle", "pages that hold known content and no request needs", len(pages.idle))
        held = max((1 - pool.table.available / (pool.pages - 1) for pool in loop.windows.pools), default=0)
        yield gauge("kv_cache_window_usage_perc", "the same of pages of layers over a window; 0: there are none", held)
        yield counter("num_preemptions", "requests that made room for others", {(): loop.scheduler.preemptions})
        ended = self.totals.ended
        tokens = {
            "prompt": ended.prompt, "generation": ended.made, "prefix_cache_query": ended.prompt,
            "prefix_cache_hit": ended.reused,
        }  # fmt: skip
        for name, count in tokens.items():
            yield counter(f"{name}_tokens", f"tokens: {name.replace('_', ' ')}", {(): count})
        spliced = {(): self.totals.spliced}
        yield counter("spliced_answers", "earlier answers in prompts that had the model's own tokens", spliced)
        reasons = {(reason,): count for reason, count in self.totals.reasons.items()}
        yield counter("request_success", "requests that ended, by why", reasons, ["finished_reason"])
        yield HistogramMetricFamily(
            "headrace_inter_token_latency_seconds", "between two tokens of a request, each",
            buckets=self.gaps.buckets, sum_value=self.gaps.seconds,
        )  # fmt: skip
        yield counter("bytes", "bytes read or sent by passes", dict(self.bytes), ["tier", "group"])
        yield counter("pass_seconds", "seconds of passes", {(p,): s for p, s in self.seconds.items()}, ["phase"])
        yield counter("forced_tokens", "tokens that grammars forced, each of which saved a pass", {(): self.forced})
        drafts = {"num_draft_tokens": self.drafted, "num_accepted_tokens": self.accepted}
        for name, count in drafts.items():
            yield counter(f"spec_decode_{name}", "tokens of drafts: guessed, and those that came true", {(): count})
        for name, count in self.guesses.as_json().items():
            yield counter(f"spec_decode_{name}", "of models that guess: passes, rows of heads, bytes", {(): count})
        yield self._ratio()
        yield from self._experts()
        yield from self._disk()
        yield from self._cache()

    def _cache(self) -> Iterable[Metric]:
        """What a cache of experts did, as a replay counts it."""
        if (cache := self.service.llm.parts.expert_cache) is not None:
            counts = cache.counts
            found = {("hit",): counts.hits, ("prefetched",): counts.early, ("fetched",): counts.fetched,
                     ("cpu",): counts.on_cpu}  # fmt: skip
            yield counter("expert_cache_choices", "experts that layers of passes chose, by how", found, ["way"])
            yield counter("expert_cache_link_bytes", "bytes of experts that came", {(): counts.link_bytes})
            yield counter("expert_cache_evicted", "experts that left", {(): counts.evicted})
            yield gauge("expert_cache_bytes", "bytes of its places", cache.slots.nbytes)

    def _disk(self) -> Iterable[Metric]:
        """What of the KV cache is in files."""
        if (disk := self.service.llm.loop.disk) is not None:
            yield gauge("kv_disk_bytes", "bytes of the KV cache's files", disk.files.bytes)
            ways = {("read",): disk.restored, ("written",): disk.writer.written}
            yield counter("kv_disk_pages", "pages and states of the KV cache, to and from files", ways, ["way"])

    def _experts(self) -> Iterable[Metric]:
        """Which experts were chosen, in a few numbers: a series for each expert would be thousands."""
        found, placement = self.service.llm.expert_counts, self.service.llm.parts.placement
        planes = {"prompt": found.prompt_LE, "generated": found.generated_LE}
        choices = {
            (phase, tier.channel): count
            for phase, counts_LE in planes.items()
            for tier, count in by_tier(counts_LE, placement).items()
        }
        yield counter("expert_choices", "experts chosen by tokens, by where they lie", choices, ["tokens", "tier"])
        held = GaugeMetricFamily(
            "headrace_expert_share_of_hottest",
            "share of all choices that fell on the hottest experts, so many per cent of all",
            labels=["percent"],
        )
        shares = hottest(found.all_LE, placement, [percent / 100 for percent in HOTTEST])
        for percent, share in zip(HOTTEST, shares, strict=True):
            if share is not None:
                held.add_metric([str(percent)], share)
        yield held

    def _ratio(self) -> Metric:
        """Of the newest passes, by phase, what they took over what they should have."""
        found = GaugeMetricFamily(
            "headrace_measured_over_predicted", f"of the last {LOOKED_AT} passes; 1: as predicted", labels=["phase"]
        )
        passes = newest(self.service.llm.ledger.account.recent, 0, LOOKED_AT)
        for phase in PHASES:
            total = summarise(passes, phase)
            if total.passes and total.predicted_s:
                found.add_metric([phase], total.measured_s / total.predicted_s)
        return found


def gauge(name: str, about: str, value: float) -> Metric:
    """A number that goes up and down."""
    return GaugeMetricFamily(f"headrace_{name}", about, value=value)


def counter(name: str, about: str, values: Mapping[Any, float], labels: Iterable[str] = ()) -> Metric:
    """A number that only grows, by its labels."""
    found = CounterMetricFamily(f"headrace_{name}", about, labels=list(labels))
    for label, value in values.items():
        found.add_metric(list(label), value)
    return found
