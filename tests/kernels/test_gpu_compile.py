"""Every Triton kernel compiles for every supported architecture, and the machine code is what its author meant.

By the Triton of the machine that the kernels are meant for, which `make target` puts into build/target: every launch,
for its GPU. By the one that is installed: the launches that differ in more than the format or the size of a tile, and
for other GPUs one launch of every kernel. So of a format that has no launch of its own in `gpu_compile.CORE` nothing is
said here about the installed version; `benchmarks/gpu_kernel_table.py` compares both in all. Nothing needs a GPU: see
`benchmarks/gpu_compile.py`. What compilers made of a launch is kept in benchmarks/machine_code.jsonl until something
changes that it follows from; a few launches are compiled anew and must be what is kept.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import target_versions

pytest.importorskip("triton", reason="the GPU kernels need Triton", exc_type=ImportError)
from gpu_bounds import BOUNDS
from gpu_kernel_table import KEPT, TARGETS, barriers, compile_all, instructions_a_weight, rows_for_tests

from headrace.kernels import gpu
from headrace.kernels.gpu import pack, spin  # noqa: F401 (their kernels count too)
from headrace.kernels.gpu.cores.constants import about
from headrace.kernels.gpu.kernel import Kernel

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SHARED = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10, 120: 99 << 10}  # bytes that one program may have
Facts = list[dict[str, Any]]


@pytest.fixture(scope="module", params=["installed", "target"])
def compiled(request: pytest.FixtureRequest) -> Facts:
    """What was compiled, a row for each kernel, launch and architecture; with the target's version for sm_90 alone."""
    return rows_for_tests(str(target_versions.folder()) if request.param == "target" else None)


def kernels() -> set[str]:
    """Names of all kernels that are launched."""
    modules = [module for name, module in sys.modules.items() if name.startswith(gpu.__name__ + ".")]
    return {name for m in modules for name, value in vars(m).items() if isinstance(value, Kernel)}


def rows_of(compiled: Facts, *kernels: str, label: str = "") -> Facts:
    """The rows of some kernels, from launches whose label contains a text."""
    rows = [row for row in compiled if row["kernel"] in kernels and label in row["label"]]
    assert rows, f"{kernels} {label} was never compiled"
    return rows


def name_of(row: dict[str, Any]) -> str:
    return f"{row['kernel']} ({row['label']}) for sm_{row['target']}"


FEW = ("_linear_few", "_by_head_few", "_gate_up_few", "_down_few")  # up to 16 tokens, on tensor cores
MANY_EXACT = ("_linear_many", "_down", "_unpack_rows", "_unpack_experts")  # without an exponential function in them


def reads_weights_once(row: dict[str, Any]) -> bool:
    """Whether a launch is a matter of bytes: few tokens, or decode attention."""
    return row["label"].endswith(" 1") or row["kernel"] in (*FEW, "_decode", "_decode_placed", "_latent", "_merge")


def test_what_is_kept_is_what_compilers_make(compiled: Facts) -> None:
    """A few launches are compiled now; and everything is kept, so that nobody waits for what did not change."""
    targets = sorted({row["target"] for row in compiled})
    folder = str(target_versions.folder()) if targets == [90] else None
    anew = compile_all(folder, "sample", tuple(targets), is_anew=True)
    known = {row["key"]: row for row in map(json.loads, KEPT.read_text(encoding="utf-8").splitlines())}
    assert len(anew) >= len(targets)
    assert [known.get(row["key"]) for row in anew] == anew
    missing = sorted({name_of(row) for row in compiled if row["key"] not in known})
    assert not missing, f"run python benchmarks/gpu_kernel_table.py build/target --keep: {missing[:5]}"


def test_every_kernel_compiles_everywhere(compiled: Facts) -> None:
    there = {(row["kernel"], row["target"]) for row in compiled}
    targets = {row["target"] for row in compiled}
    assert there == {(kernel, target) for kernel in kernels() for target in targets}
    assert targets in ({90}, set(TARGETS))


def test_programs_fit_into_shared_memory(compiled: Facts) -> None:
    for row in compiled:
        assert row["shared"] <= SHARED[row["target"]], name_of(row)


def test_nothing_spills_where_bytes_count(compiled: Facts) -> None:
    """Tiles of many tokens may keep up to 96 bytes on the stack: they are bound by arithmetic, and sm_120's compiler
    does so in prefill; tiles of few tokens 16. The rest must not; a stack would be traffic that no ledger counts."""
    for row in compiled:
        most = 96 if row["kernel"] in ("_prefill", "_linear_many", "_by_head_many", "_gate_up", "_down") else 0
        few = 16 if row["kernel"] in FEW else 0
        assert row["stack"] <= (few if reads_weights_once(row) else most), name_of(row)
        assert row["local"] == 0, name_of(row)


def test_weights_of_one_token_come_in_16_byte_loads(compiled: Facts) -> None:
    """Weights are the loads that say "evict first", of the higher bits of codes in two planes half as wide ones; three
    blocks of 128 threads fit on a multiprocessor."""
    for row in rows_of(compiled, "_linear_one", "_norm_linear", "_gate_up", "_down", label=" 1"):
        if row["label"].endswith(" 1"):
            weights = {load for load in row["loads"] if "evict_first" in load}
            assert weights, name_of(row)
            wide = (".v4.b32", ".v2.b32") if about(row["constants"]["FORMAT"], "high") else (".v4.b32",)
            assert any(load.endswith(".v4.b32") for load in weights), f"{name_of(row)}: {weights}"
            assert all(load.endswith(wide) for load in weights), f"{name_of(row)}: {weights}"
            assert row["reg"] <= 168, name_of(row)


def test_threads_of_one_token_never_wait_for_each_other(compiled: Facts) -> None:
    """Each thread multiplies what it loads: a barrier in the loop would mean that weights go through shared memory."""
    for row in rows_of(compiled, "_linear_one", "_norm_linear", "_gate_up", "_down"):
        if "GRANULES" in row["constants"] and row["constants"]["WHOLE"]:
            assert row["loops"], name_of(row)
            assert barriers(row) == 0, f"{name_of(row)} with Triton {row['triton']}"


def test_no_kernel_takes_more_than_it_did(compiled: Facts) -> None:
    """Barriers in inner loops, instructions a weight, registers and shared memory, each kernel and format by itself."""
    rows = {(row["kernel"], row["label"]): row for row in compiled if row["target"] == 90}
    is_all = {row["target"] for row in compiled} == {90}
    assert set(BOUNDS) <= set(rows) if is_all else len(set(BOUNDS) & set(rows)) >= 30
    for key, most in BOUNDS.items():
        if key not in rows:
            continue
        row = rows[key]
        took = barriers(row), instructions_a_weight(row) or 0.0, row["reg"], row["shared"]
        assert all(a <= b for a, b in zip(took, most, strict=True)), f"{name_of(row)}, {row['triton']}: {took}, {most}"


def test_rows_that_begin_anywhere_are_read_by_elements(compiled: Facts) -> None:
    """2049 columns of bf16: 16 bytes at once would be an address that no GPU takes."""
    for row in compiled:
        if row["label"] == "linear bf16 odd rows":
            weights = {load for load in row["loads"] if "evict_first" in load}
            assert weights, name_of(row)
            assert all(load.endswith(".b16") for load in weights), f"{name_of(row)}: {weights}"
            assert barriers(row) <= 6, name_of(row)


def test_keys_and_weights_of_many_come_in_16_byte_copies(compiled: Facts) -> None:
    for row in rows_of(compiled, "_decode", "_decode_placed", "_latent", "_prefill", "_linear_many", label="bf16"):
        copies = {load for load in row["loads"] if load.startswith("cp.async")}
        assert copies, name_of(row)
        assert all("cp.async.cg" in load and "0x10" in load for load in copies), f"{name_of(row)}: {copies}"


def test_all_that_few_tokens_need_is_fetched_ahead(compiled: Facts) -> None:
    """Codes, scales and activations: where steps divide the row evenly, the loop of up to 16 tokens has no load that a
    step waits for; codes come 16 bytes at a time, or, of planes of 2 bits, 8."""
    for row in rows_of(compiled, *FEW):
        odd = "biased" in row["label"] or "geglu" in row["label"]  # 2880 and 704 columns
        assert row["constants"]["EVEN"] or odd, name_of(row)
        copies = {load for load in row["loads"] if load.startswith("cp.async")}
        assert any("0x10" in load for load in copies), f"{name_of(row)}: {copies}"
        others = set(row["loads"]) - copies  # ids and places, parts of sums, a factor of a row
        assert all(load.endswith(".b32") for load in others), f"{name_of(row)}: {others}"
        if row["kernel"] in ("_linear_few", "_by_head_few") and row["constants"]["FORMAT"] != "nvfp4":
            assert all(".cg" in load for load in others), f"{name_of(row)}: {others}"


def test_small_numbers_stay_what_they_are(compiled: Facts) -> None:
    """Floats of 4 and 8 bits are read as parts of floats below the normal ones, which must not count as 0."""
    for row in rows_of(compiled, "_linear_one", "_linear_few", "_by_head_few", "_down_few", *MANY_EXACT):
        assert row["ftz"] == 0, name_of(row)


def test_a_job_crosses_the_link_in_wide_pieces(compiled: Facts) -> None:
    for row in rows_of(compiled, "_pack"):
        assert any(load.endswith(".v4.b32") for load in row["loads"]), f"{name_of(row)}: {row['loads']}"


def test_flags_are_read_and_written_for_the_host(compiled: Facts) -> None:
    """By loads and stores that the whole system sees in order; by no atomic operation, which a link may not have."""
    for row in rows_of(compiled, "_wait"):
        assert row["system"] == ["%globaltimer", "ld.global.sys.acquire.b64", "nanosleep.u32"], name_of(row)
    for row in rows_of(compiled, "_post"):
        assert row["system"] == ["fence.acq_rel.sys", "st.release.sys.global.u64"], name_of(row)


def test_products_run_on_tensor_cores(compiled: Facts) -> None:
    attention, products = (
        ("_decode", "_decode_placed", "_latent", "_prefill"),
        ("_linear_many", "_by_head_many", "_gate_up", "_down"),
    )
    for row in rows_of(compiled, *attention, *products, *FEW):
        if row["kernel"] in ("_gate_up", "_down") and reads_weights_once(row):
            assert not row["matrix"], name_of(row)
        else:
            kind = "tf32" if "f32" in row["label"] or "f16" in row["label"].split() else "bf16"
            assert row["matrix"], name_of(row)
            assert all(kind in shape for _, shape in row["matrix"]), name_of(row)


def test_hopper_uses_its_own_instructions_for_many_tokens(compiled: Facts) -> None:
    for row in rows_of(compiled, "_linear_many", "_by_head_many", "_gate_up", "_down", "_prefill"):
        if row["target"] == 90 and row["label"].split()[-1] in ("512", "1536", "4096", "bf16"):
            assert {name for name, _ in row["matrix"]} == {"wgmma"}, name_of(row)


def test_two_programs_of_many_tokens_fit_on_a_multiprocessor(compiled: Facts) -> None:
    """As `launch.resident` says: 65,536 registers and 228 KiB of shared memory, of which a program takes 1 KiB more."""
    rows = [row for row in rows_of(compiled, "_gate_up", "_down") if row["warps"] == 8 and row["target"] == 90]
    assert rows
    for row in rows:
        assert 2 * 256 * row["reg"] <= 65536, name_of(row)
        assert 2 * (row["shared"] + 1024) <= 228 << 10, name_of(row)


def test_experts_are_unpacked_for_less_than_a_tile_more_takes(compiled: Facts) -> None:
    """Once, and then tiles of bf16, against a tile that unpacks: of two tiles of tokens an expert."""
    rows = {(row["kernel"], row["label"]): instructions_a_weight(row) for row in compiled if row["target"] == 90}
    if ("_gate_up", "experts q4_0 1536") in rows:
        once, tile = rows["_unpack_experts", "experts q4_0 4096"], rows["_gate_up", "experts bf16 4096"]
        again = rows["_gate_up", "experts q4_0 1536"]
        assert once is not None
        assert tile is not None
        assert again is not None
        assert once + 2 * tile < 0.6 * 2 * again


def test_a_state_stays_in_the_registers_of_its_warp(compiled: Facts) -> None:
    """Nothing of the delta rule's state goes to memory before the last token; programs are of one warp, whose barriers
    keep nobody waiting, and what its threads exchange is a token's key and change, no part of the state."""
    for row in rows_of(compiled, "_delta_rule"):
        assert row["warps"] == 1, name_of(row)
        assert row["stack"] == row["local"] == 0, name_of(row)
        assert row["shared"] <= 1024, name_of(row)


def test_sums_have_a_fixed_order(compiled: Facts) -> None:
    """No kernel adds to memory that another program adds to, but for one that counts who has arrived: who is last adds
    up what all have written, in their order."""
    always, divided = ("_decode_placed", "_norm_route", "_best"), ("_linear_few", "_down_few")
    for row in compiled:
        name = row["kernel"]
        assert (name in always) <= row["atomics"] <= (name in (*always, *divided)), name_of(row)


@pytest.mark.parametrize("version", ["installed", "target"])
def test_a_kernel_is_known_by_the_same_key_whatever_came_before(version: str) -> None:
    """Else the cache on disk would have it for one order of launches alone."""
    code = (
        "import sys, gpu_compile\n"
        "found = {label: gpu_compile.source_of(*rest) for label, *rest in gpu_compile.launches('core')\n"
        "         if label in sys.argv[1:]}\n"
        "print(found['linear q4_0 1'].hash(), found['experts q4_0 1'].hash())\n"
    )
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    folders = [BENCHMARKS, *([target_versions.folder()] if version == "target" else [])]
    env["PYTHONPATH"] = os.pathsep.join(map(str, folders))
    orders = (("linear q4_0 1", "experts q4_0 1"), ("embed", "linear q4_0 1", "experts q4_0 1", "linear q4_0 512"))
    said = {
        subprocess.run(
            [sys.executable, "-c", code, *labels], env=env, capture_output=True, text=True, check=True
        ).stdout
        for labels in orders
    }
    assert len(said) == 1, said
