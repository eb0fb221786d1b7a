"""headrace beside llama.cpp on the same GGUF files: the demo model in every type, its logits, perplexity and texts.

    python benchmarks/vs_llama_files.py [--llama-python PYTHON] [--kinds Q8_0,Q4_K_M] [--prompts 20] [--new 48]
                                        [--windows 52] [--json [FILE]]

For every file (`demo_files.py` writes them to bench-data/demo):

exact       llama.cpp on the file's values in float32, with a float32 cache; ours on the file itself with exact
            activations and a float32 cache: same logits and texts, or the unpacking of a type is wrong
as used     both on the file as they come: ours with int8 activations and a bfloat16 cache, llama.cpp with activations
            of 8 bits (per 32 or 256 columns, by type) and a float16 cache
logits      of 512 tokens of demo/heldout.txt, all against the exact ones of llama.cpp
perplexity  of demo/heldout.txt in windows of 512
text        greedy, after prompts from demo/heldout.txt; where two part, by how much tokens lead (`near_ties.py`), and
            how far llama.cpp's rounding moves such leads

Exits 1 if logits of the exact pair differ by more than 1e-4 of their norm, a perplexity by more than 0.5 %, or a text
without a near tie. Speeds are not measured here: `vs_peers.py`.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import demo_files
import numpy as np
import peer_llama
import result_file
import torch
from near_ties import Difference, Logits, compared, first_difference, lead, lead_moves, spread
from numpy.typing import NDArray
from peer_llama import Llama

from headrace import LLM, SamplingParams
from headrace.engine.bench.passport import passport
from headrace.engine.bench.quality.perplexity import perplexity
from headrace.engine.generation.sampler import sample
from headrace.kernels.context import Context

DATA = demo_files.ROOT / "bench-data" / "demo"
TEXT = demo_files.ROOT / "demo" / "heldout.txt"
WINDOW, PROMPT = 512, 24  # tokens
ONE = 1  # thread on both sides: the model is tiny, and threads that wait for each other stand still on a busy machine
# No int8, no tiles that round to bfloat16, no rounded cache.
UNROUNDED: dict[str, Any] = {"cpu_activations": "bf16", "deterministic": True, "kv_format": "f32"}
EXACT, PERPLEXITY = 1e-4, 0.005  # largest shares that may differ
EXACT_LEAD = 1e-3  # logits: what float32 sums in another order may move a lead by


@dataclass
class Side:
    """What one engine made of one file."""

    logits: Logits
    perplexity: float
    texts: list[tuple[list[int], Logits]]


class Recorder:
    """Chooses as usual and keeps the logits that were chosen from."""

    def __init__(self) -> None:
        self.rows: list[Logits] = []

    def __call__(self, logits: torch.Tensor, ready: Any, ops: Any) -> list[int]:
        self.rows.append(logits[0].float().cpu().numpy().copy())
        return sample(logits, ready, ops)


@dataclass(frozen=True)
class Task:
    """What both are asked: token ids of the text, of the prompts, how many tokens to add, how many windows to score."""

    ids: list[int]
    prompts: list[list[int]]
    new: int
    windows: int


def task_of(ids: list[int], prompts: int, new: int, windows: int) -> Task:
    step = len(ids) // max(prompts, 1)
    return Task(ids, [ids[i * step : i * step + PROMPT] for i in range(prompts)], new, windows)


def ours(path: Path, task: Task, *, exact: bool) -> Side:
    """Our engine on a file: exact activations and a float32 cache, or as a user has it."""
    recorder = Recorder()
    options = UNROUNDED if exact else {}
    with LLM(path, threads=ONE, sampler=recorder, **options) as llm:
        texts = []
        for prompt in task.prompts:
            recorder.rows.clear()
            found = llm.generate([prompt], SamplingParams(max_new_tokens=task.new, ignore_eos=True))[0]
            texts.append((list(found.token_ids), np.stack(recorder.rows)))
        logits = llm.logits(task.ids[:WINDOW]).numpy()
        return Side(logits, perplexity(llm, task.ids[: task.windows * WINDOW], WINDOW).value, texts)


def theirs(llama: Llama, path: Path, task: Task, *, exact: bool) -> Side:
    """llama.cpp on a file; exact: of a file in float32, without its half-precision cache and attention."""
    scratch = DATA / "logits.npy"
    llama.load(path, ONE, **({"cache": "f32", "flash": False} if exact else {}))
    texts = [llama.greedy(prompt, task.new, scratch) for prompt in task.prompts]
    losses = [llama.call("loss", ids=task.ids[i * WINDOW : (i + 1) * WINDOW]) for i in range(task.windows)]
    value = math.exp(sum(one["loss"] for one in losses) / sum(one["tokens"] for one in losses))
    return Side(llama.logits(task.ids[:WINDOW], scratch), value, texts)


def differences(a: Side, b: Side, prompts: list[list[int]], exact: LLM) -> list[Difference]:
    """The first difference of every pair of texts, with the lead that exact arithmetic gives there."""
    found = []
    for number, ((ids, logits), (other, others)) in enumerate(zip(a.texts, b.texts, strict=True)):
        one = first_difference(number, ids, logits, other, others)
        if one is not None:
            row = exact.logits([*prompts[number], *ids[: one.place]])[-1].numpy()
            found.append(replace(one, lead_exact=lead(row, one.ours, one.theirs)))
    return found


def moves(side: Side, truth: Side, prompts: list[list[int]], exact: LLM) -> NDArray[np.float64]:
    """By how much an engine's rounding moved leads: in the 512 tokens, and wherever it chose a token."""
    found = [lead_moves(truth.logits, side.logits)]
    for prompt, (ids, logits) in zip(prompts, side.texts, strict=True):
        rows = exact.logits([*prompt, *ids[:-1]])[len(prompt) - 1 :].numpy()
        found.append(lead_moves(rows, logits))
    return np.concatenate(found)


def of_kind(llama: Llama, plain: Path, kind: str, text: str, args: argparse.Namespace) -> dict[str, Any]:
    """One row of the result, and its lines on the way."""
    path, twin = DATA / f"demo-{kind}.gguf", DATA / "twin.gguf"
    demo_files.write(llama, plain, kind, path)
    demo_files.write_twin(path, twin)
    with LLM(path, threads=ONE) as llm:
        ids = list(llm.tokenizer.encode(text))
    task = task_of(ids, args.prompts, args.new, args.windows)
    llama.load(path, ONE)
    same_ids = llama.call("tokens", text=text)["ids"] == ids
    exact, as_used = theirs(llama, twin, task, exact=True), theirs(llama, path, task, exact=False)
    our_exact, our_int8 = ours(path, task, exact=True), ours(path, task, exact=False)
    with LLM(path, threads=ONE, **UNROUNDED) as llm:
        moved = {"llama": moves(as_used, exact, task.prompts, llm), "ours": moves(our_int8, exact, task.prompts, llm)}
        noise = float(moved["llama"].max())
        parted = {
            "exact": (differences(our_exact, exact, task.prompts, llm), EXACT_LEAD),
            "as_used": (differences(our_int8, as_used, task.prompts, llm), noise),
        }
    for name, (found, bound) in parted.items():
        for one in found:
            print(f"  {kind}, {name.replace('_', ' ')}, {one.line(bound)}", flush=True)
    sides = {"llama_exact": exact, "ours_exact": our_exact, "ours": our_int8, "llama": as_used}
    return {
        "types": demo_files.types(path),
        "bytes": path.stat().st_size,
        "same_tokens": same_ids,
        "perplexity": {name: round(side.perplexity, 4) for name, side in sides.items()},
        "logits": {name: compared(exact.logits, side.logits) for name, side in sides.items() if side is not exact},
        "lead_moves": {name: spread(many) for name, many in moved.items()},
        "texts": {name: _texts(found, bound, len(task.prompts)) for name, (found, bound) in parted.items()},
    }


def _texts(found: list[Difference], bound: float, prompts: int) -> dict[str, Any]:
    return {
        "same": prompts - len(found),
        "near_ties": sum(one.is_near_tie(bound) for one in found),
        "differences": [{**vars(one), **_rounded(one), "noise": round(bound, 4)} for one in found],
    }


def _rounded(one: Difference) -> dict[str, float]:
    return {name: round(value, 4) for name, value in vars(one).items() if name.startswith("lead_")}


def wrong(kind: str, row: dict[str, Any]) -> list[str]:
    """What of a row may not be, in words."""
    found = [] if row["same_tokens"] else [f"{kind}: the text's token ids differ"]
    if (off := row["logits"]["ours_exact"]["relative"]) > EXACT:
        found.append(f"{kind}: exact logits differ by {off:.2g} of their norm")
    values = row["perplexity"]
    for ours, theirs in (("ours_exact", "llama_exact"), ("ours", "llama"), ("ours_exact", "llama")):
        if abs(values[ours] / values[theirs] - 1) > PERPLEXITY:
            found.append(f"{kind}: perplexity is {values[ours]} ({ours}), {values[theirs]} ({theirs})")
    for name, texts in row["texts"].items():
        if left := len(texts["differences"]) - texts["near_ties"]:
            found.append(f"{kind}: {left} texts ({name}) part without a near tie")
    return found


def line(kind: str, row: dict[str, Any]) -> str:
    """A row of the table that is printed."""
    values, logits, texts = row["perplexity"], row["logits"], row["texts"]
    pairs = " ".join(f"{values[name]:8.4f}" for name in ("llama_exact", "ours_exact", "ours", "llama"))
    off = " ".join(f"{logits[name]['relative']:8.1e}" for name in ("ours_exact", "ours", "llama"))
    same = " ".join(f"{t['same']:3} + {t['near_ties']} near ties" for t in texts.values())
    return f"{kind:10} {pairs}   {off}   {same}"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default=",".join(demo_files.KINDS), help="types, with commas between")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--new", type=int, default=48, help="tokens that are added to each prompt")
    parser.add_argument("--windows", type=int, default=52, help=f"of {WINDOW} tokens, of which perplexity is taken")
    peer_llama.add_option(parser)
    result_file.add_option(parser, "llama-files")
    args = parser.parse_args()
    if unknown := set(args.kinds.split(",")) - set(demo_files.KINDS):
        parser.error(f"--kinds has {', '.join(sorted(unknown))}; there are {', '.join(demo_files.KINDS)}")
    return args


def main() -> None:
    args = options()
    if not peer_llama.available(args.llama_python):
        sys.exit(1)
    llama, text, plain = Llama(args.llama_python), TEXT.read_text(encoding="utf-8"), DATA / "demo-plain.gguf"
    demo_files.write_plain(plain)
    rows: dict[str, Any] = {}
    for kind in args.kinds.split(","):
        rows[kind] = of_kind(llama, plain, kind, text, args)
        print(line(kind, rows[kind]), flush=True)
    bad = [said for kind, row in rows.items() for said in wrong(kind, row)]
    result = {
        "prompts": args.prompts, "new": args.new, "windows": args.windows, "files": rows, "wrong": bad,
        "llama_cpp": llama.call("build"), "passport": passport(Context()),
    }  # fmt: skip
    llama.close()
    result_file.write(args.json, "llama-files", result)
    print("\n".join(bad) or "nothing differs without a near tie")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
