"""The machine of a run, for its predictions: as this machine's profile has it, GPUs and links else of the parts by
name.

    RAM, by kernel            the profile
    GPU memory                the profile's copy inside of the GPU; else a share of its nominal bandwidth
    host to GPU and back      the profile's copies from pinned memory; else a share of the link's nominal rate
    GPU to GPU                the profile's copies
    GPU compute               a share of its nominal rate

Shares and nominal figures are those of plans (`hardware.py`). A rate that is in neither is no reason to guess:
there is no prediction, and it is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...errors import OptionError
from ..devices.device import Device
from ..placement.placement import Tier
from ..units import GB
from . import hardware, machine_file
from .contention import down_name
from .hardware import Hardware, exactly
from .link_rate import link_rate
from .profile import Profile

# What the driver calls parts whose catalogue name is another.
DRIVER_NAMES = {
    "NVIDIA A100-SXM4-40GB": "a100-40gb",
    "NVIDIA A100-SXM4-80GB": "a100-80gb",
    "NVIDIA H100 80GB HBM3": "h100-sxm",
    "NVIDIA RTX 6000 Ada Generation": "rtx-6000-ada",
}


class Unknown(Exception):
    """A rate that is needed is neither measured nor known; its text says which."""


def of_cpu(profile: Profile, disk_bytes_s: float | None = None) -> Hardware:
    """The machine of a run on the CPU alone, and of a disk that gives experts so fast. What a pass costs is as
    measured, 0 too."""
    disk = None
    if disk_bytes_s is not None:
        bandwidth = exactly(disk_bytes_s)
        disk = hardware.Device(name="disk", kind="disk", memory=None, nominal=disk_bytes_s, bandwidth=bandwidth)
    return replace(machine_file.of_profile(profile), fixed=exactly(profile.pass_s), disk=disk)


def find(profile: Profile | None, devices: Mapping[Tier, Device]) -> Hardware:
    """The machine of a run on these devices; raises Unknown. What a layer costs the CPU besides is not a GPU's."""
    main = devices[Tier.GPU0]
    if not main.is_cuda:
        raise Unknown("a simulated GPU has no bandwidths of its own")
    if profile is None:
        raise Unknown("this machine was not measured yet (headrace measure)")
    found = [_gpu(profile, devices[tier]) for tier in (Tier.GPU0, Tier.GPU1) if tier in devices]
    link = link_rate(profile, main.place)
    if link.is_guess:
        raise Unknown(f"the link to {main.name} is not measured (headrace measure), and the system does not tell it")
    up, down = link.bytes_s, profile.copies.get(down_name(main.place.index or 0), link.bytes_s)
    return Hardware(
        name="this run",
        cpu=machine_file.of_profile(profile).cpu,
        gpus=tuple(replace(gpu, link=exactly(up)) for gpu, _ in found),
        fixed=exactly(profile.pass_s),
        down=exactly(down),
        across=exactly(_across(profile, devices)) if Tier.GPU1 in devices else None,
        kept=link.kept,
        sources=(f"CPU measured {profile.date}", *(source for _, source in found), f"link {link.source}"),
    )


def _gpu(profile: Profile, device: Device) -> tuple[hardware.Device, str]:
    """What is known of a GPU."""
    try:
        name = device.name.rpartition(" (")[0]
        part = hardware.part(DRIVER_NAMES.get(name, name))
    except OptionError:
        part = None
    measured = profile.copies.get(f"gpu{device.place.index or 0} hbm")
    if part is None and not measured:
        raise Unknown(f"the memory of {device.name} is neither measured (headrace measure) nor known by name")
    compute = "its compute unknown: no prediction of prompts" if part is None or part.flops is None else ""
    if measured:
        known = exactly(measured)
        source = f"memory {measured / GB:.0f} GB/s measured by a copy"
    else:
        assert part is not None, "checked above"
        known, source = part.bandwidth, f"memory {part.bandwidth.mid / GB:.0f} GB/s not measured, a share of nominal"
    if part is not None and part.flops is not None:
        compute = f"compute {part.flops.mid / 1e12:.0f} TFLOP/s not measured, a share of nominal"
    found = hardware.Device(
        name=device.name,
        kind="gpu",
        memory=None,
        nominal=known.mid,
        bandwidth=known,
        flops=None if part is None else part.flops,
    )
    return found, f"{device.tier.value}: {source}, {compute}"


def _across(profile: Profile, devices: Mapping[Tier, Device]) -> float:
    """Between the two GPUs, in the slower direction."""
    one, other = (f"gpu{devices[tier].place.index or 0}" for tier in (Tier.GPU0, Tier.GPU1))
    rates = [profile.copies.get(f"{a} to {b}") for a, b in ((one, other), (other, one))]
    known = [rate for rate in rates if rate]
    if len(known) < 2:
        raise Unknown(f"copies between {one} and {other} are not measured (headrace measure)")
    return min(known)
