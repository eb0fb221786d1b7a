"""The policy of an expert cache, made before memory is taken: of its name, a trace, and rates of this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ....errors import OptionError
from ....kernels import ExpertLayout
from ....loaders.quants.by_format import ByFormat
from ....loaders.spec import MoeSpec
from ....loaders.weights.checkpoint import Checkpoint
from ....loaders.weights.model_weights import ModelWeights
from ...bandwidth_model.link_rate import LinkRate, link_rate
from ...bandwidth_model.profile import Profile
from ...bandwidth_model.split_decode import best_fetch, curves
from ...config import EngineConfig
from ...devices.device import Device
from ...experts.offload_plan import MeanExpert
from ...ledger.pass_bytes import dense_sizes
from ...placement.placement import Tier
from ...planning import best_policy, replays
from ...planning.replays import Replays
from ...policies import registry
from ...policies.protocol import Policy, Shape, Storing
from ...policies.registry import Known
from ...policies.replay.choices import Choices
from ...policies.replay.learner import LOOKS, Learner
from ...policies.replay.replay import Rates
from ...traces import reader, recorder, stored
from ...units import GB

AUTO = "auto"
ON_DISK = "lru"  # of experts on a disk, where no policy was named
Why = tuple[str, ...]  # a choice that was made for the user has its reasons, a plain sentence each
Make = Callable[[ModelWeights], tuple[Policy, Why]]


def find(config: EngineConfig, checkpoint: Checkpoint, found: Mapping[Tier, Device], profile: Profile | None,
         budget: int, name: str) -> Make | None:  # fmt: skip
    """What makes the policy that was asked for when the weights are loaded, by which a model's trace is known; None:
    none was. budget: bytes of the cache. Raises OptionError for a policy that there is not, or that lacks what it is
    made of, and for a trace of another model."""
    gpu, asked = found.get(Tier.GPU0), config.policy
    if gpu is None or asked is None or config.asked_placement.kind == "disk":
        return None
    if not isinstance(asked, str):
        return lambda weights: (asked, ())
    run = Run(config, checkpoint, gpu, profile, name)
    if asked == AUTO:
        run.check_rates()
        return partial(run.best, budget)
    known = replace(_learned(config, checkpoint), fetched=run.fetched, store_bytes=run.store_bytes)
    policy = registry.make(asked, known)
    return lambda weights: (policy, ())


def for_disk(config: EngineConfig, checkpoint: Checkpoint) -> Policy:
    """The policy of a cache in RAM of experts on a disk. What is missing has to come either way, so that a policy that
    asks how many to fetch is told all. Raises OptionError as `find`, and for a policy of a second GPU."""
    asked = ON_DISK if config.policy in (None, AUTO) else config.policy
    every = tuple(range(checkpoint.spec.moe.experts + 1))
    known = replace(_learned(config, checkpoint), fetched=every, store_bytes=0)
    policy = registry.make(asked, known) if isinstance(asked, str) else asked
    if isinstance(policy, Storing):
        raise OptionError(f"policy '{policy.name}' is about a second GPU, and experts lie on a disk: name another one")
    return policy


def _learned(config: EngineConfig, checkpoint: Checkpoint) -> Known:
    """What the trace says that was given, if one was. Raises OptionError for one of another model."""
    return Known() if config.policy_trace is None else _of_trace(config.policy_trace, checkpoint).known


def _of_trace(
    path: Path, checkpoint: Checkpoint, rates: Rates | None = None, fetched: Sequence[int] | None = None,
    store_bytes: int | None = None,
) -> Replays:  # fmt: skip
    """A trace as a run of this model sees it; the others as of `replays.of_run`. Raises OptionError for one of another
    model."""
    shape = _shape(checkpoint)
    trace = reader.read(path)
    try:
        return replays.of_run(trace, shape, rates, fetched=fetched, store_bytes=store_bytes)
    except OptionError as error:
        raise OptionError(f"{path}: {error}") from error


def _shape(checkpoint: Checkpoint) -> Shape:
    experts = [layer.ffn.experts for layer in checkpoint.spec.layers if isinstance(layer.ffn, MoeSpec)]
    return Shape(tuple(experts), tuple(layout.bytes for layout in layouts_of(checkpoint)))


class Run:
    """A model on this machine, as policies see it."""

    def __init__(
        self, config: EngineConfig, checkpoint: Checkpoint, gpu: Device, profile: Profile | None, name: str
    ) -> None:
        self.name = name
        self.config, self.checkpoint, self.profile = config, checkpoint, profile
        self.link, self.layouts = _link(gpu, profile), layouts_of(checkpoint)
        self.store_bytes = None if config.second_vram is None else int(config.second_vram * GB)
        self.fetched = self._fetched()

    @property
    def has_rates(self) -> bool:
        """Whether those of the CPU, the GPU's memory and its link are known."""
        return self.profile is not None and self.link is not None and bool(self.link.gpu_bytes_s)

    def check_rates(self) -> None:
        """Raises OptionError where a replay cannot say how fast a policy is."""
        if not self.has_rates:
            raise OptionError(
                "policy 'auto' goes by rates of the CPU, the GPU's memory and its link, which are not all known here: "
                "run headrace measure, or name a policy"
            )

    def best(self, budget: int, weights: ModelWeights) -> tuple[Policy, Why]:
        """The best one for a budget by the trace of this model that is kept, or that was given; without one the same
        share of every layer, which moves nothing."""
        digest = recorder.digest(self.checkpoint.spec, weights)
        path = self.config.policy_trace or stored.stored_trace(digest)
        if path is None:
            learns = f"; another one takes over if {LOOKS[0]} passes show that it is faster"
            return Learner(partial(self._better, weights)), (
                f"policy auto: uniform, as long as {stored.advice(digest, self.name)}{learns}",
            )
        replays = self.replays(path, self._rates(weights))
        found = best_policy.choose(replays, budget)
        return registry.make(found.choice, replays.known), tuple(f"policy auto: {one}" for one in found.reasons)

    def _better(self, weights: ModelWeights, seen: Choices, budget: int) -> Policy | None:
        """The best policy by what passes chose so far; None: it is hardly faster than the same share of every layer."""
        shape = _shape(self.checkpoint)
        known = Known(counts=seen.counts(shape.experts), future=seen, fetched=self.fetched)
        found = best_policy.choose(Replays(shape=shape, choices=seen, known=known, rates=self._rates(weights)), budget)
        still, best = found.row("uniform"), found.chosen
        gain = (best.tokens_per_s or 0.0) / (still.tokens_per_s or 1.0) - 1
        return registry.make(found.choice, known) if gain >= best_policy.GAIN else None

    def replays(self, path: Path, rates: Rates) -> Replays:
        """A trace as this run sees it. Raises OptionError for one of another model."""
        return _of_trace(path, self.checkpoint, rates, self.fetched, self.store_bytes)

    def _rates(self, weights: ModelWeights) -> Rates:
        sizes = dense_sizes(weights)
        return self.rates(sizes.layers + sizes.head)

    def rates(self, others: int) -> Rates:
        """Of the CPU, the link and the GPU, which reads so many bytes of other weights in each pass."""
        assert self.profile is not None, "rates that were not checked"
        assert self.link is not None, "rates that were not checked"
        read, gpu = MeanExpert.of(self.layouts), self.link.gpu_bytes_s
        cpu = self.profile.experts_rate(ByFormat.of(read.bytes_by_format))
        return Rates(
            cpu=cpu, link=self.link.bytes_s, gpu=gpu, store=gpu if self.store_bytes else 0.0, fixed_s=others / gpu,
            ram=max(cpu, self.profile.stream),
        )  # fmt: skip

    def _fetched(self) -> tuple[int, ...] | None:
        """By missing experts of a layer how many to fetch beside the CPU, in a step of one token; None: rates of CPU or
        link are not known."""
        if self.profile is None or self.link is None:
            return None
        found = curves(self.profile, MeanExpert.of(self.layouts), self.link, 1.0, self.checkpoint.spec.moe.top_k)
        return None if found is None else best_fetch(found)


def _link(gpu: Device, profile: Profile | None) -> LinkRate | None:
    """The link of a GPU; of one that is played, what was asked for, and the memory of both is one."""
    if gpu.is_cuda:
        return link_rate(profile, gpu.place)
    if gpu.link_bytes_s is None or profile is None:
        return None
    return LinkRate(bytes_s=gpu.link_bytes_s, gpu_bytes_s=profile.stream, is_measured=True, source="as asked")


def layouts_of(checkpoint: Checkpoint) -> list[ExpertLayout]:
    """Of the layers with experts."""
    return [checkpoint.formats.layout(checkpoint.spec, i) for i, is_moe in enumerate(checkpoint.spec.is_moe) if is_moe]
