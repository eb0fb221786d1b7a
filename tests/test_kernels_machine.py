"""The machinery around the C++ kernels: choice of instruction set, thread team, forks; and results that do not depend
on the batch a token is in.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch
from headrace.errors import OptionError
from headrace.kernels import FORMATS, ExpertLayout, Format, _cpu, cpu
from headrace.kernels.cases import RandomSource, paged


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    isa, threads = cpu.isa(), cpu.threads()
    yield
    cpu.use_isa(isa)
    cpu.set_threads(threads)


@pytest.fixture(params=cpu.available_isas())
def isa(request: pytest.FixtureRequest) -> str:
    cpu.use_isa(request.param)
    return str(request.param)


@pytest.fixture
def source() -> RandomSource:
    return RandomSource(torch.Generator().manual_seed(5))


def run_python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=60)


# Instruction sets


def test_portable_is_always_there_and_the_best_comes_last() -> None:
    names = cpu.available_isas()
    assert names[0] == "portable"
    assert names == [name for name in ("portable", "avx2", "avx512") if name in names]


def test_unknown_isa_names_value_choice_and_remedy() -> None:
    with pytest.raises(OptionError) as error:
        cpu.use_isa("sse9")
    text = str(error.value)
    assert "HEADRACE_ISA=sse9" in text
    assert ", ".join(cpu.available_isas()) in text
    assert "unset it" in text
    assert "\n" not in text


def test_environment_forces_an_isa() -> None:
    done = run_python("from headrace.kernels import cpu; print(cpu.isa())", HEADRACE_ISA="portable")
    assert done.stdout.strip() == "portable", done.stderr


def test_environment_with_an_unknown_isa_fails_at_import() -> None:
    done = run_python("import headrace.kernels.cpu", HEADRACE_ISA="neon2")
    assert done.returncode != 0
    assert "OptionError: HEADRACE_ISA=neon2 cannot be used" in done.stderr


# A token's result does not depend on its company


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
def test_linear_gives_a_token_the_same_bits_in_any_batch(isa: str, form: Format, source: RandomSource) -> None:
    matrix = source.matrix(form, 71, 544)
    x = torch.randn(37, 544, generator=source.generator)
    together = cpu.linear(x, matrix)
    for t in (0, 1, 17, 36):
        assert torch.equal(cpu.linear(x[t : t + 1], matrix)[0], together[t])
    assert torch.equal(cpu.linear(x[3:8], matrix), together[3:8])


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
def test_experts_give_a_token_the_same_bits_in_any_batch(isa: str, form: Format, source: RandomSource) -> None:
    bank = source.bank(ExpertLayout(format=form, hidden=96, width=64), 6)
    x = torch.randn(21, 96, generator=source.generator)
    ids = torch.rand(21, 6, generator=source.generator).argsort(-1)[:, :2].to(torch.int32).contiguous()
    weights = torch.rand(21, 2, generator=source.generator)
    together = cpu.experts(x, ids, weights, bank)
    for t in (0, 9, 20):
        one = slice(t, t + 1)
        assert torch.equal(cpu.experts(x[one], ids[one].contiguous(), weights[one].contiguous(), bank)[0], together[t])


@pytest.mark.parametrize("page", [16, 48])
def test_attention_gives_a_token_the_same_bits_in_a_prompt_and_alone(isa: str, page: int) -> None:
    g = torch.Generator().manual_seed(7)
    context, N, G, d = 1100, 4, 2, 80
    cache = paged(g, [context], G, page, d, torch.bfloat16)
    q = torch.randn(90, N, d, generator=g)

    def run(first: int, n: int) -> torch.Tensor:
        starts = torch.tensor([0, n], dtype=torch.int32)
        contexts = torch.tensor([context - 90 + first + n], dtype=torch.int32)
        return cpu.attention(q[first : first + n], cache["k"], cache["v"], cache["tables"], starts, contexts, 0.1)

    prompt = run(0, 90)
    for t in (0, 1, 31, 32, 89):
        assert torch.equal(run(t, 1)[0], prompt[t])


# The team


def test_team_survives_many_empty_regions() -> None:
    cpu.set_threads(2)
    for _ in range(10):
        assert cpu.region_ns(10_000) > 0
    assert cpu.barrier_ns(10_000) > 0


def test_team_wakes_up_after_sleeping(source: RandomSource) -> None:
    cpu.set_threads(3)
    matrix, x = source.matrix(FORMATS["f32"], 300, 512), torch.randn(2, 512)
    expected = cpu.linear(x, matrix)
    for _ in range(20):
        threading.Event().wait(0.002)
        assert torch.equal(cpu.linear(x, matrix), expected)


def test_ops_from_several_python_threads_take_turns(source: RandomSource) -> None:
    matrix, x = source.matrix(FORMATS["q8_0"], 300, 512), torch.randn(4, 512)
    expected = cpu.linear(x, matrix)
    wrong = []

    def work() -> None:
        wrong.extend(n for n in range(50) if not torch.equal(cpu.linear(x, matrix), expected))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert not any(worker.is_alive() for worker in workers)
    assert not wrong


def test_child_of_a_fork_gets_a_team_of_its_own() -> None:
    code = """
import os, torch
from headrace.kernels import cpu, Matrix
cpu.set_threads(2)
matrix, x = Matrix.plain(torch.randn(300, 512)), torch.randn(2, 512)
expected = cpu.linear(x, matrix)
child = os.fork()
same = torch.equal(cpu.linear(x, matrix), expected)
if child == 0:
    os._exit(0 if same and cpu.threads() == 2 else 1)
print(same, os.waitpid(child, 0)[1])
"""
    assert run_python(code).stdout.split() == ["True", "0"]


def test_unknown_expert_id_is_refused(source: RandomSource) -> None:
    bank = source.bank(ExpertLayout(format=FORMATS["f32"], hidden=8, width=8), 2)
    with pytest.raises(IndexError, match="expert id 2 in a bank of 2"):
        cpu.experts(torch.randn(1, 8), torch.tensor([[2]], dtype=torch.int32), torch.ones(1, 1), bank)


def test_unknown_token_id_is_refused(source: RandomSource) -> None:
    for wrong in (-1, 3):
        with pytest.raises(IndexError, match=f"token id {wrong} in a table of 3"):
            cpu.embed(source.matrix(FORMATS["f32"], 3, 8), torch.tensor([0, wrong]))


# Measuring


def test_stream_read_and_huge_pages() -> None:
    data = torch.empty(8 << 20, dtype=torch.uint8)
    assert isinstance(cpu.advise_huge(data), bool)
    data.fill_(1)
    assert cpu.stream_read(data) > 0
    assert cpu.stream_read(data[:5]) > 0
    assert not _cpu.advise_huge(data.data_ptr(), 0)


def test_features_and_threads_are_plausible() -> None:
    assert 1 <= cpu.threads() <= (os.cpu_count() or 1)
    assert ("avx2" in cpu.cpu_features()) or "avx2" not in cpu.available_isas()
