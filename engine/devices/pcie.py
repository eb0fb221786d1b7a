"""PCIe links of GPUs, accelerators and NVMe drives, as the system tells them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PCI = Path("/sys/bus/pci/devices")


PCI_KINDS = {"03": "GPU", "12": "accelerator", "0108": "NVMe drive"}  # by the start of a device's class


@dataclass(frozen=True, kw_only=True)
class PciLink:
    """A device's link: lanes and GT/s now and at most, by what the system says of the device."""

    device: str  # "GPU 0000:01:00.0"
    lanes: int
    most_lanes: int
    speed: float
    most_speed: float


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def pci_links(root: Path = PCI) -> Iterator[PciLink]:
    """Links of GPUs, accelerators and NVMe drives; those whose state the system does not tell are left out."""
    for folder in sorted(root.glob("*")) if root.is_dir() else []:
        number = (_text(folder / "class") or "").removeprefix("0x")
        kind = next((name for start, name in PCI_KINDS.items() if number.startswith(start)), None)
        names = ("current_link_width", "max_link_width", "current_link_speed", "max_link_speed")
        values = [re.match(r"[\d.]+", _text(folder / name) or "") for name in names]
        if kind is None or not all(values):
            continue
        lanes, most_lanes, speed, most_speed = (float(value[0]) for value in values if value)
        yield PciLink(
            device=f"{kind} {folder.name}",
            lanes=int(lanes),
            most_lanes=int(most_lanes),
            speed=speed,
            most_speed=most_speed,
        )
