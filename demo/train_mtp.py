"""Train a layer for multi-token prediction for the demo model: its trunk, embedding and head stay as they are.

The layer learns to say what the trunk would say: its loss is the cross entropy to the trunk's likelihoods of token
i + 2, and, of what it makes of its own state and the text's next token, to those of token i + 3 and so on, each with
half of the weight of the one before. What came of it is measured as evaluate_mtp.py does.

    python demo/train_mtp.py --corpus build/corpus --out demo/model --steps 500
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from evaluate_mtp import measure, text_windows
from export import place
from network import Network, Shape
from prediction import FILE, Kept, Prediction, load_trunk, tensors, trunk_states
from safetensors.torch import save
from tokenizers import Tokenizer
from torch import Tensor
from train import BATCH_TOKENS, SHORT, Text, learning_rate, optimisers
from vocabulary import as_json, documents

PARTS, WARM_UP = 1000, 50  # of a run, for the learning rate
BALANCE = 0.01  # weight of the load-balancing loss


def loss(network: Network, prediction: Prediction, tokens: Tensor, depth: int) -> tuple[Tensor, list[float]]:
    """What is trained on, and the cross entropy of each of `depth` tokens, of texts [batch, length]."""
    length = tokens.shape[1] - depth
    with torch.no_grad():
        states = trunk_states(network, tokens, [[] for _ in network.blocks])
        likelihoods = F.linear(states, network.embedding).softmax(-1)
    state, kept, total, each = states[:, :length], Kept(), torch.zeros(()), []
    for ahead in range(depth):
        after = slice(ahead + 1, ahead + 1 + length)
        state, balance = prediction(F.embedding(tokens[:, after], network.embedding), state, ahead, kept)
        logits = F.linear(state, network.embedding)
        plain = F.cross_entropy(logits.flatten(0, 1), likelihoods[:, after].flatten(0, 1))
        total = total + (plain + BALANCE * balance) / 2**ahead
        each.append(plain.item())
    return total, each


def batch(text: Text, step: int, rows: int) -> Tensor:
    """So many texts of SHORT tokens: a part of one of the trunk's batches."""
    parts = BATCH_TOKENS // SHORT // rows
    number, part = divmod(step, parts)
    return text.batch(number, SHORT)[0][part * rows : (part + 1) * rows]


def train(
    network: Network, prediction: Prediction, text: Text, held: list[Tensor], options: argparse.Namespace
) -> None:
    both = optimisers(prediction, options.lr, options.weight_decay, torch.float32)
    step, started, done = 0, time.monotonic(), 0.0
    while done < 1:
        found, each = loss(network, prediction, batch(text, step, options.rows), options.depth)
        torch.autograd.backward(found)
        torch.nn.utils.clip_grad_norm_(prediction.parameters(), 1.0)
        for optimiser in both:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(int(PARTS * done), PARTS, options.lr, WARM_UP)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        step += 1
        minutes = (time.monotonic() - started) / 60
        done = max(step / options.steps, minutes / options.minutes)
        if step % 10 == 0:
            print(f"step {step}, {minutes:.1f} minutes: {', '.join(f'{one:.3f}' for one in each)}", flush=True)
        if step % options.report_every == 0 or done >= 1:
            write(prediction, options.out)
            print(f"step {step}: {measure(network, prediction, held[:1])}", flush=True)


def write(prediction: Prediction, out: Path) -> None:
    """Writes the layer beside the trunk, in bfloat16, whose config then counts it."""
    weights = {name: tensor.detach().bfloat16().contiguous() for name, tensor in tensors(prediction)}
    place(out / FILE, save(weights, metadata={"format": "pt"}))
    if (config := out / "config.json").exists():
        counted = {**json.loads(config.read_text()), "mtp_num_hidden_layers": 1}
        place(config, as_json(dict(sorted(counted.items()))).encode())


@torch.no_grad()
def round_off(prediction: Prediction) -> None:
    """Gives the weights the values that the file has."""
    for _, tensor in tensors(prediction):
        tensor.copy_(tensor.bfloat16().float())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="directory that corpus.py wrote")
    parser.add_argument("--model", type=Path, default=Path(__file__).parent / "model", help="the trunk")
    parser.add_argument("--held-out", type=Path, default=Path(__file__).parent / "heldout.txt")
    parser.add_argument("--out", type=Path, required=True, help="directory for mtp.safetensors")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--minutes", type=float, default=math.inf, help="ends sooner; the learning rate follows")
    parser.add_argument("--rows", type=int, default=4, help="texts of 512 tokens in a step: 1, 2, 4, 8 or 16")
    parser.add_argument("--depth", type=int, default=2, help="tokens of a draft that it is trained on")
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--report-every", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    network, prediction = load_trunk(options.model), Prediction(Shape())
    prediction.initialise(network, options.seed)
    text = Text(tokenizer, documents(options.corpus / "train.txt"), options.seed)
    held = text_windows(options.held_out, tokenizer)
    print(f"{text.tokens} tokens of text, {sum(p.numel() for p in prediction.parameters())} weights", flush=True)
    train(network, prediction, text, held, options)
    round_off(prediction)
    print(measure(network, prediction, held))


if __name__ == "__main__":
    main()
