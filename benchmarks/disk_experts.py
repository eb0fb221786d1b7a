"""What share of a disk's bandwidth decode reaches with experts in the file and a quarter of their bytes in RAM, of a
random model of a real shape, converted, whose next tokens are drawn, so that routing is even.

    raw        bytes a second of the same file: direct reads of 1 MiB at random places, by so many threads, nothing else
    reading    whole experts by the engine's reads, nothing computed, as a share of raw
    decode     tokens a second of one sequence; read: GB a second of the disk that its ledger counts
    share      of the ceiling: seconds in which the disk gives a token's bytes at the raw rate, over seconds of a token
    in RAM     tokens a second with all experts there; both: the share of the lower of the two ceilings

A disk that others use is never the same twice: decode comes in short turns, each between two raw measurements, and
the shares of a round are medians over its turns; of rounds there are medians again. Needs the model's size on the disk
and once in RAM.

python benchmarks/disk_experts.py [--layers 12] [--turns 8] [--rounds 5] [--policy lru,next-layer] [--json]
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import result_file

from headrace import LLM, SamplingParams
from headrace.engine.bench import passport
from headrace.engine.bench.random_weights import RandomSampler, random_llm
from headrace.engine.experts.disk import speed
from headrace.engine.experts.disk.disk_experts import DiskExperts
from headrace.engine.ledger.passes import DISK
from headrace.kernels.context import Context
from headrace.loaders import model_source
from headrace.loaders.weights import converted

MIB = 1 << 20
SECONDS = 0.7  # of a raw measurement
WHAT = "disk-experts"


def main() -> None:
    args = asked()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        write_model(args, Path(folder) / "model")
        rounds = list(measured(args, Path(folder) / "model"))
    rows = summed_up(rounds)
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    shown = {
        "model": args.model,
        "layers": args.layers,
        "format": args.format,
        "cache": args.cache,
        "threads": args.compute_threads,
    }
    result_file.write(args.json, WHAT, {"passport": passport.passport(Context()), **shown, "rows": rows})


def asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen3-30B-A3B")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--format", default="q4_0")
    parser.add_argument("--cache", default="25%", help="RAM for experts")
    parser.add_argument("--policy", default="lru", help="several: separated by commas")
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--turns", type=int, default=8, help="of decode in a round")
    parser.add_argument("--warm", type=int, default=2, help="tokens before each turn")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", default="1,2,4,8,16", help="of raw reads; the ceiling is that of 4")
    parser.add_argument("--compute-threads", type=int, help="of the CPU's kernels; default one per core")
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; default the system's temporary one")
    result_file.add_option(parser, WHAT)
    return parser.parse_args()


def write_model(args: argparse.Namespace, to: Path) -> None:
    """Random weights as a converted directory, out of the system's memory."""
    source = to.with_name("source")
    source.mkdir()
    config = {**model_source.find(args.model).config, "num_hidden_layers": args.layers}
    (source / "config.json").write_text(json.dumps(config))
    with random_llm(config, expert_format=args.format, dense_format="q8_0", max_context=64, no_measure=True) as llm:
        converted.save(source, to, llm.parts.weights, llm.parts.checkpoint.formats)
    handle = os.open(to / converted.WEIGHTS, os.O_RDONLY)
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)
    shutil.rmtree(source)


def measured(args: argparse.Namespace, model: Path) -> Iterator[dict[str, float]]:
    """The rounds, with every policy in each."""
    path = model / converted.WEIGHTS
    counts = [int(count) for count in args.threads.split(",")]
    for number in range(args.rounds):
        found: dict[str, float] = {f"raw {count} threads GB/s": raw(path, count) / 1e9 for count in counts}
        with LLM(model, device="cpu", **options_of(args)) as llm:
            found["decode in RAM tok/s"] = decode(args, llm, number, "in RAM")["decode in RAM tok/s"]
        for policy in args.policy.split(","):
            with loaded(args, model, policy) as (llm, experts):
                found |= turns(args, path, llm, experts, policy, found["decode in RAM tok/s"])
                found |= prefill(args, llm, number, policy, raw(path, 4))
        print(f"round {number}: " + ", ".join(f"{name} {value:.3g}" for name, value in found.items()), flush=True)
        yield found


def turns(
    args: argparse.Namespace, path: Path, llm: LLM, experts: DiskExperts, policy: str, in_ram: float
) -> dict[str, float]:
    """Decode in turns with raw reads and the engine's own without computing: medians."""
    each, rate = [], raw(path, 4)
    for turn in range(args.turns):
        found = decode(args, llm, turn, policy)
        before, rate = rate, raw(path, 4)
        found[f"reading share {policy}"] = speed.measure(experts.cache, experts.staging) / rate
        found[f"share {policy}"] = found[f"read {policy} GB/s"] * 1e9 / ((before + rate) / 2)
        found[f"both {policy}"] = max(found[f"share {policy}"], found[f"decode {policy} tok/s"] / in_ram)
        each.append(found)
        rate = raw(path, 4)
    return {name: statistics.median(one[name] for one in each) for name in each[0]}


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    context = args.prompt + args.tokens + 64
    shared = {"max_context": context, "max_sequences": 1, "no_measure": True, "sampler": RandomSampler()}
    return {**shared, "threads": args.compute_threads}


@contextmanager
def loaded(args: argparse.Namespace, model: Path, policy: str) -> Iterator[tuple[LLM, DiskExperts]]:
    with LLM(model, placement="disk", policy=policy, expert_cache=args.cache, **options_of(args)) as llm:
        experts = llm.parts.decoder.experts
        assert isinstance(experts, DiskExperts)
        yield llm, experts


def decode(args: argparse.Namespace, llm: LLM, seed: int, policy: str) -> dict[str, float]:
    """One sequence; its first tokens fill the cache."""
    prompt = random.Random(seed).choices(range(1000, llm.spec.vocab), k=8)
    llm.generate([prompt], SamplingParams(max_new_tokens=args.warm, ignore_eos=True))
    with llm.ledger.recording() as passes:
        llm.generate([prompt[::-1]], SamplingParams(max_new_tokens=args.tokens, ignore_eos=True))
    steps = [one for one in passes if one.phase == "decode"]
    seconds, read = sum(one.measured_s for one in steps), sum(one.total(DISK) for one in steps)
    waited = sum(one.times.busy.get(DISK, 0.0) for one in steps if one.times is not None)
    return {
        f"decode {policy} tok/s": len(steps) / seconds, f"read {policy} GB/s": read / seconds / 1e9,
        f"MB a token {policy}": read / len(steps) / 1e6, f"waiting {policy}": waited / seconds,
    }  # fmt: skip


def prefill(args: argparse.Namespace, llm: LLM, seed: int, policy: str, rate: float) -> dict[str, float]:
    prompt = random.Random(seed + 1000).choices(range(1000, llm.spec.vocab), k=args.prompt)
    with llm.ledger.recording() as passes:
        llm.generate([prompt], SamplingParams(max_new_tokens=1, ignore_eos=True))
    seconds, read = sum(one.measured_s for one in passes), sum(one.total(DISK) for one in passes)
    return {f"prompt {policy} tok/s": args.prompt / seconds, f"prompt share {policy}": read / seconds / rate}


def raw(path: Path, threads: int) -> float:
    """Bytes a second of direct reads, of which each thread has one at a time."""
    size, end, counts = path.stat().st_size, time.perf_counter() + SECONDS, [0] * threads

    def read(number: int) -> None:
        draw, handle = random.Random(number), os.open(path, os.O_RDONLY | os.O_DIRECT)
        buffer = memoryview(mmap.mmap(-1, MIB))
        while time.perf_counter() < end:
            counts[number] += os.preadv(handle, [buffer], draw.randrange(size // MIB) * MIB)
        os.close(handle)

    start = time.perf_counter()
    workers = [threading.Thread(target=read, args=(number,)) for number in range(threads)]
    for one in workers:
        one.start()
    for one in workers:
        one.join()
    return sum(counts) / (time.perf_counter() - start)


def summed_up(rounds: list[dict[str, float]]) -> list[dict[str, Any]]:
    """Of each value the median, and both ends."""
    found = []
    for name in rounds[0]:
        values = sorted(one[name] for one in rounds)
        middle, low, high = (float(f"{v:.4g}") for v in (statistics.median(values), values[0], values[-1]))
        found.append({"what": name, "median": middle, "least": low, "most": high})
    return found


if __name__ == "__main__":
    main()
