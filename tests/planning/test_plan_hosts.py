"""headrace plan --hosts: what a text means, seconds by hand by experts and by layers, RAM of each machine, what it says
and refuses."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace

import pytest
from conftest import Run
from refusals import refused
from terminal import folded

from headrace.engine.bandwidth_model.hardware import Device, Hardware, exactly
from headrace.engine.bandwidth_model.network import wire_sizes
from headrace.engine.bandwidth_model.network.busiest import most
from headrace.engine.bandwidth_model.network.hops import Hop
from headrace.engine.ledger.passes import CPU_DRAM, NET
from headrace.engine.planning import plan as planning
from headrace.engine.planning.hosts import by_layers, comparison, machines
from headrace.engine.planning.hosts.comparison import Hosted
from headrace.engine.planning.options import Options
from headrace.engine.planning.speed import Model, Workload
from headrace.errors import OptionError
from headrace.loaders import model_source

GB = 1e9
TWO = "2x ddr5-6000-2ch 96gb 16cores, 10gbe"
HOP = machines.HOP.mid


def test_what_a_text_means() -> None:
    one, two, three = machines.parse("2x ddr5-6000-2ch 96gb, 10gbe; ddr4-3200-8ch, 0.5tb 32cores 40gbit 20us")
    assert [hop.name for hop in (one, two, three)] == ["host1", "host2", "host3"]
    assert (one.device.nominal, one.device.memory, two.device.memory) == (96 * GB, 96 * GB, 96 * GB)
    assert (three.device.nominal, three.device.memory) == (204.8 * GB, 500 * GB)
    assert one.rate.mid == pytest.approx(0.9 * 1.25e9)
    assert one.round_trip == machines.LINKS["10gbe"][1]
    assert three.rate.mid == pytest.approx(0.9 * 5e9)
    assert three.round_trip.mid == pytest.approx(20e-6)
    assert one.device.flops is None
    assert three.device.flops is not None
    assert machines.parse("ddr5-6000-2ch 100us 10gbit")[0].round_trip.low == pytest.approx(1e-4)
    assert machines.parse("ddr5-6000-2ch 25gbe 1ms")[0].round_trip.mid == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ["a group of no words", "3x ddr5-6000-2ch 96gb, 10gbe"]),
        ("ddr5-6000-2ch 10gbe;", ["a group of no words"]),
        ("3x 96gb, 10gbe", ["'3x 96gb, 10gbe' names no machine", "say its memory"]),
        ("3x ddr5-6000-2ch 96gb", ["names no link", "10gbit 100us"]),
        ("ddr5-6000-2ch 10gbit", ["names no round trip", "10gbit 100us"]),
        ("ddr5-6000-2ch 40gbe", ["there is no link '40gbe'", "100gbe"]),
        ("ddr5-6000-2ch 10gbe 25gbe", ["'25gbe' is a second link", "separate groups by ';'"]),
        ("ddr5-6000-2ch ddr4-3200-2ch 10gbe", ["'ddr4-3200-2ch' is a second machine", "';'"]),
        ("rtx-3090 10gbe", ["'rtx-3090' is no CPU", "3x ddr5-6000-2ch 96gb, 10gbe"]),
        ("epyc-9004-8 10gbe", ["--hosts: there is no part 'epyc-9004-8'", "nearest"]),
        ("0x ddr5-6000-2ch 10gbe", ["'0x'", "give 1x to 256x"]),
        ("200x ddr5-6000-2ch 10gbe; 57x ddr5-6000-2ch 10gbe", ["names 257 machines", "at most 256"]),
        ("ddr5-6000-2ch 0gb 10gbe", ["'0gb'", "give a number above 0"]),
        ("ddr5-6000-2ch 1.2.3gbit 10us", ["'1.2.3gbit'", "give a number above 0"]),
    ],
)
def test_what_a_text_may_not_be(text: str, said: list[str]) -> None:
    with refused(OptionError, "--hosts", *said):
        machines.parse(text)


def test_the_busiest_of_several() -> None:
    """Against draws of 8 of 128 experts, and of 40 of 64, which lie evenly on 2 to 5 machines."""
    draw = random.Random(5)
    for chosen, experts, count in itertools.product((8, 40), (64, 120), (2, 3, 5)):
        seen = []
        for _ in range(1500):
            found = [expert % count for expert in draw.sample(range(experts), chosen)]
            seen.append(max(map(found.count, range(count))))
        mean = sum(seen) / len(seen)
        assert most(chosen, 1 / count, experts, count) == pytest.approx(mean, rel=0.06), (chosen, experts, count)
    assert most(8, 1.0, 128, 1) == 8
    assert most(8, 0.0, 128, 3) == 0
    assert most(128, 0.5, 128, 2) == pytest.approx(64)


def certain(name: str, gbs: float, memory: float) -> Device:
    return Device(name=name, kind="cpu", memory=int(memory * GB), nominal=gbs * GB, bandwidth=exactly(gbs * GB),
                  flops=exactly(1e18))  # fmt: skip


def hop(name: str, gbs: float, memory: float, link: float, trip: float) -> Hop:
    return Hop(name=name, device=certain(name, gbs, memory), rate=exactly(link), round_trip=exactly(trip))


def hosted(
    hops: tuple[Hop, ...], ram: float, wire: str = "f32", batch: int = 1, prompt: int = 64
) -> tuple[Hosted, Model, Workload]:
    """Qwen3-30B-A3B in bf16: 128 experts, 8 a token, 48 layers; no costs but those of hops."""
    source = model_source.find("Qwen3-30B-A3B")
    storage, _ = planning.sizes(source, "bf16")
    hardware = Hardware(name="here", cpu=certain("here", 100, ram), fixed=exactly(0.0))
    work = Workload(context=1024, batch=batch, prompt=prompt)
    model = source.described.architecture
    engine = Model(model, storage, hardware)
    return comparison.compare(engine, hops, wire, lambda one: planning.needs(model, work, one), work), engine, work


def test_by_experts_by_hand() -> None:
    """The coordinator has room for nothing but the common weights: two hosts share a layer's experts evenly."""
    _, engine, _ = hosted((hop("a", 50, 60, 1e9, 1e-4),), 1000)
    common = engine.storage.common
    small = (common + engine.storage.held + 1e9) / GB / 0.95
    hops = (hop("a", 50, 60, 1e9, 1e-4), hop("b", 50, 60, 1e9, 1e-4))
    found, engine, work = hosted(hops, small)
    assert found.shares[0] < 0.03
    assert found.shares[1] == pytest.approx(found.shares[2])
    step = found.by_experts.decode
    assert step is not None
    hidden, expert = 2048, engine.storage.layers[0].expert
    parts = [most(8, share, 128, 3) / 8 for share in found.shares]
    there, back, _ = wire_sizes.expected(1 - (1 - parts[1]) ** 8, 8 * parts[1], hidden, "f32")
    layer = 1e-4 + 2 * there / 1e9 + 8 * parts[1] * expert / (50 * GB) + 2 * back / 1e9
    assert step["mid"].terms[NET] == pytest.approx(48 * (layer + HOP), rel=1e-6)
    read = sum(found.bytes_per_token(found.by_experts, engine, work)[CPU_DRAM].values())
    assert step["mid"].seconds == pytest.approx(
        (read - found.shares[0] * 48 * 8 * expert) / (100 * GB) + 48 * (layer + HOP), rel=1e-4
    )
    assert all(tier.fits for tier in found.by_experts.memory.values())
    routed = sum(tier.needed.get("experts", 0) for tier in found.by_experts.memory.values())
    assert routed == pytest.approx(engine.storage.routed, rel=1e-6)


def test_by_layers_by_hand() -> None:
    """Layers in the proportion of bandwidths, read one after the other, a round trip for each host that has some."""
    hops = (hop("a", 100, 60, 1e9, 1e-3), hop("b", 200, 60, 1e9, 2e-3))
    found, engine, work = hosted(hops, 1000)
    assert [len(run) for run in found.runs] == [12, 12, 24]
    step = found.by_layers.decode
    assert step is not None
    whole = engine.bytes_per_token(found.by_layers.placement, work)[CPU_DRAM]
    outside = engine.storage.outside + engine.storage.rows
    layers = sum(whole.values()) - outside
    wire = 2 * (2048 * 4 + 16) / 1e9
    expected = (outside + layers / 4) / (100 * GB) + layers / 4 / (100 * GB) + layers / 2 / (200 * GB)
    assert step["mid"].seconds == pytest.approx(expected + 3e-3 + 2 * (wire + HOP), rel=1e-4)
    assert step["mid"].terms[NET] == pytest.approx(3e-3 + 2 * (wire + HOP))
    assert found.net_bytes["layers on hosts"] == 4 * (2048 * 4 + 16)


def test_prompts_go_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four machines whose cores bound them compute side by side: a prompt is through much sooner in parts. No token of
    one sequence gains anything."""
    hops = machines.parse("3x ddr5-6000-2ch 96gb 2cores 10gbe")
    parted = hosted(hops, 50, prompt=2048)[0]
    monkeypatch.setattr(by_layers, "PARTS", (1,))
    whole = hosted(hops, 50, prompt=2048)[0]
    assert whole.by_layers.prefill is not None
    assert parted.by_layers.prefill is not None
    assert whole.by_layers.prefill["mid"].seconds > 1.5 * parted.by_layers.prefill["mid"].seconds
    assert whole.by_layers.decode == parted.by_layers.decode


def test_layers_within_ram() -> None:
    hops = (hop("a", 1000, 16, 1e9, 1e-3), hop("b", 10, 60, 1e9, 1e-3))
    found, _, _ = hosted(hops, 20)
    assert all(tier.fits for tier in found.by_layers.memory.values())
    assert sum(map(len, found.runs)) == 48
    assert [run.start for run in found.runs[1:]] == [run.stop for run in found.runs[:-1]]
    tight, _, _ = hosted((hop("a", 1000, 16, 1e9, 1e-3),), 20)
    assert not tight.by_layers.fits
    assert not tight.by_experts.fits
    assert "lacks" in tight.why[0]
    assert found.by_layers.prefill is not None


def test_a_slow_link_speaks_for_layers_and_a_fast_one_for_experts() -> None:
    def factor(trip: float) -> float:
        found, _, _ = hosted(tuple(hop(name, 50, 60, 1e9, trip) for name in "abc"), 8)
        assert found.by_experts.decode is not None
        assert found.by_layers.decode is not None
        return found.by_layers.decode["mid"].seconds / found.by_experts.decode["mid"].seconds

    assert factor(2e-3) < 1 < factor(1e-5) * 2
    assert factor(1e-5) > factor(2e-4) > factor(2e-3)


def test_sums_take_fewer_bytes_than_rows() -> None:
    hops = tuple(hop(name, 50, 60, 1e8, 1e-4) for name in "ab")
    rows, sums = hosted(hops, 8)[0], hosted(hops, 8, "int8")[0]
    assert sums.net_bytes["experts on hosts"] < rows.net_bytes["experts on hosts"] / 4
    assert sums.by_experts.decode is not None
    assert rows.by_experts.decode is not None
    assert sums.by_experts.decode["mid"].seconds < rows.by_experts.decode["mid"].seconds


COMMAND = ("plan", "Qwen3-30B-A3B", "--hardware", "ddr5-6000-2ch 64gb 16cores".replace(" ", ", "), "--quant", "q4_0")


def test_the_command(run: Run) -> None:
    status, out, _ = run(*COMMAND, "--hosts", TWO)
    said = folded(out)
    assert status == 0
    for text in ("experts on hosts", "layers on hosts", "host2: ddr5-6000-2ch", "one more host like the last",
                 "times as fast for one sequence", "round trip 40-150 us", "are assumptions"):  # fmt: skip
        assert text in said, text
    status, out, _ = run(*COMMAND, "--hosts", TWO, "--placement", "hosts", "--json", "--wire", "bf16", "--batch", 4)
    found = json.loads(out)
    assert [row["placement"] for row in found["placements"]] == ["experts on hosts", "layers on hosts"]
    hosts = found["hosts"]
    assert [one["name"] for one in hosts["machines"]] == ["host1", "host2"]
    assert sum(one["layers"] for one in hosts["machines"]) < 48
    assert hosts["by_experts"]["memory"]["host1"]["fits"]
    assert hosts["by_experts"]["decode_tok_s"] > 0
    assert hosts["by_layers"]["prefill_tok_s"] > 0
    assert hosts["wire"] == "bf16"
    assert len(hosts["why"]) == 2


def test_what_the_command_refuses(run: Run) -> None:
    for more, said in (
        (["--placement", "hosts"], "--placement hosts needs --hosts"),
        (["--hosts", "2x ddr5-6000-2ch"], "names no link"),
        (["--hosts", TWO, "--wire", "fp4"], "--wire is 'fp4'"),
        (["--hosts", "1x ddr5-6000-2ch 1gb 10gbe", "--placement", "hosts", "--quant", "f32"], "it would fit with"),
    ):
        status, _, error = run(*COMMAND, *more)
        assert (status, said in folded(error)) == (1, True), (said, error)
    for hardware, said in (
        ("2x rtx-3090, ddr5-6000-2ch, 64gb", "one GPU at most, and --hardware names 2"),
        ("rtx-3090", "names no CPU and RAM"),
        ("rtx-pro-6000, ddr5-6000-2ch, 64gb", "the GPU holds all experts, and leaves hosts none"),
    ):
        status, _, error = run("plan", "Qwen3-30B-A3B", "--quant", "q4_0", "--hardware", hardware, "--hosts", TWO)
        assert (status, said in folded(error)) == (1, True), (said, error)
    assert replace(Options(), hosts=TWO).hosts == TWO
