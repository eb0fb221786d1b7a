"""What viewers learn of a model that is loaded: where its bytes lie, at what rates they are read, its pages, its
requests."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from importlib.metadata import version
from typing import Any

from ....loaders.quants.by_format import ByFormat
from ...devices.device import Device
from ...ledger import drift, in_formats
from ...ledger.pass_bytes import GROUPS
from ...ledger.passes import CHANNELS
from ...ledger.summary import PHASES, Summary
from ...model.kv_cache import PAGE
from ...placement.placement import bytes_by_layer
from ..generation import Generation
from ..service import Service


class Facts:
    """What stays the same while a model is served, and what its predictions are worth."""

    def __init__(self, service: Service) -> None:
        self.service = service

    @property
    def doubt(self) -> str:
        """Why passes are not held against a prediction, or should not be; "": they can be."""
        found = self.service.llm.predictions
        if found.pass_model is None:
            return found.unpredicted or "the rates of this machine are not known: headrace measure"
        if found.in_caches:
            return "the model fits into the CPU's caches: the bandwidth of memory does not bound it"
        return ""

    def sentence(self, window: Summary | None) -> str:
        """One line about the last tokens of text."""
        if window is None:
            return "no token was made yet"
        if self.doubt:
            return self.doubt
        line = drift.sentence(window)
        if line is not None:
            return line
        expected = window.predicted_s
        if expected is None:
            return "of these passes no prediction is known"
        took, said = window.measured_s / window.tokens * 1e3, expected / window.tokens * 1e3
        return f"as predicted: {took:.2f} ms a token, predicted {said:.2f}"

    @cached_property
    def rates(self) -> dict[str, float]:
        """Bytes per second of memories and links, as predictions have them."""
        model = self.service.llm.predictions.pass_model
        if model is None:
            return {}
        links = {name: rate.mid for name, rate in model.machine.links.items()}
        return {**{name: device.nominal for name, device in model.machine.memories.items()}, **links}

    def of_run(self) -> dict[str, Any]:
        """The first event of a stream."""
        service, spec = self.service, self.service.llm.spec
        return {
            "model": service.name,
            "family": spec.family,
            "version": version("headrace"),
            "layers": len(spec.layers),
            "experts": spec.moe.experts,
            "top_k": spec.moe.top_k,
            "experts_bytes": list(service.llm.parts.memory_plan.experts),
            "context": service.limit,
            "parallel": service.settings.parallel,
            "phases": PHASES,
            "tiers": CHANNELS,
            "groups": GROUPS,
            "rates": self.rates,
            "doubt": self.doubt,
            "tolerance": drift.TOLERANCE,
            "sampling": sampling(service),
            "has_template": service.llm.tokenizer is not None and bool(service.llm.tokenizer.templates),
        }

    @cached_property
    def placement(self) -> dict[str, Any]:
        """Bytes of every layer by tier, and of what is no layer."""
        parts = self.service.llm.parts
        plan, formats, spec = parts.memory_plan, parts.checkpoint.formats, parts.spec
        sizes, main = in_formats.of_model(spec, formats), plan.placement.main.value
        by_tier = {tier.value: bytes_by_layer(plan.placement, plan.experts, tier) for tier in plan.placement.tiers}
        layers = [
            {
                "dense": round(layer.common.total),
                "experts": {tier: found[i] for tier, found in by_tier.items() if found[i]},
                "formats": list(ByFormat.sum([layer.common, layer.expert]).names),
            }
            for i, layer in enumerate(sizes.layers)
        ]
        groups = {
            "head": {"tier": main, "bytes": round(sizes.head.total), "is_embedding": spec.tied_head},
            "final norm": {"tier": main, "bytes": round(sizes.final_norm.total)},
            "KV cache": {"tier": main, "bytes": plan.kv_budget.kv_bytes, "tokens": plan.kv_budget.max_context},
            "work of a pass": {"tier": main, "bytes": plan.kv_budget.work_bytes},
        }
        if not spec.tied_head:
            groups["embedding"] = {"tier": plan.table.value, "bytes": round(sizes.embedding.total)}
        devices = {tier.value: _device(device) for tier, device in parts.devices.items()}
        return {
            "name": plan.placement.name, "main": main, "devices": devices, "layers": layers, "rest": groups,
            "experts_in_layer": spec.moe.experts, "notes": list(parts.notes),
        }  # fmt: skip


def _device(device: Device) -> dict[str, Any]:
    return {"name": device.name, "free": device.free, "channel": device.tier.channel}


def sampling(service: Service) -> Mapping[str, Any]:
    """What answers are sampled with where a request says nothing."""
    params = service.defaults
    return {
        "temperature": params.temperature, "top_p": params.top_p, "top_k": params.top_k, "min_p": params.min_p,
        "repetition_penalty": params.repetition_penalty,
    }  # fmt: skip


def pages(service: Service) -> dict[str, int]:
    """Pages of the cache. shared: those that several requests use, part of those in use; idle: those whose content is
    known and that nobody uses. windows, windows_used: pages of layers over a window, which are fewer."""
    table = service.llm.loop.pages
    free, idle = len(table.free), len(table.idle)
    total = table.total
    shared = sum(map((1).__lt__, table.owners))
    pools = service.llm.loop.windows.pools
    return {
        "pages": total, "used": max(0, total - free - idle), "shared": shared, "idle": idle, "free": free,
        "page": PAGE, "windows": sum(pool.pages - 1 for pool in pools),
        "windows_used": sum(pool.pages - 1 - pool.table.available for pool in pools),
    }  # fmt: skip


def queued(found: dict[str, Any], generation: Generation) -> dict[str, Any]:
    """A row of the queue: as /slots has it, and what was asked for."""
    params = generation.request.sequence.params
    return {**found, "most_new": params.max_new_tokens, "queued_s": round(generation.queued_s, 3)}
