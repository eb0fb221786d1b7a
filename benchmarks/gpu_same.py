"""What `gpu_suite.py` holds against each other: the same model under several placements says the same.

    python benchmarks/gpu_same.py [--device cuda|simulated]

tokens   64 greedy tokens of the demo model, by every placement, hand-off and way of copying, against the first one
logits   those of a prompt by random weights in the shape of Qwen3-30B-A3B, cut to LAYERS layers: the norm of the
         difference from the first placement's, in shares of theirs; the median of the tokens, since a near tie
         between two experts may fall the other way and changes its token

Placements round differently: the CPU's kernels, with --cpu-activations bf16, to bf16 at most, the GPU's to bf16 here
and there. Each of about ROUNDINGS roundings a layer adds an error of 2^-9 / sqrt(3) of a value (uniform in half a last
place, 2^-9 of it at most), independent of the others; SIGMAS times the root of their sum is allowed. Needs headrace as
it is installed, with its C++ extension; without, it says so.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from typing import Any

import torch

STEPS, PROMPT = 64, "In the beginning"
SHAPE, LAYERS, TOKENS = "Qwen3-30B-A3B", 2, 48
ROUNDINGS, SIGMAS = 10, 6.0
WAYS: dict[str, dict[str, Any]] = {
    "all on the GPU": {"placement": "gpu"},
    "experts in RAM": {"cpu_moe": True, "stream_from": "never", "split": 0},
    "half": {"n_cpu_moe": 3, "stream_from": "never", "split": 0},
    "experts in RAM, chosen hand-off": {"cpu_moe": True, "handoff": "auto"},
    "experts in RAM, prompts streamed": {"cpu_moe": True, "stream_from": "2", "split": 0},
    "experts in RAM, split decode": {"cpu_moe": True, "split": 1},
}


def allowed(layers: int) -> float:
    """Of the norm of logits."""
    return SIGMAS * math.sqrt(ROUNDINGS * layers / 3) * 2.0**-9


def measure(device: str, layers: int = LAYERS) -> dict[str, Any]:
    """By way: the first step that differs (None: none does), and the error of the logits; {"skipped": why} without the
    extension."""
    try:
        from headrace.kernels import cpu  # noqa: F401
    except ImportError as error:
        return {"skipped": f"headrace is not installed with its C++ extension ({error}): pip install ."}
    threads = torch.get_num_threads()
    try:
        tokens = by_way(lambda options: _tokens(device, options))
        logits = by_way(lambda options: _logits(device, layers, options))
    finally:
        torch.set_num_threads(threads)  # as the other parts want it
    return {
        "tokens": {name: found if isinstance(found, str) else differs(next(iter(tokens.values())), found)
                   for name, found in tokens.items()},
        "logits": {name: found if isinstance(found, str) else distance(next(iter(logits.values())), found)
                   for name, found in logits.items()},
        "allowed": allowed(layers),
    }  # fmt: skip


def by_way(run: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """What each way gives, or the error that ended it, as text: one that fails costs no other."""
    found: dict[str, Any] = {}
    for name, options in WAYS.items():
        try:
            found[name] = run(options)
        except Exception as error:  # Triton's compiler and launcher raise all kinds
            found[name] = f"{type(error).__name__}: {error}"
    return found


def _tokens(device: str, options: dict[str, Any]) -> list[int]:
    from headrace import LLM, SamplingParams

    with LLM("demo", device=device, cpu_activations="bf16", max_context=256, **options) as llm:
        params = SamplingParams(max_new_tokens=STEPS, ignore_eos=True)
        return list(llm.generate([PROMPT], params)[0].token_ids)


def _logits(device: str, layers: int, options: dict[str, Any]) -> torch.Tensor:
    from headrace.engine.bench.random_weights import random_llm

    ids = torch.randint(1000, (TOKENS,), generator=torch.Generator().manual_seed(0)).tolist()
    options = {**options, "n_cpu_moe": layers // 2} if "n_cpu_moe" in options else options
    options = {"expert_format": "q4_0", "cpu_activations": "bf16", "max_context": 256, **options}
    with random_llm(SHAPE, layers=layers, device=device, **options) as llm:
        return llm.logits(ids).float().cpu()


def differs(first: list[int], other: list[int]) -> int | None:
    """The step at which two answers part."""
    return next((step for step, pair in enumerate(zip(first, other, strict=True)) if pair[0] != pair[1]), None)


def distance(first: torch.Tensor, other: torch.Tensor) -> float:
    return float(((other - first).norm(dim=-1) / first.norm(dim=-1)).median())


def failures(found: dict[str, Any]) -> list[str]:
    """What is not the same, or did not run."""
    tokens = [f"{name}: {at if isinstance(at, str) else f'another token at step {at}'}"
              for name, at in found.get("tokens", {}).items() if at is not None]  # fmt: skip
    logits = [f"{name}: {error if isinstance(error, str) else f'logits off by {error:.2%}'}"
              for name, error in found.get("logits", {}).items()
              if isinstance(error, str) or not error <= found["allowed"]]  # fmt: skip
    return [*(f"demo, {line}" for line in tokens), *(f"{SHAPE}, {line}" for line in logits)]


def show(found: dict[str, Any]) -> list[str]:
    """Lines for the screen."""
    if "skipped" in found:
        return [f"same: {found['skipped']}"]
    errors = [error for error in found["logits"].values() if not isinstance(error, str)]
    wrong = failures(found)
    lines = [f"same: {len(found['tokens'])} ways, {STEPS} tokens; logits up to {max(errors, default=0):.2%} off, "
             f"{found['allowed']:.2%} allowed; {len(wrong)} wrong"]  # fmt: skip
    return lines + [f"  {line}" for line in wrong]


def main() -> int:
    parser = argparse.ArgumentParser(description="the same model under several placements says the same")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=LAYERS)
    args = parser.parse_args()
    found = measure(args.device, args.layers)
    print(json.dumps(found, indent=1))
    print("\n".join(show(found)))
    return 1 if "skipped" in found or failures(found) else 0


if __name__ == "__main__":
    raise SystemExit(main())
