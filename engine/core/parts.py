"""A loaded model as its parts. `build.py` makes them, `loop.py` runs them; nothing here changes after the build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...kernels import Ops
from ...kernels.context import Context
from ...kernels.formats import KVFormat
from ...loaders.spec import ModelSpec
from ...loaders.tokens.tokenizer import Tokenizer
from ...loaders.weights.checkpoint import Checkpoint
from ...loaders.weights.model_weights import ModelWeights
from ..bandwidth_model.network.hops import Network
from ..bandwidth_model.profile import Profile
from ..config import EngineConfig
from ..cuda_graphs.gpu_runtime import Runtime
from ..cuda_graphs.graphed_decode import GraphedDecode
from ..cuda_graphs.signals import SignalChoice
from ..devices.device import Device
from ..experts.cache.cached_experts import CachedExperts
from ..experts.cache.expert_cache import ExpertCache
from ..experts.disk.disk_cache import DiskCache
from ..experts.disk.disk_experts import DiskExperts
from ..experts.host_buffers import HostBuffers
from ..generation.admission import Admission
from ..hosts.layers.net_layers import NetLayers
from ..hosts.net_experts import NetExperts
from ..hosts.vram.beside_gpu import NetBesideGpu
from ..ledger.timers import Timers
from ..memory.expert_arena import ExpertArena
from ..memory.kv_budget import KVBudget
from ..memory.memory_plan import MemoryPlan
from ..model.decoder import Decoder
from ..model.kv_cache import PageTable, row_sizes
from ..model.lent_pages import LentPages
from ..placement.placement import Placement, Tier
from ..speculation.mtp.layer import MtpLayer


@dataclass(frozen=True, kw_only=True)
class EngineParts:
    """What a model runs with. kernels: the name of the backend of `ops`; context: how the C++ kernels compute;
    torch_threads: how many torch has in its passes. profile: this machine's measured rates, if there are any.
    huge_pages: by tensor whether the system granted them; nodes: of memory that weights are dealt out over. runtime to
    graphed are of a run beside a GPU. mtp: the layer for multi-token prediction, if it is loaded."""

    config: EngineConfig
    kernels: str
    context: Context
    torch_threads: int
    ops: Ops
    devices: Mapping[Tier, Device]
    checkpoint: Checkpoint
    tokenizer: Tokenizer | None
    admission: Admission
    kv_format: KVFormat
    profile: Profile | None
    memory_plan: MemoryPlan
    weights: ModelWeights
    huge_pages: Mapping[str, bool]
    nodes: int
    timers: Timers
    decoder: Decoder
    runtime: Runtime | None
    expert_arena: ExpertArena | None
    host_buffers: HostBuffers | None
    signal_choice: SignalChoice | None
    graphed: GraphedDecode | None
    mtp: MtpLayer | None = None

    @property
    def spec(self) -> ModelSpec:
        return self.checkpoint.spec

    @property
    def products(self) -> str:
        """For a reader, what attention on the CPU multiplies, if it rounds queries and weights to bf16."""
        widths = {width for layer in self.spec.layers if layer.mixer for width in row_sizes(layer.mixer)}
        is_whole = bool(widths) and all(width % 32 == 0 for width in widths)  # as C++ has it: lines of a row
        is_here = self.kernels == "cpu" and self.main.is_host and self.context.attention == "bf16"
        return ", bf16 products" if is_here and is_whole and self.kv_format.name == "bf16" else ""

    @property
    def placement(self) -> Placement:
        return self.memory_plan.placement

    @property
    def expert_cache(self) -> ExpertCache | DiskCache | None:
        """The experts that a policy moves, if there is one: in VRAM, or in RAM of those on a disk."""
        experts = self.decoder.experts
        return experts.cache if isinstance(experts, CachedExperts | DiskExperts) else None

    def page_table(self) -> PageTable:
        """Whose pages are whose, of a loop that begins."""
        experts = self.decoder.experts
        shared = self.memory_plan.shared
        if shared is None or not isinstance(experts, CachedExperts):
            return PageTable(self.kv_budget.pages)
        return LentPages(shared.numbers, experts.cache.share)

    @property
    def kv_budget(self) -> KVBudget:
        return self.memory_plan.kv_budget

    @property
    def main(self) -> Device:
        """The device of everything but the routed experts."""
        return self.devices[self.placement.main]

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end a completion."""
        return end_ids(self.spec, self.tokenizer)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how the model's files were read, and of what fell back, a line each."""
        found = [*self.checkpoint.notes, *(() if self.tokenizer is None else self.tokenizer.notes)]
        if self.signal_choice is not None and self.signal_choice.fell_back:
            found.append(f"decode steps run without graphs: {self.signal_choice.reason}")
        if isinstance(self.expert_cache, DiskCache):
            found += self.expert_cache.notes
        return tuple(found)

    @property
    def disk_bytes_s(self) -> float | None:
        """Of the disk that experts stay on, where it was measured."""
        return self.expert_cache.bytes_s if isinstance(self.expert_cache, DiskCache) else None

    @property
    def network(self) -> Network | None:
        """The hosts of experts, or of layers, as they were measured, where there are some."""
        if isinstance(self.decoder.beyond, NetLayers):
            return self.decoder.beyond.network
        return None if self.net_experts is None else self.net_experts.network

    @property
    def net_experts(self) -> NetExperts | None:
        """The experts on several machines, where there are some."""
        experts = self.decoder.experts
        found = experts.net if isinstance(experts, NetBesideGpu) else experts
        return found if isinstance(found, NetExperts) else None

    def close(self) -> None:
        """Ends the threads of graphs, pinning and reading, after which a model with graphs, or with experts on a disk,
        cannot decode."""
        if isinstance(self.expert_cache, DiskCache):
            self.expert_cache.close()
        if self.net_experts is not None:
            self.net_experts.close()
        if self.decoder.beyond is not None:
            self.decoder.beyond.close()
        if self.graphed is not None:
            self.graphed.close()
        if self.expert_arena is not None:
            self.expert_arena.close()


def end_ids(spec: ModelSpec, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    """Tokens that end a completion: those of config, generation config and tokenizer together."""
    named = () if tokenizer is None else tokenizer.eos_ids
    return tuple(dict.fromkeys((*spec.eos_ids, *named)))
