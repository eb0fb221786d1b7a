"""headrace beside llama.cpp and kt-kernel, in one process and in turns: ratios, and what is behind them.

    python benchmarks/vs_peers.py [--layers 12] [--rounds 5] [--only decode,prefill,batch,kt,share]
                                  [--json [FILE]] [--compare OLD.json]

decode, prefill   Qwen3-30B-A3B cut to --layers, random weights: ours (q4_0) against llama.cpp (Q4_0, Q4_K_M)
batch             ours: 8 sequences against 1
kt                one layer of experts: ours (q4_0, q8_0) against kt-kernel (int4, int8), 1 and 512 tokens
share             one layer of experts, 1 token: its bandwidth over that of a plain read

Every ratio is the median over rounds of ours / theirs in the same round, higher is better. Peers that are not installed
are left out with a line that says how to get them. --compare exits 1 if a ratio is more than 5 % below an older one of
the same machine. llama.cpp's models (10 GB at 12 layers) are kept in bench-data/ for the next run. What it does not
measure: quality, load time, real text.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import expert_layer
import report
import result_file
import torch
import whole_model
from interleave import Rates, Strangers, medians, ratio, significant

from headrace.engine.bench.passport import passport
from headrace.kernels.context import ISA, Context

BUSY = 0.1  # cores in the hands of others, from which a result is not to be trusted
PARTS = ("decode", "prefill", "batch", "kt", "share")
GET = {
    "llama_cpp": "llama.cpp is left out. Built for the machine it may crash in AMX code on some, so build it as\n"
    "    CMAKE_ARGS='-DGGML_NATIVE=OFF -DGGML_AVX512=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON "
    "-DGGML_AVX512_VBMI=ON' \\\n        pip install '.[peers]'",
    "kt_kernel": "kt-kernel is left out. To get it without a second torch: pip install --no-deps kt-kernel\n"
    "    (all peers: pip install '.[peers]')",
    "gguf": "llama.cpp is left out, since its model cannot be written: pip install '.[peers]' (or gguf alone)",
}
NOTES = {
    "ratios": "median over rounds of ours / theirs in the same round; higher is better for us",
    "decode": "one sequence, 16 prompt tokens, median of 48 tokens, greedy choice included, timed from outside; "
    "ours goes on with random tokens, theirs with the chosen one",
    "prefill": "512 tokens in one batch, logits of the last one, until the first token is chosen",
    "batch": "decode passes of 8 sequences and of 1, all tokens counted, from our ledger",
    "formats": "ours: q4_0 (4.5 bits a weight), embedding bf16 (one row a token is read), KV cache bf16. llama.cpp "
    "Q4_0: head Q6_K, the rest Q4_0, KV cache f16; Q4_K_M: types per tensor as its quantiser chooses",
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


def model_parts(result: dict[str, Any], layers: int, rounds: int, parts: set[str]) -> None:
    """decode, prefill, batch."""
    wanted = bool(parts & {"decode", "prefill"})
    with_llama = wanted and installed("gguf") and installed("llama_cpp")
    measured = whole_model.measure(layers, rounds, parts, with_llama)
    gc.collect()  # the engine refers to itself: its weights go now
    for what, rates in measured.rates.items():
        keep(result, what, rates)
    result.update(measured.facts)
    ours, q4_0, q4_k_m = whole_model.OURS, "llama_cpp_q4_0", "llama_cpp_q4_k_m"
    decode, prefill, batch = (measured.rates.get(f"{w}_tok_s", {}) for w in ("decode", "prefill512", "batch"))
    result["decode_vs_llama_cpp"] = ratio(decode, ours, q4_0)
    result["decode_vs_llama_cpp_q4_k_m"] = ratio(decode, ours, q4_k_m)
    result["prefill512_vs_llama_cpp"] = ratio(prefill, ours, q4_0)
    result["prefill512_vs_llama_cpp_avx512"] = ratio(prefill, f"{ours}_{whole_model.LOWER_ISA}", q4_0)
    result["prefill512_vs_llama_cpp_q4_k_m"] = ratio(prefill, ours, q4_k_m)
    result["batch8_vs_batch1"] = ratio(batch, f"batch{whole_model.BATCH}", "batch1")
    if decode:
        sizes = result["bytes_per_token"]
        per_byte = {name: significant(rate * sizes[name] / 1e9) for name, rate in medians(decode).items()}
        result["medians"]["decode_gb_s"] = per_byte
    if with_llama:
        from peer_llama import build

        result["notes"]["llama_cpp_build"] = build()


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


def run(layers: int, rounds: int, parts: set[str]) -> dict[str, Any]:
    torch.set_num_threads(1)
    strangers = Strangers()
    result: dict[str, Any] = {"shape": whole_model.SHAPE, "layers": layers, "medians": {}, "rounds": {}}
    result["notes"] = dict(NOTES)
    if ISA == whole_model.LOWER_ISA:
        result["notes"]["isa"] = f"{ISA} is our best here: the two prefill ratios are the same measurement"
    if parts & {"decode", "prefill", "batch"}:
        model_parts(result, layers, rounds, parts)
    if "kt" in parts:
        kt_part(result, rounds)
    if "share" in parts:
        share_part(result, rounds)
    result["cores_used_by_others"] = strangers.cores()
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
    result = run(args.layers, args.rounds, set(args.only.split(",")))
    print("\n".join(["", *report.table(result)]))
    result_file.write(args.json, "peers", result)
    if old is not None:
        lines, status = report.compare(old, result)
        print("\n".join(lines))
        sys.exit(status)


if __name__ == "__main__":
    main()
