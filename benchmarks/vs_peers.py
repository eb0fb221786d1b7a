"""headrace beside llama.cpp and kt-kernel, in turns: ratios, and what is behind them.

    python benchmarks/vs_peers.py [--layers 12] [--rounds 5] [--only decode,prefill,batch,kt,share]
                                  [--llama-python PYTHON] [--json [FILE]] [--compare OLD.json]

decode, prefill   Qwen3-30B-A3B cut to --layers, random weights, written as GGUF in Q4_0 and in Q4_K_M: ours against
                  llama.cpp, which run the same file and do so in turns
batch             ours on the Q4_0 file: 8 sequences against 1
kt                one layer of experts: ours (q4_0, q8_0) against kt-kernel (int4, int8), 1 and 512 tokens
share             one layer of experts, 1 token: its bandwidth over that of a plain read

Every ratio is the median over rounds of ours / theirs in the same round, higher is better. Peers that are not installed
are left out with a line that says how to get them. --compare exits 1 if a ratio is more than 5 % below an older one of
the same machine. The files (10 GB at 12 layers) are kept in bench-data/ for the next run; two models of 5 GB are in
memory at a time. What it does not measure: quality (`vs_llama_files.py`), load time, real text.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import expert_layer
import peer_llama
import report
import result_file
import torch
import whole_model
from interleave import Rates, Strangers, medians, ratio, significant
from peer_llama import Llama

from headrace.engine.bench.passport import passport
from headrace.kernels.context import ISA, Context

BUSY = 0.1  # cores in the hands of others, from which a result is not to be trusted
PARTS = ("decode", "prefill", "batch", "kt", "share")
GET = {
    "kt_kernel": "kt-kernel is left out. To get it without a second torch: pip install --no-deps kt-kernel\n"
    "    (all peers: pip install '.[peers]')",
    "gguf": "whole models are left out, since their files cannot be written: pip install '.[peers]' (or gguf alone)",
}
NOTES = {
    "ratios": "median over rounds of ours / theirs in the same round; higher is better for us",
    "decode": "one sequence, 16 prompt tokens, median of 48 tokens, greedy choice included, timed from outside; "
    "both go on with random tokens, so that neither walks in a circle of a few experts",
    "prefill": "512 tokens in one batch, logits of the last one, until the first token is chosen",
    "batch": "decode passes of 8 sequences and of 1, all tokens counted, from our ledger",
    "formats": "the same file for both, types as llama-quantize chooses them (Q4_0: head Q6_K, the rest Q4_0); KV "
    "cache bf16 here, f16 there; activations of 8 bits on both sides",
    "per_byte": "tokens a second times the bytes of weights that a token reads, as each engine holds them",
    "llama_cpp": "in a process of its own, which answers when its threads sleep; tokens timed there",
    "last_layer": "in a prefill both compute the last layer's experts only for the last token",
    "kt_kernel": "int4 and int8 with one scale a row of weights, against our q4_0 and q8_0 with one scale for 32; best "
    "of 1 thread and as many as we have, for it and not for us; one_thread: 1 thread each. One more thread of its own "
    "waits by spinning, so that on as many cores as threads it slows itself",
}


def installed(module: str) -> bool:
    """Whether a peer is there; says how to get it if not."""
    found = importlib.util.find_spec(module) is not None
    if not found:
        print(GET[module])
    return found


def model_parts(result: dict[str, Any], layers: int, rounds: int, parts: set[str], python: str) -> float:
    """decode, prefill, batch; processor seconds that llama.cpp took."""
    if not installed("gguf"):
        return 0.0
    llama = Llama(python) if parts & {"decode", "prefill"} and peer_llama.available(python) else None
    measured = whole_model.measure(layers, rounds, parts, llama)
    for what, rates in measured.rates.items():
        keep(result, what, rates)
    result.update(measured.facts)
    for recipe in map(str.lower, whole_model.gguf_model.RECIPES):
        _same_file(result, measured, recipe)
    result["batch8_vs_batch1"] = ratio(measured.rates.get("batch_tok_s", {}), f"batch{whole_model.BATCH}", "batch1")
    if llama is None:
        return 0.0
    result["notes"]["llama_cpp_build"] = llama.call("build")
    llama.close()
    return llama.cpu_s


def _same_file(result: dict[str, Any], measured: whole_model.Measured, recipe: str) -> None:
    """The ratios of one file."""
    ours, theirs, sizes = whole_model.OURS, whole_model.THEIRS, result["bytes_per_token"]
    decode, prefill = (measured.rates.get(f"{what}_{recipe}_tok_s", {}) for what in ("decode", "prefill512"))
    result[f"decode_same_file_{recipe}"] = ratio(decode, ours, theirs)
    result[f"prefill512_same_file_{recipe}"] = ratio(prefill, ours, theirs)
    result[f"prefill512_same_file_{recipe}_avx512"] = ratio(prefill, f"{ours}_{whole_model.LOWER_ISA}", theirs)
    if decode:
        read = {side: [rate * sizes[f"{side}_{recipe}"] for rate in many] for side, many in decode.items()}
        result[f"decode_per_byte_same_file_{recipe}"] = ratio(read, ours, theirs)
        per_second = {side: significant(rate / 1e9) for side, rate in medians(read).items()}
        result["medians"][f"decode_{recipe}_gb_s"] = per_second


def kt_part(result: dict[str, Any], rounds: int) -> None:
    """Both formats, 1 and 512 tokens."""
    if not installed("kt_kernel"):
        return
    from peer_kt import VARIANT

    result["kt_kernel"] = {"variant": VARIANT}
    for kind, infix in (("int4", ""), ("int8", "int8_")):
        by_tokens, result["kt_kernel"][kind] = expert_layer.against_kt(kind, rounds)
        for tokens, rates in by_tokens.items():
            keep(result, f"expert_layer_{kind}_{tokens}_calls_s", rates)
            times = {name: significant(1e6 / rate) for name, rate in medians(rates).items()}
            result["medians"][f"expert_layer_{kind}_{tokens}_us"] = times
            key = f"expert_layer_vs_kt_kernel_{infix}{tokens}"
            result[key] = ratio(rates, expert_layer.OURS, expert_layer.THEIRS)
            result[f"{key}_one_thread"] = ratio(rates, expert_layer.OURS_ALONE, expert_layer.THEIRS_ALONE)


def share_part(result: dict[str, Any], rounds: int) -> None:
    print("share of the read bandwidth, one token's experts", flush=True)
    shares = expert_layer.shares_of_read(rounds)
    result["share_of_read_bandwidth"] = {n: significant(statistics.median(s), 3) for n, s in shares.items()}
    result["rounds"]["share_of_read_bandwidth"] = {n: [significant(v) for v in s] for n, s in shares.items()}


def keep(result: dict[str, Any], what: str, rates: Rates) -> None:
    """Books the rates of every round, and of rates in tokens the medians."""
    result["rounds"][what] = {name: [significant(v) for v in many] for name, many in rates.items()}
    if what.endswith("tok_s"):
        result["medians"][what] = medians(rates)


def run(layers: int, rounds: int, parts: set[str], python: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    strangers, start, of_peers = Strangers(), time.perf_counter(), 0.0
    result: dict[str, Any] = {"shape": whole_model.SHAPE, "layers": layers, "medians": {}, "rounds": {}}
    result["notes"] = dict(NOTES)
    if ISA == whole_model.LOWER_ISA:
        result["notes"]["isa"] = f"{ISA} is our best here: the two prefill ratios are the same measurement"
    if parts & {"decode", "prefill", "batch"}:
        of_peers = model_parts(result, layers, rounds, parts, python)
    if "kt" in parts:
        kt_part(result, rounds)
    if "share" in parts:
        share_part(result, rounds)
    others = strangers.cores() - of_peers / (time.perf_counter() - start)
    result["cores_used_by_others"] = round(max(0.0, others), 2)
    if result["cores_used_by_others"] > BUSY:
        print(
            f"other processes took {result['cores_used_by_others']} cores meanwhile: measure again on a quiet machine"
        )
    return {**{k: v for k, v in result.items() if v is not None}, "passport": passport(Context())}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between")
    peer_llama.add_option(parser)
    result_file.add_option(parser, "peers")
    parser.add_argument("--compare", type=Path, help="an older result; exit 1 if a ratio got worse by more than 5 %%")
    args = parser.parse_args()
    unknown = set(args.only.split(",")) - set(PARTS)
    if unknown or min(args.layers, args.rounds) < 1:
        parser.error(f"--only takes {', '.join(PARTS)}; --layers and --rounds at least 1")
    return args


def main() -> None:
    args = options()
    old = json.loads(args.compare.read_text()) if args.compare else None  # read now: --json may name the same file
    result = run(args.layers, args.rounds, set(args.only.split(",")), args.llama_python)
    print("\n".join(["", *report.table(result)]))
    result_file.write(args.json, "peers", result)
    if old is not None:
        lines, status = report.compare(old, result)
        print("\n".join(lines))
        sys.exit(status)


if __name__ == "__main__":
    main()
