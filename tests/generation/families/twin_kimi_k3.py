"""Kimi-K3 in plain torch and float64, token by token, for tests: transformers has no such model. What it computes is
that of llama.cpp's graph; names and config are those that llama.cpp's converter reads."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.nn.functional import conv1d, linear, silu, softplus

CONFIG: dict[str, Any] = dict(
    model_type="kimi_k3", architectures=["KimiK3ForConditionalGeneration"], vocab_size=160, hidden_size=64,
    num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=256, bos_token_id=1,
    eos_token_id=2, pad_token_id=0, intermediate_size=96, moe_intermediate_size=44, num_experts=10,
    num_experts_per_token=3, num_shared_experts=2, first_k_dense_replace=1, routed_scaling_factor=2.4,
    moe_renormalize=True, moe_router_activation_func="sigmoid", routed_expert_hidden_size=36, hidden_act="situ",
    activation_situ_beta=1.3, activation_situ_linear_beta=0.9, attn_res_block_size=2, q_lora_rank=40, kv_lora_rank=36,
    qk_nope_head_dim=20, qk_rope_head_dim=8, v_head_dim=28, mla_use_nope=True, rms_norm_eps=1e-5,
    tie_word_embeddings=False, dtype="float32",
    linear_attn_config={"full_attn_layers": [3, 6], "kda_layers": [1, 2, 4, 5], "head_dim": 20, "num_heads": 4,
                        "short_conv_kernel_size": 3, "gate_lower_bound": -4.0},
)  # fmt: skip
# Without a bound, without a rank of queries, with up as it is, and states that three layers share.
FREE: dict[str, Any] = {
    **CONFIG, "activation_situ_linear_beta": 0.0, "attn_res_block_size": 3, "q_lora_rank": None, "num_hidden_layers": 5,
    "linear_attn_config": {**CONFIG["linear_attn_config"], "full_attn_layers": [2, 4], "kda_layers": [1, 3, 5],
                           "gate_lower_bound": None},
}  # fmt: skip


def shapes(c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Of all tensors by name."""
    D, lin = c["hidden_size"], c["linear_attn_config"]
    rows, heads = lin["num_heads"] * lin["head_dim"], c["num_attention_heads"]
    key, v = c["qk_nope_head_dim"] + c["qk_rope_head_dim"], c["v_head_dim"]
    rank, q = c["kv_lora_rank"], c["q_lora_rank"]
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (c["vocab_size"], D), "lm_head.weight": (c["vocab_size"], D),
        "model.norm.weight": (D,), "model.output_attn_res_norm.weight": (D,),
        "model.output_attn_res_proj.weight": (1, D),
    }  # fmt: skip
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}."
        one: dict[str, tuple[int, ...]] = {f"{n}.weight": (D,) for n in ("input_layernorm", "post_attention_layernorm")}
        for part in ("self_attention_res", "mlp_res"):
            one |= {f"{part}_norm.weight": (D,), f"{part}_proj.weight": (1, D)}
        if i + 1 in lin["kda_layers"]:
            own = {
                **{f"{n}_proj.weight": (rows, D) for n in "qkvg"},
                **{f"{n}_conv1d.weight": (rows, 1, lin["short_conv_kernel_size"]) for n in "qkv"},
                "f_a_proj.weight": (lin["head_dim"], D), "f_b_proj.weight": (rows, lin["head_dim"]),
                "b_proj.weight": (lin["num_heads"], D), "A_log": (lin["num_heads"],), "dt_bias": (rows,),
                "o_norm.weight": (lin["head_dim"],), "o_proj.weight": (D, rows),
            }  # fmt: skip
        else:
            own = {
                "kv_a_proj_with_mqa.weight": (rank + c["qk_rope_head_dim"], D), "kv_a_layernorm.weight": (rank,),
                "kv_b_proj.weight": (heads * (c["qk_nope_head_dim"] + v), rank), "g_proj.weight": (heads * v, D),
                "o_proj.weight": (D, heads * v),
                **({"q_a_proj.weight": (q, D), "q_a_layernorm.weight": (q,), "q_b_proj.weight": (heads * key, q)}
                   if q else {"q_proj.weight": (heads * key, D)}),
            }  # fmt: skip
        one |= {f"self_attn.{name}": shape for name, shape in own.items()}
        one |= _mlp(c, i < c["first_k_dense_replace"])
        found |= {at + name: shape for name, shape in one.items()}
    return found


def _mlp(c: dict[str, Any], is_dense: bool) -> dict[str, tuple[int, ...]]:
    D, F, L = c["hidden_size"], c["moe_intermediate_size"], c["routed_expert_hidden_size"]
    if is_dense:
        wide = c["intermediate_size"]
        return {"mlp.gate_proj.weight": (wide, D), "mlp.up_proj.weight": (wide, D), "mlp.down_proj.weight": (D, wide)}
    shared, at = c["num_shared_experts"] * F, "block_sparse_moe."
    found: dict[str, tuple[int, ...]] = {
        "gate.weight": (c["num_experts"], D), "gate.e_score_correction_bias": (c["num_experts"],),
        "shared_experts.gate_proj.weight": (shared, D), "shared_experts.up_proj.weight": (shared, D),
        "shared_experts.down_proj.weight": (D, shared), "routed_expert_down_proj.weight": (L, D),
        "routed_expert_up_proj.weight": (D, L), "routed_expert_norm.weight": (L,),
    }  # fmt: skip
    for e in range(c["num_experts"]):
        found |= {f"experts.{e}.w1.weight": (F, L), f"experts.{e}.w3.weight": (F, L), f"experts.{e}.w2.weight": (L, F)}
    return {at + name: shape for name, shape in found.items()}


def build(directory: Path, config: dict[str, Any], seed: int = 1) -> Twin:
    """Saves a random checkpoint, and returns its twin. Of seed 0 one token magnifies rounding tenfold."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes(config).items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith(("norm.weight", "layernorm.weight")):
            tensors[name] = 1 + 0.1 * noise
        elif name.endswith(("bias", "A_log")):
            tensors[name] = 0.2 * noise
        else:
            tensors[name] = noise / shape[-1] ** 0.5
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return Twin(config, tensors)


class Twin:
    """The model; as an oracle it is called with ids [1, T]."""

    def __init__(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.c, self.eps = config, config["rms_norm_eps"]
        self.w = {name: tensor.double() for name, tensor in tensors.items()}

    def __call__(self, ids: Tensor) -> SimpleNamespace:
        x, states = self.w["model.embed_tokens.weight"][ids[0]], []
        for i in range(self.c["num_hidden_layers"]):
            at = f"model.layers.{i}."
            h = self.weighed(x, states, f"{at}self_attention_res")
            begins = i % self.c["attn_res_block_size"] == 0
            if begins:
                states.append(x)
            h = self.norm(h, f"{at}input_layernorm")
            is_delta = i + 1 in self.c["linear_attn_config"]["kda_layers"]
            made = (self.delta if is_delta else self.latent)(h, f"{at}self_attn.")
            x = made if begins else x + made
            h = self.norm(self.weighed(x, states, f"{at}mlp_res"), f"{at}post_attention_layernorm")
            x = x + (self.dense(h, f"{at}mlp.") if i < self.c["first_k_dense_replace"] else self.experts(h, at))
        x = self.weighed(x, states, "model.output_attn_res")
        return SimpleNamespace(logits=linear(self.norm(x, "model.norm"), self.w["lm_head.weight"]).unsqueeze(0))

    def norm(self, x: Tensor, name: str) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.w[f"{name}.weight"]

    def weighed(self, x: Tensor, states: list[Tensor], name: str) -> Tensor:
        """The mean of a stream and its states by how they fit."""
        if not states:
            return x
        every = torch.stack([*states, x])
        fits = torch.stack([linear(self.norm(one, f"{name}_norm"), self.w[f"{name}_proj.weight"]) for one in every])
        return (fits.softmax(0) * every).sum(0)

    def situ(self, gate: Tensor, up: Tensor) -> Tensor:
        beta, bound = self.c["activation_situ_beta"], self.c["activation_situ_linear_beta"]
        up = bound * (up / bound).tanh() if bound > 0 else up
        return beta * (gate / beta).tanh() * gate.sigmoid() * up

    def dense(self, h: Tensor, at: str) -> Tensor:
        gate, up, down = (self.w[f"{at}{part}_proj.weight"] for part in ("gate", "up", "down"))
        return linear(self.situ(linear(h, gate), linear(h, up)), down)

    def experts(self, h: Tensor, at: str) -> Tensor:
        at, out = f"{at}block_sparse_moe.", []
        scores = linear(h, self.w[f"{at}gate.weight"]).sigmoid()
        chosen = (scores + self.w[f"{at}gate.e_score_correction_bias"]).topk(self.c["num_experts_per_token"]).indices
        low = linear(h, self.w[f"{at}routed_expert_down_proj.weight"])
        for t in range(len(h)):
            weights = scores[t, chosen[t]]
            weights = weights / weights.sum() if self.c["moe_renormalize"] else weights
            y = torch.zeros_like(low[t])
            for e, weight in zip(chosen[t].tolist(), weights * self.c["routed_scaling_factor"], strict=True):
                w1, w3, w2 = (self.w[f"{at}experts.{e}.{one}.weight"] for one in ("w1", "w3", "w2"))
                y = y + weight * linear(self.situ(linear(low[t], w1), linear(low[t], w3)), w2)
            out.append(y)
        y = self.norm(torch.stack(out), f"{at}routed_expert_norm")
        return linear(y, self.w[f"{at}routed_expert_up_proj.weight"]) + self.dense(h, f"{at}shared_experts.")

    def latent(self, h: Tensor, at: str) -> Tensor:
        c, T, N = self.c, len(h), self.c["num_attention_heads"]
        nope, rope, v = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
        if c["q_lora_rank"]:
            q = self.norm(linear(h, self.w[f"{at}q_a_proj.weight"]), f"{at}q_a_layernorm")
            q = linear(q, self.w[f"{at}q_b_proj.weight"])
        else:
            q = linear(h, self.w[f"{at}q_proj.weight"])
        low, own = linear(h, self.w[f"{at}kv_a_proj_with_mqa.weight"]).split([c["kv_lora_rank"], rope], -1)
        both = linear(self.norm(low, f"{at}kv_a_layernorm"), self.w[f"{at}kv_b_proj.weight"]).view(T, N, nope + v)
        keys = torch.cat([both[..., :nope], own.unsqueeze(1).expand(T, N, rope)], -1)
        scores = torch.einsum("qnd,knd->nqk", q.view(T, N, nope + rope), keys) * (nope + rope) ** -0.5
        seen = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(-1)
        out = torch.einsum("nqk,knv->qnv", seen, both[..., nope:]).flatten(1)
        gate = linear(h, self.w[f"{at}g_proj.weight"]).sigmoid()
        return linear(out * gate, self.w[f"{at}o_proj.weight"])

    def delta(self, h: Tensor, at: str) -> Tensor:
        lin, T = self.c["linear_attn_config"], len(h)
        N, d, taps = lin["num_heads"], lin["head_dim"], lin["short_conv_kernel_size"]

        def convolved(name: str) -> Tensor:
            rows = linear(h, self.w[f"{at}{name}_proj.weight"]).T
            padded = torch.cat([rows.new_zeros(len(rows), taps - 1), rows], 1)
            made = conv1d(padded.unsqueeze(0), self.w[f"{at}{name}_conv1d.weight"], groups=len(rows))
            return silu(made)[0].T.view(T, N, d)

        q, k, v = (convolved(name) for name in "qkv")
        q, k = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6) for x in (q, k))
        dt = linear(linear(h, self.w[f"{at}f_a_proj.weight"]), self.w[f"{at}f_b_proj.weight"]) + self.w[f"{at}dt_bias"]
        rate, dt, least = self.w[f"{at}A_log"].exp().view(N, 1), dt.view(T, N, d), lin["gate_lower_bound"]
        decay = -rate * softplus(dt) if least is None else least * (rate * dt).sigmoid()
        beta, state, out = linear(h, self.w[f"{at}b_proj.weight"]).sigmoid(), h.new_zeros(N, d, d), []
        for t in range(T):
            state = state * decay[t].exp().unsqueeze(2)
            change = (v[t] - torch.einsum("nkv,nk->nv", state, k[t])) * beta[t].unsqueeze(1)
            state = state + k[t].unsqueeze(2) * change.unsqueeze(1)
            out.append(torch.einsum("nkv,nk->nv", state, q[t] * d**-0.5))
        y = self.norm(torch.stack(out), f"{at}o_norm") * linear(h, self.w[f"{at}g_proj.weight"]).sigmoid().view(T, N, d)
        return linear(y.flatten(1), self.w[f"{at}o_proj.weight"])
