"""How the C++ kernels compute for one engine: instruction set, threads, rounding of activations, when tiles are used.

A context is a value: several may be in use at the same time, and none changes another or the process. An op takes as
many threads as its context asks for; ops of all contexts take turns. Knows no torch: a plan needs a context's
instruction set and threads, and no tensor.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import OptionError
from . import _cpu, limits
from .formats import FORMATS
from .isa import available_isas


def _isa_to_use() -> str:
    """The one that HEADRACE_ISA names, else the best of this CPU."""
    name, there = os.environ.get("HEADRACE_ISA"), available_isas()
    if name and name not in there:
        raise OptionError(
            f"HEADRACE_ISA={name} cannot be used: this CPU has {', '.join(there)}; unset it to get the best of them"
        )
    return name or there[-1]


ISA = _isa_to_use()  # asked for once: a process does not change its mind
CORES = int(_cpu.default_threads())  # physical cores that this process may use
NO_PREFETCH, BOTH_PREFETCH, NEAR_PREFETCH = (0, 0), (8192, 1024), (0, 4096)  # see kernels/cpu/formats/layout.h
PREFETCH = BOTH_PREFETCH if _cpu.prefetch_helps() else NO_PREFETCH
NEVER = 1 << 20  # tokens from which tiles are used where they are not
ATTENTION = "attention"  # beside the formats in `Context.rounding`
THREADS = limits.default_threads(CORES)  # as many as have a core, and time on it


@dataclass(frozen=True, kw_only=True)
class Context:
    """How ops compute. isa: one of `available_isas()`. threads: the caller included; as many as this process may use
    physical cores, within its quota of their time, if nothing else was said.

    activations: how they meet the weights of block formats. "int8": per 32; in AMX tiles per 256, and the weights with
    one scale for 256 columns too. "bf16": as they are with few tokens, to bf16 in tiles, and so are the weights.
    f16 and bf16 are multiplied as with "bf16", their weights as they are; fp8 takes activations in bf16 for any number
    of tokens where the CPU multiplies bf16.
    attention: what attention multiplies on a cache of bf16. "float32": queries and weights as they are. "bf16": both
    rounded to it, where `has_bf16_attention` and the width of heads is a multiple of 32; sums and softmax are float32.
    prefetch: how many bytes ahead of what is read weights are asked for, into the second and into the first cache; 0:
    not at all. Changes no result. As is known of CPUs of this kind, if nothing else was said.
    tiles_from: from how many tokens of a matrix or an expert on tiles are used, by format name; a format left out as
    the ISA's table says, which was measured on one machine.
    """

    isa: str = ISA
    threads: int = THREADS
    activations: str = "int8"
    attention: str = "float32"
    prefetch: tuple[int, int] = PREFETCH
    tiles_from: Mapping[str, int] = field(default_factory=dict)
    native: Any = field(init=False, compare=False, repr=False)  # the extension's own

    def __post_init__(self) -> None:
        assert self.isa in available_isas(), f"isa {self.isa}: this CPU has {', '.join(available_isas())}"
        assert self.threads >= 1, f"threads: {self.threads}"
        assert self.activations in ("int8", "bf16"), f"activations {self.activations}"
        assert self.attention in ("float32", "bf16"), f"attention {self.attention}"
        assert all(count > 0 for count in self.tiles_from.values()), f"tiles from {dict(self.tiles_from)} tokens on"
        tiles_from = {FORMATS[name].code: count for name, count in self.tiles_from.items()}
        exact = self.activations == "bf16"
        native = _cpu.Context(
            isa=self.isa, exact=exact, threads=self.threads, prefetch=self.prefetch, pairs=self.attention == "bf16",
            tiles_from=tiles_from,
        )  # fmt: skip
        object.__setattr__(self, "native", native)

    @property
    def tile_tokens(self) -> dict[str, int]:
        """From how many tokens on tiles are used; formats without tiles are left out."""
        counts = {name: int(self.native.tile_tokens(form.code)) for name, form in FORMATS.items()}
        return {name: count for name, count in counts.items() if count}

    @property
    def has_bf16_attention(self) -> bool:
        """Whether the instruction set multiplies bf16 in attention."""
        return bool(self.native.has_pairs())

    @property
    def bf16_products(self) -> str:
        """For a reader, which instructions multiply many tokens in bf16 besides those that the table is named after."""
        return ", bf16 by AVX512-BF16" if self.isa == "avx512" and "bf16" in self.tile_tokens else ""

    @property
    def tile_groups(self) -> dict[str, int]:
        """How many columns of a token share a scale of int8 in tiles; 0: tiles round to bf16."""
        return {name: int(self.native.tile_group(FORMATS[name].code)) for name in self.tile_tokens}

    @property
    def rounding(self) -> dict[str, str]:
        """By format, and of attention, in words, what of this CPU decides how a product is rounded, besides
        `activations`: where two machines say the same of a format, the same kernels give its products the same bits.
        Tiles of AMX stand beside the dot products of AVX-512; AVX512-BF16, which has no table of its own, is in tiles,
        and in fp8 at any number of tokens."""
        tiles, groups = self.tile_tokens, self.tile_groups
        dots, has_pairs = self.isa.replace("amx", "avx512"), "bf16" in tiles

        def told(name: str) -> str:
            product = f"{dots} (bf16)" if name == "fp8" and has_pairs else dots
            if tiles.get(name, NEVER) >= NEVER:
                return product
            if self.isa == "amx":
                kind = f"AMX in int8 by {groups[name]}" if groups[name] else "AMX in bf16"
            else:
                kind = f"{dots} in int8 by {groups[name]}" if groups[name] else "AVX512-BF16"
            return f"{product}, tiles of {kind} from {tiles[name]} tokens"

        attention = self.attention if self.has_bf16_attention else "float32"
        return {name: told(name) for name in FORMATS} | {ATTENTION: f"products of {attention}"}
