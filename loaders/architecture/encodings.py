"""How many bytes a matrix takes in every format that checkpoints come in, for plans: the engine's own and others'.

The engine's formats are those of `kernels/formats.py`, to the byte as they are packed. The others are blocks of GGUF
and the schemes of quantised safetensors. Nothing here packs or unpacks.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigError, OptionError
from ...kernels import FORMATS, ExpertLayout
from .architecture import Experts, Part


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """`block` weights of a row take `block_bytes`; `tile` (rows and columns) adds `tile_bytes` for each tile."""

    name: str
    block: int
    block_bytes: float
    tile: int = 0
    tile_bytes: int = 0

    @property
    def bytes_per_weight(self) -> float:
        """Of whole blocks, without padding."""
        return self.block_bytes / self.block

    def bytes(self, rows: int, cols: int) -> int:
        """Bytes of a matrix; a last block that is not full counts whole."""
        if self.name in FORMATS:
            return rows * FORMATS[self.name].row_bytes(cols)
        tiles = math.ceil(rows / self.tile) * math.ceil(cols / self.tile) * self.tile_bytes if self.tile else 0
        return math.ceil(rows * math.ceil(cols / self.block) * self.block_bytes) + tiles

    def part_bytes(self, part: Part) -> int:
        """Bytes of a tensor; float32 where it is never quantised."""
        return 4 * part.elements if part.plain else self.bytes(part.rows, part.cols)

    def expert_bytes(self, experts: Experts) -> int:
        """Bytes of one expert; in the engine's formats with the padding of its block."""
        if self.name in FORMATS and experts.matrices == 3:
            layout = ExpertLayout(format=FORMATS[self.name], hidden=experts.hidden, width=experts.width)
            return layout.bytes + 4 * experts.bias
        return sum(map(self.part_bytes, experts.parts()))


def _blocks(name: str, block: int, size: float) -> Encoding:
    return Encoding(name=name, block=block, block_bytes=size)


ENCODINGS: dict[str, Encoding] = {
    e.name: e
    for e in (
        *(_blocks(f.name, f.block, f.block * f.bits / 8 + f.scale_bytes) for f in FORMATS.values()),
        # GGUF, by ggml's block structures.
        _blocks("q4_1", 32, 20), _blocks("q5_0", 32, 22), _blocks("q5_1", 32, 24), _blocks("q2_k", 256, 84),
        _blocks("q3_k", 256, 110), _blocks("q4_k", 256, 144), _blocks("q5_k", 256, 176), _blocks("q6_k", 256, 210),
        _blocks("iq4_nl", 32, 18), _blocks("iq4_xs", 256, 136), _blocks("iq3_xxs", 256, 98),
        _blocks("iq2_xxs", 256, 66), _blocks("iq1_s", 256, 50),
        # One shared exponent of 8 bits for 32 weights of 4 or 8 bits.
        _blocks("mxfp4", 32, 17), _blocks("mxfp8", 32, 33),
        # Quantised safetensors: a bf16 scale for 32, or a half and a 4-bit zero point for 128; e4m3 scales for 16.
        _blocks("int4-g32", 32, 18), _blocks("int4-g128", 128, 66.5), _blocks("nvfp4", 16, 9),
        Encoding(name="fp8", block=1, block_bytes=1, tile=128, tile_bytes=4), _blocks("fp8-channel", 1, 1),
    )
}  # fmt: skip
ROLES = ("experts", "dense", "head", "embed")


@dataclass(frozen=True, kw_only=True)
class Quant:
    """The encoding of each group: routed experts; attention, shared and dense parts; head; embedding."""

    experts: Encoding
    dense: Encoding
    head: Encoding
    embed: Encoding

    @property
    def name(self) -> str:
        """Short enough for a table."""
        return self.experts.name if self.experts == self.dense else f"{self.experts.name} / {self.dense.name}"

    def of(self, group: str) -> Encoding:
        """The encoding of a group of `architecture.GROUPS`."""
        named = {"experts": self.experts, "head": self.head, "embedding": self.embed, "tables": self.embed}
        return named.get(group, self.dense)


def find(name: str) -> Encoding:
    """An encoding by name, or "4.5bpw": bits per weight on average."""
    key = name.strip().lower().replace("fp16", "f16").replace("fp32", "f32")
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*bpw", key):
        bits = float(match[1])
        if not 0 < bits <= 64:
            raise OptionError(f"--quant: {name!r} is no width of a weight: give bits above 0")
        return _blocks(f"{bits:g}bpw", 1, bits / 8)
    if key not in ENCODINGS:
        raise OptionError(
            f"--quant: there is no format '{name}'; there are native, {', '.join(ENCODINGS)}, and NNbpw "
            "(bits per weight)"
        )
    return ENCODINGS[key]


def parse(text: str, native: Quant) -> Quant:
    """ "q4_0" (all matrices but an untied embedding, as the engine packs) or "experts=q4_0,dense=q8_0,head=q8_0"."""
    if text.strip().lower() == "native":
        return native
    chosen = {role: getattr(native, role) for role in ROLES}
    for item in text.split(","):
        role, _, name = item.rpartition("=")
        if role and role.strip() not in ROLES:
            raise OptionError(f"--quant: there is no group '{role}'; there are {', '.join(ROLES)}")
        roles = [role.strip()] if role else ["experts", "dense", "head"]
        if role.strip() == "dense" and "head=" not in text:
            roles.append("head")
        fixed = getattr(native, roles[0]) if name.strip().lower() == "native" else find(name)
        chosen.update(dict.fromkeys(roles, fixed))
    return Quant(**chosen)


def native(config: dict[str, Any], source: str) -> Quant:
    """The encodings that a config says the checkpoint has; raises ConfigError for a scheme that is not known."""
    plain = find(
        {"float32": "f32", "float16": "f16"}.get(str(config.get("torch_dtype") or config.get("dtype")), "bf16")
    )
    quant = config.get("quantization_config") or {}
    method = str(quant.get("quant_method") or quant.get("quant_algo") or "").lower()
    experts, dense = _scheme(method, quant, config, plain, source)
    return Quant(experts=experts, dense=dense, head=plain, embed=plain)


def _scheme(
    method: str, quant: dict[str, Any], config: dict[str, Any], plain: Encoding, source: str
) -> tuple[Encoding, Encoding]:
    """Encodings of routed experts and of the other matrices."""
    if not method:
        return plain, plain
    if method in ("fp8", "finegrained_fp8"):
        fp8 = ENCODINGS["fp8"]
        return (ENCODINGS["mxfp4"] if config.get("expert_dtype") == "fp4" else fp8), fp8
    if method in ("mxfp4", "mxfp8"):
        return ENCODINGS[method], plain
    if method in ("awq", "gptq"):
        return ENCODINGS["int4-g128"], ENCODINGS["int4-g128"]
    if method == "compressed-tensors":
        packed = _compressed(quant, source)
        ignored = " ".join(map(str, quant.get("ignore") or []))
        return packed, plain if "attn" in ignored else packed
    raise ConfigError(
        f"{source}: quantization_config.quant_method '{method}' is not known: say what to plan with, --quant q4_0 "
        "or --quant 4.5bpw"
    )


def _compressed(quant: dict[str, Any], source: str) -> Encoding:
    """The scheme of a compressed-tensors config: bits, and how many weights share a scale."""
    groups = list((quant.get("config_groups") or {}).values())
    weights = (groups[0] if groups else {}).get("weights") or {}
    bits, size = weights.get("num_bits"), weights.get("group_size")
    if bits == 8:
        return ENCODINGS["mxfp8" if size == 32 else "fp8-channel"]
    if bits == 4 and weights.get("type") == "float":
        return ENCODINGS["mxfp4" if size == 32 else "nvfp4"]
    if bits == 4:
        return ENCODINGS["int4-g32" if size == 32 else "int4-g128"]
    raise ConfigError(f"{source}: compressed-tensors with {bits} bits is not known: give --quant, as in --quant 4.5bpw")
