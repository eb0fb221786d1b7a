"""What a pass should take beside hosts where a GPU has everything else, by hand."""

from __future__ import annotations

import pytest
from host_processes import GREEDY, coordinator
from thread_hosts import ThreadHosts

from headrace.engine.bandwidth_model.hardware import Device, Hardware, Kind, exactly
from headrace.engine.bandwidth_model.network.hops import Costs, Hop, Network
from headrace.engine.bandwidth_model.pass_model import PassModel
from headrace.engine.ledger.passes import CPU_DRAM, D2H, GPU_HBM, H2D, NET, HostWork, LayerWork, Pass
from headrace.kernels import FORMATS
from headrace.kernels.formats import KV_BF16
from headrace.loaders.architecture import catalogue
from headrace.loaders.families import spec_of
from headrace.loaders.families.config_reader import ConfigReader
from headrace.loaders.weights.model_weights import Formats

COST, ROUND_TRIP = 0.5, 0.25  # seconds
SPEC = spec_of(ConfigReader(catalogue.find("Qwen3-30B-A3B").config, "catalogue"))[1]
FORMATS_OF_ALL = Formats(experts=FORMATS["q4_0"], dense=FORMATS["q4_0"], embed=FORMATS["q4_0"])


def device(kind: Kind, rate: float, link: float | None = None) -> Device:
    rates = dict.fromkeys(FORMATS, rate)
    return Device(
        name=kind, kind=kind, memory=None, nominal=rate, bandwidth=exactly(rate), by_format=rates,
        dense_by_format=rates, flops=exactly(1e30), link=None if link is None else exactly(link),
    )  # fmt: skip


def machine() -> Hardware:
    zero = exactly(0.0)
    return Hardware(
        name="m", gpus=(device("gpu", 1e9, 1e7),), cpu=device("cpu", 1e8), fixed=zero, sync=zero, down=exactly(1e7),
        measured=True,
    )  # fmt: skip


def seconds(in_vram: int, in_ram: int, on_host: int, crossing: int) -> float:
    """Of one layer with so many bytes of experts on each side, at 1 GB/s of VRAM, 100 MB/s of RAM here and there and 10
    MB/s of the link; and so many bytes down, and up."""
    spec, formats = SPEC, FORMATS_OF_ALL
    hop = Hop(name="h", device=device("cpu", 1e8), rate=exactly(1e30), round_trip=exactly(ROUND_TRIP))
    network = Network(wire="f32", hops={1: hop}, costs=Costs(((1.0, exactly(COST)),)))
    expert = formats.layout(spec, 0).bytes
    asked = HostWork(host=1, experts=round(on_host / expert), pairs=1, there=1, back=1, pieces=1)
    down, up = {D2H: {"experts": crossing}}, {H2D: {"experts": crossing}}
    read = {GPU_HBM: {"experts": in_vram}, CPU_DRAM: {"experts": in_ram}, NET: {"experts": 2}, **down, **up}
    pairs = {GPU_HBM: 1, CPU_DRAM: 1, NET: 1}
    work = LayerWork(layer=0, tokens=1, bytes=read, pairs=pairs, hosts=(asked,) if on_host else ())
    done = Pass(index=0, phase="decode", sequences=[0], tokens=1, context=1, layers=[work], bytes=read)
    found = PassModel(spec, formats, KV_BF16, machine(), network=network)(done)
    assert found is not None
    return found.seconds


def test_the_longest_of_three_counts_between_down_and_up() -> None:
    one = FORMATS_OF_ALL.layout(SPEC, 0).bytes
    hosts = ROUND_TRIP + 8 * one / 1e8
    assert seconds(10 * one, one, 8 * one, 0) == pytest.approx(COST + hosts, rel=1e-3)
    assert seconds(10 * one, 200 * one, 8 * one, 0) == pytest.approx(COST + 200 * one / 1e8, rel=1e-3)
    assert seconds(1000 * one, one, 8 * one, 0) == pytest.approx(COST + 1000 * one / 1e9, rel=1e-3)
    crossed = seconds(10 * one, one, 8 * one, 10_000_000)
    assert crossed == pytest.approx(COST + hosts + 2.0, rel=1e-3), "down before, up behind"
    assert seconds(10 * one, 0, 0, 0) == pytest.approx(10 * one / 1e9, rel=1e-3), "no host, no hop"


def test_of_a_run() -> None:
    """The hosts that a start measured are in the prediction of a pass beside a GPU whose rates are known."""
    hosts = ThreadHosts("demo", 1)
    try:
        with coordinator(hosts, device="simulated", no_measure=False) as llm:
            llm.predictions.use_rates(machine())
            with llm.ledger.recording() as passes:
                llm.generate("In the beginning", GREEDY)
            found = next(one.predicted for one in passes if one.phase == "decode")
            assert found is not None
            network = llm.parts.network
            assert network is not None
            assert network.costs is not None
            hops = sum(llm.spec.is_moe) * (network.costs.at(1) + network.hops[1].round_trip.mid)
            assert found.terms[NET] > hops > 0
            assert found.terms[GPU_HBM] > 0
            assert found.seconds > hops
    finally:
        hosts.close()
