"""Compiles every Triton kernel as the ops launch it on real shapes, for GPUs that are not there; prints JSON facts.

    python benchmarks/gpu_compile.py all 90          python benchmarks/gpu_compile.py core 90
    python benchmarks/gpu_compile.py formats 90      python benchmarks/gpu_compile.py each 80 89 120

The ops run on `meta` tensors, which have shapes and no memory: an op that looked at a value would fail. Launches are
recorded instead of run, and compiled for each architecture with the specialisation that the launch would have had.
What a compiler made of a launch is kept in machine_code.jsonl under a digest of all that it follows from (source,
constants, types, options, target, versions), so that only what changed is compiled; --anew compiles all of it.
`core` leaves out launches that differ from another one in the format or in the size of a tile only, `each` has one
launch of every kernel, the one that takes most; `formats` has experts of the formats whose kinds of codes and of scales
are in `all` already, each in another company.
`test_gpu_compile.py` and `gpu_kernel_table.py` run this as a process of its own, since interpreted and compiled kernels
do not mix in one, nor do two versions of Triton: which one is imported is a matter of PYTHONPATH.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import sys
from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import gpu_families
import gpu_steps
import machine_code
import torch
import triton
from gpu_kernel_table import KEPT
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from headrace.kernels import FORMATS, ExpertLayout, gpu
from headrace.kernels.blocks import cache_rows
from headrace.kernels.blocks.cache_rows import Rows
from headrace.kernels.decoder_layer import Router
from headrace.kernels.formats import KV_FORMATS
from headrace.kernels.gpu import spin
from headrace.kernels.gpu.kernel import Kernel, settle_key, watched
from headrace.kernels.gpu.pack import pack
from headrace.kernels.packed import ExpertBank, Matrix

Launch = tuple[str, Kernel, tuple[Any, ...], dict[str, Any]]
POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.uint8: "*u8",
            torch.int8: "*i8", torch.int32: "*i32", torch.int64: "*i64"}  # fmt: skip
ANEW = "--anew"
OPTIONS = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")
CORE = ("embed", "rmsnorm", "add_rmsnorm_", "place_qkv_", "glu", "gated_add_", "route", "argmax", "pack", "post",
        "wait", "decode bf16", "prefill bf16", "decode q8_0", "prefill q8_0", "place_qkv_ q8_0", "linear q4_0 1",
        "linear q4_0 512", "experts q4_0 1", "experts bf16 9", "experts q4_0 4096", "experts q6_k 1",
        "experts q4_k 512", *gpu_families.CORE, *gpu_steps.CORE)  # fmt: skip
EACH = ("embed", "rmsnorm", "add_rmsnorm_", "place_qkv_", "gated_add_", "argmax", "pack", "post", "wait", "decode bf16",
        "prefill bf16", "linear q4_0 1", "linear q4_0 512", "experts q4_0 1", "experts q6_k 1", "experts q4_0 4096",
        *gpu_families.EACH, *gpu_steps.EACH)  # fmt: skip
SAMPLE = ("add_rmsnorm_", "experts q4_0 1")  # in all of these
# Of each kind of codes and of scales, one: q4_k is six_min, q6_k 2 + 4 bits and byte16, q5_0 1 + 4 bits, mxfp4 e2m1 ...
KINDS = ("q4_k", "q6_k", "q5_0", "mxfp4", "iq4_xs", "q2_k", "q3_k", "nvfp4", "fp8", "int4_g128")
BASIC = (("bf16", 4096), ("q8_0", 4096), ("q4_0", 4096), ("f32", 9), ("f16", 9))  # and the most tokens
MIX = ("q4_k", "q5_k", "q6_k")
D, WIDTH, EXPERTS, TOP_K, HEADS, GROUPS, HEAD, VOCABULARY = 2048, 768, 128, 8, 32, 4, 128, 151936  # Qwen3-30B-A3B


def launches(jobs: str) -> list[Launch]:
    """What the ops launch, with a label that says on which shapes."""
    found: list[Launch] = []
    made = more_formats() if jobs == "formats" else calls()
    for label, call in made.items():
        if label not in {"core": CORE, "each": EACH, "sample": SAMPLE}.get(jobs, made):
            continue
        with watched(lambda kernel, args, constants, label=label: found.append((label, kernel, args, constants))):
            call()
    return found


def calls() -> dict[str, Any]:
    """Ops on the shapes of a real model: one token, a few, a prompt."""

    def cache(name: str) -> tuple[Rows, Rows]:
        k = cache_rows.empty(KV_FORMATS[name], 64, GROUPS, 32, HEAD, torch.device("meta"))
        return k, k.clone()

    def attend(T: int, S: int, name: str) -> torch.Tensor:
        return gpu.attention(f32(T, HEADS, HEAD), *cache(name), i32(S, 1024), i32(S + 1), i32(S), 0.1)

    def place(q_norm: torch.Tensor, k_norm: torch.Tensor, clip: float | None, name: str = "bf16") -> None:
        qkv, turns = f32(3, (HEADS + 2 * GROUPS) * HEAD), (f32(99, HEAD // 2), f32(99, HEAD // 2), i32(3))
        gpu.place_qkv_(qkv, *cache(name), i64(3), *turns, q_norm, k_norm, 1e-6, clip)

    def job(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return i32(4, TOP_K), f32(4, TOP_K), torch.empty(4, D, device="meta", dtype=dtype)

    choice = i32(4, TOP_K), f32(4, TOP_K)
    router = Router(matrix=matrix("f32", EXPERTS), top_k=TOP_K, scoring="softmax", renormalise=True)
    found: dict[str, Any] = {
        "embed": lambda: gpu.embed(matrix("q4_0"), i64(3)),
        "embed mxfp4": lambda: gpu.embed(matrix("mxfp4"), i64(3)),
        "dequantize": lambda: gpu.dequantize(matrix("q8_0")),
        "rmsnorm": lambda: gpu.rmsnorm(f32(3, D), f32(D), 1e-6),
        "add_rmsnorm_": lambda: gpu.add_rmsnorm_(f32(3, D), f32(3, D), f32(D), 1e-6),
        "place_qkv_": lambda: place(f32(HEAD), f32(HEAD), None),
        "place_qkv_ clipped rows": lambda: place(f32(HEADS * HEAD), f32(GROUPS * HEAD), 8.0),
        "place_qkv_ q8_0": lambda: place(f32(HEAD), f32(HEAD), None, "q8_0"),
        "glu": lambda: gpu.glu(f32(3, 2 * WIDTH)),
        "gated_add_": lambda: gpu.gated_add_(f32(3, D), f32(3, D), f32(3, 1)),
        "route": lambda: gpu.route(f32(1, D), router),
        "argmax": lambda: gpu.argmax(f32(3, VOCABULARY)),
        "pack": lambda: pack(job(torch.float32), f32(4, D), *choice, i32(EXPERTS), i32(4).bool()),
        "post": lambda: spin.post(i64(1), i64(1)),
        "wait": lambda: spin.wait(i64(1), i64(1), 20.0),
        "pack bf16": lambda: pack(job(torch.bfloat16), f32(4, D), *choice, None, i32(4).bool()),
        "decode bf16": lambda: attend(2, 2, "bf16"),
        "prefill bf16": lambda: attend(512, 2, "bf16"),
        "decode f32": lambda: attend(2, 2, "f32"),
        "decode q8_0": lambda: attend(2, 2, "q8_0"),
        "prefill q8_0": lambda: attend(512, 2, "q8_0"),
        "linear f32 1": lambda: gpu.linear(f32(1, D), matrix("f32", EXPERTS)),
        "linear f32 9": lambda: gpu.linear(f32(9, D), matrix("f32", EXPERTS)),
        "linear bf16 odd rows": lambda: gpu.linear(f32(1, D + 1), matrix("bf16", cols=D + 1)),
    }
    for name, most in BASIC:
        found |= linears(found, name, *(tokens for tokens in (1, 9, 512) if tokens <= most))
        found |= experts((name,) * 3, *(tokens for tokens in (1, 9, 512, 4096) if tokens <= most))
    for name in KINDS:
        found |= experts((name,) * 3, 1)
    for name in ("q4_k", "q6_k", "mxfp4"):
        found |= experts((name,) * 3, 9, 512)
    found |= experts(("q4_0",) * 3, 1536)  # as many tokens of an expert as are not unpacked before
    return found | linears(found, "q6_k", 1) | experts(MIX, 1, 9) | gpu_families.calls() | gpu_steps.calls()


def more_formats() -> dict[str, Any]:
    """Experts of the formats that `calls` leaves out, and few tokens of those that it has for one alone. Those of bf16
    halves differ in the name of a type only, iq2_s from iq2_xs in nothing."""
    found: dict[str, Any] = {}
    for name in FORMATS:
        if name not in dict(BASIC) and not name.endswith("_bf16") and name != "iq2_s":
            found |= experts((name,) * 3, 1, 9)
    return {label: call for label, call in found.items() if label not in calls()}


def f32(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device="meta")


def i32(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device="meta", dtype=torch.int32)


def i64(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device="meta", dtype=torch.int64)


def matrix(name: str, rows: int = 5120, cols: int = D) -> Matrix:
    return Matrix.empty(FORMATS[name], rows, cols, "meta")


def linears(there: dict[str, Any], name: str, *counts: int) -> dict[str, Any]:
    """A matrix times so many tokens, but for what is there."""
    made = {f"linear {name} {t}": lambda t=t: gpu.linear(f32(t, D), matrix(name)) for t in counts}
    return {label: call for label, call in made.items() if label not in there}


def experts(names: tuple[str, str, str], *counts: int) -> dict[str, Any]:
    """A layer's experts, with gate, up and down in these formats."""
    gate, up, down = (FORMATS[name] for name in names)
    layout = ExpertLayout(format=gate, up_format=up, down_format=down, hidden=D, width=WIDTH)
    bank = ExpertBank.empty(layout, EXPERTS, "meta")

    def call(tokens: int) -> torch.Tensor:
        return gpu.experts(f32(tokens, D), i32(tokens, TOP_K), f32(tokens, TOP_K), bank)

    return {f"experts {layout.name} {tokens}": partial(call, tokens) for tokens in counts}


def source_of(kernel: Kernel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ASTSource:
    """The kernel with the types and the alignments that a launch with these arguments compiles for."""
    function = kernel.function
    settle_key(function)
    given = dict(zip(function.arg_names, args, strict=False)) | {k: v for k, v in kwargs.items() if k not in OPTIONS}
    assert set(given) == set(function.arg_names), f"{kernel.__name__}: {set(function.arg_names) ^ set(given)}"
    signature, constants, attributes = {}, {}, {}
    for number, parameter in enumerate(function.params):
        value, aligned = given[parameter.name], False
        if parameter.is_constexpr or (type(value) is int and value == 1 and not parameter.do_not_specialize):
            signature[parameter.name], constants[(number,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
            aligned = value.data_ptr() % 16 == 0
        else:
            whole = "i32" if type(value) is int and abs(value) < 1 << 31 else "i64"
            signature[parameter.name] = "fp32" if isinstance(value, float) else whole
            aligned = isinstance(value, int) and value % 16 == 0 and not parameter.do_not_specialize
        if (number,) not in constants and aligned:
            attributes[(number,)] = [["tt.divisibility", 16]]
    return ASTSource(function, signature, constants, attributes)


def key_of(kernel: Kernel, source: ASTSource, options: dict[str, Any], target: int) -> str:
    """A digest of all that `facts` follow from, how they are read included."""
    reading = inspect.getsource(facts) + Path(machine_code.__file__).read_text(encoding="utf-8")
    parts = (triton.__version__, kernel.__name__, source.hash(), sorted(options.items()), target, reading)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def kept() -> dict[str, dict[str, Any]]:
    """By such a digest the facts that are kept."""
    if not KEPT.exists():
        return {}
    rows = map(json.loads, KEPT.read_text(encoding="utf-8").splitlines())
    return {row["key"]: row for row in rows}


def facts(kernel: Kernel, source: ASTSource, options: dict[str, Any], target: int) -> dict[str, Any]:
    """Compiles, and reads the assembler and the machine code."""
    done = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    ptx, cubin = done.asm["ptx"], done.asm["cubin"]
    loads = re.findall(r"ld\.global\S*|cp\.async\.c[ag]\.shared\.global[^;]*", ptx)
    constants = {kernel.function.arg_names[path[0]]: value for path, value in source.constants.items()}
    return {
        "kernel": kernel.__name__, "target": target, "triton": triton.__version__,
        "shared": done.metadata.shared, "warps": done.metadata.num_warps, "constants": constants,
        "loads": Counter(re.sub(r"\[[^]]*\]", "", load) for load in loads),
        "matrix": sorted(set(re.findall(r"\b((?:wg)?mma)\S*\.(m\d+n\d+k\d+\S*)", ptx))),
        "ftz": len(re.findall(r"\.ftz\.f32", ptx)),
        "atomics": len(re.findall(r"\b(?:atom|red)\.global", ptx)),
        "system": sorted(set(re.findall(r"\b(?:ld|st|fence)\.[\w.]*sys[\w.]*|\bnanosleep[\w.]*|%globaltimer", ptx))),
        "loops": [asdict(loop) for loop in machine_code.inner_loops(cubin)],
        **machine_code.usage(cubin),
    }  # fmt: skip


def main() -> None:
    jobs, *targets = [word for word in sys.argv[1:] if word != ANEW]
    known, seen = {} if ANEW in sys.argv else kept(), set()
    for label, kernel, args, kwargs in launches(jobs):
        source, options = source_of(kernel, args, kwargs), {k: v for k, v in kwargs.items() if k in OPTIONS}
        for target in map(int, targets):
            key = key_of(kernel, source, options, target)
            if key not in seen:
                seen.add(key)
                found = known.get(key) or facts(kernel, source, options, target)
                print(json.dumps({**found, "key": key, "label": label}), flush=True)


if __name__ == "__main__":
    main()
