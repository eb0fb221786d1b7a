"""Machines by name, by file and by profile; parts as data."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from refusals import refused

from headrace import OptionError
from headrace.engine.bandwidth_model import hardware, machine_file
from headrace.engine.bandwidth_model.hardware import CORE_FLOPS, REACHED, parse, part, parts
from headrace.engine.bandwidth_model.profile import Profile, load_profile
from headrace.kernels.context import Context

GB = 1e9


@pytest.mark.parametrize("name", parts())
def test_every_part_has_its_figures_and_their_source(name: str) -> None:
    entry = parts()[name]
    made = part(name)
    assert entry["source"]
    assert entry["kind"] in ("gpu", "cpu", "unified", "on-chip", "disk")
    assert 0 < made.bandwidth.low < made.bandwidth.mid < made.bandwidth.high < made.nominal
    if made.kind == "gpu":
        assert made.memory
        assert made.link
        assert made.flops
    if made.kind == "cpu":
        assert made.isa in CORE_FLOPS
        assert f"{entry['channels']} channels" in entry["name"] and str(entry["mts"]) in entry["name"]  # noqa: PT018


def test_bandwidths_by_hand() -> None:
    """8 channels of DDR5-6400 carry 8 bytes each: the article's 409 GB/s; PCIe 4.0 x16 31.5 GB/s."""
    assert part("epyc-9005-8ch").nominal == pytest.approx(409.6 * GB)
    assert part("ddr5-6000-2ch").nominal == pytest.approx(96 * GB)
    link = part("rtx-3090").link
    assert link is not None
    assert link.mid == pytest.approx(31.5 * GB * REACHED["link"][0].mid, rel=1e-3)


def test_a_machine_of_parts() -> None:
    found = parse("2x RTX 3090, epyc-9005-8ch, 768 GB, 64 cores, nvme-gen4")
    assert [g.name for g in found.gpus] == ["NVIDIA GeForce RTX 3090"] * 2
    assert found.cpu is not None
    assert found.cpu.memory == 768 * GB
    assert found.cpu.flops == CORE_FLOPS["avx512"].times(64)
    assert found.disk is not None
    assert not found.measured


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("rtx 3090 + ddr5-5600-2ch + 64gb", "rtx-3090, ddr5-5600-2ch, 64gb"),
        ("4x rtx-3090, ddr4-3200-8ch 256gb", "4x rtx-3090, ddr4-3200-8ch, 256gb"),
        ("2x epyc-9004 1.5 TB 64 cores", "2x epyc-9004, 1.5tb, 64cores"),
        ("2x a100 80gb, epyc-9005-8ch 1tb", "2x a100-80gb, epyc-9005-8ch, 1tb"),
        ("m4-max 64gb", "m4-max, 64gb"),
        ("ram 64gb, ddr5-5600-2ch", "64gb, ddr5-5600-2ch"),
        ("2x3090, ddr5-5600-2ch", "2x rtx-3090, ddr5-5600-2ch"),
        ("rtx 3060 12gb, ddr4-3200-2ch 64gb", "rtx-3060, ddr4-3200-2ch, 64gb"),
        ("NVIDIA GeForce RTX 4060 Ti 16GB, ddr5-5600-2ch", "rtx-4060-ti-16gb, ddr5-5600-2ch"),
        ("rtx4070tisuper, AMD Ryzen 9 9950X 64gb", "rtx-4070-ti-super, ryzen-9-9950x, 64gb"),
        ("epyc-9005-12ch 768gb", "epyc-9005, 768gb"),
        ("EPYC 9654, 384gb", "epyc-9004, 384gb"),
        ("epyc 7763 512gb", "epyc-7003, 512gb"),
        ("threadripper pro 7965wx, 256gb", "threadripper-pro-7000, 256gb"),
        ("xeon platinum 8480+ 512gb 56cores", "xeon-4th, 512gb, 56cores"),
        ("2x xeon sapphire rapids 8ch 1tb", "2x xeon-4th, 1tb"),
        ("xeon-6980p", "xeon-6900p"),
        ("ryzen ai max+ 395 64gb", "strix-halo, 64gb"),
        ("apple m3 ultra 256gb", "m3-ultra, 256gb"),
    ],
)
def test_ways_to_write_the_same_machine(text: str, same: str) -> None:
    def figures(found: hardware.Hardware) -> list[tuple[Any, ...]]:
        return [(one.name, one.memory, one.flops, one.bandwidth) for one in found.devices]

    assert figures(parse(text)) == figures(parse(same))


def test_a_board_with_empty_channels() -> None:
    found = part("epyc-9005-4ch")
    assert found.name == "AMD EPYC 9005, 4 channels of DDR5-6000"
    assert found.nominal == pytest.approx(4 * 48 * GB)
    for wrong, said in (("epyc-9005-16ch", "has 12 channels, not 16"), ("rtx-3090-12gb", "has 24 GB, not 12")):
        with pytest.raises(OptionError, match=said):
            part(wrong)
    with pytest.raises(OptionError, match="nearest: rtx-4060-ti-16gb, rtx-4060-ti-8gb"):
        part("rtx 4060 ti")


def test_two_sockets_have_twice_the_bandwidth() -> None:
    found = parse("2x epyc-9004, 1.5tb")
    assert found.cpu is not None
    assert found.cpu.nominal == pytest.approx(2 * 460.8 * GB)
    assert found.cpu.memory == 1500 * GB


def test_one_memory_for_everything() -> None:
    found = parse("m3-ultra, 256gb")
    assert found.cpu is None
    assert found.gpus[0].memory == 256 * GB


def test_weights_on_chip_are_bound_by_compute_at_once() -> None:
    """The crossover batch is below 1: 125 PFLOP/s over 21 PB/s."""
    chip = part("cerebras-wse-3")
    assert chip.flops is not None
    assert chip.flops.mid * 2 / (2 * chip.bandwidth.mid) < 10
    assert chip.nominal / part("h100-sxm").nominal > 1000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("4060ti", "nearest: rtx-4060-ti-16gb, rtx-4060-ti-8gb"),
        ("rtx-3091", "nearest: rtx-3090"),
        ("ddr5-6000, 64gb", "'ddr5-6000' does not say how many channels it has: write ddr5-6000-2ch"),
        ("h200 80gb", "has 141 GB, not 80"),
        ("epyc-9006", "nearest: epyc-900"),
        ("", "is empty"),
        ("rtx-3090, 0gb", "RAM is 0"),
        ("0x rtx-3090", "0 parts"),
        ("ddr5-0-2ch", "no bandwidth"),
        ("ddr5-6000-0ch", "no bandwidth"),
        ("epyc-9004, epyc-7003", "two CPUs"),
        ("rtx-3090, 64gb", "no CPU or board"),
        ("m3-ultra, rtx-3090", "name it alone"),
        ("nvme-gen4", "nothing that computes"),
        ("epyc-9004, 0cores", "cores is 0"),
    ],
)
def test_impossible_machines_are_refused(text: str, said: str) -> None:
    with refused(OptionError, said):
        parse(text)


def test_a_machine_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "box.json"
    values = {
        "name": "box", "gpus": ["rtx-3090"], "sync_us": 25, "fixed_ms": 2, "disk": {"bandwidth_gbs": 6},
        "cpu": {"name": "mine", "memory_gb": 512, "channels": 8, "mts": 3200, "sustained_gbs": 150, "cores": 32},
    }  # fmt: skip
    path.write_text(json.dumps(values))
    found = machine_file.find(str(path))
    assert found is not None
    assert found.cpu is not None
    assert found.cpu.bandwidth == hardware.exactly(150 * GB)
    assert found.cpu.nominal == pytest.approx(204.8 * GB)
    assert found.sync.low == found.sync.high == pytest.approx(25e-6)
    assert found.fixed.mid == pytest.approx(2e-3)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "neither gpus nor a cpu"),
        ({"cpu": {"memory_gb": 4}}, "no bandwidth_gbs"),
        ({"gpus": [{"bandwidth_gbs": 900}]}, "no memory_gb"),
        ({"cpu": {"bandwidth_gbs": -3}}, "bandwidth_gbs is -3"),
        ({"cpu": {"bandwidth_gbs": "fast"}}, 'bandwidth_gbs is "fast"'),
        ({"cpu": {"bandwidth_gbs": 50, "colour": 1}}, "unknown keys colour"),
        ({"cpus": {}}, "unknown keys cpus"),
        ({"gpus": ["rtx-3091"]}, "nearest: rtx-3090"),
        ({"gpus": [{"memory_gb": 24, "bandwidth_gbs": 900, "pcie": "x16"}]}, "'4.0x16'"),
        ({"cpu": {"bandwidth_gbs": 50, "isa": "neon"}}, "isa is 'neon'"),
        ([], "holds a list"),
    ],
)
def test_files_that_are_no_machine_are_refused(tmp_path: Path, values: Any, said: str) -> None:
    path = tmp_path / "box.json"
    path.write_text(json.dumps(values))
    with refused(OptionError, said):
        machine_file.find(str(path))


@pytest.mark.parametrize(("text", "said"), [("{", "not valid JSON"), (None, "cannot read")])
def test_files_that_cannot_be_read_are_refused(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "box.json"
    if text is not None:
        path.write_text(text)
    with refused(OptionError, said):
        machine_file.find(str(path))


def test_the_profile_of_this_machine_from_a_file(profile: Profile, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(dataclasses.asdict(load_profile(Context()) or profile)))
    found = machine_file.find(str(path))
    assert found is not None
    assert found.measured
    assert found.cpu is not None
    assert found.cpu.reads("q4_0", True).mid == 1e10


def test_a_profile_of_other_hardware_is_refused(profile: Profile, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    other = dataclasses.replace(profile, key="0123456789ab", cpu="Some Other CPU", threads=77)
    path.write_text(json.dumps(dataclasses.asdict(other)))
    with refused(OptionError, "profile of other hardware: Some Other CPU", "77 threads", "headrace measure"):
        machine_file.find(str(path))


def test_sources_of_ranges_are_said() -> None:
    for reached, why in REACHED.values():
        assert 0 < reached.low < reached.mid < reached.high < 1
        assert re.search(r"[a-z]", why)


def test_this_machine_with_a_named_gpu(profile: Profile) -> None:
    """The measured CPU beside a part."""
    found = machine_file.find("this, rtx-3090, nvme-gen4")
    assert found is not None
    assert found.cpu is not None
    assert found.cpu.reads("q4_0", True).mid == 1e10
    assert [g.name for g in found.gpus] == ["NVIDIA GeForce RTX 3090"]


def test_this_machine_must_be_measured(cache_home: Path) -> None:
    with refused(OptionError, "'this' is not measured yet", "headrace measure"):
        machine_file.find("this, rtx-3090")
