"""What is known of a host and its link when it has joined: rates that it measured, and those of the connection."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ....loaders.quants.by_format import ByFormat
from ...bandwidth_model.hardware import Device, exactly
from ...bandwidth_model.network.balance import Taker
from ...bandwidth_model.network.hops import Hop
from ...bandwidth_model.network.wire_sizes import ROW
from ...bandwidth_model.profile import along
from ...units import GB
from ..messages.frames import Broken
from .link_rate import LinkRate

FASTEST = 1e18  # bytes a second that no machine reads


class Figures(NamedTuple):
    """ram_bytes_s: of a plain read. experts: bytes a second of this model's experts, by tokens that one serves at once;
    empty where the host said none."""

    link: LinkRate
    ram_bytes_s: float
    experts: Mapping[int, float]

    @classmethod
    def read(cls, said: Mapping[str, Any], link: LinkRate) -> Figures:
        """Those of a host's message. Raises Broken."""
        try:
            rates = {int(tokens): _rate(rate) for tokens, rate in dict(said.get("experts", {})).items()}
            ram = _rate(said.get("rate", 0.0))
        except (TypeError, ValueError) as error:
            raise Broken(
                f"a host's rates are no numbers ({error}): install the same headrace on all machines"
            ) from error
        return cls(link, ram, {tokens: rate for tokens, rate in sorted(rates.items()) if rate > 0 and tokens > 0})

    @property
    def expert_bytes_s(self) -> float:
        """Of experts that serve a token each."""
        return self.experts.get(1, self.ram_bytes_s)

    def hop(self, name: str, formats: Iterable[str]) -> Hop:
        """As the bandwidth model has a host; formats: of the experts."""
        rate = max(self.expert_bytes_s, 1.0)
        points = [(float(tokens), max(1.0, rate / known)) for tokens, known in self.experts.items()]
        device = Device(
            name=name, kind="cpu", memory=None, nominal=max(self.ram_bytes_s, rate), bandwidth=exactly(rate),
            by_format=dict.fromkeys(formats, rate), source="measured when it joined",
            slowdown=(lambda format, tokens, experts: along(points, tokens)) if len(points) > 1 else None,
        )  # fmt: skip
        link = self.link
        return Hop(name=name, device=device, rate=exactly(link.bytes_s), round_trip=exactly(link.round_trip))

    def taker(self, expert: ByFormat, top_k: int, hidden: int, wire: str) -> Taker:
        """Seconds for none and for all of a token's experts of a layer, the round trip included."""
        row = ROW[wire](hidden)
        read, sent = top_k * expert.total / max(self.expert_bytes_s, 1.0), (1 + top_k) * row / self.link.bytes_s
        return Taker(self.link.round_trip, read + sent)

    def __str__(self) -> str:
        trip, rate = self.link.round_trip * 1e6, self.link.bytes_s / GB
        return f"round trip {trip:.0f} us, link {rate:.2f} GB/s, experts {self.expert_bytes_s / GB:.1f} GB/s"


def _rate(found: Any) -> float:
    """Bytes a second that a message says; a text that reads as a number is none, since "inf" does."""
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found < FASTEST:
        raise ValueError(f"{str(found)[:40]!r}")
    return float(found)
