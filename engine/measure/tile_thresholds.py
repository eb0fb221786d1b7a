"""From how many tokens on matrix tiles beat dot products: measured once on this hardware, and kept.

Tiles unpack weights for any number of tokens at one price, dot products pay by the token; where the two cross depends
on the CPU. Both ways are timed in turns on experts that no cache holds, and tiles are taken from the first number of
tokens on from which they always win by GAIN: they round activations more, so a tie goes to the dot products. The result
decides on rounding, so it is saved beside the machine's profile and not measured anew at every start; other kernels
than those that were timed are timed once more.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from ...kernels import FORMATS, ExpertLayout, Ops, load
from ...kernels.isa import kernels_digest
from ...kernels.packed import ExpertBank
from ...loaders.memory import free_memory
from ..bandwidth_model.profile import hardware_key, profile_path
from ..devices.host import cpu_kernels
from .kernel_rates import HIDDEN, WIDTH

TOKENS = (2, 3, 4, 6, 8, 10, 12, 16)
NEVER = 1 << 20  # tokens
GAIN = 1.1
EXPERTS = 8  # of one call
ARENA = 192 << 20
ROUNDS = 5
KEPT = 4  # builds of the kernels whose thresholds are kept


def use() -> dict[str, int]:
    """Sets the process to the thresholds of this hardware, measuring them if they were not yet; by format name."""
    built_in = _built_in()
    found = _saved(set(built_in)) if built_in else {}
    if found is None:
        return refresh()
    cpu_kernels().set_tile_tokens(found)
    return found


def refresh() -> dict[str, int]:
    """Measures the thresholds anew, keeps and sets them."""
    built_in = _built_in()
    if not built_in or free_memory() < 4 * ARENA:
        return built_in  # a machine that is full now may be measured another day
    found = measure(list(built_in))
    save(found)
    cpu_kernels().set_tile_tokens(found)
    return found


def _built_in() -> dict[str, int]:
    """Takes back what was set; the thresholds of the instruction set's own table, none where it has no tiles."""
    cpu_kernels().set_tile_tokens({})
    found: dict[str, int] = cpu_kernels().tile_tokens()
    return found


def measure(formats: list[str]) -> dict[str, int]:
    """Times both ways with every format; about a second and 200 MB."""
    cpu = cpu_kernels()
    arena = torch.full((ARENA,), 0x11, dtype=torch.uint8)
    cpu.advise_huge(arena)
    try:
        return {name: threshold(_gains(load("cpu"), name, arena)) for name in formats}
    finally:
        cpu.set_tile_tokens({})


def threshold(gains: dict[int, float]) -> int:
    """The least number of tokens from which on every gain (time by dot products / by tiles) is at least GAIN."""
    least = NEVER
    for tokens in sorted(gains, reverse=True):
        if gains[tokens] < GAIN:
            break
        least = tokens
    return least


def _gains(ops: Ops, format: str, arena: torch.Tensor) -> dict[int, float]:
    """Median over rounds of dot time / tile time, by tokens of each expert."""
    layout = ExpertLayout(format=FORMATS[format], hidden=HIDDEN, width=WIDTH)
    count = arena.numel() // layout.bytes
    bank = ExpertBank(layout, arena[: count * layout.bytes].view(count, -1))
    found: dict[int, list[float]] = {tokens: [] for tokens in TOKENS}
    first = 0
    for _ in range(ROUNDS):
        for tokens in TOKENS:
            seconds = []
            for least in (NEVER, 1):
                cpu_kernels().set_tile_tokens({format: least})
                seconds.append(_time(ops, bank, first, tokens))
                first += EXPERTS
            found[tokens].append(seconds[0] / seconds[1])
    return {tokens: statistics.median(ratios) for tokens, ratios in found.items()}


def _time(ops: Ops, bank: ExpertBank, first: int, tokens: int) -> float:
    """Seconds of a call in which each of EXPERTS experts from `first` on gets so many tokens."""
    x = torch.ones(tokens, HIDDEN)
    ids = ((torch.arange(EXPERTS) + first) % bank.experts).int().expand(tokens, -1).contiguous()
    weights = torch.ones(tokens, EXPERTS)
    start = time.perf_counter()
    ops.experts(x, ids, weights, bank)
    return time.perf_counter() - start


def _path() -> Path:
    key = hardware_key()
    return profile_path(key).with_name(f"tiles-{key}.json")


def save(found: dict[str, int]) -> None:
    """Keeps thresholds for this hardware and these kernels, beside those of a few others that were timed here. A folder
    that cannot be written only costs the next start a second."""
    others = {digest: counts for digest, counts in _kept().items() if digest != kernels_digest()}
    kept = {kernels_digest(): found, **dict(list(others.items())[: KEPT - 1])}
    try:
        _path().parent.mkdir(parents=True, exist_ok=True)
        _path().write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    except OSError:
        return


def _kept() -> dict[str, Any]:
    """Thresholds by the digest of kernels, as they were saved, the newest first."""
    try:
        found = json.loads(_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _saved(formats: set[str]) -> dict[str, int] | None:
    found = _kept().get(kernels_digest())
    if not isinstance(found, dict) or set(found) != formats:
        return None
    return found if all(isinstance(n, int) and n > 0 for n in found.values()) else None
