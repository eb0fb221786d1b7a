"""Turn a checkpoint of train.py into a model directory that transformers loads, and check that it does.

The directory has the files and names of a released Qwen3-MoE model, in bfloat16. Each file is written under another
name and then moved, so that a reader never sees half of one. The script then compares transformers' logits with the
training network's, and measures the held-out perplexity as trained, in bfloat16, and with quantised experts.

    python demo/export.py --checkpoint build/training/best.pt --corpus build/corpus --out demo/model
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from network import Block, Network, Shape, hub_tensors
from quantise import bfloat16, q4_0, q8_0
from safetensors.torch import save
from tokenizers import Tokenizer
from torch import Tensor
from train import PROMPTS, SHORT, evaluate, sample, windows
from transformers import AutoModelForCausalLM, AutoTokenizer
from vocabulary import END, as_json, documents, tokenizer_config

TOLERANCE = 1e-4


def config(shape: Shape, end: int) -> dict[str, object]:
    """What config.json says, in the spelling of the released models."""
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": end,
        "decoder_sparse_step": 1,
        "eos_token_id": end,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.expert_width * shape.top_k,
        "max_position_embeddings": shape.context,
        "max_window_layers": shape.layers,
        "mlp_only_layers": [],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": shape.expert_width,
        "norm_topk_prob": True,
        "num_attention_heads": shape.heads,
        "num_experts": shape.experts,
        "num_experts_per_tok": shape.top_k,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "output_router_logits": False,
        "rms_norm_eps": shape.eps,
        "rope_scaling": None,
        "rope_theta": shape.rope_theta,
        "router_aux_loss_coef": 0.03,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": shape.vocab,
    }


def place(path: Path, content: bytes) -> None:
    """Write a file so that it appears whole."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(content)
    os.replace(fresh, path)


def export(network: Network, tokenizer: Tokenizer, out: Path) -> None:
    """Write all files of the model directory but its card."""
    end = int(tokenizer.encode(END).ids[0])
    generation = {"bos_token_id": end, "eos_token_id": end, "do_sample": True, "temperature": 0.8, "top_p": 0.95}
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().bfloat16().contiguous() for name, tensor in hub_tensors(network)}
    place(out / "config.json", as_json(config(network.shape, end)).encode())
    place(out / "generation_config.json", as_json(generation).encode())
    place(out / "tokenizer.json", tokenizer.to_str(pretty=False).encode())
    place(out / "tokenizer_config.json", as_json(tokenizer_config(network.shape.context)).encode())
    place(out / "model.safetensors", save(weights, metadata={"format": "pt"}))


@torch.no_grad()
def store(network: Network, convert: Callable[[Tensor], Tensor], experts_only: bool) -> None:
    """Give the weights the values that a format would store, as rounded once from bfloat16 files."""
    if not experts_only:
        for parameter in network.parameters():
            parameter.copy_(convert(parameter))
        return
    for block in network.blocks:
        assert isinstance(block, Block)
        block.experts.gate_proj.copy_(convert(block.experts.gate_proj))
        block.experts.up_proj.copy_(convert(block.experts.up_proj))
        block.experts.down_proj.copy_(convert(block.experts.down_proj.transpose(1, 2)).transpose(1, 2))


@contextmanager
def stored(network: Network, convert: Callable[[Tensor], Tensor], experts_only: bool) -> Iterator[Network]:
    """The network with converted weights, for the length of a `with` block."""
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    store(network, convert, experts_only)
    yield network
    network.load_state_dict(kept)


@torch.no_grad()
def check_against_transformers(network: Network, tokenizer: Tokenizer, out: Path, text: str) -> float:
    """The largest difference of logits in float32; tokens must be the same as well."""
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    if AutoTokenizer.from_pretrained(out)(text)["input_ids"] != tokenizer.encode(text).ids:
        raise SystemExit("transformers' tokenizer gives other tokens")
    ids = torch.tensor([tokenizer.encode(text).ids[: network.shape.context]])
    with stored(network, bfloat16, experts_only=False):
        difference = float((network(ids)[0] - model(input_ids=ids).logits).abs().max())
    if difference > TOLERANCE:
        raise SystemExit(f"transformers' logits differ by {difference}")
    return difference


def measure(network: Network, batches: list[Tensor], label: str, bytes_per_token: float) -> None:
    """Print the perplexity of windows of tokens as trained, and as each format would store the weights."""

    def line(name: str) -> float:
        loss, _ = evaluate(network, batches, torch.float32)
        bits = loss / math.log(2) / bytes_per_token
        print(f"{label}, {name}: perplexity {math.exp(loss):.4f} ({bits:.4f} bits per byte)", flush=True)
        return loss

    plain = line("float32")
    with stored(network, bfloat16, experts_only=False):
        rounded = line("bf16 weights")
        print(f"  against float32: {math.expm1(rounded - plain) * 100:+.2f} %")
        for name, convert in (("q8_0", q8_0), ("q4_0", q4_0)):
            with stored(network, convert, experts_only=True):
                print(f"  against float32: {math.expm1(line(name + ' experts') - plain) * 100:+.2f} %")


def cut(tokenizer: Tokenizer, texts: list[str], end: list[int]) -> tuple[list[Tensor], float]:
    """Windows of tokens of all texts one after another, and the bytes that a token stands for."""
    ids = [[*encoding.ids, *end] for encoding in tokenizer.encode_batch(texts)]
    size = sum(len(text.encode()) for text in texts)
    return windows(np.concatenate(ids).astype(np.int64), SHORT), size / sum(map(len, ids))


def report(network: Network, tokenizer: Tokenizer, options: argparse.Namespace) -> None:
    """Print what the model card states: perplexities, the load of the experts, samples."""
    excerpt = options.excerpt.read_text(encoding="utf-8")
    held, ratio = cut(tokenizer, documents(options.corpus / "held-out.txt"), tokenizer.encode(END).ids)
    measure(network, held, "all held-out text", ratio)
    batches, ratio = cut(tokenizer, [excerpt], [])
    measure(network, batches, options.excerpt.name, ratio)
    load = evaluate(network, held, torch.float32)[1].numpy() * 100
    print("load of the experts, per layer, in %:", np.array2string(load, precision=1, suppress_small=True), sep="\n")
    with stored(network, bfloat16, experts_only=False):
        for prompt in PROMPTS:
            print("---", sample(network, tokenizer, prompt, options.samples, 0.8, seed=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--excerpt", type=Path, default=Path(__file__).parent / "heldout.txt")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=120, help="tokens of each sample")
    parser.add_argument("--measure", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(options.checkpoint.parent / "tokenizer.json"))
    state = torch.load(options.checkpoint)
    network = Network(Shape())
    network.load_state_dict(state["network"])
    export(network, tokenizer, options.out)
    excerpt = options.excerpt.read_text(encoding="utf-8")
    print(f"step {state['step']}, {state['seconds'] / 60:.1f} minutes of training")
    difference = check_against_transformers(network, tokenizer, options.out, excerpt)
    print(f"largest difference from transformers' logits: {difference:.2g}")
    if options.measure:
        report(network, tokenizer, options)


if __name__ == "__main__":
    main()
