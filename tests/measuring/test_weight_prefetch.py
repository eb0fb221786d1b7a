"""Whether weights are asked for ahead: what is kept, and that no result depends on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from headrace.engine.bandwidth_model.profile import hardware_key
from headrace.engine.measure import expert_times, weight_prefetch
from headrace.kernels import FORMATS, load
from headrace.kernels.cases.case import RandomSource
from headrace.kernels.context import Context

DEFAULT = Context()
OTHER = not DEFAULT.prefetch


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def measured(monkeypatch: pytest.MonkeyPatch, helps: bool) -> None:
    monkeypatch.setattr(weight_prefetch, "measure", lambda context: 1.2 if helps else 0.9)


def test_what_was_measured_is_kept_and_used(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, OTHER)
    assert weight_prefetch.use(DEFAULT) == replace(DEFAULT, prefetch=OTHER)
    monkeypatch.setattr(weight_prefetch, "measure", lambda context: pytest.fail("it was measured already"))
    assert weight_prefetch.use(DEFAULT).prefetch is OTHER
    assert weight_prefetch.use(DEFAULT, may_measure=False).prefetch is OTHER
    monkeypatch.setattr(expert_times, "kernels_digest", lambda: "other kernels")
    measured(monkeypatch, DEFAULT.prefetch)
    assert weight_prefetch.use(DEFAULT) == DEFAULT


def test_nothing_is_measured_that_may_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_prefetch, "measure", lambda context: pytest.fail("it was measured"))
    assert weight_prefetch.use(DEFAULT, may_measure=False) == DEFAULT


@pytest.mark.parametrize("content", ["", "[]", "{}", "no", '{"DIGEST": 1}'])
def test_a_file_that_says_nothing_is_measured_anew(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "headrace" / f"prefetch-{hardware_key(DEFAULT)}.json"
    path.parent.mkdir()
    path.write_text(content.replace("DIGEST", expert_times.kernels_digest()))
    measured(monkeypatch, OTHER)
    assert weight_prefetch.use(DEFAULT).prefetch is OTHER


def test_measuring_gives_a_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_prefetch, "ROUNDS", 2)
    assert 0.0 < weight_prefetch.measure(DEFAULT) < float("inf")


@pytest.mark.parametrize("name", ["f32", "bf16", "q8_0", "q4_k"])
def test_results_do_not_depend_on_it(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix, x = RandomSource(generator).matrix(FORMATS[name], 40, 768), torch.randn(1, 768, generator=generator)
    without, ahead = (load("cpu", replace(DEFAULT, prefetch=on)).linear(x, matrix) for on in (False, True))
    assert torch.equal(without, ahead)
