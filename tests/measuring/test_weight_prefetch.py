"""How far ahead weights are asked for: what is kept, and that no result depends on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from headrace.engine.bandwidth_model.profile import hardware_key
from headrace.engine.measure import expert_times, weight_prefetch
from headrace.kernels import FORMATS, load
from headrace.kernels.cases.case import RandomSource
from headrace.kernels.context import NO_PREFETCH, Context

DEFAULT = Context()
OTHER = next(choice for choice in weight_prefetch.CHOICES if choice != DEFAULT.prefetch)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def measured(monkeypatch: pytest.MonkeyPatch, best: tuple[int, int]) -> None:
    times = {choice: 0.9 if choice == best else 1.0 for choice in weight_prefetch.CHOICES}
    monkeypatch.setattr(weight_prefetch, "measure", lambda context: times)


def test_what_was_measured_is_kept_and_used(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, OTHER)
    assert weight_prefetch.use(DEFAULT) == replace(DEFAULT, prefetch=OTHER)
    monkeypatch.setattr(weight_prefetch, "measure", lambda context: pytest.fail("it was measured already"))
    assert weight_prefetch.use(DEFAULT).prefetch == OTHER
    assert weight_prefetch.use(DEFAULT, may_measure=False).prefetch == OTHER
    monkeypatch.setattr(expert_times, "kernels_digest", lambda: "other kernels")
    measured(monkeypatch, DEFAULT.prefetch)
    assert weight_prefetch.use(DEFAULT) == DEFAULT


def test_nothing_is_measured_that_may_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_prefetch, "measure", lambda context: pytest.fail("it was measured"))
    assert weight_prefetch.use(DEFAULT, may_measure=False) == DEFAULT


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", "no", '{"DIGEST": 1}', '{"DIGEST": true}', '{"DIGEST": [1, -5]}', '{"DIGEST": [[0], {}]}'],
)
def test_a_file_that_says_nothing_is_measured_anew(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "headrace" / f"prefetch-{hardware_key(DEFAULT)}.json"
    path.parent.mkdir()
    path.write_text(content.replace("DIGEST", expert_times.kernels_digest()))
    measured(monkeypatch, OTHER)
    assert weight_prefetch.use(DEFAULT).prefetch == OTHER


def test_the_first_of_equal_ones_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_prefetch, "measure", lambda context: dict.fromkeys(weight_prefetch.CHOICES, 1.0))
    assert weight_prefetch.refresh(DEFAULT) == NO_PREFETCH


def test_measuring_gives_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_prefetch, "ROUNDS", 2)
    found = weight_prefetch.measure(DEFAULT)
    assert tuple(found) == weight_prefetch.CHOICES
    assert found[NO_PREFETCH] == 1.0
    assert all(0.0 < ratio < float("inf") for ratio in found.values())


@pytest.mark.parametrize("cols", [512, 768, 320])
@pytest.mark.parametrize("name", ["f32", "bf16", "q8_0", "q4_k", "mxfp4"])
def test_results_do_not_depend_on_it(name: str, cols: int) -> None:
    if cols % 256 and FORMATS[name].block == 256:
        pytest.skip("rows of whole blocks")
    generator = torch.Generator().manual_seed(0)
    matrix, x = RandomSource(generator).matrix(FORMATS[name], 40, cols), torch.randn(1, cols, generator=generator)
    first, *others = (load("cpu", replace(DEFAULT, prefetch=far)).linear(x, matrix) for far in weight_prefetch.CHOICES)
    assert all(torch.equal(first, other) for other in others)
