"""What a coordinator asks of its hosts: how the model is opened and computed, so that a row has the same bits anywhere.

Formats, rounding of activations, instruction set and the sizes from which tiles are used go from the coordinator to its
hosts. A host whose CPU lacks the instruction set takes its best one, and says so: then bits may differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ....kernels import Ops
from ....kernels.context import Context
from ....kernels.cpu import CpuOps
from ....kernels.isa import available_isas
from ...config import EngineConfig
from .frames import Broken, whole
from .rows import WIRES, WireFormat

OPENED = ("expert_format", "dense_format", "dtype", "experts_per_token")  # fields of the config
LISTS = ("ignore_config_keys", "ignore_tensors")


@dataclass(frozen=True, kw_only=True)
class Terms:
    """options: fields of `EngineConfig`. computing: of a `Context`, empty for kernels that have none. wire: the format
    of rows. limit: the most bytes of a request."""

    options: Mapping[str, Any]
    computing: Mapping[str, Any]
    wire: WireFormat
    limit: int

    @classmethod
    def of(cls, config: EngineConfig, ops: Ops, limit: int) -> Terms:
        """Those of a coordinator."""
        options = {name: getattr(config, name) for name in OPENED}
        options |= {name: list(getattr(config, name)) for name in LISTS}
        options["kernels"] = config.kernels
        computing: dict[str, Any] = {}
        if isinstance(ops, CpuOps):
            context = ops.context
            tiles = dict(context.tiles_from)
            computing = {"isa": context.isa, "activations": context.activations, "tiles_from": tiles}
        return cls(options=options, computing=computing, wire=WIRES[config.wire], limit=limit)

    def as_json(self) -> dict[str, Any]:
        """As it goes over the wire."""
        return {
            "options": dict(self.options), "computing": dict(self.computing), "wire": self.wire.name,
            "limit": self.limit,
        }  # fmt: skip

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> Terms:
        """Those of a message. Raises Broken."""
        try:
            options = {name: said["options"][name] for name in (*OPENED, *LISTS, "kernels")}
            options |= {name: tuple(map(str, options[name])) for name in LISTS}
            computing = dict(said["computing"])
            return cls(options=options, computing=computing, wire=WIRES[said["wire"]], limit=whole(said, "limit"))
        except (KeyError, TypeError, ValueError) as error:
            raise Broken(f"the coordinator's terms lack {error}: install the same headrace on all machines") from error

    def context(self, threads: int) -> Context:
        """How a host's kernels compute: as the coordinator's, where this CPU can."""
        asked = dict(self.computing)
        if asked.get("isa") not in available_isas():
            asked.pop("isa", None)
        return Context(threads=threads, **asked)
