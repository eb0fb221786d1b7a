"""The demo model's network: Qwen3-MoE, written for fast training on a CPU.

It computes what `Qwen3MoeForCausalLM` of transformers computes, in another order: every expert is applied to every
token in three large matrix products, and the routing weights (zero for the experts not chosen) multiply the
activations in between. That is four times the arithmetic, but in shapes a CPU's matrix units are good at, and the
last product also does the sum over experts. `hub_tensors` gives the weights under the names the hub uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FakeQuant = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Shape:
    """The sizes that make up the architecture."""

    vocab: int = 2048
    hidden: int = 256
    layers: int = 7
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    experts: int = 16
    top_k: int = 4
    expert_width: int = 64
    context: int = 1024
    rope_theta: float = 10000.0
    eps: float = 1e-6


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm, in float32."""
    x = x.float()
    return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps))


def rotary_table(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary position embedding, each [length, head_dim]."""
    exponents = torch.arange(0, shape.head_dim, 2).float() / shape.head_dim
    # A product with the rounded inverse, as in transformers: a quotient differs by 1e-4 at position 1000.
    angles = torch.arange(length).float()[:, None] * (1.0 / shape.rope_theta**exponents)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Apply the rotary embedding to [batch, heads, length, head_dim]."""
    first, second = x.chunk(2, dim=-1)
    return x * table[0] + torch.cat((-second, first), dim=-1) * table[1]


class Attention(nn.Module):
    """Grouped-query attention with norms on queries and keys."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        wide, narrow = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = nn.Parameter(torch.empty(wide, shape.hidden))
        self.k_proj = nn.Parameter(torch.empty(narrow, shape.hidden))
        self.v_proj = nn.Parameter(torch.empty(narrow, shape.hidden))
        self.o_proj = nn.Parameter(torch.empty(shape.hidden, wide))
        self.q_norm = nn.Parameter(torch.ones(shape.head_dim))
        self.k_norm = nn.Parameter(torch.ones(shape.head_dim))

    def project(self, x: Tensor, weight: Tensor) -> Tensor:
        """One projection, as [batch, heads, length, head_dim]."""
        y = F.linear(x, weight.to(x.dtype))
        return y.view(*y.shape[:-1], -1, self.shape.head_dim).transpose(1, 2)

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        eps, groups = self.shape.eps, self.shape.heads // self.shape.kv_heads
        q = rotate(rms_norm(self.project(x, self.q_proj), self.q_norm, eps), table).to(x.dtype)
        k = rotate(rms_norm(self.project(x, self.k_proj), self.k_norm, eps), table).to(x.dtype)
        v = self.project(x, self.v_proj)
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return F.linear(mixed.transpose(1, 2).flatten(-2), self.o_proj.to(x.dtype))


class Experts(nn.Module):
    """The mixture of experts; each of the three matrices is [experts, expert_width, hidden]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        size = (shape.experts, shape.expert_width, shape.hidden)
        self.router = nn.Parameter(torch.empty(shape.experts, shape.hidden))
        self.gate_proj = nn.Parameter(torch.empty(size))
        self.up_proj = nn.Parameter(torch.empty(size))
        self.down_proj = nn.Parameter(torch.empty(size))  # transposed, so that the product sums over experts
        self.fake_quant: FakeQuant | None = None

    def route(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Routing weights [tokens, experts], the share of choices per expert, and the balance loss."""
        scores = F.linear(x, self.router.to(x.dtype)).float().softmax(-1)
        best = scores.topk(self.shape.top_k, dim=-1)
        chosen = torch.zeros_like(scores).scatter(-1, best.indices, 1.0)
        weights = scores * chosen
        load = chosen.flatten(0, -2).mean(0) / self.shape.top_k
        balance = self.shape.experts * (load * scores.flatten(0, -2).mean(0)).sum()
        return weights / weights.sum(-1, keepdim=True), load, balance

    def matrices(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Gate, up and down of all experts, [experts * expert_width, hidden] each."""
        gate: Tensor = self.gate_proj
        up: Tensor = self.up_proj
        down: Tensor = self.down_proj
        if self.fake_quant is not None:  # groups run along each matrix's input dimension
            gate, up = self.fake_quant(gate), self.fake_quant(up)
            down = self.fake_quant(down.transpose(1, 2)).transpose(1, 2)
        return gate.flatten(0, 1).to(dtype), up.flatten(0, 1).to(dtype), down.flatten(0, 1).to(dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights, load, balance = self.route(x)
        gate, up, down = self.matrices(x.dtype)
        inner = F.silu(F.linear(x, gate).float()) * F.linear(x, up).float()
        inner = inner.view(*weights.shape, -1) * weights.unsqueeze(-1)
        return inner.flatten(-2).to(x.dtype) @ down, load, balance


class Block(nn.Module):
    """One layer: attention and experts, each behind a norm and added to the residual stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.eps = shape.eps
        self.input_norm = nn.Parameter(torch.ones(shape.hidden))
        self.attention = Attention(shape)
        self.post_norm = nn.Parameter(torch.ones(shape.hidden))
        self.experts = Experts(shape)

    def forward(
        self, x: Tensor, table: tuple[Tensor, Tensor], dtype: torch.dtype, masks: Sequence[Tensor | float]
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = x + masks[0] * self.attention(rms_norm(x, self.input_norm, self.eps).to(dtype), table)
        mixed, load, balance = self.experts(rms_norm(x, self.post_norm, self.eps).to(dtype))
        return x + masks[1] * mixed, load, balance


class Network(nn.Module):
    """The whole model, with input and output embeddings tied."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Parameter(torch.empty(shape.vocab, shape.hidden))
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.Parameter(torch.ones(shape.hidden))

    def initialise(self, seed: int) -> None:
        """Small random weights; the matrices that write to the residual stream start smaller still."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                last = name.endswith(("o_proj", "down_proj"))
                std = 0.02 / (2 * self.shape.layers) ** 0.5 if last else 0.02
                nn.init.normal_(parameter, std=std, generator=generator)

    def masks(self, batch: int, dropout: float, generator: torch.Generator) -> Tensor:
        """Dropout masks, one per sequence and place: the same for all positions, which costs next to nothing."""
        size = (2 * self.shape.layers + 1, batch, 1, self.shape.hidden)
        return (torch.rand(size, generator=generator) >= dropout).float() / (1 - dropout)

    def forward(
        self, tokens: Tensor, dtype: torch.dtype = torch.float32, masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, the share of choices [layers, experts], and the mean balance loss (1 when even)."""
        table = rotary_table(self.shape, tokens.shape[1])
        drops: list[Tensor | float] = [1.0] * (2 * len(self.blocks) + 1) if masks is None else list(masks.unbind())
        x = drops[-1] * F.embedding(tokens, self.embedding)
        loads, balances = [], []
        for i, block in enumerate(self.blocks):
            x, load, balance = block(x, table, dtype, drops[2 * i : 2 * i + 2])
            loads.append(load)
            balances.append(balance)
        x = rms_norm(x, self.norm, self.shape.eps).to(dtype)
        return F.linear(x, self.embedding.to(dtype)), torch.stack(loads), torch.stack(balances).mean()


def hub_tensors(network: Network) -> Iterator[tuple[str, Tensor]]:
    """The weights under the names and in the layout of the released Qwen3-MoE models."""
    yield "model.embed_tokens.weight", network.embedding
    yield "model.norm.weight", network.norm
    for i, block in enumerate(network.blocks):
        assert isinstance(block, Block)
        yield from layer_tensors(block, f"model.layers.{i}.")


def layer_tensors(block: Block, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """The weights of one layer, their names behind a prefix."""
    yield prefix + "input_layernorm.weight", block.input_norm
    yield prefix + "post_attention_layernorm.weight", block.post_norm
    for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"):
        yield f"{prefix}self_attn.{name}.weight", getattr(block.attention, name)
    yield prefix + "mlp.gate.weight", block.experts.router
    for e in range(block.experts.shape.experts):
        yield f"{prefix}mlp.experts.{e}.gate_proj.weight", block.experts.gate_proj[e]
        yield f"{prefix}mlp.experts.{e}.up_proj.weight", block.experts.up_proj[e]
        yield f"{prefix}mlp.experts.{e}.down_proj.weight", block.experts.down_proj[e].T
