"""Opens what a run has before anything is decided: kernels, devices, and the model as far as headers and tokenizer."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import NamedTuple

from ... import kernels
from ...kernels import Ops
from ...kernels.context import THREADS, Context
from ...loaders.files.gguf_set import is_gguf
from ...loaders.files.recognise import is_named
from ...loaders.tokens.tokenizer import Tokenizer
from ...loaders.weights.checkpoint import Checkpoint
from ..bandwidth_model import profile as profiles
from ..bandwidth_model import reconcile
from ..bandwidth_model.profile import Profile
from ..config import EngineConfig
from ..devices import device as devices
from ..devices import gpu_gaps, host, same_bits
from ..devices.device import Device
from ..measure import attention_products, tile_thresholds, weight_prefetch
from ..placement import placement as placing
from ..placement.placement import Tier
from ..speculation.row_kernels import without_tiles
from .weight_source import WeightSource

log = logging.getLogger("headrace")


class Opened(NamedTuple):
    """What a model is and what is here to run it; as in `EngineParts`."""

    kernels: str
    context: Context
    ops: Ops
    profile: Profile | None
    torch_threads: int
    found: dict[Tier, Device]
    checkpoint: Checkpoint
    tokenizer: Tokenizer | None


def open_model(source: WeightSource, config: EngineConfig, shows: bool) -> Opened:
    """Kernels, devices, and the model as far as its headers and its tokenizer. shows: the progress of downloads."""
    placing.check_file(config.asked_placement)
    name, context, ops = load_kernels(config)
    profile = profiles.load_profile(context, config.profile) if name == "cpu" else None
    torch_threads = host.torch_threads(name, config.threads)
    host.use_torch_threads(torch_threads)
    found = devices.find(config, devices.ram(ops, name, config))
    checkpoint = _open(source, config, found, profile, shows=shows)
    same_bits.check(config, found)
    if name == "cpu":
        context, ops, found = _with_thresholds(config, context, ops, found, checkpoint)
    return Opened(name, context, ops, profile, torch_threads, found, checkpoint, _load_tokenizer(checkpoint))


def load_kernels(config: EngineConfig) -> tuple[str, Context, Ops]:
    """The backend for what lies in RAM: its name, how the C++ kernels compute, and its ops."""
    name = "cpu" if config.kernels == "auto" else config.kernels
    context = Context(threads=config.threads or THREADS, activations=config.cpu_activations)
    if crowding := host.crowding(context.threads):
        log.warning(crowding)
    if name == "cpu":
        context = weight_prefetch.use(context, may_measure=not config.no_measure)
    return name, context, kernels.load(name, context)


def _open(
    source: WeightSource, config: EngineConfig, found: dict[Tier, Device], profile: Profile | None, *, shows: bool
) -> Checkpoint:
    """The model as far as its headers. Where no rates are known, or the CPU's caches hold the model, nothing is drafted
    by itself, so that no layer for multi-token prediction is needed; beside layers on hosts there is none."""
    is_auto = config.speculate == "auto"
    has_none = profile is None or config.split_by == "layers"
    asked = replace(config, speculate="off", mtp=None, draft_vocabulary="auto") if is_auto and has_none else config
    checkpoint = source.open(asked, found, show_progress=shows)
    if is_auto and checkpoint.spec.mtp is not None and checkpoint.weight_bytes < reconcile.IN_CACHES:
        checkpoint = replace(checkpoint, spec=replace(checkpoint.spec, mtp=None), mtp_names=None)
    return gpu_gaps.checked(checkpoint, found)


def _with_thresholds(
    config: EngineConfig, context: Context, ops: Ops, found: dict[Tier, Device], checkpoint: Checkpoint
) -> tuple[Context, Ops, dict[Tier, Device]]:
    """The same for the formats of a model: from how many tokens on tiles are used, and what attention multiplies, is
    measured where it was not yet; a deterministic run takes no tiles, and float32."""
    if config.deterministic:
        context = without_tiles(context)
    else:
        context = tile_thresholds.use(context, not config.no_measure, checkpoint.formats.used)
        context = attention_products.use(context, not config.no_measure)
    now = kernels.load("cpu", context)
    return context, now, {t: replace(one, ops=now) if one.ops is ops else one for t, one in found.items()}


def _load_tokenizer(checkpoint: Checkpoint) -> Tokenizer | None:
    """The tokenizer, or None where there is none at all; one that does not fit the embedding is refused."""
    source = checkpoint.directory
    is_file = source.is_file()  # a config.json, of random weights, if it is no GGUF
    if not (is_gguf(source) and Tokenizer.is_in(source) if is_file else is_named(source / "tokenizer.json")):
        return None
    tokenizer = Tokenizer.load(source)
    tokenizer.check_fits(checkpoint.spec.vocab)
    tokenizer.stream()  # refuses a decoder whose text cannot be streamed
    return tokenizer
