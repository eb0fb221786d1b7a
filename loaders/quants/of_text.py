"""What `--quant` says: native, a format, a mix of GGUF, bits, or one of these for each group.

Names are taken as people write them: in any case, with or without dashes, by bits alone. What a loose name is taken for
stands in the plan, and nothing is guessed where it could mean two things.
"""

from __future__ import annotations

import difflib
import re

from ...errors import OptionError
from ..architecture.architecture import Part
from . import recipes
from .encodings import ENCODINGS, Encoding, bits_per_weight, by_numbers
from .quant import ROLES, Place, Quant, Special, role_of

# Other names, squeezed: what each is usually made as.
ALIASES = {
    "fp16": "f16", "float16": "f16", "half": "f16", "bfloat16": "bf16", "fp32": "f32", "float32": "f32",
    "float": "f32", "float8": "fp8", "fp8e4m3": "fp8", "e4m3": "fp8", "int8": "int8", "8bit": "int8", "w8a8": "int8",
    "w8a16": "int8", "llmint8": "int8", "bnb8": "int8", "eetq": "int8", "int4": "int4-g128", "4bit": "int4-g128",
    "w4a16": "int4-g128", "awq": "int4-g128", "gptq": "int4-g128", "autoround": "int4-g128", "bnb": "nf4",
    "bnb4": "nf4", "bnb4bit": "nf4", "qlora": "nf4", "bitsandbytes": "nf4", "q2": "q2_k", "q3": "q3_k_m",
    "q4": "q4_0", "q5": "q5_0", "q6": "q6_k", "q8": "q8_0", "mxfp": "mxfp4", "nvfp": "nvfp4", "fp4": "fp4",
}  # fmt: skip
MLX = re.compile(r"mlx-?(\d)(?:-?bits?)?")
NUMBERS = re.compile(r"(?:u?int|w)?(\d)(?:bits?|a16)?(?:-?g(?:roup)?(?:size)?-?(\d{2,4}))?")
BPW = re.compile(r"(\d+(?:\.\d+)?)(?:bpw|bits?)")
HAND_MADE = re.compile(r"^ud|xl$|^apex|^dynamic")


def parse(text: str, native: Quant) -> Quant:
    """ "q4_0" (all matrices but an untied embedding, as the engine packs), "Q4_K_M" (as llama-quantize mixes), or
    "experts=q4_k_m,dense=q8_0,head=q8_0". Raises OptionError with the nearest names."""
    if text.strip().lower() == "native":
        return native
    if "=" not in text and "," not in text:
        key = _squeezed(text)
        name = ALIASES.get(key, key)
        known = {_squeezed(mix): mix for mix in recipes.BASES}
        if _squeezed(name) in known:
            return recipes.mix(known[_squeezed(name)])
    chosen = {role: getattr(native, role) for role in ROLES}
    mixes: dict[str, Quant] = {}
    for item in text.split(","):
        role, _, name = item.rpartition("=")
        if role and role.strip() not in ROLES:
            raise OptionError(f"--quant: there is no group '{role[:40]}'; there are {', '.join(ROLES)}")
        roles = [role.strip()] if role else ["experts", "dense", "head"]
        if role.strip() == "dense" and "head=" not in text:
            roles.append("head")
        if not role and _squeezed(name).startswith("mlx"):
            roles.append("embed")
        mix = recipes.mix(name.strip().lower()) if name.strip().lower() in recipes.PACKED else None
        for one in roles:
            mixes.pop(one, None)
            if mix is not None:
                mixes[one] = mix
                chosen[one] = getattr(mix, one)
            else:
                chosen[one] = getattr(native, roles[0]) if name.strip().lower() == "native" else find(name)
    return Quant(**chosen, special=_of_mixes(mixes) if mixes else None)


def _of_mixes(mixes: dict[str, Quant]) -> Special:
    """The tensors of groups that are mixed as llama-quantize does."""

    def special(part: Part, place: Place) -> Encoding | None:
        mix = mixes.get(role_of(part.group))
        return None if mix is None or mix.special is None else mix.special(part, place)

    return special


def find(name: str) -> Encoding:
    """One encoding by name, or by bits: "4.5bpw" on average, "int3-g64" in groups. Raises OptionError."""
    key = _squeezed(name)
    by_key = {_squeezed(known): known for known in ENCODINGS}
    found = by_key.get(key) or by_key.get(_squeezed(ALIASES.get(key, "")))
    if found:
        return ENCODINGS[found]
    plain = name.strip().lower().replace(" ", "").replace("_", "-")
    if match := MLX.fullmatch(plain):
        return by_numbers(int(match[1]), 64, zero=2, kind="mlx")
    if (match := NUMBERS.fullmatch(plain)) and 2 <= int(match[1]) <= 8:
        return by_numbers(int(match[1]), int(match[2] or 128))
    if match := BPW.fullmatch(plain):
        bits = float(match[1])
        if not 0 < bits <= 64:
            raise OptionError(f"--quant: {name!r} is no width of a weight: give bits above 0")
        return bits_per_weight(bits)
    raise OptionError(_unknown(name, key))


def _unknown(name: str, key: str) -> str:
    shown = name.strip()[:40]
    if HAND_MADE.search(key):
        return (
            f"--quant: '{shown}' is a mix made by hand, which no rule gives: plan the GGUF file itself, or say its "
            "bits, as in --quant 4.8bpw"
        )
    names = {_squeezed(n): n for n in (*ENCODINGS, *recipes.BASES, "native")}
    names |= {alias: alias for alias in ALIASES if alias not in names}
    near = [names[n] for n in difflib.get_close_matches(key, names, n=4, cutoff=0.5)]
    hint = f"nearest: {', '.join(near)}; " if near else ""
    return f"--quant: there is no format '{shown}'; {hint}bits go too, as in 4.5bpw or int4-g64"


def _squeezed(name: str) -> str:
    return re.sub(r"[\s_-]", "", name.strip().lower())
