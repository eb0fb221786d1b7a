"""Puts a model together: the only place where its parts are made. `build` says the order, from top to bottom.

Find the model and read its headers, decide what lies where, load, reserve the cache, compile kernels, capture graphs.
What cannot be is refused before memory is taken.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from ...kernels import Ops
from ...kernels.context import Context
from ...kernels.formats import KVFormat
from ...loaders.tokens.tokenizer import Tokenizer
from ...loaders.weights.checkpoint import Checkpoint, Progress
from ...loaders.weights.model_weights import ModelWeights
from ...loaders.weights.mtp.find import goes_on_before_norm
from ..bandwidth_model.profile import Profile
from ..config import EngineConfig
from ..cuda_graphs import gpu_runtime, saved_trials, signal_choice, verify
from ..cuda_graphs.gpu_runtime import Runtime
from ..cuda_graphs.graphed_decode import GraphedDecode
from ..cuda_graphs.signals import SignalChoice
from ..devices import host, streams
from ..devices.device import Device
from ..experts.backend import ExpertBackend
from ..experts.cache.cached_experts import CachedExperts
from ..experts.offload_plan import OffloadPlan
from ..experts.tiered import TieredExperts
from ..generation.admission import Admission
from ..generation.schedule.state_slots import StateSlots
from ..hosts.layers.on_layers import OnLayers
from ..hosts.on_hosts import OnHosts
from ..ledger.timers import Timers
from ..memory import kv_budget
from ..memory.deciding import plan_memory
from ..memory.expert_arena import ExpertArena
from ..memory.memory_plan import MemoryPlan
from ..memory.pinned import resolve_limit
from ..model.decoder import Decoder
from ..model.inputs import make_device_inputs
from ..model.kv_cache import KVCache, pages_for
from ..placement.placement import Tier
from ..speculation.mtp.layer import MtpLayer
from .compile_ahead import compile_ahead
from .experts import default_policy, expert_policy, made, on_disk
from .experts.on_disk import OnDisk
from .opening import open_model
from .parts import EngineParts, end_ids
from .weight_source import Target, WeightSource, name_of

log = logging.getLogger("headrace")
HANDOFF_TIMEOUT = 10.0  # seconds without progress after which a graphed step counts as failed


Check = Callable[[Admission], None]


def build(
    source: WeightSource,
    config: EngineConfig,
    progress: Progress | None = None,
    check: Check | None = None,
    compiling: Progress | None = None,
    joining: Progress | None = None,
) -> EngineParts:
    """Loads the model of a source as the config says; raises a `HeadraceError` that names what is wrong. check: sees
    what admits prompts, before weights are loaded; what it raises ends the load. compiling: called with kernels of a
    GPU done and in all; joining: with hosts that are here and in all."""
    here = open_model(source, config, shows=progress is not None)
    name, context, ops, profile, torch_threads, found, checkpoint, tokenizer = here
    kv_format = kv_budget.kv_format(config, checkpoint.spec, checkpoint.formats)
    runtime, problem = gpu_runtime.find(found.get(Tier.GPU0))
    known, called = (config, checkpoint, found, profile), name_of(source, checkpoint.spec)
    config, plan = _planned(known, kv_format, signal_choice.may_capture(config, runtime), called)
    policy = expert_policy.find(config, *known[1:], plan.cache_at_start, called)
    admission = _admission(checkpoint, tokenizer, plan)
    if check is not None:
        check(admission)
    apart, plan = on_disk.open_files(config, checkpoint, plan, ops, progress, joining)
    choice, arena = _beside_a_gpu(config, checkpoint, plan, found, runtime, problem)
    main = found[plan.placement.main]
    granted = Granted(name == "cpu", arena)
    weights = source.load(checkpoint, _target(config, ops, plan, found, arena, granted, progress, apart))
    plan = _pinned(plan, main, arena)
    timers = Timers(streams.of(main)[0] if len(found) > 1 else None)
    experts, host_buffers = made.experts(config, checkpoint, weights, plan, found, ops, timers, arena, policy, apart)
    decoder = granted.with_cache(_decoder(config, checkpoint, weights, plan, found, experts, kv_format, timers, apart))
    mtp = _mtp_layer(checkpoint, weights, plan, decoder)
    compile_ahead(config, plan.kv_budget.max_context, decoder, found, compiling)
    graphed, choice = _graphs(config, context, checkpoint, plan, decoder, choice, runtime)
    if graphed is None and config.threads is None and made.shares_cores(main, plan):
        context = made.leave_a_core(context, ops)
    return EngineParts(
        config=config, kernels=name, context=context, torch_threads=torch_threads, ops=ops, devices=found,
        checkpoint=checkpoint, tokenizer=tokenizer, admission=admission,
        kv_format=kv_format, profile=profile, memory_plan=plan, weights=weights, huge_pages=granted.huge_pages,
        nodes=granted.nodes, timers=timers, decoder=decoder, runtime=runtime, expert_arena=arena,
        host_buffers=host_buffers, signal_choice=choice, graphed=graphed, mtp=mtp,
    )  # fmt: skip


Known = tuple[EngineConfig, Checkpoint, Mapping[Tier, Device], Profile | None]


def _planned(known: Known, kv_format: KVFormat, may_capture: bool, name: str) -> tuple[EngineConfig, MemoryPlan]:
    """What lies where, and the options with what was left to decide. name: of the model."""
    config, checkpoint, found, profile = known

    def again(config: EngineConfig) -> MemoryPlan:
        return plan_memory(config, checkpoint, kv_format, found, profile, may_capture)

    return default_policy.decide(config, checkpoint, found, profile, again(config), again, name)


def _admission(checkpoint: Checkpoint, tokenizer: Tokenizer | None, plan: MemoryPlan) -> Admission:
    """Which prompts may run, in the context that was decided on."""
    spec = checkpoint.spec
    limit, ends = plan.kv_budget.max_context, end_ids(spec, tokenizer)
    return Admission(tokenizer, checkpoint.directory, spec.vocab, limit, spec.context, ends)


def _beside_a_gpu(
    config: EngineConfig,
    checkpoint: Checkpoint,
    plan: MemoryPlan,
    found: Mapping[Tier, Device],
    runtime: Runtime | None,
    problem: str,
) -> tuple[SignalChoice | None, ExpertArena | None]:
    """How experts are to be handed over, decided before memory is taken; memory that can be pinned for those in RAM.
    Nothing of it on the CPU alone. problem: why there is no runtime."""
    if len(found) == 1:
        return None, None
    limit, sizes = resolve_limit(config.pinned_limit, config.ram_bytes), plan.bytes_in_ram
    choice = signal_choice.decide(config, plan.placement, plan.offload, runtime, problem, len(checkpoint.spec.layers))
    driver, number = (None, 0) if runtime is None else (runtime.driver, runtime.number)
    return choice, ExpertArena(sizes, driver, number, problem, limit) if any(sizes) else None


def _target(
    config: EngineConfig,
    ops: Ops,
    plan: MemoryPlan,
    found: Mapping[Tier, Device],
    arena: ExpertArena | None,
    granted: Granted,
    progress: Progress | None,
    apart: OnDisk | OnHosts | OnLayers | None,
) -> Target:
    """Where the weights go; experts in RAM into memory that can be pinned, if there is such. Of layers on hosts only
    those of this machine go anywhere."""
    where, filled = plan.where(found), None
    if arena is not None:
        filled = arena.filled
        where = None if where is None else replace(where, pools={Tier.CPU.value: arena.arena})
    besides = plan.kv_budget.kv_bytes + plan.kv_budget.work_bytes
    free = None if config.ram_limit is None else found[Tier.CPU].free
    return Target(
        ops=ops, where=where, besides=besides, prepare=granted.prepare, filled=filled, progress=progress, free=free,
        held=apart.held if isinstance(apart, OnLayers) else None,
    )  # fmt: skip


class Granted:
    """Prepares memory that is reserved and not filled yet, and keeps what the system granted."""

    def __init__(self, is_cpu: bool, arena: ExpertArena | None) -> None:
        self.is_cpu, self.arena = is_cpu, arena
        self.huge_pages: dict[str, bool] = {}
        self.nodes = 1

    def prepare(self, weights: ModelWeights, in_parts: bool) -> None:
        """Asks for huge pages under the large weights, from all nodes of memory; starts pinning."""
        if self.is_cpu:
            self.huge_pages, self.nodes = host.advise_huge(weights), host.spread_over_nodes(weights)
        if self.arena is not None:
            self.arena.start(weights, in_parts)

    def with_cache(self, decoder: Decoder) -> Decoder:
        """Asks for huge pages under a KV cache that has memory of its own, before it is written: attention walks over
        more pages of 4 KB than a core keeps addresses of. Returns its decoder."""
        cache = decoder.cache
        large = [one for kind in range(len(cache.windows) + 1) for one in cache.memories(kind)]
        large = [one for one in large if one.nbytes >= host.HUGE_FROM and one.device.type == "cpu"]
        if self.is_cpu and large and not cache.is_shared:
            self.huge_pages["kv"] = host.all_huge(large)
        return decoder


def _pinned(plan: MemoryPlan, main: Device, arena: ExpertArena | None) -> MemoryPlan:
    """The plan when all is pinned that can be."""
    if arena is None:
        return plan
    arena.finish()
    return replace(plan, offload=without_blocking_copies(plan.offload, main.is_cuda, arena))


def without_blocking_copies(offload: OffloadPlan, is_cuda: bool, arena: ExpertArena) -> OffloadPlan:
    """No copies before choices where they would hold up the thread that launches the next layer."""
    if not is_cuda or offload.stream_from is None or arena.is_whole:
        return offload
    return offload.without_prefetch("experts in RAM are not all pinned, and a copy holds up other work")


def _decoder(
    config: EngineConfig,
    checkpoint: Checkpoint,
    weights: ModelWeights,
    plan: MemoryPlan,
    found: Mapping[Tier, Device],
    experts: ExpertBackend,
    kv_format: KVFormat,
    timers: Timers,
    apart: OnDisk | OnHosts | OnLayers | None,
) -> Decoder:
    """The decoder on the device of everything but the experts, with its cache and the way of inputs there."""
    main, spec, context = found[plan.placement.main], checkpoint.spec, plan.kv_budget.max_context
    windows, pages = plan.kv_budget.windows, plan.kv_budget.pages + plan.spare_pages
    inputs = make_device_inputs(main, found[plan.table], timers, config, spec, context, len(windows))
    if isinstance(apart, OnLayers):
        return apart.decoder(weights, inputs, timers)
    shared = experts.cache.shared if isinstance(experts, CachedExperts) else None
    cache = KVCache(spec, pages, kv_format, main.place, StateSlots.count(config.max_sequences), windows, shared)
    return Decoder(spec, weights, main.ops, experts, cache, context, inputs, not config.deterministic)


def _mtp_layer(checkpoint: Checkpoint, weights: ModelWeights, plan: MemoryPlan, decoder: Decoder) -> MtpLayer | None:
    """The layer for multi-token prediction, if it is loaded; the decoder then hands out what it goes on from."""
    if weights.mtp is None:
        return None
    decoder.goes_on, decoder.before_norm = True, goes_on_before_norm(checkpoint.spec.family)
    cache, context = decoder.cache, plan.kv_budget.max_context
    found = MtpLayer(checkpoint.spec, weights, decoder.device_inputs, cache.pages, cache.format, context)
    found.decoder.before_norm = decoder.before_norm
    return found


def _graphs(
    config: EngineConfig,
    context: Context,
    checkpoint: Checkpoint,
    plan: MemoryPlan,
    decoder: Decoder,
    choice: SignalChoice | None,
    runtime: Runtime | None,
) -> tuple[GraphedDecode | None, SignalChoice | None]:
    """Decode steps as graphs, captured and checked now, or None where steps run by hand; the choice with what was
    found."""
    if choice is None or choice.name == signal_choice.EAGER:
        return None, choice
    experts = decoder.experts
    assert runtime is not None, "graphs without a runtime"
    assert isinstance(experts, TieredExperts | CachedExperts), "graphs on the CPU alone"
    pages, spare_page = pages_for(plan.kv_budget.max_context), plan.spare_page
    spare_slot = StateSlots(config.max_sequences).spare if checkpoint.spec.state_elements else None
    make = partial(
        GraphedDecode,
        decoder,
        experts,
        choice,
        runtime,
        context=context,
        sequences=config.max_sequences,
        pages=pages,
        spare_page=spare_page,
        spare_slot=spare_slot,
        timeout=HANDOFF_TIMEOUT,
        with_weights=config.trace is not None,
    )
    digest = _digest(config, context, checkpoint, plan, decoder.cache.format, choice.name)
    how = verify.Start(asked=config.handoff, choice=choice, runtime=runtime, digest=digest)
    found = verify.start(how, verify.Steps(decoder, pages, spare_page, spare_slot), make)
    if found[0] is not None and isinstance(experts, CachedExperts):
        experts.cache.answer_late()
    return found


def _digest(
    config: EngineConfig, context: Context, checkpoint: Checkpoint, plan: MemoryPlan, kv_format: KVFormat, way: str
) -> str:
    """What times of a decode step hold for, besides GPU, driver and kernels."""
    copies = plan.offload.stream_from, plan.offload.piece
    room = plan.kv_budget.max_context, config.max_sequences, kv_format
    where = plan.placement.experts
    return saved_trials.digest(way, checkpoint.spec, checkpoint.formats, where, copies, room, context)
