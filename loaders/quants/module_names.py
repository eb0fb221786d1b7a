"""What a tensor's module is called in checkpoints, and whether a pattern of a quantisation config means it.

Configs name modules exactly, by a part of their path, by wildcards or by regular expressions; families call the same
thing differently. A pattern means a tensor if it means any of its usual names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate

from ..architecture.architecture import Part
from .quant import Place

ATTENTION = {
    "attn_q": "q_proj", "attn_k": "k_proj", "attn_v": "v_proj", "attn_output": "o_proj", "attn_q_a": "q_a_proj",
    "attn_q_b": "q_b_proj", "attn_kv_a_mqa": "kv_a_proj_with_mqa", "attn_k_b": "kv_b_proj", "attn_v_b": "kv_b_proj",
    "attn_qkv": "in_proj_qkv", "attn_gate": "in_proj_z", "ssm_ba": "in_proj_ba", "ssm_out": "out_proj",
    "ssm_in": "in_proj", "in_proj": "in_proj", "out_proj": "out_proj",
}  # fmt: skip
MLP = {"ffn_gate": ("gate_proj", "w1"), "ffn_up": ("up_proj", "w3"), "ffn_down": ("down_proj", "w2")}
INSIDE: dict[str, tuple[str, ...]] = {
    "experts": (
        "mlp.experts.0.{}", "mlp.experts", "mlp.switch_mlp.{}", "block_sparse_moe.experts.0.{}",
        "feed_forward.experts.0.{}", "block_sparse_moe.switch_mlp.{}", "ffn.experts.0.{}", "mixer.experts.0.{}",
    ),
    "shared": (
        "mlp.shared_expert.{}", "mlp.shared_experts.{}", "mlp.shared_mlp.{}", "feed_forward.shared_expert.{}",
        "block_sparse_moe.shared_experts.{}", "share_expert.{}", "shared_mlp.{}",
    ),
    "dense": ("mlp.{}", "feed_forward.{}"),
    "router": (
        "mlp.gate", "block_sparse_moe.gate", "mlp.router", "feed_forward.router", "feed_forward.gate", "mlp.gate.wg",
    ),
}  # fmt: skip
OUTSIDE = {"head": ("lm_head", "output", "head"), "embedding": ("model.embed_tokens", "embed_tokens", "model.embed")}
# Prefixes of a text model inside a wrapper.
WRAPPED = re.compile(r"^(?:model\.)?(?:language_model|text_model|thinker)\.(?:model\.)?(?=layers\.|embed|norm)")
REGEX = re.compile(r"[\\^$|\[(+]|\.\*")
# By the role of a packed tensor in a layer (`Formats.own`).
PART_NAMES = {
    "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output", "gate": "ffn_gate", "up": "ffn_up",
    "down": "ffn_down", "mlp_gate": "ffn_gate", "mlp_up": "ffn_up", "mlp_down": "ffn_down", "attn_gate": "attn_gate",
    "q_a": "attn_q_a", "kv_a": "attn_kv_a_mqa", "k_up": "attn_k_b", "v_up": "attn_v_b", "delta_qkv": "attn_qkv",
    "z": "attn_gate", "delta_o": "ssm_out", "conv_rows": "in_proj", "conv_o": "out_proj", "space_rows": "ssm_in",
    "space_o": "ssm_out", "eh_proj": "nextn.eh_proj",
}  # fmt: skip


def names(part: Part, place: Place) -> list[str]:
    """The usual names of a tensor's module."""
    if place.layer is None:
        return list(OUTSIDE.get(part.group, ()))
    layer = f"model.layers.{place.layer}."
    if part.group == "attention":
        modules = ("linear_attn", "mamba", "mixer", "conv") if place.recurrent else ("self_attn", "attention")
        return [f"{layer}{module}.{ATTENTION.get(part.name, 'proj')}" for module in modules]
    if part.group == "router" and part.rows == 1:
        return [f"{layer}mlp.shared_expert_gate"]
    return [
        layer + inside.format(last)
        for inside in INSIDE.get(part.group, ())
        for last in (MLP.get(part.name, ("proj",)) if "{}" in inside else ("",))
    ]


class Modules:
    """A set of patterns: `in` says whether one of them means a module."""

    def __init__(self, patterns: Iterable[object]) -> None:
        self.exact: set[str] = set()
        compiled: list[str] = []
        for pattern in map(str, patterns):
            bare = pattern.removeprefix("re:")
            if bare != pattern or (REGEX.search(pattern) and _is_valid(pattern)):
                compiled.append(bare)
            elif "*" in pattern or "?" in pattern:
                compiled.append(translate(WRAPPED.sub("model.", pattern)))
            else:
                self.exact.add(WRAPPED.sub("model.", pattern).removesuffix(".weight").strip("."))
        valid = [pattern for pattern in compiled if _is_valid(pattern)]
        self.regex = re.compile("|".join(f"(?:{pattern})" for pattern in valid)) if valid else None

    def __bool__(self) -> bool:
        return bool(self.exact or self.regex)

    def __contains__(self, name: str) -> bool:
        words = name.split(".")
        if self.exact and any(
            ".".join(words[i:j]) in self.exact for i in range(len(words)) for j in range(i + 1, len(words) + 1)
        ):
            return True
        if self.regex is None or "_mlp." in name:  # an expression about "mlp" does not mean "shared_mlp"
            return False
        return bool(self.regex.search(name) or self.regex.search(f"{name}.weight"))

    def mean(self, part: Part, place: Place) -> bool:
        """Whether a tensor is one of these."""
        return any(name in self for name in names(part, place))


def _is_valid(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True
