"""What the tensors of a GGUF model are called: the same in every arch that runs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ..families import TensorNames

NAMES = TensorNames(
    embed="token_embd.weight", final_norm="output_norm.weight", head="output.weight", layer="blk.{layer}.",
    attn_norm="attn_norm.weight", mlp_norm="ffn_norm.weight",
    q="attn_q", k="attn_k", v="attn_v", o="attn_output", q_norm="attn_q_norm.weight", k_norm="attn_k_norm.weight",
    router="ffn_gate_inp.weight",
    expert_gate="ffn_gate_exps.weight", expert_up="ffn_up_exps.weight", expert_down="ffn_down_exps.weight",
    mlp_gate="ffn_gate.weight", mlp_up="ffn_up.weight", mlp_down="ffn_down.weight",
    shared_gate="ffn_gate_shexp.weight", shared_up="ffn_up_shexp.weight", shared_down="ffn_down_shexp.weight",
    shared_expert_gate="ffn_gate_inp_shexp.weight",
)  # fmt: skip
FUSED = "ffn_gate_up_exps.weight"


def names_of(found: Collection[str]) -> TensorNames:
    """The names of this file's tensors: experts all in one tensor, gate and up fused, or each on its own (older)."""
    first = next((name.split(".")[1] for name in sorted(found) if name.endswith(("_exps.weight", ".0.weight"))), "0")
    if f"blk.{first}.{FUSED}" in found:
        return replace(NAMES, fused_gate_up=FUSED, expert_gate=None, expert_up=None)
    if f"blk.{first}.ffn_gate.0.weight" in found:
        gate, up, down = (f"ffn_{part}.{{e}}.weight" for part in ("gate", "up", "down"))
        return replace(NAMES, expert_gate=gate, expert_up=up, expert_down=down)
    return NAMES
