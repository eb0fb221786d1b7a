"""Train the demo model on the text that corpus.py made: plain torch, on a CPU with bfloat16 matrix units.

Matrices are trained with Muon (orthogonalised momentum), embeddings, routers and norms with AdamW; the learning
rate warms up and then follows a cosine. The last part of the run uses the full context and, if asked to, the experts
as q4_0 would store them (that turned out not to be needed). A checkpoint every few minutes, and when asked to end
(SIGTERM), allows to stop at any time: the same command goes on where the last one ended, with the same batches. On
a machine with other work, GOMP_SPINCOUNT=0 in the environment keeps the threads from waiting busily for each other.

    python demo/train.py --corpus build/corpus --out build/training --steps 2700
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from network import Block, Network, Shape
from quantise import straight_through_q4_0
from tokenizers import Tokenizer
from torch import Tensor, nn
from vocabulary import END, documents, train_tokenizer

BATCH_TOKENS = 8192
SHORT, LONG = 512, 1024  # tokens per sequence in the main and in the final phase
WARM_UP = 100  # steps
PROMPTS = ("In the beginning", "It is a truth universally acknowledged", "And the LORD said unto Moses,")
LossFunction = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


class Text:
    """Tokenised documents, served as batches that depend on nothing but the seed and the step."""

    def __init__(self, tokenizer: Tokenizer, texts: list[str], seed: int) -> None:
        end = tokenizer.token_to_id(END)
        self.documents = [np.array([*e.ids, end], dtype=np.int64) for e in tokenizer.encode_batch(texts)]
        self.tokens = sum(map(len, self.documents))
        self.bytes = sum(len(text.encode()) for text in texts)
        self.per_epoch = (self.tokens - LONG) // BATCH_TOKENS
        self.seed = seed
        self.epoch = functools.lru_cache(maxsize=1)(self._epoch)

    def _epoch(self, number: int) -> np.ndarray:
        """All documents in an order of this epoch's own, from a random place on."""
        random = np.random.default_rng([self.seed, number])
        stream = np.concatenate([self.documents[i] for i in random.permutation(len(self.documents))])
        return np.roll(stream, -int(random.integers(len(stream))))

    def batch(self, step: int, length: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets, [BATCH_TOKENS // length, length] each."""
        number, index = divmod(step, self.per_epoch)
        stream, size = self.epoch(number), BATCH_TOKENS // length
        order = np.random.default_rng([self.seed, number, length]).permutation(self.per_epoch * size)
        starts = order[index * size : (index + 1) * size] * length
        rows = torch.from_numpy(np.stack([stream[s : s + length + 1] for s in starts]))
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def windows(tokens: np.ndarray, length: int) -> list[Tensor]:
    """Non-overlapping windows, eight to a batch; the last partial one is left out."""
    count = len(tokens) // length
    full = torch.from_numpy(tokens[: count * length].reshape(count, length))
    return list(torch.split(full, 8))


@torch.no_grad()
def evaluate(network: Network, batches: list[Tensor], dtype: torch.dtype) -> tuple[float, Tensor]:
    """Mean loss per token over windows (their first tokens are not scored), and the load of the experts."""
    total, scored, load = 0.0, 0, torch.zeros(network.shape.layers, network.shape.experts)
    for part in batches:
        logits, loads, _ = network(part, dtype)
        total += F.cross_entropy(logits[:, :-1].float().flatten(0, 1), part[:, 1:].flatten(), reduction="sum").item()
        scored += part[:, 1:].numel()
        load += loads * part.numel()
    return total / scored, load / sum(part.numel() for part in batches)


@torch.no_grad()
def sample(network: Network, tokenizer: Tokenizer, prompt: str, count: int, temperature: float, seed: int) -> str:
    """The prompt and `count` sampled tokens (top-p 0.95), or fewer if the text ends."""
    generator = torch.Generator().manual_seed(seed)
    ids = tokenizer.encode(prompt).ids
    for _ in range(count):
        logits, _, _ = network(torch.tensor([ids[-network.shape.context :]]))
        shares, order = (logits[0, -1] / temperature).softmax(-1).sort(descending=True)
        shares[shares.cumsum(-1) - shares > 0.95] = 0
        ids.append(int(order[torch.multinomial(shares, 1, generator=generator)]))
        if ids[-1] == tokenizer.token_to_id(END):
            break
    return tokenizer.decode(ids)


def orthogonal(update: Tensor, dtype: torch.dtype) -> Tensor:
    """Nearly orthogonal matrices from [count, rows, columns], by five Newton-Schulz steps in this type."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = update.to(dtype)
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    x = x.transpose(-2, -1) if tall else x
    for _ in range(5):
        gram = x @ x.transpose(-2, -1)
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.transpose(-2, -1) if tall else x
    return result.float()


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal, in this type, and scaled to the size of AdamW's; a matrix per leading
    index."""

    def __init__(
        self, params: Iterable[Tensor], lr: float, weight_decay: float, dtype: torch.dtype, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes = {parameter.shape[-2:] for parameter in group["params"]}
            for shape in sorted(shapes):
                self.update([p for p in group["params"] if p.shape[-2:] == shape], group)

    def update(self, parameters: list[Tensor], group: dict[str, float]) -> None:
        """One step for all matrices of one size together: many small ones would be slow."""
        rows, columns = parameters[0].shape[-2:]
        looks = []
        for p in parameters:
            state = self.state[p]
            velocity = state.setdefault("momentum", torch.zeros_like(p))
            assert p.grad is not None
            velocity.lerp_(p.grad, 1 - group["momentum"])
            looks.append(p.grad.lerp(velocity, group["momentum"]).view(-1, rows, columns))
        updates = torch.split(orthogonal(torch.cat(looks), self.dtype), [len(look) for look in looks])
        scale = 0.2 * max(rows, columns) ** 0.5 * group["lr"]
        for p, update in zip(parameters, updates, strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update.view_as(p), alpha=scale)


def optimisers(
    network: nn.Module, lr: float, weight_decay: float, dtype: torch.dtype = torch.bfloat16
) -> list[torch.optim.Optimizer]:
    """Muon, which computes in `dtype`, for the layers' matrices, AdamW for all else; only matrices decay."""
    matrices: list[Tensor] = []
    tables: list[Tensor] = []
    vectors: list[Tensor] = []
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1:
            vectors.append(parameter)
        else:
            (tables if name.endswith(("embedding", "router")) else matrices).append(parameter)
    groups = [{"params": tables, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [Muon(matrices, lr, weight_decay, dtype), torch.optim.AdamW(groups, lr, betas=(0.9, 0.98), fused=True)]


def learning_rate(step: int, steps: int, peak: float, warm_up: int = WARM_UP) -> float:
    """Linear warm-up, then half a cosine down to 2 % of the peak."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def loss_function(network: Network, balance_weight: float) -> LossFunction:
    """The training loss, compiled: on a CPU the elementwise work dominates unless it is fused."""

    def loss(inputs: Tensor, targets: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, _, balance = network(inputs, torch.bfloat16, masks)
        plain = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        return plain + balance_weight * balance, plain, balance

    return torch.compile(loss, dynamic=False)


class Training:
    """One run: what changes from step to step, and how it is kept."""

    def __init__(self, options: argparse.Namespace, tokenizer: Tokenizer) -> None:
        self.options = options
        self.network = Network(Shape())
        self.network.initialise(options.seed)
        self.optimisers = optimisers(self.network, options.lr, options.weight_decay)
        self.text = Text(tokenizer, documents(options.corpus / "train.txt"), options.seed)
        held = Text(tokenizer, documents(options.corpus / "held-out.txt"), options.seed)
        self.held = windows(np.concatenate(held.documents), SHORT)
        self.held_tokens, self.bytes_per_token = held.tokens, held.bytes / held.tokens
        self.loss = loss_function(self.network, options.balance)
        self.step, self.seconds, self.best = 0, 0.0, math.inf
        self.ended = False

    def final_phase(self) -> bool:
        return self.step >= int(self.options.final_from * self.options.steps)

    def train_step(self) -> tuple[float, float]:
        """One optimiser step; the plain loss and the balance loss."""
        quant = straight_through_q4_0 if self.final_phase() and self.options.quantise else None
        for block in self.network.blocks:
            assert isinstance(block, Block)
            block.experts.fake_quant = quant
        inputs, targets = self.text.batch(self.step, LONG if self.final_phase() else SHORT)
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + self.step)
        loss, plain, balance = self.loss(
            inputs, targets, self.network.masks(len(inputs), self.options.dropout, generator)
        )
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(self.step, self.options.steps, self.options.lr)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.step += 1
        return plain.item(), balance.item()

    def save(self, name: str) -> None:
        """Write a checkpoint under another name first: a reader never sees half of one."""
        path = self.options.out / name
        state = {
            "network": self.network.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
        }
        torch.save(state, path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)

    def resume(self) -> None:
        path = self.options.out / "last.pt"
        if not path.exists():
            return
        state = torch.load(path)
        self.network.load_state_dict(state["network"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step, self.seconds, self.best = state["step"], state["seconds"], state["best"]
        print(f"resumed at step {self.step}", flush=True)

    def report(self) -> None:
        """Held-out loss and the evenness of the experts' load; keeps the best checkpoint."""
        loss, load = evaluate(self.network, self.held, torch.bfloat16)
        bits = loss / math.log(2) / self.bytes_per_token
        print(
            f"step {self.step}: held-out loss {loss:.4f}, perplexity {math.exp(loss):.3f}, bits per byte {bits:.4f}, "
            f"expert load {load.min() * 100:.1f} to {load.max() * 100:.1f} %",
            flush=True,
        )
        if loss < self.best:
            self.best = loss
            self.save("best.pt")
        self.save("last.pt")

    def end(self, *_: object) -> None:
        """Asked to end by a signal: keep the state after the step that is being done."""
        self.ended = True

    def run(self, tokenizer: Tokenizer) -> None:
        signal.signal(signal.SIGTERM, self.end)
        options, recent, started = self.options, [], time.monotonic()
        while self.step < options.steps and not self.ended:
            before = time.monotonic()
            recent.append(self.train_step())
            self.seconds += time.monotonic() - before
            if self.step % 20 == 0:
                plain, balance = np.mean(recent, axis=0)
                speed = len(recent) * BATCH_TOKENS / (time.monotonic() - started)
                print(f"step {self.step}: loss {plain:.4f}, balance {balance:.3f}, {speed:.0f} tokens/s", flush=True)
                recent.clear()
                started = time.monotonic()
            if self.step % options.report_every == 0 or self.step == options.steps:
                self.report()
                started = time.monotonic()
            if self.step % (4 * options.report_every) == 0 or self.step == options.steps:
                for prompt in PROMPTS:
                    print("---", sample(self.network, tokenizer, prompt, 80, 0.8, options.seed), flush=True)
        self.save("last.pt")


def load_tokenizer(options: argparse.Namespace) -> Tokenizer:
    path = options.out / "tokenizer.json"
    if not path.exists():
        train_tokenizer(documents(options.corpus / "train.txt"), Shape().vocab).save(str(path))
    return Tokenizer.from_file(str(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="directory that corpus.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="directory for the tokenizer and checkpoints")
    parser.add_argument("--steps", type=int, default=2700)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--balance", type=float, default=0.03, help="weight of the load-balancing loss")
    parser.add_argument("--final-from", type=float, default=0.85, help="part of the run before the final phase")
    parser.add_argument("--quantise", action="store_true", help="final phase with the experts as q4_0 stores them")
    parser.add_argument("--report-every", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(options)
    training = Training(options, tokenizer)
    training.resume()
    print(f"{training.text.tokens} training tokens, {training.held_tokens} held out", flush=True)
    training.run(tokenizer)


if __name__ == "__main__":
    main()
