"""How a machine is measured: which samples count, what is repeated, and that disturbed ones change nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from refusals import refused

from headrace import MemoryNeeded
from headrace.engine.bandwidth_model.profile import along
from headrace.engine.measure import kernel_rates, link_rates, other_load
from headrace.engine.measure.kernel_rates import Kernel
from headrace.engine.measure.link_rates import Links
from headrace.engine.measure.quiet_samples import LEAST, SLACK, Pace, Sample, alike, best, share, steady
from headrace.kernels import FORMATS
from headrace.kernels.context import Context

MB = 1 << 20


def test_what_was_slowed_down_does_not_count() -> None:
    """Two thirds of the samples were taken beside a neighbour: slow pace, low rate."""
    samples = [Sample(30.0 + i % 3, 1.0 + i % 3 / 100) for i in range(10)] + [Sample(22.0, 1.3)] * 20
    pace = best([s.pace_s for s in samples])
    assert pace == 1.0
    assert sorted(set(steady(samples, pace))) == [30.0, 31.0, 32.0]
    assert share([s.pace_s for s in samples], pace) == pytest.approx(1 / 3)


def test_where_hardly_anything_is_undisturbed_the_least_disturbed_count() -> None:
    samples = [Sample(float(i), 2.0 + i) for i in range(20)]
    assert steady(samples, 1.0) == [0.0, 1.0, 2.0, 3.0, 4.0][:LEAST]
    assert steady([Sample(1.0, SLACK)] * LEAST + [Sample(9.0, 2.0)] * 9, 1.0) == [1.0] * LEAST


def test_runs_are_held_against_a_profile_at_its_own_pace() -> None:
    samples = [Sample(1.0, 0.8)] * 9 + [Sample(2.0, 1.05), Sample(2.0, 0.95)] * 3 + [Sample(3.0, 1.3)] * 9
    assert alike(samples, 1.0) == [2.0] * 6
    assert sorted(alike(samples, 0.85)) == [1.0] * 9
    assert alike(samples[:11], 1.05)[:2] == [2.0, 2.0], "the nearest, where hardly any is as near as that"
    assert len(alike(samples[:11], 1.05)) == LEAST


def test_one_lucky_pace_is_not_the_best() -> None:
    assert best([0.5] + [1.0] * 39) == 1.0
    assert best([3.0]) == 3.0


def test_pace_is_taken_before_and_after() -> None:
    pace = Pace(Context())
    assert pace() == pace.last_s > 0
    pace.last_s = 1e9
    assert pace.since_before() == 1e9
    assert pace.last_s < 1e9


def test_rounds_beside_others_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others compute in the second and third round; their samples are forgotten."""
    busy = iter([0.0, 1.5, 0.9, 0.1])
    monkeypatch.setattr(other_load.Strangers, "cores", lambda self: next(busy))
    taken: list[int] = []
    assert other_load.alone(2, lambda: taken.append(len(taken)), taken.clear) == 2
    assert taken == [0]


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_load.Strangers, "cores", lambda self: 2.0)
    taken: list[int] = []
    repeated = other_load.alone(3, lambda: taken.append(1), taken.pop)
    assert repeated == other_load.PATIENCE * 3
    assert len(taken) == 3


def test_samples_walk_through_all_memory() -> None:
    """Each reads on where the one before ended, and begins anew at the end."""
    seen: list[int] = []

    def read(at: int) -> int:
        seen.append(at)
        return 30

    found = kernel_rates.sample([Kernel("a", read), Kernel("b", read)], 100, 2, Pace(Context()))
    assert seen[:6] == [0, 30, 60, 90, 20, 50]
    assert {name: len(samples) for name, samples in found.items()} == {"a": 2, "b": 2}


@pytest.mark.parametrize("size", [64 * MB, 200 * MB])
def test_every_kernel_says_what_it_read(size: int) -> None:
    """Wherever a sample begins: never nothing, never more than is there times its rounds."""
    arena = torch.full((size,), 0x11, dtype=torch.uint8)
    of_formats = kernel_rates._of_formats(Context(), arena, kernel_rates.USUAL)
    every = [kernel_rates.stream(Context(), arena), *of_formats, *kernel_rates._of_attention(Context(), arena)]
    for kernel in [k for k in every if "256" not in k.name and "64" not in k.name]:
        for at in (0, size - 1):
            read = kernel.read(at)
            assert 0 < read <= 4 * size, kernel.name


def test_a_sample_of_a_matrix_is_the_bytes_of_its_rows() -> None:
    arena = torch.full((64 * MB,), 0x11, dtype=torch.uint8)
    matrix = next(k for k in kernel_rates._of_formats(Context(), arena, ["q4_0"]) if k.name == "linear q4_0 4")
    assert matrix.read(0) == 64 * MB // 1152 * 1152
    caches = kernel_rates._caches(torch.zeros(64 * MB, dtype=torch.uint8))
    assert caches[0].nbytes == 2 * kernel_rates.CONTEXT * kernel_rates.KV_HEADS * kernel_rates.HEAD_DIM * 2


def test_experts_lie_far_apart_and_all_have_their_turn() -> None:
    bank = kernel_rates.bank_of(torch.full((80 * MB,), 0x11, dtype=torch.uint8), FORMATS["q4_0"])
    asked: list[list[int]] = []

    class Ops:
        @staticmethod
        def experts(x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, bank: object) -> None:
            assert ids.shape == weights.shape
            assert len(x) == len(ids) == 2
            asked.append(ids[0].tolist())

    read = kernel_rates.experts_reader(Ops, bank, 2)  # type: ignore[arg-type]
    for i in range(bank.experts):
        assert read(i * bank.layout.bytes) == len(asked[-1]) * bank.layout.bytes
    assert all(len(set(ids)) == len(ids) for ids in asked)
    assert {i for ids in asked for i in ids} == set(range(bank.experts))


def test_measuring_needs_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_rates, "free_memory", lambda: 10**9)
    with refused(MemoryNeeded, "measuring needs 1.1 GB", "1.0 GB is free"):
        kernel_rates.reserve()
    assert kernel_rates.reserve(MB).numel() == MB


def test_along_points() -> None:
    points = [(1.0, 2.0), (3.0, 4.0), (4.0, 8.0)]
    assert [along(points, x) for x in (1, 2, 3, 3.5, 4, 8)] == [2, 3, 4, 6, 8, 16]


# ---- disk, copies


def test_a_disk_is_read_past_the_cache_and_leaves_nothing_behind(tmp_path: Path) -> None:
    found = Links()
    link_rates.disk(tmp_path / "models", 8 * MB, found)
    assert found.disk["cached"] > 0
    assert ("direct" in found.disk) == (not found.notes)
    assert list((tmp_path / "models").iterdir()) == []


def test_a_file_system_without_direct_reads_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.open

    def refuse(path: Path, flags: int, *mode: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return before(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)
    found = Links()
    link_rates.disk(tmp_path, 8 * MB, found)
    assert set(found.disk) == {"cached"}
    assert "no O_DIRECT" in found.notes[0]


def test_a_full_disk_is_not_filled(tmp_path: Path) -> None:
    found = Links()
    link_rates.disk(tmp_path, 1 << 60, found)
    assert found.disk == {}
    assert "is free in" in found.notes[0]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = Links()
    link_rates.disk(tmp_path / "file" / "models", 8 * MB, found)
    assert found.disk == {}
    assert str(tmp_path) in found.notes[0]


def test_nodes_are_measured_where_there_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = link_rates.cpu_kernels()
    asked: list[list[int]] = []
    monkeypatch.setattr(link_rates, "NODE_BYTES", 16 * MB)
    monkeypatch.setattr(cpu, "numa_nodes", lambda: [0, 2])
    monkeypatch.setattr(cpu, "interleave", lambda tensor, nodes: asked.append(nodes) or nodes == [2])
    found = Links()
    link_rates.nodes(Context(), found)
    assert asked == [[0], [2]]
    assert set(found.nodes) == {"2"}
    assert "node 0 not measured" in found.notes[0]
    monkeypatch.setattr(cpu, "numa_nodes", lambda: [0])
    one = Links()
    link_rates.nodes(Context(), one)
    assert (one.nodes, one.notes) == ({}, [])


def test_everything_is_measured_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_rates, "QUICK_FILE", 8 * MB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = link_rates.measure(Context(), tmp_path, quick=True)
    assert set(found.copies) == {"host"}
    assert found.copies["host"] > 1e8
