"""What `gpu_suite.py` checks: every small case of `kernels/cases/all.py`, and real shapes, against the plain twin in
float32 on the same GPU, within the bounds of `kernels/cases/case.py`. `families`: the same of what newer families have.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from gpu_child import Keep, nobody
from gpu_rows import GpuSource

from headrace.kernels import FORMATS, Ops, reference
from headrace.kernels.blocks.cache_rows import Q8Rows
from headrace.kernels.cases.all import CASES
from headrace.kernels.cases.block_formats import BLOCK_CASES
from headrace.kernels.cases.case import Case, Inputs, worst
from headrace.kernels.cases.families import FAMILY_CASES
from headrace.kernels.cases.recurrent import RECURRENT_CASES

LARGE = ("linear bf16 512x2048x2048", "linear q8_0 512x2048x2048", "linear q4_0 512x2048x2048",
         "linear q4_0 1x65536x2048", "experts bf16 64x2048x1024 512 tokens top 8",
         "experts q8_0 64x2048x1024 512 tokens top 8", "experts q4_0 64x2048x1024 512 tokens top 8",
         "experts q4_0 64x2048x1024 16 tokens top 8", "experts q4_0 128x2048x768 1 tokens top 8",
         "argmax 1x151936")  # fmt: skip
LARGE_OF_FAMILIES = ("experts mxfp4 32x2880x2880 1 tokens top 4 biased alpha 1.702 offset 1.0 limit 7.0",
                     "experts mxfp4 32x2880x2880 512 tokens top 4 biased alpha 1.702 offset 1.0 limit 7.0",
                     "linear_by_head q8_0 512x128x512x128", "delta_rule 32/16 heads 128x128 new [512] after [100]",
                     "short_conv 8192 channels 4 taps new [512] after [100]")  # fmt: skip
STEP = 20  # cases between two reports
FUSED = 2.0**-6  # of numbers about 1, which may be rounded to bf16 the other way


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
    """What the kernels round on a GPU, in the terms of `kernels/cases/case.py`: activations to bf16. One token of codes
    in two planes or of 2 bits stays as it is, which is not told apart."""
    found: Inputs = {"activations": "bf16", "tile_rows": 1}
    if case.op in ("linear", "linear_by_head", "experts"):
        found["tiles"] = {form.name: 1 for form in FORMATS.values() if form.is_block or form.name == "bf16"}
    if case.op == "attention" and isinstance(inputs["k"], Q8Rows):
        found["attention"] = 2.0**-8  # what is widened is rounded
    elif case.op == "attention":
        q, k, v = inputs["q"], inputs["k"], inputs["v"]
        is_latent = v.shape[3] < k.shape[3] and v.stride() == k.stride()
        exact = is_latent or len(q) == len(inputs["contexts"]) or k.dtype == torch.float32
        found["attention"] = 2.0**-17 if exact else 2.0**-8
    return found


def check(case: Case, ops: Ops, device: torch.device) -> list[str]:
    """What is wrong with a case's results, output by output."""
    source = GpuSource(torch.Generator(device).manual_seed(1))
    inputs = {k: to(v, device) for k, v in case.build(torch.Generator().manual_seed(1), source).items()}
    expected = case.call(reference, inputs)  # type: ignore[arg-type]
    allowed = case.allowed({**inputs, **roundings(case, inputs)}, expected)
    if case.op in ("attention_block", "layers"):  # what they are less what their parts are, in other orders of sums
        allowed = [FUSED] * len(allowed)
    outcome = case.call(ops, inputs)
    problems = [worst(*three) for three in zip(outcome, expected, allowed, strict=True)]
    return [f"{case.op} {case.name}, output {n}: {text}" for n, text in enumerate(problems) if text]


def checks(ops: Ops, device: torch.device, chosen: list[Case], keep: Keep = nobody) -> dict[str, Any]:
    """Runs cases; a kernel that raises is a failure like any other."""
    failures: list[str] = []
    for number, case in enumerate(chosen, 1):
        try:
            found = check(case, ops, device)
        except Exception as error:
            found = [f"{case.op} {case.name}: {type(error).__name__}: {str(error)[:300]}"]
        for text in found:
            print(f"  WRONG {text}", flush=True)
        failures += found
        if found or number % STEP == 0:
            keep({"cases": number, "of": len(chosen), "failures": failures})
    return {"cases": len(chosen), "of": len(chosen), "failures": failures}


def named(name: str) -> list[Case]:
    """Cases whose name contains `name`, small ones first, then those of real shapes; those of further formats and of
    newer families only by name, since their kernels are many. Packing stays with the twin, which is the GPU's own."""
    families = [*FAMILY_CASES, *RECURRENT_CASES]
    if name == "families":
        wanted = families
    else:
        cases = [*CASES, *BLOCK_CASES, *families] if name else CASES
        wanted = [c for c in cases if c.op not in ("quantize", "repack") and name in f"{c.op} {c.name}"]
    if not wanted:
        raise ValueError(f"no case is called '{name}'")
    large = (*LARGE, *LARGE_OF_FAMILIES)
    return [c for c in wanted if not c.bench] + [c for c in wanted if f"{c.op} {c.name}" in large]


def failures(found: dict[str, Any]) -> list[str]:
    """Outputs that are wrong."""
    return list(found.get("failures", []))


def show(found: dict[str, Any]) -> list[str]:
    """A line for the screen."""
    return [f"{found['cases']} cases, {len(found['failures'])} wrong outputs"]
