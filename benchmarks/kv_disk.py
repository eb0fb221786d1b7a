"""What the KV cache on disk gains: a prompt computed over the same one read back by a later run, of a random model of a
real shape; and what writing costs the run that computes.

    computed       seconds until the first token of a prompt that nobody knows, without a disk
    while_written  the same with one; its pages are written meanwhile
    read           seconds of the prompt in a fresh run, its files dropped from the system's memory
    read_again     the same once more, from the system's memory

python benchmarks/kv_disk.py [--layers 4] [--prompt 4096] [--rounds 3] [--folder DIR] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import result_file

from headrace import LLM, SamplingParams
from headrace.engine.bench.passport import passport
from headrace.engine.bench.random_weights import random_llm
from headrace.kernels.context import Context

ONE = SamplingParams(max_new_tokens=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen3-30B-A3B")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--format", default="q4_0")
    parser.add_argument("--prompt", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, help="on the disk that is to be measured; default the system's temporary"
    )
    result_file.add_option(parser, "kv-disk")
    args = parser.parse_args()
    rounds = []
    for number in range(args.rounds):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            rounds.append(measure(args, number, Path(folder)))
    found: dict[str, Any] = {name: round(statistics.median(one[name] for one in rounds), 4) for name in rounds[0]}
    found["computed_over_read"] = round(statistics.median(r["computed_s"] / r["read_s"] for r in rounds), 1)
    found["while_written_over_computed"] = round(
        statistics.median(r["while_written_s"] / r["computed_s"] for r in rounds), 3
    )
    for name, value in found.items():
        print(f"{name:28} {value}")
    if args.json:
        result_file.write(args.json, "kv-disk", {"passport": passport(Context()), "model": args.model, **found})


def measure(args: argparse.Namespace, seed: int, folder: Path) -> dict[str, float]:
    """One round: each value of a run of its own."""
    prompt = random.Random(seed).choices(range(1000, 100_000), k=args.prompt)
    found = {}
    with load(args, None) as llm:
        found["computed_s"] = seconds(llm, prompt, 0)
    with load(args, folder) as llm:
        found["while_written_s"] = seconds(llm, prompt, 0)
    files = sorted(folder.glob("*/*.page"))
    found["megabytes"] = sum(path.stat().st_size for path in files) / 1e6
    drop(files)
    known = (args.prompt - 1) // 32 * 32
    for name in ("read_s", "read_again_s"):
        with load(args, folder) as llm:
            found[name] = seconds(llm, prompt, known)
    return found


def load(args: argparse.Namespace, folder: Path | None) -> LLM:
    return random_llm(
        args.model, layers=args.layers, expert_format=args.format, dense_format="q8_0", max_sequences=1,
        max_context=args.prompt + 64, kv_disk=None if folder is None else f"{folder}:100", no_measure=True,
    )  # fmt: skip


def seconds(llm: LLM, prompt: list[int], known: int) -> float:
    """Of a prompt and its first token, after one of other tokens."""
    llm.generate([[7] * 40], ONE)
    start = time.perf_counter()
    (found,) = llm.generate([prompt], ONE)
    taken = time.perf_counter() - start
    assert found.reused_tokens == known, f"{found.reused_tokens} of {known} tokens were known"
    return taken


def drop(files: list[Path]) -> None:
    """Lets the system forget what files hold, once it is on the disk."""
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


if __name__ == "__main__":
    main()
