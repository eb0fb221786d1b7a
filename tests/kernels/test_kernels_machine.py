"""The machinery around the C++ kernels: choice of instruction set, thread team, forks; and results that do not depend
on the batch a token is in.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from functools import cache

import pytest
import torch
from busy import HANG_S

from headrace.kernels import FORMATS, ExpertLayout, Format, _cpu, cpu, reference
from headrace.kernels.cases.block_formats import whole_blocks
from headrace.kernels.cases.case import RandomSource
from headrace.kernels.context import Context
from headrace.kernels.cpu import CpuOps
from headrace.kernels.isa import available_isas
from headrace.kernels.packed import ExpertBank, Matrix


@pytest.fixture(params=available_isas())
def ops(request: pytest.FixtureRequest) -> CpuOps:
    """The ops on each instruction set."""
    return CpuOps(Context(isa=request.param))


@pytest.fixture
def two() -> CpuOps:
    return CpuOps(Context(threads=2))


@pytest.fixture
def source() -> RandomSource:
    return RandomSource(torch.Generator().manual_seed(5))


def run_python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=HANG_S)


# Instruction sets


def test_portable_is_always_there_and_the_best_comes_last() -> None:
    names = available_isas()
    assert names[0] == "portable"
    assert names == tuple(name for name in ("portable", "avx2", "avx512", "amx") if name in names)


def test_a_context_that_cannot_be_is_our_own_mistake() -> None:
    for wrong in ({"isa": "sse9"}, {"threads": 0}, {"activations": "int4"}, {"tiles_from": {"q8_0": 0}}):
        with pytest.raises(AssertionError, match=next(iter(wrong)).split("_")[0]):
            Context(**wrong)


def test_environment_forces_an_isa() -> None:
    done = run_python("from headrace.kernels import context; print(context.Context().isa)", HEADRACE_ISA="portable")
    assert done.stdout.strip() == "portable", done.stderr


def test_environment_with_an_unknown_isa_fails_at_import() -> None:
    done = run_python("from headrace.kernels import context", HEADRACE_ISA="neon2")
    assert done.returncode != 0
    (text,) = [line for line in done.stderr.splitlines() if "OptionError: HEADRACE_ISA=neon2 cannot be used" in line]
    assert ", ".join(available_isas()) in text
    assert "unset it" in text


@pytest.mark.parametrize(("gate", "down"), [("q4_k", "q6_k"), ("q4_0", "q4_k"), ("q8_0", "q2_k"), ("q3_k", "mxfp4")])
def test_an_expert_of_two_formats_goes_through_tiles_too(source: RandomSource, gate: str, down: str) -> None:
    """Tokens lie otherwise for each kind of scales: what gate and up leave has to become what `down` wants."""
    if "avx512" not in available_isas():
        pytest.skip("other instruction sets have tiles for two formats, of one kind each")
    layout = ExpertLayout(format=FORMATS[gate], hidden=512, width=256, down_format=FORMATS[down])
    bank = source.bank(layout, 3)
    tokens = 37
    x = torch.randn(tokens, 512, generator=source.generator)
    ids = torch.arange(3, dtype=torch.int32).repeat(tokens, 1)[:, :2].contiguous()
    weights = torch.full((tokens, 2), 0.5)

    def run(start: int, part: slice = slice(None)) -> torch.Tensor:
        ops = CpuOps(Context(isa="avx512", tiles_from={gate: start, down: start}))
        return ops.experts(x[part], ids[part], weights[part], bank)

    tiles, dots = run(1), run(1000)
    assert not torch.equal(tiles, dots), "tiles add in another order"
    torch.testing.assert_close(tiles, dots, rtol=0, atol=0.01 * float(dots.abs().max()))
    assert torch.equal(tiles, torch.cat([run(1, slice(t, t + 8)) for t in range(0, tokens, 8)]))


def test_activations_are_rounded_to_int8_or_not(ops: CpuOps, source: RandomSource) -> None:
    matrix, x = source.matrix(FORMATS["q4_0"], 40, 544), torch.randn(2, 544, generator=source.generator)
    expected = reference.linear(x, matrix)
    rounded = ops.linear(x, matrix)
    exact = CpuOps(replace(ops.context, activations="bf16")).linear(x, matrix)
    assert torch.equal(ops.linear(x, matrix), rounded)
    assert (exact - expected).norm() < 1e-5 * expected.norm() < (rounded - expected).norm()


def test_peaks_are_measured_where_there_are_such_instructions(ops: CpuOps) -> None:
    context, isa = ops.context, ops.context.isa
    assert cpu.peak_rate(context, "float multiply-adds") > 0
    assert (cpu.peak_rate(context, "bf16 tiles") > 0) == (isa == "amx")
    assert bool(context.tile_tokens) == (isa in ("avx512", "amx"))
    assert (cpu.peak_rate(context, "int8 tiles") > 0) == (isa == "amx")
    has_bf16 = {"avx512bf16", "avx512vbmi"} <= {*_cpu.cpu_features()}
    assert (cpu.peak_rate(context, "bf16 dot products") > 0) == (has_bf16 and isa in ("avx512", "amx"))
    assert ("bf16" in context.tile_tokens) == (has_bf16 and isa in ("avx512", "amx"))
    assert (cpu.peak_rate(context, "int8 dot products") > 0) == (isa in ("avx512", "amx"))


@cache
def weights_of(form: Format) -> tuple[Matrix, ExpertBank]:
    """A matrix and two experts, packed once for all tests of a format."""
    source = RandomSource(torch.Generator().manual_seed(8))
    cols, width = whole_blocks(544, form), whole_blocks(64, form)
    return source.matrix(form, 33, cols), source.bank(ExpertLayout(format=form, hidden=cols, width=width), 2)


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
@pytest.mark.parametrize("tokens", [1, 20], ids=["dots", "tiles"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_not_lost(ops: CpuOps, form: Format, bad: float, tokens: int) -> None:
    """An activation that is NaN or infinite shows in its token, and in no other, however activations are rounded."""
    matrix, bank = weights_of(form)
    x = torch.randn(tokens, matrix.cols, generator=torch.Generator().manual_seed(9))
    x[tokens // 2, 300] = bad
    ids = torch.zeros(tokens, 1, dtype=torch.int32)
    for y in (ops.linear(x, matrix), ops.experts(x, ids, torch.ones(tokens, 1), bank)):
        lost = y.isfinite().any(1)
        assert not lost[tokens // 2]
        assert y[torch.arange(tokens) != tokens // 2].isfinite().all()


# A token's result does not depend on its company, as long as all go the same way: by dot products or by tiles


def batches(ops: CpuOps, form: Format, tokens: int) -> list[tuple[slice, list[slice]]]:
    """Batches, each with parts of it that take the same way."""
    least = ops.context.tile_tokens.get(form.name, 0)
    few = slice(0, least - 1 if least else tokens)
    ways = [(few, [slice(t, t + 1) for t in (0, few.stop // 2, few.stop - 1)] + [slice(few.stop // 2, few.stop)])]
    if least:
        sizes = [slice(3, 3 + least + more) for more in (0, 5, 7, 9)]
        ways.append((slice(0, tokens), [slice(0, least), *sizes, slice(5, 40), slice(16, tokens)]))
    return ways


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
def test_linear_gives_a_token_the_same_bits_in_any_batch(ops: CpuOps, form: Format, source: RandomSource) -> None:
    matrix = source.matrix(form, 71, whole_blocks(544, form))
    x = torch.randn(77, matrix.cols, generator=source.generator)
    for whole, parts in batches(ops, form, 77):
        together = ops.linear(x[whole], matrix)
        for part in parts:
            assert torch.equal(ops.linear(x[part], matrix), together[part]), f"{part} of {whole}"


@pytest.mark.parametrize("name", ["mxfp4", "q4_0"])
def test_a_token_has_the_same_bits_beside_any_magnitude(ops: CpuOps, name: str, source: RandomSource) -> None:
    """Powers of two are multiplied by adding exponents, but not where one of eight tokens would overflow."""
    matrix = source.matrix(FORMATS[name], 33, 544)
    x = torch.randn(24, 544, generator=source.generator)
    x[3, 64:96], x[4], x[9, 5] = 0.0, 0.0, float("nan")
    x[1], x[2], x[10] = x[1] * 1e-30, x[2] * 1e25, x[10] * 1e-38
    together, least = ops.linear(x, matrix), ops.context.tile_tokens.get(name, 1)
    for t in (0, 1, 2, 3, 4, 8, 10, 20):
        alone = ops.linear(x[t].repeat(least, 1), matrix)
        assert torch.equal(alone[0], together[t]), f"token {t}"


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
def test_experts_give_a_token_the_same_bits_in_any_batch(ops: CpuOps, form: Format, source: RandomSource) -> None:
    bank = source.bank(ExpertLayout(format=form, hidden=whole_blocks(96, form), width=whole_blocks(64, form)), 6)
    x = torch.randn(77, bank.layout.hidden, generator=source.generator)
    weights = torch.rand(77, 2, generator=source.generator)
    ids = torch.tensor([[4, 1], [1, 4]], dtype=torch.int32).repeat(39, 1)[:77]  # every token counts for both
    for whole, parts in batches(ops, form, 77):
        together = ops.experts(x[whole], ids[whole], weights[whole], bank)
        for part in parts:
            alone = ops.experts(x[part], ids[part], weights[part], bank)
            assert torch.equal(alone, together[part]), f"{part} of {whole}"


def test_experts_in_chunks_of_tokens(ops: CpuOps, source: RandomSource) -> None:
    """More tokens than one chunk's memory holds: 128 MB of float32 for every token's every expert."""
    bank = source.bank(ExpertLayout(format=FORMATS["q4_0"], hidden=8192, width=32), 2)
    tokens = 2100
    x = torch.randn(tokens, 8192, generator=source.generator)
    ids, weights = torch.tensor([[0, 1]], dtype=torch.int32).repeat(tokens, 1), torch.ones(tokens, 2)
    together = ops.experts(x, ids, weights, bank)
    assert torch.equal(ops.experts(x[-60:], ids[-60:], weights[-60:], bank), together[-60:])


# The team


def test_team_survives_many_empty_regions(two: CpuOps) -> None:
    for _ in range(10):
        assert cpu.region_ns(two.context, 10_000) > 0
    assert cpu.barrier_ns(two.context, 10_000) > 0


def test_the_first_op_of_a_process_may_need_no_memory() -> None:
    code = (
        "import torch; from headrace.kernels.context import Context; from headrace.kernels.cpu import CpuOps; "
        "from headrace.kernels.packed import Matrix; "
        "print(CpuOps(Context()).linear_by_head(torch.ones(1, 1, 8), Matrix.plain(torch.ones(1, 8))).item())"
    )
    run = run_python(code)
    assert (run.returncode, run.stdout.strip()) == (0, "8.0"), run.stderr


def test_teams_of_several_sizes_take_turns(source: RandomSource) -> None:
    """From several threads at once, each with a context of its own."""
    matrix, x = source.matrix(FORMATS["q8_0"], 300, 512), torch.randn(4, 512)
    ways = [Context(threads=n, activations=a) for n in (1, 2, 3) for a in ("int8", "bf16")]
    expected = {a: CpuOps(Context(activations=a)).linear(x, matrix) for a in ("int8", "bf16")}
    wrong: list[Context] = []

    def work(context: Context) -> None:
        ops = CpuOps(context)
        wrong.extend(
            context for _ in range(50) if not torch.equal(ops.linear(x, matrix), expected[context.activations])
        )

    workers = [threading.Thread(target=work, args=(context,)) for context in ways]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert not any(worker.is_alive() for worker in workers)
    assert not wrong


def test_team_wakes_up_after_sleeping(source: RandomSource) -> None:
    three = CpuOps(Context(threads=3))
    matrix, x = source.matrix(FORMATS["f32"], 300, 512), torch.randn(2, 512)
    expected = three.linear(x, matrix)
    for _ in range(20):
        threading.Event().wait(0.002)
        assert torch.equal(three.linear(x, matrix), expected)


def test_ops_from_several_python_threads_take_turns(two: CpuOps, source: RandomSource) -> None:
    matrix, x = source.matrix(FORMATS["q8_0"], 300, 512), torch.randn(4, 512)
    expected = two.linear(x, matrix)
    wrong = []

    def work() -> None:
        wrong.extend(n for n in range(50) if not torch.equal(two.linear(x, matrix), expected))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=HANG_S)
    assert not any(worker.is_alive() for worker in workers)
    assert not wrong


def test_child_of_a_fork_gets_a_team_of_its_own() -> None:
    code = """
import os, torch
from headrace.kernels import load
from headrace.kernels.packed import Matrix
from headrace.kernels.context import Context
ops = load("cpu", Context(threads=2))
matrix, x = Matrix.plain(torch.randn(300, 512)), torch.randn(2, 512)
expected = ops.linear(x, matrix)
child = os.fork()
same = torch.equal(ops.linear(x, matrix), expected)
if child == 0:
    os._exit(0 if same else 1)
print(same, os.waitpid(child, 0)[1])
"""
    assert run_python(code).stdout.split() == ["True", "0"]


def test_unknown_expert_id_is_refused(two: CpuOps, source: RandomSource) -> None:
    bank = source.bank(ExpertLayout(format=FORMATS["f32"], hidden=8, width=8), 2)
    with pytest.raises(IndexError, match="expert id 2 in a bank of 2"):
        two.experts(torch.randn(1, 8), torch.tensor([[2]], dtype=torch.int32), torch.ones(1, 1), bank)


def test_unknown_token_id_is_refused(two: CpuOps, source: RandomSource) -> None:
    for wrong in (-1, 3):
        with pytest.raises(IndexError, match=f"token id {wrong} in a table of 3"):
            two.embed(source.matrix(FORMATS["f32"], 3, 8), torch.tensor([0, wrong]))


# Measuring


def test_stream_read_and_huge_pages(two: CpuOps) -> None:
    data = torch.empty(8 << 20, dtype=torch.uint8)
    assert isinstance(cpu.advise_huge(data), bool)
    data.fill_(1)
    assert cpu.stream_read(two.context, data) > 0
    assert cpu.stream_read(two.context, data[:5]) > 0
    assert not _cpu.advise_huge(data.data_ptr(), 0)


def test_features_and_threads_are_plausible() -> None:
    assert 1 <= Context().threads <= (os.cpu_count() or 1)
    assert ("avx2" in cpu.cpu_features()) or "avx2" not in available_isas()
