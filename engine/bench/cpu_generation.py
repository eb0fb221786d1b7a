"""The generation of a processor, as "Zen 4" or "Sapphire Rapids". A virtual machine often hides the name of its
processor ("AMD EPYC"), and seldom vendor, family and model, which tell the generation."""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# Vendor and family -> the first model of each run of models that are one generation.
GENERATIONS: dict[tuple[str, int], dict[int, str]] = {
    ("AuthenticAMD", 23): {0x00: "Zen", 0x30: "Zen 2"},
    ("AuthenticAMD", 25): {0x00: "Zen 3", 0x10: "Zen 4", 0x20: "Zen 3", 0x60: "Zen 4"},
    ("AuthenticAMD", 26): {0x00: "Zen 5"},
}
INTEL_6 = {
    85: "Skylake or Cascade Lake", 106: "Ice Lake-SP", 108: "Ice Lake-SP", 143: "Sapphire Rapids",
    173: "Granite Rapids", 174: "Granite Rapids", 207: "Emerald Rapids",
}  # fmt: skip


def generation(cpuinfo: str) -> str | None:
    """That of the first processor of a /proc/cpuinfo; None for one that is not known here."""
    pairs = (line.partition(":") for line in cpuinfo.split("\n\n", 1)[0].splitlines())
    facts = {name.strip(): value.strip() for name, _, value in pairs}
    try:
        vendor, family, model = facts["vendor_id"], int(facts["cpu family"]), int(facts["model"])
    except (KeyError, ValueError):
        return None
    if (vendor, family) == ("GenuineIntel", 6):
        return INTEL_6.get(model)
    runs = GENERATIONS.get((vendor, family), {})
    return next((name for first, name in reversed(runs.items()) if first <= model), None)


def cpu_generation() -> str | None:
    """That of this machine."""
    try:
        return generation(CPUINFO.read_text(encoding="utf-8"))
    except OSError:
        return None
