"""How many experts to copy beside the CPU: tables by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from headrace.engine.bandwidth_model.link_rate import LinkRate, link_rate
from headrace.engine.bandwidth_model.profile import Profile
from headrace.engine.bandwidth_model.split_decode import Curves, best_fetch, curves, shared_how
from headrace.kernels import FORMATS, ExpertLayout

LAYOUT = ExpertLayout(format=FORMATS["bf16"], hidden=32, width=16)  # 3072 bytes


def line(fixed: float, each: float, most: int) -> tuple[float, ...]:
    return tuple(0.0 if n == 0 else fixed + n * each for n in range(most + 1))


def freely(cpu: tuple[float, ...], link: tuple[float, ...], gpu: tuple[float, ...]) -> Curves:
    """CPU and link that do not slow each other down."""
    return Curves(cpu=cpu, link=link, gpu=gpu, cpu_beside=cpu, link_beside=link)


def test_a_table_by_hand() -> None:
    """CPU 10 an expert, link 20, GPU 1.

    m = 2, f = 1: max(10, 21) = 21, the CPU alone 20: 0. m = 3, f = 1: max(20, 21) = 21 of 30: 1. m = 4, f = 1: 30 of
    40: 1. m = 5: f = 1: 40, f = 2: max(30, 42) = 42: 1. m = 6: f = 2: max(40, 42) = 42 of 60: 2.
    """
    cpu = line(0, 10, 6)
    table = best_fetch(freely(cpu=cpu, link=line(0, 20, 6), gpu=line(0, 1, 6)))
    assert table == (0, 0, 0, 1, 1, 1, 2)


def test_fixed_costs_count() -> None:
    """2.65 MB an expert, the link 48 GB/s after 6 us, the CPU 150 GB/s after 12 us: with 3 experts 61 of 65 us is too
    little a gain, with 4 it is 65 of 83, with 8 two are copied: 118 of 153."""
    cpu, link = line(12, 2650 / 150, 8), line(6, 2650 / 48, 8)
    both = freely(cpu=cpu, link=link, gpu=line(0, 0, 8))
    assert max(cpu[2], link[1]) == pytest.approx(61.2, abs=0.1)
    assert cpu[3] == pytest.approx(65, abs=0.1)
    table = best_fetch(both)
    assert (table[3], table[4], table[8]) == (0, 1, 2)
    assert best_fetch(both, gain=0.05)[3] == 1


def test_a_cpu_that_copies_slow_down() -> None:
    """Alone 10 an expert, beside copies 40, link 20: 4 experts take 120, 80 or 60, and alone 40."""
    slow = dataclasses.replace(
        freely(cpu=line(0, 10, 4), link=line(0, 20, 4), gpu=line(0, 0, 4)), cpu_beside=line(0, 40, 4)
    )
    assert best_fetch(slow) == (0,) * 5


def test_a_link_that_the_cpu_slows_down() -> None:
    """CPU 10 an expert, link 20 alone: of 4 experts 1 is copied, max(30, 20) of 40. Beside the CPU the link takes 38:
    max(30, 38) of 40 is too little a gain. All over the link would still be 80."""
    both = freely(cpu=line(0, 10, 4), link=line(0, 20, 4), gpu=line(0, 0, 4))
    assert best_fetch(both)[4] == 1
    assert best_fetch(dataclasses.replace(both, link_beside=line(0, 38, 4)))[4] == 0


def test_a_gpu_that_is_faster_alone_is_left_to_streaming() -> None:
    """The link takes 1 an expert, the CPU 10: all but one over the link is no gain over all of them."""
    cpu = line(0, 10, 8)
    assert best_fetch(freely(cpu=cpu, link=line(0, 1, 8), gpu=line(0, 0, 8))) == (0,) * 9


def measured(profile: Profile, experts: float, stream: float) -> Profile:
    return dataclasses.replace(profile, experts=dict.fromkeys(FORMATS, experts), stream=stream)


LINK = LinkRate(bytes_s=4e9, gpu_bytes_s=1e12, is_measured=True, source="")


def test_curves_share_the_memory(profile: Profile) -> None:
    """Reads of 10 GB/s at most: beside 4 GB/s of copies the CPU has 6, or what it takes alone if that is less."""
    found = curves(measured(profile, 8e9, 10e9), LAYOUT, LINK, 1.0, 3)
    assert found is not None
    assert found.cpu == pytest.approx([n * 3072 / 8e9 for n in range(4)])
    assert found.cpu_beside == pytest.approx([n * 3072 / 6e9 for n in range(4)])
    assert found.link_beside == found.link
    assert "no more than a plain read, assumed" in shared_how(LAYOUT, profile, LINK)
    assert found.link == pytest.approx([n * 3072 / 4e9 for n in range(4)])
    assert found.gpu == pytest.approx([n * 3072 / 1e12 for n in range(4)])
    slow = curves(measured(profile, 5e9, 10e9), LAYOUT, LINK, 1.0, 3)
    assert slow is not None
    assert slow.cpu_beside == slow.cpu


def together(experts: float, copies: float) -> dict[str, dict[str, float]]:
    """Rates of bf16 experts and copies to gpu0 at once; alone the experts read 10, the copies 5 GB/s."""
    found = {"experts bf16": experts, "gpu0 h2d pinned": copies}
    return {" + ".join(found): {**found, "experts bf16 alone": 10e9, "gpu0 h2d pinned alone": 5e9}}


def test_curves_follow_what_was_measured_together(profile: Profile) -> None:
    """Experts keep 7 of 10, the link 4 of 5: of 8 and 4 GB/s 5.6 and 3.2, whatever a plain read would leave. With 3
    tokens an expert takes twice as long: 4 GB/s, which the copies do not slow down."""
    copies = {"gpu0 h2d pinned": 4e9, "gpu0 hbm": 1e12}
    known = dataclasses.replace(measured(profile, 8e9, 4e9), copies=copies, together=together(7e9, 4e9))
    known = dataclasses.replace(known, crowd={"3": dict.fromkeys(FORMATS, 4e9), "9": dict.fromkeys(FORMATS, 4e9)})
    link = link_rate(known, torch.device("cuda", 0))
    assert link.kept["bf16"] == (pytest.approx(0.7), pytest.approx(0.8))
    assert link.kept["f16"] == link.kept["bf16"], "the most alike"
    found = curves(known, LAYOUT, link, 1.0, 3)
    assert found is not None
    assert found.cpu == pytest.approx([n * 3072 / 8e9 for n in range(4)])
    assert found.cpu_beside == pytest.approx([n * 3072 / 5.6e9 for n in range(4)])
    assert found.link == pytest.approx([n * 3072 / 4e9 for n in range(4)])
    assert found.link_beside == pytest.approx([n * 3072 / 3.2e9 for n in range(4)])
    many = curves(known, LAYOUT, link, 3.0, 3)
    assert many is not None
    assert many.cpu_beside == many.cpu == pytest.approx([n * 3072 / 4e9 for n in range(4)])
    assert "the CPU keeps 70% of its rate and the link 80%, measured" in shared_how(LAYOUT, profile, link)
    assert link_rate(known, torch.device("cuda", 0)).kept.get("q4_0") is None, "another format was not measured"
    other = dataclasses.replace(known, copies={**copies, "gpu1 h2d pinned": 4e9})
    assert link_rate(other, torch.device("cuda", 1)).kept == {}, "another GPU was not measured"


@pytest.mark.parametrize(
    "link",
    [
        dataclasses.replace(LINK, is_measured=False),
        dataclasses.replace(LINK, gpu_bytes_s=0.0),
        dataclasses.replace(LINK, bytes_s=10e9),
    ],
)
def test_no_curves_without_measured_rates(link: LinkRate, profile: Profile) -> None:
    assert curves(measured(profile, 8e9, 10e9), LAYOUT, link, 1.0, 3) is None
