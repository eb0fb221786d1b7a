"""Perplexity of a model directory on a text file, with transformers: the reference to hold an engine against.

The text is cut into non-overlapping windows; the first token of each window is not scored, and a last window that is
not full is left out. `--experts q4_0` or `q8_0` first gives the experts the values that format would store.

    python demo/evaluate.py --model demo/model --text demo/heldout.txt
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from quantise import bfloat16, q4_0, q8_0
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

FORMATS: dict[str, Callable[[Tensor], Tensor]] = {"bf16": bfloat16, "q8_0": q8_0, "q4_0": q4_0}


@torch.no_grad()
def quantise_experts(model: nn.Module, fake_quant: Callable[[Tensor], Tensor]) -> None:
    """Replace every expert matrix; transformers keeps them as [experts, outputs, inputs]."""
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            parameter.copy_(fake_quant(parameter.float()))


@torch.no_grad()
def mean_loss(model: nn.Module, ids: list[int], window: int) -> float:
    """Mean loss per scored token."""
    total, scored = 0.0, 0
    for part in torch.split(torch.tensor(ids[: len(ids) // window * window]), window):
        logits = model(input_ids=part[None], use_cache=False).logits[0, :-1].float()
        total += F.cross_entropy(logits, part[1:], reduction="sum").item()
        scored += len(part) - 1
    return total / scored


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the computation")
    parser.add_argument("--experts", choices=sorted(FORMATS), help="give the experts this format's values")
    options = parser.parse_args()
    text = options.text.read_text(encoding="utf-8")
    ids = AutoTokenizer.from_pretrained(options.model)(text)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
    if options.experts:
        quantise_experts(model, FORMATS[options.experts])
    loss = mean_loss(model, ids, options.window)
    bits = loss / math.log(2) * len(ids) / len(text.encode())
    print(f"{len(ids)} tokens, loss {loss:.5f}, perplexity {math.exp(loss):.4f}, bits per byte {bits:.4f}")


if __name__ == "__main__":
    main()
