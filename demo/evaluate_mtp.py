"""How often the demo model's layer for multi-token prediction drafts what the trunk says greedily.

Behind each place of a text the trunk goes on greedily, and so does the layer, from the trunk's state there and the next
token of the text. The text is cut into windows of 512 tokens; a last one that is not full is left out.

    python demo/evaluate_mtp.py --model demo/model --text demo/heldout.txt
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import torch
import torch.nn.functional as F
from network import Network
from prediction import Kept, Prediction, load_prediction, load_trunk, trunk_states
from tokenizers import Tokenizer
from torch import Tensor
from train import SHORT, windows

DRAFTED = 3  # tokens of a draft


@torch.no_grad()
def accepted(network: Network, prediction: Prediction, tokens: Tensor) -> list[int]:
    """Places of texts [batch, length] at which the first 0, 1, ... DRAFTED drafted tokens are what the trunk says
    greedily behind the text."""
    kept: list[Kept] = [[] for _ in network.blocks]
    states = trunk_states(network, tokens, kept)
    said = [F.linear(states, network.embedding).argmax(-1)]
    while len(said) < DRAFTED:
        said.append(F.linear(trunk_states(network, said[-1], kept), network.embedding).argmax(-1))
    token, state, own = tokens[:, 1:], states[:, :-1], Kept()
    holds = torch.ones_like(token, dtype=torch.bool)
    counts = [holds.sum().item()]
    for ahead, wanted in enumerate(said):
        state, _ = prediction(F.embedding(token, network.embedding), state, ahead, own)
        token = F.linear(state, network.embedding).argmax(-1)
        holds = holds & (token == wanted[:, 1:])
        counts.append(holds.sum().item())
    return [int(count) for count in counts]


def measure(network: Network, prediction: Prediction, batches: list[Tensor]) -> str:
    """How often each drafted token is right, those before it being so."""
    counts = [sum(one) for one in zip(*(accepted(network, prediction, part) for part in batches), strict=True)]
    rates = [after / before for before, after in itertools.pairwise(counts)]
    said = ", ".join(f"{rate:.1%}" for rate in rates)
    return f"drafted tokens 1 to {DRAFTED} right, those before being so: {said} of {counts[0]} places"


def text_windows(path: Path, tokenizer: Tokenizer) -> list[Tensor]:
    """A file as windows of tokens, eight to a batch."""
    ids = tokenizer.encode(path.read_text(encoding="utf-8")).ids
    return windows(torch.tensor(ids).numpy(), SHORT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--most", type=int, help="windows; default: all")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    held = torch.cat(text_windows(options.text, tokenizer))[: options.most]
    print(measure(load_trunk(options.model), load_prediction(options.model), list(held.split(8))))


if __name__ == "__main__":
    main()
