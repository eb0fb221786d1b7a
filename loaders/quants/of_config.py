"""From a config.json to the encodings of the checkpoint that it stands for.

By numbers: a method says how it stores a weight, the config says bits, group and which modules. A method that nobody
knows is planned by its bits and group, and the plan says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import groupby
from typing import Any

from ...errors import ConfigError
from ..architecture.architecture import Part
from ..families.quantisation import KEYS
from . import methods
from .encodings import ENCODINGS, Encoding, by_numbers
from .methods import Scheme
from .module_names import PART_NAMES, Modules
from .numbers import GROUP, bits_of, by_name, group_of, is_symmetric, number, skipped
from .quant import Place, Quant, Special

ROUTED = ("gate", "up", "down")  # roles of the matrices of routed experts
PLAIN = {"float32": "f32", "float16": "f16", "half": "f16"}


def native(config: Mapping[str, Any], source: str) -> Quant:
    """The encodings that a config says the checkpoint has; raises ConfigError for a method without numbers."""
    dtype = str(config.get("torch_dtype") or config.get("dtype")).removeprefix("torch.")
    plain = ENCODINGS[PLAIN.get(dtype, "bf16")]
    q = next((v for key in KEYS if isinstance(v := config.get(key), dict) and any(v.values())), None)
    if q is None:
        return Quant(experts=plain, dense=plain, head=plain, embed=plain)
    if isinstance(q.get("quantization"), dict):  # hf_quant_config.json, and configs made of it
        q = {"quant_method": "modelopt", **q["quantization"]}
    scheme, notes = _scheme(q, config, source)
    linear = scheme.linear if scheme.linear not in (None, methods.UNTOUCHED) else plain
    assert linear is not None
    special = _special(scheme, plain)
    middle = Place(layer=int(config.get("num_hidden_layers") or 2) // 2, layers=2)
    experts, attention = Part("experts", 2, 2, name="ffn_gate"), Part("attention", 2, 2, name="attn_q")
    return Quant(
        experts=(special and special(experts, middle)) or linear,
        dense=(special and special(attention, middle)) or linear,
        head=scheme.head or plain,
        embed=scheme.embed or plain,
        special=special,
        notes=notes,
    )


def of_conversion(manifest: Mapping[str, Any], source: str, tied_head: bool) -> Quant:
    """The encodings of what `headrace convert` wrote, by its headrace.json. Raises ConfigError."""
    try:
        usual, own = manifest["formats"], manifest.get("own", {})
        chosen = {place: ENCODINGS[name] for place, name in own.items()}
        experts, dense, embed = (ENCODINGS[usual[group]] for group in ("experts", "dense", "embed"))
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{source} is damaged ({error!r}): convert the model again") from error

    def special(part: Part, place: Place) -> Encoding | None:
        is_routed = part.group == "experts"
        roles = (role for role, name in PART_NAMES.items() if name == part.name and (role in ROUTED) == is_routed)
        return next((chosen[at] for role in roles if (at := f"{place.layer}.{role}") in chosen), None)

    head = chosen.get("head", embed if tied_head else dense)
    return Quant(experts=experts, dense=dense, head=head, embed=embed, special=special if chosen else None)


def _scheme(q: Mapping[str, Any], config: Mapping[str, Any], source: str) -> tuple[Scheme, tuple[str, ...]]:
    """What the method does, and a note where it is not known."""
    name = str(q.get("quant_method") or q.get("quant_algo") or "").lower()
    bits = bits_of(q)
    reader = methods.find(name) if q.get("quant_method") else methods.modelopt if name else methods.mlx
    try:
        scheme = reader(q) if reader else None
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{source}: quantization_config of '{name[:40]}' has a value of another kind ({error}): give --quant, as "
            "in --quant 4.5bpw"
        ) from error
    if scheme is not None and scheme.linear is not None:
        if config.get("expert_dtype") == "fp4":
            scheme = Scheme(linear=scheme.linear, experts=ENCODINGS["mxfp4"], plain=scheme.plain)
        return scheme, ()
    if bits is not None and bits < 16:
        found = by_numbers(bits, group_of(q), zero=0 if is_symmetric(q, True) else None)
        said = "" if number(q, GROUP) is None else f" in groups of {group_of(q)}" if group_of(q) else " in whole rows"
        which = f"{bits:g} bits a weight{said}"
        note = f"quantisation method '{name[:40] or 'none'}' is not known: planned with its {which}"
        return Scheme(linear=found, plain=skipped(q)), (note,)
    said_in = [str(v) for k, v in q.items() if re.search("weight|type|algo|format|method", k) and isinstance(v, str)]
    if named := by_name(" ".join(said_in)):
        note = f"quantisation method '{name[:40]}' is not known: planned as {named.name} by the names in its config"
        return Scheme(linear=named, plain=skipped(q)), (note,)
    raise ConfigError(
        f"{source}: quantisation method '{name[:40]}' is not known and its config says no bits: say what to plan with, "
        "--quant q4_0 or --quant 4.5bpw"
    )


def _special(scheme: Scheme, plain: Encoding) -> Special | None:
    """The tensors that a scheme names; None where it names none."""
    kept = Modules(scheme.plain)
    in_turn = groupby(scheme.own, lambda pair: pair[1])
    own = [(Modules(pattern for pattern, _ in same), found) for found, same in in_turn]
    if not (
        kept or own or scheme.only_experts or scheme.router or scheme.experts or scheme.linear == methods.UNTOUCHED
    ):
        return None

    def special(part: Part, place: Place) -> Encoding | None:
        if kept and kept.mean(part, place):
            return None if part.plain else plain
        for modules, found in own:
            if modules.mean(part, place):
                return found or (None if part.plain else plain)
        if part.plain:
            return scheme.router if part.group == "router" else None
        if part.group in ("head", "embedding", "tables"):
            return None
        if part.group == "experts":
            return scheme.experts or scheme.linear if scheme.linear != methods.UNTOUCHED else plain
        return plain if scheme.only_experts or scheme.linear == methods.UNTOUCHED else scheme.linear

    return special
