"""The experts of a model, made of loaded weights: in RAM, in files, on other machines, or on several tiers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ....kernels import Ops
from ....kernels.context import Context
from ....kernels.cpu import CpuOps
from ....kernels.packed import ExpertBank
from ....loaders.weights.checkpoint import Checkpoint
from ....loaders.weights.model_weights import ModelWeights, TierBanks
from ...config import EngineConfig
from ...devices.device import Device
from ...experts.backend import CpuExperts, ExpertBackend
from ...experts.cache.cached_experts import cached
from ...experts.cache.shared_memory import SharedMemory
from ...experts.host_buffers import HostBuffers
from ...experts.streaming import no_cuts
from ...experts.tiered import TieredExperts
from ...hosts.layers.on_layers import OnLayers
from ...hosts.on_hosts import OnHosts
from ...hosts.vram.beside_gpu import Beside
from ...ledger.timers import Timers
from ...memory.expert_arena import ExpertArena
from ...memory.memory_plan import MemoryPlan
from ...placement.placement import Tier
from . import expert_policy
from .on_disk import OnDisk


def shares_cores(main: Device, plan: MemoryPlan) -> bool:
    """Whether others of this process work beside the CPU's ops: who launches kernels, or who reads experts."""
    tiers = plan.placement.tiers
    return Tier.DISK in tiers or (main.is_cuda and Tier.CPU in tiers)


def leave_a_core(context: Context, ops: Ops) -> Context:
    """One thread fewer for the CPU's ops, if there are more than two: where layers run by hand, Python launches a
    layer's kernels on the GPU beside the team that computes its experts. A team on every core waits for the one of its
    threads that Python took the core of."""
    if context.threads > 2 and isinstance(ops, CpuOps):
        context = ops.context = replace(context, threads=context.threads - 1)
    return context


def experts(
    config: EngineConfig,
    checkpoint: Checkpoint,
    weights: ModelWeights,
    plan: MemoryPlan,
    found: Mapping[Tier, Device],
    ops: Ops,
    timers: Timers,
    arena: ExpertArena | None,
    policy: expert_policy.Make | None,
    apart: OnDisk | OnHosts | OnLayers | None,
) -> tuple[ExpertBackend, HostBuffers | None]:
    """The experts: all in RAM, in files, on other machines, or on the tiers of the placement, with the buffers between
    GPU and CPU; beside a cache in VRAM where a policy rules one. Of layers elsewhere none."""
    if isinstance(apart, OnLayers):
        return CpuExperts([], ops), None
    banks, spec, main = [layer.experts for layer in weights.layers], checkpoint.spec, found[plan.placement.main]
    tokens = max(config.prefill_chunk, config.max_sequences)
    hidden, top_k = spec.moe.latent or spec.hidden, spec.moe.top_k
    sizes = {"layers": len(spec.layers), "tokens": tokens, "hidden": hidden, "top_k": top_k}
    if apart is not None and len(found) == 1:
        return apart.make(plan, timers), None
    if apart is not None:
        host_buffers = HostBuffers(main, **sizes)
        if isinstance(apart, OnHosts):
            return apart.make(plan, timers, Beside(main, host_buffers, banks)), host_buffers
        return apart.make(plan, timers, (main, host_buffers)), host_buffers
    if len(found) == 1:
        whole = [bank for bank in banks if not isinstance(bank, TierBanks)]
        assert len(whole) == len(banks), "split banks without a second tier"
        return CpuExperts(whole, ops), None
    split = [bank for bank in banks if not isinstance(bank, ExpertBank)]
    assert len(split) == len(banks), "whole banks beside several tiers"
    host_buffers = HostBuffers(main, **sizes)
    cuts = no_cuts if arena is None else arena.cuts
    tiered = TieredExperts(split, plan.placement, found, host_buffers, plan.offload, timers, cuts)
    if policy is None:
        return tiered, host_buffers
    made, why = policy(weights)
    if plan.not_shared:
        why = (*why, f"its size stays as it is: {plan.not_shared}, so that pages of the KV cache find no place there")
    shared = None if plan.shared is None else SharedMemory(plan.shared, tiered.main.place)
    beside = cached(tiered, made, plan.expert_cache, why, shared)
    if config.seed_experts:
        beside.cache.seed()
    return beside, host_buffers
