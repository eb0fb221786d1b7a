"""Opens the experts of a model that are not loaded with the rest: that stay in its files, with the RAM that some of
them may take, or that other machines hold."""

from __future__ import annotations

from functools import partial

from ....kernels import Ops
from ....loaders.weights.by_expert.stored import StoredExperts
from ....loaders.weights.checkpoint import Checkpoint, Progress
from ...config import EngineConfig
from ...devices.device import Device
from ...devices.host import cpu_kernels
from ...experts.disk import speed
from ...experts.disk.beside_gpu import DiskBesideGpu
from ...experts.disk.disk_cache import DiskCache
from ...experts.disk.disk_experts import DiskExperts
from ...experts.disk.files import ExpertFiles
from ...experts.disk.reads import Reads
from ...experts.host_buffers import HostBuffers
from ...hosts.layers.on_layers import OnLayers
from ...hosts.on_hosts import OnHosts
from ...ledger.timers import Timers
from ...memory.memory_plan import MemoryPlan
from . import expert_policy

Beside = tuple[Device, HostBuffers]  # a GPU, and what is between it and the CPU


class OnDisk:
    """The files of experts that stay there, held open from before anything is loaded from them, and who rules the cache
    before them. progress: told what is read at the start. Raises OptionError for a policy that cannot be."""

    def __init__(
        self,
        config: EngineConfig,
        checkpoint: Checkpoint,
        stored: StoredExperts,
        ops: Ops,
        progress: Progress | None,
    ) -> None:
        self.config, self.ops, self.progress = config, ops, progress
        self.policy = expert_policy.for_disk(config, checkpoint)
        self.files = ExpertFiles(stored, ops)

    def make(self, plan: MemoryPlan, timers: Timers, beside: Beside | None = None) -> DiskExperts:
        """The experts, beside a GPU if there is one, with those of the policy's start in RAM. Measures the disk, unless
        nothing is to be measured. Raises CheckpointError where a file was replaced while the rest of the model was
        loaded."""
        self.files.check_names()
        cache = DiskCache(self.policy, plan.expert_cache, self.files, Reads())
        if self.config.seed_experts:
            cache.seed()
        cpu_kernels().advise_huge(cache.memory.data)
        cache.fill(self.progress)
        made = DiskExperts if beside is None else partial(DiskBesideGpu, main=beside[0], buffers=beside[1])
        experts = made(cache, self.ops, timers)
        cache.bytes_s = None if self.config.no_measure else speed.measure(cache, experts.staging)
        cache.notes = speed.notes(cache, self.files.stored.top_k, cache.bytes_s)
        return experts


def open_files(
    config: EngineConfig,
    checkpoint: Checkpoint,
    plan: MemoryPlan,
    ops: Ops,
    progress: Progress | None,
    joining: Progress | None,
) -> tuple[OnDisk | OnHosts | OnLayers | None, MemoryPlan]:
    """None where all experts are loaded with the rest. With hosts the plan says then what stays here. joining:
    called with hosts that are here and all, while they are waited for."""
    if config.hosts is not None and config.split_by == "layers":
        layers = OnLayers(config, checkpoint, ops, plan, joining)
        return layers, layers.decided()
    if plan.stored is None:
        return None, plan
    if config.hosts is None:
        return OnDisk(config, checkpoint, plan.stored, ops, progress), plan
    hosts = OnHosts(config, checkpoint, plan.stored, ops, plan, joining)
    return hosts, hosts.decided()
