"""From how many tokens on tiles beat dot products: measured once on this hardware, and kept.

Tiles unpack weights for any number of tokens at one price, dot products pay by the token; where the two cross depends
on the CPU. Both ways are timed in turns on experts that no cache holds, and tiles are taken from the first number of
tokens on from which they always win by GAIN: they round activations more, so a tie goes to the dot products. The result
decides on rounding, so it is saved beside the machine's profile and not measured anew at every start; other kernels
than those that were timed are timed once more. Only formats of models that are run are timed.
"""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch

from ...kernels import FORMATS, ExpertLayout, load
from ...kernels.context import NEVER, Context
from ...kernels.isa import kernels_digest
from ...kernels.packed import ExpertBank
from ...loaders.memory import free_memory
from .. import writable
from ..bandwidth_model import profile as profiles
from ..devices.host import cpu_kernels
from .expert_times import EXPERTS, path_of, read_object, seconds_of
from .kernel_rates import HIDDEN, USUAL, WIDTH

log = logging.getLogger("headrace")
FILE = "tiles"
TOKENS = (2, 3, 4, 6, 8, 10, 12, 16)
MORE_TOKENS = (32, 64)  # tried where those are too few
GAIN = 1.1
ARENA = 192 << 20
ROUNDS = 5
# Formats that are timed; any other takes the threshold of the one most like it, of those whose tiles round alike.
TIMED = ("bf16", "f16", "fp8", "q8_0", "q4_0", "q4_k", "q6_k")
KEPT = 4  # builds of the kernels, and roundings, whose thresholds are kept


def use(context: Context, may_measure: bool = True, formats: Collection[str] | None = None) -> Context:
    """The context with the thresholds of this hardware for these formats (None: for all), which are measured if they
    were not yet; those of the instruction set's table where that may not be, or could not be kept: rounding must not
    differ from start to start."""
    built_in = _built_in(context)
    wanted = [name for name in built_in if formats is None or name in formats]
    found = (_saved(context) if wanted else None) or {}
    missing = [name for name in wanted if name not in found]
    if missing and may_measure and (error := writable.problem(path_of(FILE, context), with_folders=True)):
        log.warning("tile thresholds not measured, because they could not be kept: %s; %s", error, profiles.ELSEWHERE)
        may_measure = False
    if missing and may_measure:
        found = refresh(context, missing)
    return replace(context, tiles_from={name: found.get(name, built_in[name]) for name in wanted})


def refresh(context: Context, formats: Collection[str] | None = None) -> dict[str, int]:
    """Measures the thresholds of a context anew, for some formats (None: for those that were timed before, and the
    usual ones), and keeps them; all that are known, by format name."""
    built_in, known = _built_in(context), _saved(context) or {}
    if not built_in or free_memory() < 4 * ARENA:
        return {**built_in, **known}  # a machine that is full now may be measured another day
    asked = {*USUAL, *known} if formats is None else {*formats}
    found = {**known, **measure(context, [name for name in built_in if name in asked])}
    save(context, found)
    return found


def _built_in(context: Context) -> dict[str, int]:
    """The thresholds of the instruction set's own table, none where it has no tiles."""
    return replace(context, tiles_from={}).tile_tokens


def measure(context: Context, formats: list[str]) -> dict[str, int]:
    """Times both ways with these formats; a third of a second each and 200 MB."""
    arena = torch.full((ARENA,), 0x11, dtype=torch.uint8)
    cpu_kernels().advise_huge(arena)
    alike = {name: _like(context, name) for name in formats}
    found = {name: _least(context, name, arena) for name in dict.fromkeys(alike.values())}
    return {name: found[alike[name]] for name in formats}


def _least(context: Context, name: str, arena: torch.Tensor) -> int:
    least = threshold(_gains(context, name, arena, TOKENS))
    return least if least < NEVER else threshold(_gains(context, name, arena, MORE_TOKENS))


def _like(context: Context, name: str) -> str:
    """Which format is timed for one: itself, or one with as many factors and minimums; itself if none rounds alike."""
    groups, scales = context.tile_groups, FORMATS[name].scales
    others = [
        other
        for other in TIMED
        if other in groups and groups[other] == groups[name] and FORMATS[other].activations == "int8"
    ]
    if name in TIMED or not others:
        return name

    def likeness(other: str) -> tuple[bool, bool, int]:
        theirs, bits = FORMATS[other].scales, abs(FORMATS[other].bits - FORMATS[name].bits)
        return theirs.per == scales.per, theirs.has_min == scales.has_min, -bits

    return max(others, key=likeness)


def threshold(gains: dict[int, float]) -> int:
    """The least number of tokens from which on every gain (time by dot products / by tiles) is at least GAIN."""
    least = NEVER
    for tokens in sorted(gains, reverse=True):
        if gains[tokens] < GAIN:
            break
        least = tokens
    return least


def _gains(context: Context, format: str, arena: torch.Tensor, counts: Collection[int]) -> dict[int, float]:
    """Median over rounds of dot time / tile time, by tokens of each expert."""
    layout = ExpertLayout(format=FORMATS[format], hidden=HIDDEN, width=WIDTH)
    count = arena.numel() // layout.bytes
    bank = ExpertBank(layout, arena[: count * layout.bytes].view(count, -1))
    found: dict[int, list[float]] = {tokens: [] for tokens in counts}
    ways = [load("cpu", replace(context, tiles_from={format: least})) for least in (NEVER, 1)]
    first = 0
    for _ in range(ROUNDS):
        for tokens in counts:
            seconds = []
            for ops in ways:
                seconds.append(seconds_of(ops, bank, first, tokens))
                first += EXPERTS
            found[tokens].append(seconds[0] / seconds[1])
    return {tokens: statistics.median(ratios) for tokens, ratios in found.items()}


def _of(context: Context) -> str:
    """What thresholds in a file hold for: a build of the kernels, and how activations are rounded."""
    return kernels_digest() if context.activations == "int8" else f"{kernels_digest()} {context.activations}"


def save(context: Context, found: dict[str, int]) -> None:
    """Keeps thresholds for this hardware and these kernels, beside those of a few others that were timed here. A folder
    that cannot be written only costs the next start a second."""
    mine = _of(context)
    others = {what: counts for what, counts in _kept(context).items() if what != mine}
    kept = {mine: found, **dict(list(others.items())[: KEPT - 1])}
    writable.keep(path_of(FILE, context), json.dumps(kept, indent=2))


def _kept(context: Context) -> dict[str, Any]:
    """Thresholds by what they hold for, as they were saved, the newest first."""
    return read_object(path_of(FILE, context))


def _saved(context: Context) -> dict[str, int] | None:
    """The thresholds that were kept for a context; None: none, or what is no threshold."""
    found = _kept(context).get(_of(context))
    if not isinstance(found, dict) or not set(found) <= set(FORMATS):
        return None
    return found if all(isinstance(n, int) and n > 0 for n in found.values()) else None
