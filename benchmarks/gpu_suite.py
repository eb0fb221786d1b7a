"""The Triton kernels on a real GPU: are they right, and how near do they come to what the memory and the cores give?

    python benchmarks/gpu_suite.py [--only table|checks|handoff|measure|same|models] [--filter experts] [--json FILE]

Needs a CUDA GPU, torch with CUDA (Triton comes with it) and this checkout: nothing is built or installed.

checks   every small case of `kernels/cases/all.py`, and real shapes, against the plain twin in float32 on the same GPU,
         within the bounds of `kernels/cases/case.py`
table    each row's calls are captured in one CUDA graph (which proves that they can be) and replayed. Every round also
         copies 2 GiB and multiplies two 8192 x 8192 bf16 matrices; a row's share is its rate over that round's copy
         (bytes read and written) or product, and the median over rounds is kept. Each call reads weights of its own, so
         that they come from memory (`gpu_rows.py`).

handoff  each way for a stream to hand experts to the CPU and wait for them, and what pinning takes (`gpu_handoff.py`);
         needs headrace installed with its C++ extension, and says so where it is not
measure  `headrace measure`: what RAM, links and the GPU's memory give, alone and together (`gpu_measure.py`); saves
         the machine's profile. Needs the extension too
same     the same tokens and logits under several placements and hand-offs (`gpu_same.py`). Needs the extension too
models   a whole model of random weights under several placements, decode and prefill (`gpu_models.py`), in 240 s;
         --layers shrinks it. Needs the extension too

Passport, table and failures go into one JSON file, by default benchmarks/results/gpu-NAME.json. Ends with status 1
where something failed, 2 where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parent.parent / "src"))  # serves where headrace is not installed

import gpu_handoff
import gpu_measure
import gpu_models
import gpu_same
import result_file
from gpu_rows import GpuSource, Row, rows

from headrace.engine.bench.passport import gpu_passport
from headrace.kernels import Ops, load, reference
from headrace.kernels.cases.all import CASES
from headrace.kernels.cases.case import Case, Inputs, worst

COPY_BYTES = 2 << 30
PRODUCT = 8192
LARGE = ("linear bf16 512x2048x2048", "linear q8_0 512x2048x2048", "linear q4_0 512x2048x2048",
         "linear q4_0 1x65536x2048", "experts bf16 64x2048x1024 512 tokens top 8",
         "experts q8_0 64x2048x1024 512 tokens top 8", "experts q4_0 64x2048x1024 512 tokens top 8",
         "experts q4_0 64x2048x1024 16 tokens top 8", "experts q4_0 128x2048x768 1 tokens top 8",
         "argmax 1x151936")  # fmt: skip


# Checks


def to(value: Any, device: torch.device) -> Any:
    """An input of a case on the device; a view stays one, with its strides."""
    if isinstance(value, torch.Tensor):
        whole = torch.empty(0, dtype=value.dtype, device=value.device).set_(value.untyped_storage())
        return whole.to(device).as_strided(value.shape, value.stride(), value.storage_offset())
    if isinstance(value, (list, tuple)):
        return type(value)(to(one, device) for one in value)
    if is_dataclass(value) and not isinstance(value, type):  # a matrix, a bank, a block, and what they are made of
        moved = (field.name for field in fields(value) if field.init)  # not what a backend keeps of it
        return replace(value, **{name: to(getattr(value, name), device) for name in moved})
    return value


def roundings(case: Case, inputs: Inputs) -> Inputs:
    """What the kernels round on a GPU, in the terms of `kernels/cases/case.py`: to bf16, where tokens are more than
    one."""
    found: Inputs = {"activations": "bf16", "tile_rows": 1}
    if case.op in ("linear", "experts") and len(inputs["x"]) > 1:
        found["tiles"] = dict.fromkeys(("bf16", "q8_0", "q4_0"), 1)
    if case.op == "attention":
        decode = len(inputs["q"]) == len(inputs["contexts"])
        found["attention"] = 2.0**-17 if decode or inputs["k"].dtype == torch.float32 else 2.0**-8
    return found


def check(case: Case, ops: Ops, device: torch.device) -> list[str]:
    """What is wrong with a case's results, output by output."""
    source = GpuSource(torch.Generator(device).manual_seed(1))
    inputs = {k: to(v, device) for k, v in case.build(torch.Generator().manual_seed(1), source).items()}
    expected = case.call(reference, inputs)  # type: ignore[arg-type]
    allowed = case.allowed({**inputs, **roundings(case, inputs)}, expected)
    outcome = case.call(ops, inputs)
    problems = [worst(*three) for three in zip(outcome, expected, allowed, strict=True)]
    return [f"{case.op} {case.name}, output {n}: {text}" for n, text in enumerate(problems) if text]


def checks(ops: Ops, device: torch.device, chosen: list[Case]) -> dict[str, Any]:
    """Runs cases; a kernel that raises is a failure like any other."""
    failures: list[str] = []
    for number, case in enumerate(chosen):
        try:
            found = check(case, ops, device)
        except Exception as error:
            found = [f"{case.op} {case.name}: {type(error).__name__}: {str(error)[:300]}"]
        for text in found:
            print(f"  WRONG {text}", flush=True)
        failures += found
        if number % 50 == 49:
            print(f"  {number + 1} of {len(chosen)} cases", flush=True)
    return {"cases": len(chosen), "failures": failures}


def chosen_cases(filter: str) -> list[Case]:
    """Small cases first, then those of real shapes. Packing stays with the twin, which is the GPU's own."""
    wanted = [c for c in CASES if c.op != "quantize" and filter in f"{c.op} {c.name}"]
    return [c for c in wanted if not c.bench] + [c for c in wanted if f"{c.op} {c.name}" in LARGE]


# Times


def captured(calls: list[Callable[[], object]]) -> torch.cuda.CUDAGraph:
    """The calls as one graph; each ran before, so that nothing is compiled while capturing."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            for call in calls:
                call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def seconds(run: Callable[[], object], least: float = 0.02) -> float:
    """Seconds of one run by events on the device, over as many as take `least` seconds."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    count = 1
    while True:
        start.record()
        for _ in range(count):
            run()
        stop.record()
        stop.synchronize()
        took = start.elapsed_time(stop) / 1e3
        if took >= least:
            return took / count
        count = max(count + 1, int(count * 1.3 * least / max(took, 1e-6)))


class Ceilings:
    """What the GPU gives at this moment: bytes a second of a copy, flops a second of a large bf16 product."""

    def __init__(self, device: torch.device) -> None:
        self.a = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device).random_()
        self.b = torch.empty_like(self.a)
        self.x, self.y = (torch.randn(PRODUCT, PRODUCT, device=device).bfloat16() for _ in range(2))

    def rates(self) -> dict[str, float]:
        return {
            "bytes": 2 * COPY_BYTES / seconds(lambda: self.b.copy_(self.a)),
            "flops": 2.0 * PRODUCT**3 / seconds(lambda: self.x @ self.y),
        }


def timed(row: Row, ceilings: Ceilings, rounds: int) -> dict[str, Any]:
    """Medians over rounds, each of which measures the ceilings too."""
    graph = captured(row.calls)
    micros, shares, rates = [], [], []
    seconds(graph.replay)
    for _ in range(rounds):
        limits = ceilings.rates() if row.bound else {}
        took = seconds(graph.replay) / len(row.calls)
        micros.append(took * 1e6)
        rates.append(limits)
        if row.bound:
            work = row.bytes if row.bound == "bytes" else row.flops
            shares.append(work / took / limits[row.bound])
    result: dict[str, Any] = {"row": row.name, "us": statistics.median(micros), "us_worst": max(micros)}
    if row.bound:
        result |= {"bytes": row.bytes, "flops": row.flops, "bound": row.bound, "share": statistics.median(shares)}
        result |= {f"{name}_ceiling": statistics.median(r[name] for r in rates) for name in ("bytes", "flops")}
    if row.wanted is not None:
        result["wanted"] = row.wanted
    return result


def show(row: dict[str, Any]) -> str:
    text = f"{row['row']:52} {row['us']:10.1f} us"
    if "share" in row:
        text += f"  {row['share']:6.1%} of {'copy' if row['bound'] == 'bytes' else 'product'}"
    if "wanted" in row:
        text += f"  wanted {row['wanted']:.0%}{'' if row['share'] >= row['wanted'] else ': NOT REACHED'}"
    return text


def table(every: Iterator[Row], device: torch.device, rounds: int, filter: str) -> list[dict[str, Any]]:
    """All rows that match; a row that fails is kept with its error."""
    ceilings, found = Ceilings(device), []
    for row in every:
        if filter not in row.name:
            continue
        try:
            found.append(timed(row, ceilings, rounds))
            print("  " + show(found[-1]), flush=True)
        except Exception as error:
            found.append({"row": row.name, "error": f"{type(error).__name__}: {str(error)[:300]}"})
            print(f"  FAILED {row.name}: {found[-1]['error']}", flush=True)
    return found


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", choices=("table", "checks", "handoff", "measure", "same", "models"), help="one of the parts"
    )
    parser.add_argument("--filter", default="", help="only rows and cases whose name contains this")
    parser.add_argument("--rounds", type=int, default=5, help="rounds a row of the table is timed in")
    parser.add_argument("--layers", type=int, help="so many layers of the models only")
    parser.add_argument("--json", type=Path, help="where the result goes")
    return parser.parse_args()


def main() -> int:
    args = options()
    if not torch.cuda.is_available():
        has = "no CUDA GPU is visible" if torch.version.cuda else "this torch was built without CUDA"
        print(f"gpu_suite.py measures kernels on an NVIDIA GPU, and {has}; without one, `make test` runs them in the"
              " interpreter and compiles them", file=sys.stderr)  # fmt: skip
        return 2
    device, start = torch.device("cuda", torch.cuda.current_device()), time.perf_counter()
    ops, result = load("gpu"), {"passport": gpu_passport()}
    print(json.dumps(result["passport"]), flush=True)
    if args.only in (None, "handoff") and not args.filter:  # first, while nothing else runs
        result["handoff"] = gpu_handoff.measure(device.index)
        print("\n".join(gpu_handoff.show(result["handoff"])), flush=True)
    if args.only in (None, "measure") and not args.filter:
        result["measure"] = gpu_measure.measure()
        print("\n".join(gpu_measure.show(result["measure"])), flush=True)
    if args.only in (None, "table"):
        source = GpuSource(torch.Generator(device).manual_seed(7))
        result["table"] = table(rows(ops, source), device, args.rounds, args.filter)
    if args.only in (None, "checks"):
        result["checks"] = checks(ops, device, chosen_cases(args.filter))
        print(f"{result['checks']['cases']} cases, {len(result['checks']['failures'])} wrong outputs")
    if args.only in (None, "same") and not args.filter:
        result["same"] = gpu_same.measure(f"cuda:{device.index}")
        print("\n".join(gpu_same.show(result["same"])), flush=True)
    if args.only in (None, "models") and not args.filter:  # last: what runs in processes of its own wants the memory
        torch.cuda.empty_cache()
        result["models"] = gpu_models.measure(f"cuda:{device.index}", layers=args.layers)
        print(result["models"].get("skipped", "models: done"))
    result |= {"seconds": round(time.perf_counter() - start), "peak_gb": torch.cuda.max_memory_allocated() / 1e9}
    path = args.json or result_file.RESULTS / f"gpu-{result_file.slug(result['passport']['gpu'])}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['seconds']} s; written: {path.name}")
    errors = any("error" in row for row in result.get("table", [])) or gpu_models.problems(result.get("models", {}))
    wrong = result.get("checks", {}).get("failures") or gpu_same.failures(result.get("same", {}))
    return 1 if errors or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
