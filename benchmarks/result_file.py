"""Where a benchmark's result goes: named after what was measured and the processor, so that two machines' lie side by
side."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
DEFAULT = Path()  # --json without a file


def slug(name: str) -> str:
    """A name as part of a file's: "Zen 4" becomes zen4, "Sapphire Rapids" sapphire-rapids."""
    plain = re.sub(r"\((r|tm)\)", "", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r" (?=\d+$)", "", plain)).strip("-")


def default(what: str, passport: dict[str, Any]) -> Path:
    """As decode-zen4-2core-avx512.json, from the passport of the result."""
    cpu = slug(passport["cpu_generation"] or passport["cpu"])
    cores = passport["cores"] or passport["logical_cpus"]
    return RESULTS / f"{what}-{cpu}-{cores}core-{passport['isa']}.json"


def add_option(parser: argparse.ArgumentParser, what: str) -> None:
    """--json [FILE]; without FILE the default name."""
    named = f"without FILE to benchmarks/results/{what}-CPU-CORES-ISA.json"
    parser.add_argument(
        "--json", type=Path, nargs="?", const=DEFAULT, metavar="FILE", help=f"also write the result, {named}"
    )


def asked(path: Path | None, what: str, passport: dict[str, Any]) -> Path | None:
    """What --json asks for: nothing, a file of that name, or of the default one."""
    return default(what, passport) if path == DEFAULT else path


def write(path: Path | None, what: str, result: dict[str, Any]) -> None:
    """Writes a result, which has a passport, where --json asks for it."""
    path = asked(path, what, result["passport"])
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"written: {path.name}")
