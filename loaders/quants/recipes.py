"""The mixes that llama-quantize calls Q4_K_M, IQ3_XS and so on: which tensors get more bits than the rest.

By tensor, layer and shape of the model, as llama.cpp chooses without an importance matrix and without options. Mixes
that people make by hand (UD-Q4_K_XL) follow no rule that could stand here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from ..architecture.architecture import Part
from .encodings import ENCODINGS, SMALLER_BLOCKS, Encoding
from .quant import Place, Quant

# What most tensors get.
BASES = {
    "q2_k_s": "q2_k", "q3_k_s": "q3_k", "q3_k_m": "q3_k", "q3_k_l": "q3_k", "q4_k_s": "q4_k", "q4_k_m": "q4_k",
    "q5_k_s": "q5_k", "q5_k_m": "q5_k", "iq2_m": "iq2_s", "iq3_xs": "iq3_s", "iq3_m": "iq3_s", "mxfp4_moe": "mxfp4",
    # Those of one type have their own head all the same; and some have more.
    **{n: n for n in ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s")},
    **{n: n for n in ("iq3_xxs", "iq3_s", "iq4_nl", "iq4_xs")},
}  # fmt: skip
# Those of which all types can be packed while a model is loaded; other names of `BASES` are formats there.
PACKED = ("q2_k", "q2_k_s", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "mxfp4_moe")
ALMOST = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}  # what llama-quantize makes of them
LOWEST = ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m")


@dataclass(frozen=True)
class _Tensor:
    """What a choice goes by. `n`: experts of a layer; `many`: four or more heads share keys."""

    layer: int
    layers: int
    n: int
    many: bool

    def before(self, share: int) -> bool:
        return self.layer < self.layers // share

    @property
    def gets_more(self) -> bool:
        """The first and last eighth, and every third between."""
        eighth = self.layers // 8
        return self.layer < eighth or self.layer >= 7 * self.layers // 8 or (self.layer - eighth) % 3 == 2


def _value(mix: str, t: _Tensor) -> str | None:
    if mix in LOWEST:
        return "q4_k" if t.many or t.n >= 4 else "iq3_s" if mix in ("iq2_s", "iq2_m") else "q2_k"
    if t.n == 8:
        return "q8_0"
    by_mix = {
        "q2_k": "q4_k" if t.many else "q3_k",
        "q2_k_s": "q4_k" if t.many else None,
        "iq3_xxs": "q4_k" if t.many else "iq3_s",
        "iq3_xs": "q4_k" if t.many else None,
        "iq3_s": "q4_k" if t.many else None,
        "iq3_m": "q4_k",
        "q3_k_m": "q5_k" if t.layer < 2 else "q4_k",
        "q3_k_l": "q5_k",
        "iq4_nl": "q5_k" if t.many else None,
        "iq4_xs": "q5_k" if t.many else None,
        "q4_k_m": "q6_k" if t.gets_more else None,
        "q5_k_m": "q6_k" if t.gets_more else None,
        "q4_k_s": "q5_k" if t.layer < 4 else None,
    }
    return by_mix.get(mix)


def _query(mix: str, t: _Tensor) -> str | None:
    return {"iq3_xs": "iq3_xxs", "iq3_xxs": "iq2_s"}.get(mix)


def _key(mix: str, t: _Tensor) -> str | None:
    if t.n == 8:
        return "q4_k" if mix in LOWEST else "q8_0"
    return None if mix in LOWEST else _query(mix, t)


def _output(mix: str, t: _Tensor) -> str | None:
    if t.n == 8:
        return None if mix in ("q2_k_s", "q3_k_l", "q5_k_s", "q5_k_m", "q6_k") else "q5_k"
    more = {"q2_k": "q3_k", "iq3_xxs": "iq3_s", "q3_k_m": "q4_k", "q3_k_l": "q5_k", "iq3_m": "q4_k"}
    lowest = {"iq1_s": "iq2_xxs", "iq1_m": "iq2_xxs", "iq2_s": "iq3_s", "iq2_m": "iq3_s"}
    return {**more, **lowest}.get(mix)


def _joined(mix: str, t: _Tensor) -> str | None:
    return {"q3_k_m": "q4_k", "q3_k_l": "q4_k", "iq3_m": "q4_k", "q4_k_m": "q5_k", "q5_k_m": "q6_k"}.get(mix)


def _down(mix: str, t: _Tensor) -> str | None:
    first = t.before(8)
    if mix in LOWEST:
        return ("iq3_s" if mix in ("iq2_s", "iq2_m") else "q2_k") if first else None
    by_mix = {
        "q2_k": "q3_k",
        "q2_k_s": "q4_k" if first else None,
        "iq3_xxs": "q4_k" if first else "q3_k",
        "q3_k_m": "q5_k" if t.before(16) else "q4_k",
        "iq3_m": "q4_k" if first or (t.n == 8 and t.gets_more) else None,
        "q3_k_l": "q5_k",
        "q4_k_m": "q6_k" if t.gets_more else None,
        "q5_k_m": "q6_k" if t.gets_more else None,
        "q4_k_s": "q5_k" if first else None,
        "iq4_nl": "q5_k" if first else None,
        "iq4_xs": "q5_k" if first else None,
    }
    return by_mix.get(mix)


def _up(mix: str, t: _Tensor) -> str | None:
    return "iq3_xxs" if mix == "iq3_xs" and not t.before(8) and t.layer < 7 * t.layers // 8 else None


# By the first of these that a tensor's name begins with.
CHOICES: dict[str, Callable[[str, _Tensor], str | None]] = {
    "attn_v": _value, "attn_k": _key, "attn_qkv": _joined, "attn_q": _query, "attn_output": _output,
    "ffn_down": _down, "ffn_gate": _up, "ffn_up": _up,
}  # fmt: skip
EXACT = ("attn_v", "attn_k", "attn_q")  # and not attn_kv_a, attn_q_b


@cache
def mix(name: str) -> Quant:
    """The mix of that name, one of `BASES`."""
    base = ENCODINGS[BASES[name]]
    mixed = ALMOST.get(name, name)

    def special(part: Part, place: Place) -> Encoding | None:
        if part.plain:
            return None
        if part.group in ("head", "embedding"):
            return None if part.group == "embedding" else _fitting(_head(name, base), part)
        if name == "mxfp4_moe":
            return _fitting(base if part.group == "experts" else ENCODINGS["q8_0"], part)
        key = next((k for k in CHOICES if part.name == k or (k not in EXACT and part.name.startswith(k))), None)
        if key is None or place.layer is None:
            return _fitting(base, part)
        tensor = _Tensor(place.layer, place.layers, place.experts, place.shared_by >= 4)
        return _fitting(ENCODINGS.get(CHOICES[key](mixed, tensor) or "", base), part)

    return Quant(
        experts=base, dense=base, head=_head(name, base), embed=_embedding(name, base), special=special, label=name
    )


def _head(name: str, base: Encoding) -> Encoding:
    return ENCODINGS["q8_0" if name == "mxfp4_moe" else "q5_k" if name in LOWEST or name == "iq3_xxs" else "q6_k"]


def _embedding(name: str, base: Encoding) -> Encoding:
    low = {"iq2_s": "iq3_s", "iq2_m": "iq3_s", "iq3_xxs": "iq3_s", "mxfp4_moe": "q8_0"}
    return ENCODINGS.get(low.get(name, "q2_k" if name in LOWEST else ""), base)


def _fitting(encoding: Encoding, part: Part) -> Encoding:
    """Rows that are no whole number of blocks get a type with smaller ones, the last of all float16."""
    if part.cols % encoding.block == 0:
        return encoding
    smaller = ENCODINGS[SMALLER_BLOCKS.get(encoding.name, "iq4_nl")]
    return smaller if part.cols % smaller.block == 0 else ENCODINGS["f16"]
