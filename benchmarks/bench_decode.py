"""Decode speed of a whole model against the read bandwidth of the same machine in the same run.

    python benchmarks/bench_decode.py olmoe-1b-7b [--format q4_0] [--layers N] [--json FILE]

Writes the shape as a checkpoint with random weights (bench-data/, kept for the next run), loads it as a user
would, then alternates: read a large buffer, decode a run of tokens. Prints per round the bytes per token (from the
ledger), the rate and its share of the read bandwidth; the medians as one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import random_checkpoint
import torch
from passport import passport

from headrace import LLM, SamplingParams
from headrace.engine.ledger.summary import summarise
from headrace.kernels import cpu

DATA = Path(__file__).parent.parent / "bench-data"
BUFFER = 2 << 30
PROMPT = list(range(100, 116))


@dataclass(frozen=True)
class Round:
    """One decode run: bytes per token, milliseconds per token (median), bandwidths in GB/s."""

    bytes_per_token: int
    ms_per_token: float
    gb_s: float
    stream_gb_s: float

    @property
    def share(self) -> float:
        return self.gb_s / self.stream_gb_s


def read_bandwidth(llm: LLM, buffer: torch.Tensor) -> float:
    """Plain read of the buffer by all threads, GB/s."""
    return float(buffer.numel() / cpu.stream_read(llm.parts.context, buffer) / 1e9)


def one_round(llm: LLM, buffer: torch.Tensor, tokens: int, seed: int) -> Round:
    """Reads before and after decoding, since the machine's speed drifts."""
    before = read_bandwidth(llm, buffer)
    params = SamplingParams(max_new_tokens=tokens + 1, ignore_eos=True)
    result = llm.generate([[seed, *PROMPT]], params)[0]
    after = read_bandwidth(llm, buffer)
    steps = [p for p in result.ledger if p.phase == "decode"]
    seconds = statistics.median(p.measured_s for p in steps)
    size = summarise(steps, "decode").bytes_per_token()["cpu_dram"]["total"]
    return Round(size, seconds * 1e3, size / seconds / 1e9, (before + after) / 2)


def prepare(shape: str, layers: int | None) -> Path:
    """The checkpoint of a shape, written if it is not there yet."""
    directory = DATA / (shape if layers is None else f"{shape}-{layers}")
    if not (directory / "config.json").is_file():
        print(f"writing {directory.name} with random weights ...")
        random_checkpoint.write(directory, shape, layers)
    return directory


def run(args: argparse.Namespace) -> dict[str, Any]:
    directory = prepare(args.shape, args.layers)
    start = time.perf_counter()
    llm = LLM(
        str(directory), expert_format=args.format, dense_format=args.format, max_context=1024, threads=args.threads
    )
    load_s = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"loaded {llm.parts.weights.nbytes / 1e9:.2f} GB in {load_s:.1f} s, peak memory {peak / 1e9:.2f} GB")
    buffer = torch.ones(BUFFER, dtype=torch.uint8)
    cpu.advise_huge(buffer)
    rounds = []
    for i in range(args.rounds):
        rounds.append(one_round(llm, buffer, args.tokens, 10 + i))
        one = rounds[-1]
        print(
            f"round {i + 1}: {one.bytes_per_token / 1e6:.1f} MB a token, {one.ms_per_token:.2f} ms, "
            f"{one.gb_s:.2f} GB/s, read {one.stream_gb_s:.2f} GB/s, share {one.share:.2f}"
        )
    return {
        "shape": args.shape,
        "layers": llm.spec.layers,
        "format": args.format,
        "load_s": round(load_s, 2),
        "peak_memory_gb": round(peak / 1e9, 2),
        "weights_gb": round(llm.parts.weights.nbytes / 1e9, 3),
        "bytes_per_token": rounds[-1].bytes_per_token,
        "decode_tok_s": round(1e3 / statistics.median(r.ms_per_token for r in rounds), 2),
        "share_of_read_bandwidth": round(statistics.median(r.share for r in rounds), 3),
        "rounds": [asdict(r) for r in rounds],
        "passport": passport(llm.parts.context),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="decode speed against the read bandwidth of the same run")
    parser.add_argument("shape", choices=random_checkpoint.SHAPES)
    parser.add_argument("--format", default="q4_0")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result = run(args)
    print(json.dumps({k: v for k, v in result.items() if k != "rounds"}))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
