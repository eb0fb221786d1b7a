"""What a coordinator asks of its hosts: how the model is opened and computed, so that a row has the same bits anywhere.

Formats, rounding of activations, instruction set and the sizes from which tiles are used go from the coordinator to its
hosts. A host whose CPU lacks the instruction set takes its best one; one that has it may still multiply some formats in
another way (AVX512-BF16). Either says how it rounds, and the coordinator compares: then bits may differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ....errors import brief
from ....kernels import Ops
from ....kernels.context import ATTENTION, NEVER, Context
from ....kernels.cpu import CpuOps
from ....kernels.formats import FORMATS
from ....kernels.isa import available_isas
from ...config import EngineConfig
from .frames import Broken, count, whole
from .rows import WIRES, WireFormat

OPENED = ("expert_format", "dense_format", "dtype", "experts_per_token")  # fields of the config
MOST_TOKENS = (1 << 31) - 1  # that a threshold of tiles can say
LISTS = ("ignore_config_keys", "ignore_tensors")


@dataclass(frozen=True, kw_only=True)
class Terms:
    """options: fields of `EngineConfig`. computing: of a `Context`, empty for kernels that have none. wire: the format
    of rows. limit: the most bytes of a request. rounding: of the coordinator's kernels, of each format that hosts
    compute with, and of attention where they attend; it stays there."""

    options: Mapping[str, Any]
    computing: Mapping[str, Any]
    wire: WireFormat
    limit: int
    rounding: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, config: EngineConfig, ops: Ops, limit: int, formats: Iterable[str] = ()) -> Terms:
        """Those of a coordinator. formats: of what hosts compute."""
        options = {name: getattr(config, name) for name in OPENED}
        options |= {name: list(getattr(config, name)) for name in LISTS}
        options["kernels"] = config.kernels
        computing, rounding = dict[str, Any](), dict[str, str]()
        if isinstance(ops, CpuOps):
            context = ops.context
            used, counts = dict.fromkeys(formats), context.tile_tokens
            tiles = {name: counts.get(name, NEVER) for name in used}  # a host may have tiles that are not here
            computing = {"isa": context.isa, "activations": context.activations, "attention": context.attention}
            computing["tiles_from"] = tiles
            rounding = {name: context.rounding[name] for name in used}
            if config.split_by == "layers":  # hosts of experts do not attend
                rounding[ATTENTION] = context.rounding[ATTENTION]
        return cls(options=options, computing=computing, wire=WIRES[config.wire], limit=limit, rounding=rounding)

    def differing(self, said: object) -> list[str]:
        """For people, of the formats that a host rounds in another way than the coordinator. said: by the host, of any
        format; what it does not say is taken to be the same."""
        theirs = said if isinstance(said, dict) else {}
        pairs = ((name, ours, str(theirs.get(name, ours))) for name, ours in self.rounding.items())
        return [f"{name} by {brief(other)}, here by {ours!r}" for name, ours, other in pairs if other != ours]

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
            options = {name: _plain(said["options"][name], name) for name in (*OPENED, "kernels")}
            options |= {name: tuple(map(str, said["options"][name])) for name in LISTS}
            computing, wire = _computing(dict(said["computing"])), WIRES[said["wire"]]
        except (KeyError, TypeError, ValueError) as error:
            raise Broken(
                f"the coordinator's terms are malformed ({error}): install the same headrace on all machines"
            ) from error
        return cls(options=options, computing=computing, wire=wire, limit=whole(said, "limit"))

    def context(self, threads: int) -> Context:
        """How a host's kernels compute: as the coordinator's, where this CPU can."""
        asked = dict(self.computing)
        if asked.get("isa") not in available_isas():
            asked.pop("isa", None)
        return Context(threads=threads, **asked)


def _plain(found: Any, name: str) -> Any:
    """The value of an option, which is a word, a count or left out."""
    return found if found is None or isinstance(found, str) else count(found, name)


def _computing(said: dict[str, Any]) -> dict[str, Any]:
    """Fields of a `Context`. Raises ValueError, KeyError for such as none can have."""
    tiles = dict(said.get("tiles_from", {}))
    for name, tokens in tiles.items():
        if count(tokens, "tiles_from") not in range(1, MOST_TOKENS + 1) or not FORMATS[name]:
            raise ValueError(f"tiles of {name} from {tokens} tokens on")
    if not said:
        return {}
    if not isinstance(said["isa"], str) or said["activations"] not in ("int8", "bf16"):
        raise ValueError(f"isa {said['isa']!r}, activations {said['activations']!r}")
    if said["attention"] not in ("float32", "bf16"):
        raise ValueError(f"attention {said['attention']!r}")
    return {**{name: said[name] for name in ("isa", "activations", "attention")}, "tiles_from": tiles}
