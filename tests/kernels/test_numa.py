"""Nodes of memory: what the system's files say, cores in turns from each node, pages dealt out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headrace import LLM
from headrace.engine.devices import host
from headrace.engine.terminal import generate_report
from headrace.kernels import _cpu, cpu


def system(root: Path, **nodes: str) -> str:
    (root / "online").write_text(",".join(name.removeprefix("node") for name in nodes) + "\n")
    for name, cpus in nodes.items():
        (root / name).mkdir()
        (root / name / "cpulist").write_text(cpus + "\n")
    return str(root)


def test_nodes_are_read_from_the_system(tmp_path: Path) -> None:
    root = system(tmp_path, node0="0-2,6", node2="3-5,7", node3="")
    assert _cpu.node_cpus(root) == [[0, 1, 2, 6], [], [3, 4, 5, 7], []]
    assert _cpu.node_cpus(str(tmp_path / "nothing")) == []


def test_only_nodes_beside_our_cpus_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = system(tmp_path, node0="0-3", node1="4-7", node2="8-11")
    monkeypatch.setattr(cpu.host.os, "sched_getaffinity", lambda _: {2, 3, 9}, raising=False)
    assert cpu.numa_nodes(root) == [0, 2]


def test_cores_come_in_turns_from_each_node() -> None:
    cores = [[0, 8], [1, 9], [2, 10], [3, 11], [4, 12]]
    assert _cpu.spread_cores(cores, [[0, 1, 2, 8, 9, 10], [3, 4, 11, 12]]) == [
        [0, 8],
        [3, 11],
        [1, 9],
        [4, 12],
        [2, 10],
    ]
    assert _cpu.spread_cores(cores, []) == cores
    assert _cpu.spread_cores(cores, [[0, 1], [], [2]]) == [[0, 8], [2, 10], [3, 11], [1, 9], [4, 12]]


@pytest.mark.skipif(not cpu.numa_nodes(), reason="the system does not tell its nodes of memory")
def test_pages_are_dealt_out_where_the_system_agrees() -> None:
    data = torch.empty(1 << 22, dtype=torch.uint8)
    assert cpu.interleave(data, cpu.numa_nodes())
    assert data.fill_(7).sum() == 7 << 22
    assert not cpu.interleave(data, [1000]), "a node that is not there"
    assert not cpu.interleave(data[:10], cpu.numa_nodes()), "less than a page"


@pytest.mark.parametrize(("granted", "shown"), [(True, "RAM, 2 nodes"), (False, "RAM, one node")])
def test_the_start_up_table_says_over_how_many_nodes_weights_lie(
    granted: bool, shown: str, talker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []
    monkeypatch.setattr(host, "HUGE_FROM", 0)
    monkeypatch.setattr(cpu, "numa_nodes", lambda: [0, 1])
    monkeypatch.setattr(cpu, "interleave", lambda tensor, nodes: asked.append(nodes) or granted)
    with LLM(str(talker), max_context=64) as llm:
        rows = generate_report.placement_rows(llm)
        assert len(asked) == len(llm.parts.weights.named())
    assert asked[0] == [0, 1]
    assert [row[1] for row in rows[:3]] == [shown] * 3
