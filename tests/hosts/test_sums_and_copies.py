"""Sums of a host for each token, copies of hot experts, predictions beside measured times; hosts are threads here."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from host_processes import PROMPT, coordinator, experts_of
from refusals import refused
from thread_hosts import ThreadHosts
from torch import Tensor

from headrace import LLM, EngineConfig, SamplingParams
from headrace.engine.bandwidth_model.profile import Profile
from headrace.engine.hosts.answers import answers
from headrace.engine.hosts.asked import Asked
from headrace.engine.hosts.dealing import replicas
from headrace.engine.hosts.dealing.dealt import of_lists, share
from headrace.engine.hosts.messages import rows
from headrace.engine.hosts.messages.frames import HEADER, Broken
from headrace.engine.hosts.messages.rows import Work
from headrace.engine.ledger.passes import NET
from headrace.engine.terminal import generate_report
from headrace.engine.terminal.hosts import host_rows
from headrace.errors import OptionError

GREEDY = SamplingParams(max_new_tokens=12, ignore_eos=True)


class Shelf:
    """Expert e gives e + 1 times what it takes."""

    def __init__(self, weighs_input: bool) -> None:
        self.files = SimpleNamespace(layouts=[SimpleNamespace(weighs_input=weighs_input)])

    def rows(self, layer: int, x_TD: Tensor, at_N: Tensor, ids_N: Tensor, taken_N: Tensor | None) -> Tensor:
        found = x_TD[at_N.long()] * (ids_N[:, None] + 1.0)
        return found if taken_N is None else found * taken_N[:, None]


def received(work: Work, wire: rows.WireFormat, shelf: Any) -> Tensor:
    """An answer as the coordinator has it, after the wire."""
    found = torch.full_like(work.x_TD, torch.nan) if work.is_summed else torch.empty(len(work.ids_N), 100)
    for first, part in answers(shelf, work, wire):
        found[first : first + len(part)] = wire.decode(wire.encode(part), 100)
    return found


@pytest.mark.parametrize("on_input", [False, True])
@pytest.mark.parametrize(("wire", "error"), [(rows.BF16, 2**-8), (rows.INT8, 0.5 / 127)])
def test_a_sum_is_off_by_one_rounding(wire: rows.WireFormat, error: float, on_input: bool) -> None:
    """However many experts it is of: bf16 by 1/256 of itself, int8 by half a step of the largest of 32 neighbours."""
    draw = torch.Generator().manual_seed(3)
    tokens, each = 40, 6
    x_TD = torch.randn(tokens, 100, generator=draw)
    pairs = [(expert, token) for token in range(tokens) for expert in torch.randperm(9, generator=draw)[:each].tolist()]
    pairs.sort()
    ids_N, at_N = torch.tensor([e for e, _ in pairs]), torch.tensor([t for _, t in pairs])
    weights_N = torch.rand(len(pairs), generator=draw)
    work = Work(0, x_TD, at_N, ids_N, weights_N, is_summed=True)
    exact = torch.zeros(tokens, 100, dtype=torch.float64)
    exact.index_add_(0, at_N, x_TD[at_N].double() * ((ids_N + 1) * weights_N)[:, None].double())
    found = received(work, wire, Shelf(on_input))
    largest = torch.nn.functional.pad(exact.abs(), (0, 28)).view(tokens, 4, 32).amax(2).repeat_interleave(32, 1)
    bound = (largest[:, :100] if wire is rows.INT8 else exact.abs()) * error
    assert bool(((found.double() - exact).abs() <= bound + 1e-5).all())


@pytest.mark.parametrize("hidden", [6, 33, 100])
@pytest.mark.parametrize("wire", rows.WIRES.values(), ids=lambda wire: wire.name)
def test_one_row_of_any_width_comes_as_it_was_sent(wire: rows.WireFormat, hidden: int) -> None:
    sent = torch.randn(1, hidden)
    frame = bytearray(b"".join(map(bytes, rows.answer_parts(sent, 3, wire, 1))))
    first, found = rows.read_answer(frame[HEADER.size :], wire, hidden)
    assert first == 3
    assert torch.equal(found, wire.decode(wire.encode(torch.cat([sent, sent])), hidden)[:1])


def test_rows_come_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(0, torch.randn(3, 100), torch.tensor([0, 2, 2, 1]), torch.tensor([1, 1, 4, 5]), None)
    assert torch.equal(
        received(work, rows.F32, Shelf(False)), Shelf(False).rows(0, work.x_TD, work.at_N, work.ids_N, None)
    )
    monkeypatch.setattr("headrace.engine.hosts.answers.PIECE", 400)  # a row
    assert [first for first, _ in answers(Shelf(False), work, rows.F32)] == [0, 2, 3]  # type: ignore[arg-type]


def test_a_sum_without_weights_is_no_request() -> None:
    work = Work(0, torch.randn(1, 8), torch.tensor([0]), torch.tensor([1]), torch.rand(1), is_summed=True)
    body = bytearray(b"".join(rows.work_parts(work, rows.BF16, 7))[rows.TASK.size :])
    found = rows.read_work(body, rows.BF16, [4], 8)
    assert found.is_summed
    assert found.weights_N is not None
    assert torch.equal(found.weights_N, work.weights_N)  # type: ignore[arg-type]
    plain = bytearray(b"".join(rows.work_parts(work._replace(weights_N=None), rows.BF16, 7))[rows.TASK.size :])
    with pytest.raises(Broken):
        rows.read_work(plain, rows.BF16, [4], 8)


def test_what_is_owed_of_a_sum_are_the_choices_of_its_tokens() -> None:
    asked = Asked(0, 1, torch.tensor([10, 11, 12, 13]), torch.tensor([3, 4]), torch.tensor([0, 1, 0, 1]))
    assert asked.take(0, 1).tolist() == [3]
    assert asked.owed_N.tolist() == [11, 13]
    with pytest.raises(Broken):
        asked.take(0, 1)
    assert asked.left == 1


def test_a_copy_takes_what_leaves_all_with_as_little_as_can_be() -> None:
    row, weights = [1, 1, 1, 2], [1.0, 1.0, 1.0]
    assert replicas.choose(row, {0: (1, 2)}, {0: 1, 1: 1, 2: 1}, weights) == [2, 1, 1, 2]
    assert replicas.choose(row, {0: (1, 2)}, {0: 1, 3: 1}, weights) == [1, 1, 1, 2]
    # The hottest is dealt first; host 2 is twice as fast.
    assert replicas.choose(row, {0: (1, 2), 1: (1, 2)}, {0: 8, 1: 2}, [1, 1, 2]) == [2, 1, 1, 2]
    assert replicas.choose(row, {0: (1, 2)}, {1: 3}, weights) == row


def test_copies_go_where_there_is_room() -> None:
    hot = [replicas.Counted(0, 0, 9), replicas.Counted(0, 1, 8), replicas.Counted(1, 0, 7)]
    home = [[1, 1, 2], [2, 1, 1]]
    copies, without = replicas.place(hot, home, [10, 10], [99, 10, 10])
    assert (copies, without) == ([{0: (2,)}, {0: (1,)}], 1)
    dealt = of_lists([[(1,), (2, 1), (0,)], [(2,), (1, 0, 2), (1,)]])
    assert dealt.copies == [{1: (1,)}, {1: (0, 2)}]
    assert [share(dealt, n) for n in range(3)] == [[[2], [1]], [[0, 1], [1, 2]], [[1], [0, 1]]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hosts": 2, "replicate": "run.trace,10%"}, "such as trace:run.trace,10%"),
        ({"hosts": 2, "replicate": "trace:run.trace"}, "such as trace:run.trace,10%"),
        ({"hosts": 2, "replicate": "trace:run.trace,120%"}, "a share of the experts above 0"),
        ({"hosts": 1, "replicate": "trace:run.trace,10%"}, "say --hosts 2 or more"),
        ({"replicate": "trace:run.trace,10%"}, "say --hosts 2 or more"),
        ({"hosts": 2, "placement": "p.json", "replicate": "trace:r,0.1"}, "list two hosts in the file"),
    ],
)
def test_what_replicate_may_say(options: dict[str, Any], said: str) -> None:
    with refused(OptionError, "replicate", said):
        EngineConfig(**options)


@pytest.fixture(scope="module")
def one_machine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, list[int], Path]:
    """Logits, a text, and a trace of it."""
    trace = tmp_path_factory.mktemp("trace") / "run.trace"
    with LLM("demo", device="cpu", max_context=128, no_measure=True, trace=trace) as llm:
        text = llm.generate([PROMPT], GREEDY)[0].token_ids
        logits = llm.logits(PROMPT)
    return logits, text, trace


def cut(llm: LLM, number: int) -> None:
    """Ends the connection of a host."""
    link = experts_of(llm).members.links[number]
    assert link is not None
    link.sock.shutdown(socket.SHUT_RDWR)


def test_copies_of_hot_experts(two: ThreadHosts, one_machine: tuple[Tensor, list[int], Path]) -> None:
    """The same bits; when a host is lost its experts with a copy are not read from a disk."""
    logits, text, trace = one_machine
    with coordinator(two, replicate=f"trace:{trace},100%") as llm:
        members = experts_of(llm).members
        assert sum(map(len, members.replicas)) > len(members.home)
        assert torch.equal(llm.logits(PROMPT), logits)
        assert llm.generate([PROMPT], GREEDY)[0].token_ids == text
        assert "have a copy on another machine" in "\n".join(host_rows.lines(llm))
        cut(llm, 1)
        assert torch.equal(llm.logits(PROMPT), logits)
        assert members.losses == 1
        copied = [(layer, expert) for layer, row in enumerate(members.replicas) for expert in row]
        assert all(members.owners[layer][expert] == 2 for layer, expert in copied)
        assert not any(members.copies)


def test_a_file_that_lists_two_hosts(
    two: ThreadHosts, one_machine: tuple[Tensor, list[int], Path], tmp_path: Path
) -> None:
    rules = [
        {"layers": "all", "experts": "0-3", "tier": ["h1", "h2"]},
        {"layers": 0, "experts": 0, "tier": ["h2", "cpu"]},
    ]
    (tmp_path / "p.json").write_text(json.dumps({"version": 1, "default": "h1", "rules": rules}))
    with coordinator(two, placement=tmp_path / "p.json") as llm:
        members = experts_of(llm).members
        assert members.copies[0] == {0: (2, 0), 1: (1, 2), 2: (1, 2), 3: (1, 2)}
        assert len(members.share(2)[1]) == 4
        assert torch.equal(llm.logits(PROMPT), one_machine[0])
        llm.generate([PROMPT], SamplingParams(max_new_tokens=2, ignore_eos=True))
        work = [one for done in llm.ledger.passes for layer in done.layers for one in layer.hosts]
        assert {one.host for one in work} == {1, 2}
    for odd, said in (([], "name a host"), (["h1", "h3"], "there are cpu")):
        (tmp_path / "p.json").write_text(json.dumps({"version": 1, "default": odd, "rules": []}))
        with refused(OptionError, "p.json: default is", said):
            LLM("demo", hosts=2, placement=tmp_path / "p.json", listen=f"127.0.0.1:{two.port}", no_measure=True)


def test_without_measuring_nothing_is_predicted(two: ThreadHosts, profile: Profile) -> None:
    with coordinator(two) as llm:
        llm.generate(["In"], SamplingParams(max_new_tokens=2, ignore_eos=True))
        assert llm.ledger.last.predicted is None
        assert "leave out --no-measure" in (generate_report.remark(llm) or "")


def test_predicted_beside_measured(two: ThreadHosts, profile: Profile) -> None:
    """What hosts and links do is measured at the start; each pass has a prediction then, which says what the network
    takes of it."""
    with coordinator(two, no_measure=False) as llm:
        llm.generate(["In the beginning"], SamplingParams(max_new_tokens=4, ignore_eos=True))
        experts, done = experts_of(llm), llm.ledger.last
        network, found = experts.network, done.predicted
        assert found is not None
        assert network.costs is not None
        assert [tokens for tokens, _ in network.costs.points] == [1, 2, 4, 16, 64]
        layers = sum(llm.spec.is_moe)
        least = sum(max(network.hops[one.host].round_trip.mid for one in work.hosts) for work in done.layers)
        assert found.terms[NET] >= least + layers * network.costs.at(1)
        assert found.seconds >= found.terms[NET]
        assert llm.ledger.summary("prefill").predicted_s is not None
        said = "\n".join(host_rows.lines(llm))
        assert "host h1: round trip" in said
        assert "a layer with hosts takes besides" in said
        cells = dict(generate_report._byte_rows([llm.ledger.summary("decode")]))
        assert cells["predicted ms"] != ["-"]
        assert "(" in cells["net ms"][0]
