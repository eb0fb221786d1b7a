"""What `gpu_suite.py` holds against each other: the same model under several placements says the same.

    python benchmarks/gpu_same.py [--device cuda|simulated]

tokens   64 greedy tokens of the demo model, by every placement, hand-off and way of copying, against the first one: the
         same, or up to a near tie, where two tokens are as good as equal on the CPU; where decode is to run as
         graphs, that it did
logits   those of a prompt by random weights in the shape of Qwen3-30B-A3B, cut to LAYERS layers: the norm of the
         difference from the first placement's, in shares of theirs; the median of the tokens, since a near tie
         between two experts may fall the other way and changes its token. Prompts do not run as graphs

Placements round differently: the CPU's kernels, with --cpu-activations bf16, to bf16 at most, the GPU's to bf16 here
and there. Each of about ROUNDINGS roundings a layer adds an error of 2^-9 / sqrt(3) of a value (uniform in half a last
place, 2^-9 of it at most), independent of the others; SIGMAS times the root of their sum is allowed. Needs headrace as
it is installed, with its C++ extension; without, it says so.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
from gpu_child import Keep, nobody
from graph_steps import GraphSteps

STEPS, PROMPT = 64, "In the beginning"
SHAPE, LAYERS, TOKENS = "Qwen3-30B-A3B", 2, 48
ROUNDINGS, SIGMAS = 10, 6.0
ALONE: dict[str, Any] = {"stream_from": "never"}
WAYS: dict[str, dict[str, Any]] = {
    "all on the GPU": {"placement": "gpu"},
    "all on the GPU, graphs": {"placement": "gpu", "handoff": "auto"},
    "experts in RAM, graphs": {"cpu_moe": True, "handoff": "auto"},
    "half, graphs": {"n_cpu_moe": 3, "handoff": "auto", **ALONE},
    "experts in RAM": {"cpu_moe": True, **ALONE},
    "half": {"n_cpu_moe": 3, **ALONE},
    "experts in RAM, prompts streamed": {"cpu_moe": True, "stream_from": "2"},
    "experts in RAM, some cached": {"policy": "lru", "expert_cache": "30%"},
}  # by hand, where no hand-off is said


def allowed(layers: int) -> float:
    """Of the norm of logits."""
    return SIGMAS * math.sqrt(ROUNDINGS * layers / 3) * 2.0**-9


def measure(device: str, layers: int = LAYERS, name: str = "", keep: Keep = nobody) -> dict[str, Any]:
    """By way, of those whose name contains `name` and the first one: the first step that differs (None: none does), how
    many steps were graphs, and the error of the logits; {"skipped": why} without the extension. `keep` gets the same
    after every way."""
    try:
        from headrace.kernels import cpu  # noqa: F401
    except ImportError as error:
        return {"skipped": f"headrace is not installed with its C++ extension ({error}): pip install ."}
    ways = chosen(name)
    threads = torch.get_num_threads()
    found: dict[str, Any] = {"tokens": {}, "graph_steps": {}, "logits": {}, "allowed": allowed(layers)}
    try:
        _compare_tokens(found, ways, device, keep)
        _compare_logits(found, {way: ways[way] for way in ways if not by_graphs(way)}, device, layers, keep)
    finally:
        torch.set_num_threads(threads)  # as the other parts want it
    return found


def chosen(name: str) -> dict[str, dict[str, Any]]:
    """Ways whose name contains `name`, behind the one that all are held against."""
    first = next(iter(WAYS))
    if not any(name in way for way in WAYS):
        raise ValueError(f"no way is called '{name}': take a part of {'; '.join(WAYS)}")
    return {way: options for way, options in WAYS.items() if name in way or way == first}


def by_graphs(way: str) -> bool:
    """Whether decode is to run as graphs."""
    return "handoff" in WAYS[way]


def _compare_tokens(found: dict[str, Any], ways: dict[str, dict[str, Any]], device: str, keep: Keep) -> None:
    first: list[int] | str | None = None
    for way, outcome in each_way(ways, lambda options: _tokens(device, options)):
        tokens, steps = (outcome, "") if isinstance(outcome, str) else outcome
        first = tokens if first is None else first
        found["tokens"][way] = _against(first, tokens, parting)
        if by_graphs(way):
            found["graph_steps"][way] = steps
        keep(found)


def _compare_logits(
    found: dict[str, Any], ways: dict[str, dict[str, Any]], device: str, layers: int, keep: Keep
) -> None:
    first: torch.Tensor | str | None = None
    for way, logits in each_way(ways, lambda options: _logits(device, layers, options)):
        first = logits if first is None else first
        found["logits"][way] = _against(first, logits, distance)
        keep(found)


def _against(first: Any, other: Any, measured: Callable[[Any, Any], Any]) -> Any:
    """How they differ, or in words why that cannot be said."""
    if isinstance(other, str):
        return other
    return "nothing to hold it against" if isinstance(first, str) else measured(first, other)


def each_way(ways: dict[str, dict[str, Any]], run: Callable[[dict[str, Any]], Any]) -> Iterator[tuple[str, Any]]:
    """What each way gives, or the error that ended it, as text: one that fails costs no other."""
    for name, options in ways.items():
        try:
            yield name, run({"handoff": "eager", **options})
        except Exception as error:  # Triton's compiler and launcher raise all kinds
            traceback.print_exc(file=sys.stdout)
            yield name, f"{type(error).__name__}: {error}"


def parting(first: list[int], other: list[int]) -> dict[str, Any] | None:
    """Where two answers part, and whether that means anything: by how many logits one of the two tokens is before the
    other on the CPU, and by how many roundings alone could move them. None: they are the same."""
    step = differs(first, other)
    if step is None:
        return None
    logits, layers = _logits_on_the_cpu(first[:step])
    lead = float(logits[first[step]] - logits[other[step]])
    noise = allowed(layers) * float(logits.square().mean().sqrt()) * math.sqrt(2)  # of a difference of two
    return {"step": step, "lead": lead, "allowed": noise, "near_tie": abs(lead) <= noise}


def _logits_on_the_cpu(tokens: list[int]) -> tuple[torch.Tensor, int]:
    """Of the demo model behind the prompt and these tokens: [vocabulary], and how many layers it has."""
    from headrace import LLM

    with LLM("demo", device="cpu", cpu_activations="bf16", max_context=256, max_sequences=1) as llm:
        ids = llm.parts.tokenizer.encode(PROMPT)
        return llm.logits([*ids, *tokens])[-1].float(), len(llm.spec.layers)


def _tokens(device: str, options: dict[str, Any]) -> tuple[list[int], int | str]:
    """The answer, and how many of its steps were graphs, or why none was."""
    from headrace import LLM, SamplingParams

    options = {"cpu_activations": "bf16", "max_context": 256, "max_sequences": 1, **options}
    with LLM("demo", device=device, **options) as llm:
        steps = GraphSteps(llm)
        params = SamplingParams(max_new_tokens=STEPS, ignore_eos=True)
        return list(llm.generate([PROMPT], params)[0].token_ids), steps.count or steps.reason


def _logits(device: str, layers: int, options: dict[str, Any]) -> torch.Tensor:
    from headrace.engine.bench.random_weights import random_llm

    ids = torch.randint(1000, (TOKENS,), generator=torch.Generator().manual_seed(0)).tolist()
    options = {**options, "n_cpu_moe": layers // 2} if "n_cpu_moe" in options else options
    options = {"expert_format": "q4_0", "cpu_activations": "bf16", "max_context": 256, "max_sequences": 1, **options}
    with random_llm(SHAPE, layers=layers, device=device, **options) as llm:
        return llm.logits(ids).float().cpu()


def differs(first: list[int], other: list[int]) -> int | None:
    """The step at which two answers part."""
    return next((step for step, pair in enumerate(zip(first, other, strict=True)) if pair[0] != pair[1]), None)


def distance(first: torch.Tensor, other: torch.Tensor) -> float:
    return float(((other - first).norm(dim=-1) / first.norm(dim=-1)).median())


def failures(found: dict[str, Any]) -> list[str]:
    """What is not the same, or did not run."""
    tokens = [f"{name}: {parts if isinstance(parts, str) else _parted(parts)}"
              for name, parts in found.get("tokens", {}).items()
              if parts is not None and (isinstance(parts, str) or not parts["near_tie"])]  # fmt: skip
    logits = [f"{name}: {error if isinstance(error, str) else f'logits off by {error:.2%}'}"
              for name, error in found.get("logits", {}).items()
              if isinstance(error, str) or not error <= found["allowed"]]  # fmt: skip
    by_hand = [f"{name}: {f'{steps} of {STEPS - 1} steps were graphs' if isinstance(steps, int) else no_graph(steps)}"
               for name, steps in found.get("graph_steps", {}).items()
               if steps != STEPS - 1 and not isinstance(found["tokens"][name], str)]  # fmt: skip
    return [*(f"demo, {line}" for line in tokens + by_hand), *(f"{SHAPE}, {line}" for line in logits)]


def _parted(parts: dict[str, Any]) -> str:
    return (f"another token at step {parts['step']}, {parts['lead']:+.3f} logits apart, where roundings explain "
            f"{parts['allowed']:.3f}")  # fmt: skip


def no_graph(reason: str) -> str:
    return f"no graph ran ({reason})" if reason else "no graph ran"


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
