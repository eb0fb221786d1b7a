"""How fast experts get from pinned RAM to a GPU: as measured (`measure/link_rates.py`), or what such a link should
bring."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ...kernels import FORMATS
from ..devices.pcie import PciLink, pci_links
from ..units import GB
from .contention import experts_name, kept, up_name
from .hardware import LANE, REACHED
from .profile import Profile, nearest

GENERATIONS = {2.5: 1, 5.0: 2, 8.0: 3, 16.0: 4, 32.0: 5, 64.0: 6}  # by GT/s
SHARE = REACHED["link"][0].mid  # of a link's nominal rate that copies from pinned memory reach
UNKNOWN = 16, 3  # lanes and generation where the system does not tell: the slowest that is common


@dataclass(frozen=True, kw_only=True)
class LinkRate:
    """Bytes per second from RAM to a GPU, and of its own memory (0: not measured); `source`: for people. kept: by
    format, the shares of their rates that the CPU's experts and the link keep while both are used, where measured."""

    bytes_s: float
    gpu_bytes_s: float = 0.0
    is_measured: bool
    is_guess: bool = False  # the system does not tell the link
    source: str
    kept: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def link_rate(profile: Profile | None, place: torch.device, links: Iterable[PciLink] | None = None) -> LinkRate:
    """The rate of a GPU's link; `links`: those of this machine, None: as the system tells."""
    number = place.index or 0
    copies = {} if profile is None else profile.copies
    measured = copies.get(up_name(number))
    if measured:
        source = f"{measured / GB:.1f} GB/s measured"
        hbm = copies.get(f"gpu{number} hbm", 0.0)
        return LinkRate(
            bytes_s=measured, gpu_bytes_s=hbm, is_measured=True, source=source, kept=kept_beside(profile, number)
        )
    address = bus_address(number)
    found = next((one for one in (pci_links() if links is None else links) if one.device.endswith(address)), None)
    return nominal(found)


def kept_beside(profile: Profile | None, number: int) -> dict[str, tuple[float, float]]:
    """By format, what experts and copies to this GPU keep of their rates beside each other; of a format that was not
    measured so, what the one keeps that is most alike."""
    rates = {} if profile is None else profile.together
    shares = {name: kept(rates, experts_name(name), up_name(number)) for name in FORMATS}
    measured = {name: share for name, share in shares.items() if share is not None}
    alike = {name: nearest(name, measured) for name in FORMATS}
    return {name: measured[other] for name, other in alike.items() if other is not None}


def nominal(link: PciLink | None) -> LinkRate:
    """What a link should bring. An idle GPU lowers its link's speed, not its lanes, so the highest speed counts."""
    known = link is not None and GENERATIONS.get(link.most_speed, 0) in LANE
    lanes, generation = (link.lanes, GENERATIONS[link.most_speed]) if link is not None and known else UNKNOWN
    rate = SHARE * lanes * LANE[generation]
    taken = "" if known else ", a guess: the system does not tell the link"
    source = f"{rate / GB:.1f} GB/s not measured, {SHARE:.0%} of PCIe {generation}.0 x{lanes}{taken}"
    return LinkRate(bytes_s=rate, is_measured=False, is_guess=not known, source=source)


def bus_address(number: int) -> str:
    """The address of a GPU as the system writes it, such as "0000:01:00.0"."""
    one: Any = torch.cuda.get_device_properties(number)  # torch's types do not name these fields
    return f"{one.pci_domain_id:04x}:{one.pci_bus_id:02x}:{one.pci_device_id:02x}.0"
