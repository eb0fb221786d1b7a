"""The policy of an expert cache, made before memory is taken: of its name, a trace, and rates of this machine."""

from __future__ import annotations

from pathlib import Path

from ...errors import OptionError
from ...kernels import ExpertLayout
from ...loaders.spec import ModelSpec, MoeSpec
from ...loaders.weights.checkpoint import Checkpoint
from ..bandwidth_model.link_rate import LinkRate, link_rate
from ..bandwidth_model.profile import Profile
from ..bandwidth_model.split_decode import best_fetch, curves
from ..config import EngineConfig
from ..devices.device import Device
from ..experts.offload_plan import MeanExpert
from ..planning import replays
from ..policies import registry
from ..policies.protocol import Policy
from ..policies.registry import Known
from ..traces import reader


def make(config: EngineConfig, checkpoint: Checkpoint, gpu: Device, profile: Profile | None) -> Policy | None:
    """The policy that was asked for; None: none was. Raises OptionError for one that there is not, or that lacks what
    it is made of, and for a trace of another model."""
    if config.policy is None or not isinstance(config.policy, str):
        return config.policy
    spec, known = checkpoint.spec, Known()
    if config.policy_trace is not None:
        known = _of_trace(config.policy_trace, spec)
    return registry.make(config.policy, Known(counts=known.counts, future=known.future,
                                              fetched=_fetched(checkpoint, gpu, profile)))  # fmt: skip


def _of_trace(path: Path, spec: ModelSpec) -> Known:
    """What a trace of this model says. Raises OptionError for one of another model."""
    trace = reader.read(path)
    kinds = [layer.ffn for layer in spec.layers if isinstance(layer.ffn, MoeSpec)]
    layers, experts = [i for i, is_moe in enumerate(spec.is_moe) if is_moe], max(one.experts for one in kinds)
    header = trace.header
    if list(header.layers) != layers or header.experts != experts:
        raise OptionError(
            f"{path} is of {header.model}, with {len(header.layers)} layers of {header.experts} experts, and this "
            f"model has {len(layers)} of {experts}: record one (headrace trace record)"
        )
    return replays.of_trace(trace, None).known


def _fetched(checkpoint: Checkpoint, gpu: Device, profile: Profile | None) -> tuple[int, ...] | None:
    """By missing experts of a layer how many to fetch beside the CPU, in a step of one token; None: rates of CPU or
    link are not known."""
    link = _link(gpu, profile)
    if profile is None or link is None:
        return None
    spec = checkpoint.spec
    found = curves(profile, MeanExpert.of(layouts_of(checkpoint)), link, 1.0, spec.moe.top_k)
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
