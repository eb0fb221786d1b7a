"""What is measured before the first pass of layers on hosts is what a pass of the run does, and predicts its rows."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest
import torch
from host_processes import GREEDY
from thread_hosts import ThreadHosts, layered, layers_of

from headrace.engine.bandwidth_model import tier_rates
from headrace.engine.bandwidth_model.hardware import exactly
from headrace.engine.bandwidth_model.network.hops import Costs, Network
from headrace.engine.bandwidth_model.network.stops import Route, Stop
from headrace.engine.bandwidth_model.pass_model import PassModel
from headrace.engine.bandwidth_model.profile import Profile
from headrace.engine.hosts.layers import stop_costs
from headrace.engine.hosts.layers.held import HeldLayers
from headrace.engine.hosts.messages.passes import Done, Task
from headrace.engine.ledger.pass_bytes import HEAD, HIDDEN
from headrace.engine.ledger.passes import CPU_DRAM, NET, Pass
from headrace.kernels import FORMATS
from headrace.kernels.cpu import CpuOps
from headrace.kernels.formats import KV_BF16
from headrace.loaders.architecture import catalogue
from headrace.loaders.families import spec_of
from headrace.loaders.families.config_reader import ConfigReader
from headrace.loaders.weights.model_weights import Formats


def test_samples_are_passes_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pass that is timed asks for the choices, as those of a run do, and passes of a few tokens follow each
    other; the counts of the run know nothing of them."""
    seen: list[tuple[int, int, bool]] = []
    run = HeldLayers.run

    def watched(self: HeldLayers, task: Task) -> Done:
        seen.append((len(task.x_TX), len(task.places.contexts_S), task.chosen))
        return run(self, task)

    monkeypatch.setattr(HeldLayers, "run", watched)
    monkeypatch.setattr(stop_costs, "SECONDS", 60.0)  # of any machine: a round as it is where there is time
    monkeypatch.setattr(stop_costs, "MOST", 1)
    hosts = ThreadHosts("demo", 1)
    try:
        with layered(hosts, placement="hosts", no_measure=False, max_sequences=4) as llm:
            samples = list(seen)
            assert not int(llm.loop.counts.counts_2LE.sum())
            llm.generate(["In the beginning", "And"], GREEDY)
            assert layers_of(llm).network.route is not None
    finally:
        hosts.close()
    assert all(chosen for _, _, chosen in seen)
    turns = [(size, len(list(same))) for size, same in groupby(samples)]
    decode = [(tokens, count) for (tokens, sequences, _), count in turns if tokens == sequences]
    assert {tokens for tokens, _ in decode} == {1, 2, 4}
    assert {count for _, count in decode} == {stop_costs.TURN}


def test_what_is_timed_are_rows_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Into the first layers go rows of the embedding, into every other machine's what the one before made of them: so
    they choose experts as tokens do."""
    entered: list[torch.Tensor] = []
    came: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    run, embed = HeldLayers.run, CpuOps.embed

    def watched(self: HeldLayers, task: Task) -> Done:
        x_TX = task.x_TX.clone()  # layers write into it
        done = run(self, task)
        came.append((task.first, x_TX, done.x_RX.clone()))
        return done

    def looked_up(self: CpuOps, *arguments: Any) -> torch.Tensor:
        entered.append(embed(self, *arguments))
        return entered[-1]

    monkeypatch.setattr(HeldLayers, "run", watched)
    monkeypatch.setattr(CpuOps, "embed", looked_up)
    monkeypatch.setattr(stop_costs, "SECONDS", 0.1)
    hosts = ThreadHosts("demo", 2)
    try:
        with layered(hosts, placement="hosts", no_measure=False, max_sequences=2):
            pass
    finally:
        hosts.close()
    assert len(came) == 2 * len(entered) > 20
    firsts = iter(entered)
    for (first, x_TX, out), (second, other, _) in zip(came[::2], came[1::2], strict=True):
        assert first == 0 < second
        assert torch.equal(x_TX, next(firsts))
        assert torch.equal(other, out)


def test_a_sequence_more_is_predicted() -> None:
    """Outside of the layers of hosts every sequence but the first adds what was measured of it, and the head multiplies
    as many rows as there are sequences."""
    spec = spec_of(ConfigReader(catalogue.find("Qwen1.5-MoE-A2.7B").config, "catalogue"))[1]
    formats = Formats(experts=FORMATS["bf16"], dense=FORMATS["bf16"], embed=FORMATS["bf16"])
    rates = dict.fromkeys(FORMATS, 1e9)
    known = Profile(
        key="k", cpu="c", isa="i", threads=1, memory_bytes=1, date="d", stream=1e9, linear=rates, experts=rates,
        batch={"4": dict.fromkeys(FORMATS, 5e8)}, pass_s=0.125, row_s=0.5,
    )  # fmt: skip
    nothing = Costs(((1.0, exactly(0.0)),))
    route = Route(stops=(Stop(hop=None, decode=nothing, prompt=nothing),), row=1)
    network = Network(wire="f32", hops={}, route=route)

    def seconds(rows: int) -> float:
        read = {CPU_DRAM: {HEAD: 1_000_000_000}, NET: {HIDDEN: 1}}
        done = Pass(index=0, phase="decode", sequences=list(range(rows)), tokens=rows, context=rows, bytes=read)
        found = PassModel(spec, formats, KV_BF16, tier_rates.of_cpu(known), network=network)(done)
        assert found is not None
        return found.seconds

    assert seconds(1) == pytest.approx(0.125 + 1, rel=1e-3)
    assert seconds(4) == pytest.approx(0.125 + 3 * 0.5 + 2, rel=1e-3)
