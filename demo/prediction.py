"""The demo model's layer for multi-token prediction: it says the token after the next one, and goes on from there.

At position i it is given the embedding of token i + 1 and the trunk's state behind token i, both normed and joined; a
layer as the trunk's and a norm of its own make a state of that, of which the trunk's head makes token i + 2. That state
and token i + 2 are its next input, for token i + 3.

All places of a text are computed at once, each with what is guessed behind it: a guess sees the text up to its place
and the guesses before it of the same place, as in a run that drafts there and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from network import (
    Attention,
    Block,
    Experts,
    Network,
    Shape,
    hub_tensors,
    layer_tensors,
    rms_norm,
    rotary_table,
    rotate,
)
from safetensors.torch import load_file
from torch import Tensor, nn

FILE = "mtp.safetensors"
Kept = list[tuple[Tensor, Tensor]]  # keys and values of one layer: those of the text, then of each guess behind it


class Prediction(nn.Module):
    """The layer; the names of its weights are those of the released Qwen3.5 models (`tensors`)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.norm_embedding = nn.Parameter(torch.ones(shape.hidden))
        self.norm_hidden = nn.Parameter(torch.ones(shape.hidden))
        self.fc = nn.Parameter(torch.empty(shape.hidden, 2 * shape.hidden))
        self.block = Block(shape)
        self.norm = nn.Parameter(torch.ones(shape.hidden))

    @torch.no_grad()
    def initialise(self, network: Network, seed: int) -> None:
        """As the trunk's last layer, behind a small random matrix."""
        generator = torch.Generator().manual_seed(seed)
        self.block.load_state_dict(network.blocks[-1].state_dict())
        self.norm.copy_(network.norm)
        nn.init.normal_(self.fc, std=0.02, generator=generator)

    def forward(self, embedded: Tensor, state: Tensor, ahead: int, kept: Kept) -> tuple[Tensor, Tensor]:
        """Its states, of which the head makes tokens, and the balance loss of its experts; both inputs are [batch,
        length, hidden]. ahead: guesses before this one, whose keys and values `kept` has; those of this one are added.
        """
        eps = self.shape.eps
        joined = torch.cat((rms_norm(embedded, self.norm_embedding, eps), rms_norm(state, self.norm_hidden, eps)), -1)
        x, balance = through(self.block, F.linear(joined, self.fc), places(self.shape, state.shape[1], ahead), kept)
        return rms_norm(x, self.norm, eps), balance


def places(shape: Shape, length: int, ahead: int) -> tuple[Tensor, Tensor]:
    """The rotary table of guesses so far ahead of each place of a text."""
    cosines, sines = rotary_table(shape, length + ahead)
    return cosines[ahead:], sines[ahead:]


def through(block: Block, x: Tensor, table: tuple[Tensor, Tensor], kept: Kept) -> tuple[Tensor, Tensor]:
    """One layer, and the balance loss of its experts."""
    x = x + attend(block.attention, rms_norm(x, block.input_norm, block.eps), table, kept)
    mixed, balance = mix(block.experts, rms_norm(x, block.post_norm, block.eps))
    return x + mixed, balance


def mix(experts: Experts, x: Tensor) -> tuple[Tensor, Tensor]:
    """The experts one after the other, each for the tokens that chose it: a quarter of the arithmetic of all for all,
    which pays without matrix units; and their balance loss."""
    weights, _, balance = experts.route(x)
    weights, flat = weights.flatten(0, -2), x.flatten(0, -2)
    mixed = torch.zeros_like(flat)
    for e in range(experts.shape.experts):
        rows = weights[:, e].nonzero()[:, 0]
        chosen = flat[rows]
        inner = F.silu(F.linear(chosen, experts.gate_proj[e])) * F.linear(chosen, experts.up_proj[e])
        mixed = mixed.index_add(0, rows, (inner * weights[rows, e, None]) @ experts.down_proj[e])
    return mixed.view_as(x), balance


def attend(attention: Attention, x: Tensor, table: tuple[Tensor, Tensor], kept: Kept) -> Tensor:
    """Attention of each place to the text up to it and to the guesses behind it."""
    eps, groups = attention.shape.eps, attention.shape.heads // attention.shape.kv_heads
    q = rotate(rms_norm(attention.project(x, attention.q_proj), attention.q_norm, eps), table)
    k = rotate(rms_norm(attention.project(x, attention.k_proj), attention.k_norm, eps), table)
    v = attention.project(x, attention.v_proj)
    kept.append((k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)))
    (text_k, text_v), *guesses = kept
    if guesses:
        mixed = _beside_guesses(q * attention.shape.head_dim**-0.5, text_k, text_v, guesses)
    else:
        mixed = F.scaled_dot_product_attention(q, text_k, text_v, is_causal=True)
    return F.linear(mixed.transpose(1, 2).flatten(-2), attention.o_proj)


def _beside_guesses(q: Tensor, text_k: Tensor, text_v: Tensor, guesses: Kept) -> Tensor:
    """All [batch, heads, length, head_dim]; queries are scaled."""
    length = q.shape[-2]
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    scores = (q @ text_k.transpose(-2, -1)).masked_fill(later, float("-inf"))
    own = torch.stack([(q * k).sum(-1) for k, _ in guesses], dim=-1)
    shares = torch.cat((scores, own), dim=-1).softmax(-1)
    mixed = shares[..., :length] @ text_v
    for i, (_, v) in enumerate(guesses):
        mixed = mixed + shares[..., length + i, None] * v
    return mixed


def trunk_states(network: Network, tokens: Tensor, kept: list[Kept]) -> Tensor:
    """The trunk's states behind its last norm, [batch, length, hidden]. kept: of each of its layers; empty for the
    text, as the text left it for a guess behind each place, and so on."""
    x = F.embedding(tokens, network.embedding)
    table = places(network.shape, tokens.shape[1], len(kept[0]))
    for block, of_layer in zip(network.blocks, kept, strict=True):
        assert isinstance(block, Block)
        x, _ = through(block, x, table, of_layer)
    return rms_norm(x, network.norm, network.shape.eps)


def tensors(prediction: Prediction) -> Iterator[tuple[str, Tensor]]:
    """The weights under the names and in the layout of released models."""
    yield "mtp.fc.weight", prediction.fc
    yield "mtp.pre_fc_norm_embedding.weight", prediction.norm_embedding
    yield "mtp.pre_fc_norm_hidden.weight", prediction.norm_hidden
    yield "mtp.norm.weight", prediction.norm
    yield from layer_tensors(prediction.block, "mtp.layers.0.")


@torch.no_grad()
def load_trunk(directory: Path) -> Network:
    """The network of a model directory that export.py wrote; it is not trained on."""
    network, stored = Network(Shape()), load_file(directory / "model.safetensors")
    for name, tensor in hub_tensors(network):
        tensor.copy_(stored[name])
    return network.requires_grad_(False)


@torch.no_grad()
def load_prediction(directory: Path) -> Prediction:
    """The layer of a model directory, as it is stored."""
    prediction, stored = Prediction(Shape()), load_file(directory / FILE)
    for name, tensor in tensors(prediction):
        tensor.copy_(stored[name])
    return prediction
