"""The checks on machines that are made up, and what a diagnosis makes of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from headrace.engine.bandwidth_model.profile import Profile
from headrace.engine.bench import checks, doctor, system_facts
from headrace.engine.bench.checks import Finding
from headrace.engine.bench.doctor import Step
from headrace.engine.bench.system_facts import Facts
from headrace.engine.devices import pcie
from headrace.engine.devices.pcie import PciLink
from headrace.engine.terminal.doctor import doctor_table
from headrace.kernels.context import Context

GOOD = Facts(
    huge_pages="madvise", isa="amx", available_isas=("portable", "avx2", "avx512", "amx"),
    cpu_flags=frozenset({"avx2", "avx512_vnni", "amx_bf16"}), threads=8, cores=8, clock=0.9, stolen=0.0, throttled=0.0,
    cpu_nodes=frozenset({0}), memory_nodes=frozenset({0, 1}), nodes={0: 1 << 36},
    stream_by_threads={1: 15e9, 4: 55e9, 8: 90e9},
)  # fmt: skip


def link(lanes: int = 16, speed: float = 16.0) -> PciLink:
    return PciLink(device="GPU 0000:01:00.0", lanes=lanes, most_lanes=16, speed=speed, most_speed=16.0)


def causes(**changes: object) -> list[str]:
    return [f.cause for f in checks.run(replace(GOOD, **changes))]  # type: ignore[arg-type]


def test_a_good_machine_has_no_finding() -> None:
    assert causes() == []


def test_a_system_that_says_nothing_has_no_finding() -> None:
    assert checks.run(Facts()) == []


@pytest.mark.parametrize(
    ("cause", "changes"),
    [
        ("no huge pages", {"huge_pages": "never"}),
        ("amx unused", {"isa": "avx512"}),
        ("avx512 unused", {"isa": "avx2", "cpu_flags": frozenset({"avx2", "avx512_vnni"})}),
        ("SMT siblings", {"threads": 16}),
        ("idle cores", {"threads": 4}),
        ("single-channel-like bandwidth", {"stream_by_threads": {1: 14e9, 4: 20e9, 8: 22e9}}),
        ("single-channel-like bandwidth", {"stream_by_threads": {1: 30e9, 4: 33e9, 8: 34e9}}),
        ("throttling", {"clock": 0.4}),
        ("stolen time", {"stolen": 0.2}),
        ("CPU quota", {"throttled": 0.3}),
        ("slow cores", {"pace": 1.25}),
        ("PCIe link below its width", {"links": (link(lanes=8),)}),
        ("PCIe link below its speed", {"links": (link(), link(speed=2.5))}),
        ("wrong NUMA node", {"nodes": {0: 1 << 36, 1: 1 << 36}, "memory_nodes": frozenset({1})}),
        ("wrong NUMA node", {"nodes": {0: 1 << 36, 1: 1 << 36}}),
    ],
)
def test_each_cause_is_found_alone(cause: str, changes: dict[str, object]) -> None:
    assert causes(**changes) == [cause]


@pytest.mark.parametrize(
    "changes",
    [
        {"huge_pages": "always"},
        {"isa": "avx512", "cpu_flags": frozenset({"avx2", "avx512_vnni"})},
        {"stream_by_threads": {1: 14e9, 2: 16e9}},  # two cores say nothing about channels
        {"stolen": None, "throttled": None, "clock": None},
        {"pace": 1.1, "links": (link(), link(lanes=0, speed=0.0))},
        {"nodes": {0: 1 << 36, 1: 1 << 36}, "cpu_nodes": frozenset({0, 1})},
        {"nodes": {0: 1 << 36, 1: 1 << 36}, "memory_nodes": frozenset({0})},
    ],
)
def test_what_is_no_cause(changes: dict[str, object]) -> None:
    assert causes(**changes) == []


def test_links_that_are_narrow_are_named_with_their_lanes() -> None:
    (found,) = checks.run(replace(GOOD, links=(link(lanes=4), link())))
    assert found.seen == "GPU 0000:01:00.0 runs with 4 of 16 lanes"
    assert found.share is None


def test_slow_cores_cost_what_they_take_longer() -> None:
    (found,) = checks.run(replace(GOOD, pace=1.25))
    assert found.share == pytest.approx(0.2)
    assert "1.25 times" in found.seen


def test_links_are_read_from_the_system(tmp_path: Path) -> None:
    """A GPU on half its lanes, a drive, a network card, and a GPU whose driver tells nothing."""

    def device(name: str, number: str, **values: str) -> None:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "class").write_text(number + "\n")
        for key, value in values.items():
            (folder / key).write_text(value + "\n")

    full = {"current_link_width": "16", "max_link_width": "16", "max_link_speed": "16.0 GT/s PCIe"}
    device("0000:01:00.0", "0x030200", **{**full, "current_link_width": "8", "current_link_speed": "2.5 GT/s PCIe"})
    device("0000:02:00.0", "0x010802", **{**full, "max_link_width": "4", "current_link_width": "4",
                                          "current_link_speed": "16.0 GT/s PCIe"})  # fmt: skip
    device("0000:03:00.0", "0x020000", **full, current_link_speed="16.0 GT/s PCIe")
    device("0000:04:00.0", "0x030000", **full)
    device("0000:05:00.0", "0x030000", **full, current_link_speed="Unknown")
    assert list(pcie.pci_links(tmp_path)) == [
        PciLink(device="GPU 0000:01:00.0", lanes=8, most_lanes=16, speed=2.5, most_speed=16.0),
        PciLink(device="NVMe drive 0000:02:00.0", lanes=4, most_lanes=4, speed=16.0, most_speed=16.0),
    ]
    assert list(pcie.pci_links(tmp_path / "none")) == []


def test_siblings_cost_what_their_threads_read_less() -> None:
    found = checks.smt_siblings(replace(GOOD, threads=16, stream_by_threads={8: 100e9, 16: 80e9}))
    assert found is not None
    assert found.share == pytest.approx(0.2)


def test_a_forced_isa_is_unset_and_a_missing_one_is_not() -> None:
    forced, missing = replace(GOOD, isa="avx2"), replace(GOOD, isa="avx2", available_isas=("portable", "avx2"))
    found = [checks.unused_isa(one) for one in (forced, missing)]
    assert [f is not None and "HEADRACE_ISA" in f.remedy for f in found] == [True, False]


def test_the_largest_known_loss_comes_first() -> None:
    assert causes(stolen=0.1, throttled=0.3, huge_pages="never") == ["CPU quota", "stolen time", "no huge pages"]


def test_losses_are_what_a_step_would_gain() -> None:
    """10 ms, of them 1 fixed, 6 memory (4 if read plainly), 3 that nothing explains; a tenth is stolen."""
    step = Step(measured_s=10e-3, memory_s=6e-3, fixed_s=1e-3, plain_s=4e-3)
    stolen = Finding(cause="stolen", seen="", remedy="", share=0.1)
    unknown = Finding(cause="unknown", seen="", remedy="", share=None)
    found = doctor.diagnose([unknown, stolen], step)
    assert {loss.cause: loss.tok_s and round(loss.tok_s, 3) for loss in found} == {
        "slower than the profile": round(1e3 / 7 - 100, 3),
        "kernels below a plain read": 25.0,
        "stolen": round(1e3 / 9 - 100, 3),
        "fixed costs": round(1e3 / 9 - 100, 3),
        "unknown": None,
    }
    assert found[0].cause == "slower than the profile"
    assert found[-1].cause == "unknown"
    assert step.bound == "cpu_dram"


def test_without_a_run_losses_are_shares() -> None:
    (loss,) = doctor.diagnose([Finding(cause="stolen", seen="", remedy="", share=0.1)], None)
    assert (loss.share, loss.tok_s) == (0.1, None)


def test_headlines_say_what_to_do_first(profile: Profile) -> None:
    losses = doctor.diagnose([Finding(cause="x", seen="y", remedy="do this", share=0.1)], None)
    assert doctor_table.headlines(None, losses, profile)[-1] == "first: do this"
    assert "nothing found" in doctor_table.headlines(None, [], profile)[-1]


def test_lists_of_cpus() -> None:
    assert system_facts.numbers("0-3,8,10-11") == {0, 1, 2, 3, 8, 10, 11}
    assert system_facts.numbers("") == set()


def test_the_facts_of_this_machine(profile: Profile) -> None:
    calls: list[int] = []
    found = system_facts.gather(
        replace(profile, stream_by_threads={"1": 1e9}), Context(), lambda: calls.append(1), seconds=0.01
    )
    assert calls, "shares of time are those under load"
    assert found.cores >= 1
    assert found.isa in found.available_isas
    assert found.stream_by_threads == {1: 1e9}
    assert found.pace is None, "the profile does not say what it was"
    paced = system_facts.gather(replace(profile, pace_s=1e-9), Context(), lambda: None, seconds=0.01)
    assert paced.pace is not None
    assert paced.pace > 1
    assert all(size > 0 for size in found.nodes.values())


def test_what_kernels_and_copies_get_at_once(profile: Profile) -> None:
    both = {"experts q4_0": 2e9, "gpu0 h2d pinned": 4e9, "experts q4_0 alone": 3e9, "gpu0 h2d pinned alone": 5e9}
    known = replace(profile, together={"experts q4_0 + gpu0 h2d pinned": both})
    shown = doctor_table.headlines(None, [], known, has_gpu=True)
    assert "together, GB/s: experts q4_0 2.0 of 3.0 alone, gpu0 h2d pinned 4.0 of 5.0 alone" in shown
    assert any("are not measured: headrace measure" in line for line in doctor_table.headlines(None, [], profile, True))
    assert not any("copies" in line for line in doctor_table.headlines(None, [], profile))
