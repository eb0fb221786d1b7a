"""From how many tokens on tiles are used: the rule, what is kept, and what a broken file does."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import pytest
import torch

from headrace.engine.bandwidth_model.profile import hardware_key
from headrace.engine.measure import tile_thresholds
from headrace.kernels import FORMATS, load
from headrace.kernels.context import NEVER, Context
from headrace.kernels.packed import Matrix

DEFAULT = Context()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def kept(tmp_path: Path) -> Path:
    return tmp_path / "headrace" / f"tiles-{hardware_key(Context())}.json"


def test_each_rounding_has_thresholds_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (built_in := DEFAULT.tile_tokens):
        pytest.skip("this instruction set has no tiles")
    exact = Context(activations="bf16")
    monkeypatch.setattr(
        tile_thresholds, "measure", lambda context, formats: dict.fromkeys(formats, 3 if context == exact else 5)
    )
    for _ in range(2):
        assert tile_thresholds.use(exact).tile_tokens == dict.fromkeys(exact.tile_tokens, 3)
        assert tile_thresholds.use(DEFAULT).tile_tokens == dict.fromkeys(built_in, 5)


def test_tiles_begin_where_they_always_win() -> None:
    assert tile_thresholds.threshold({2: 0.6, 4: 1.3, 6: 1.05, 8: 1.2, 16: 2.0}) == 8  # 4 was luck
    assert tile_thresholds.threshold({2: 1.5, 4: 1.6}) == 2
    assert tile_thresholds.threshold({2: 0.5, 4: 0.9}) == NEVER


def test_what_was_measured_is_kept_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built_in = DEFAULT.tile_tokens
    if not built_in:
        assert tile_thresholds.use(DEFAULT) == DEFAULT
        pytest.skip("this instruction set has no tiles")
    odd = {name: count + 3 for name, count in built_in.items()}
    monkeypatch.setattr(tile_thresholds, "measure", lambda context, formats: odd)
    assert tile_thresholds.use(DEFAULT).tile_tokens == odd
    monkeypatch.setattr(tile_thresholds, "measure", lambda context, formats: pytest.fail("it was measured already"))
    assert (
        tile_thresholds.use(DEFAULT).tile_tokens
        == odd
        == json.loads(kept(tmp_path).read_text())[tile_thresholds.kernels_digest()]
    )
    monkeypatch.setattr(tile_thresholds, "kernels_digest", lambda: "other kernels")
    monkeypatch.setattr(tile_thresholds, "measure", lambda context, formats: built_in)
    assert tile_thresholds.use(DEFAULT).tile_tokens == built_in, "thresholds of other kernels were used"
    assert list(json.loads(kept(tmp_path).read_text()).values()) == [built_in, odd]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"f32": 0}', "no", '{"bf16": 0, "q8_0": 8, "q4_0": 8}', '"bf16"'])
def test_a_file_that_is_not_whole_is_measured_anew(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (built_in := DEFAULT.tile_tokens):
        pytest.skip("this instruction set has no tiles")
    kept(tmp_path).parent.mkdir()
    whole = f'{{"{tile_thresholds.kernels_digest()}": {content}}}'
    kept(tmp_path).write_text(whole if content.endswith(("]", "}", '"')) else content)
    monkeypatch.setattr(tile_thresholds, "measure", lambda context, formats: dict.fromkeys(formats, 5))
    assert tile_thresholds.use(DEFAULT).tile_tokens == dict.fromkeys(built_in, 5)


def test_only_formats_that_are_missing_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (built_in := DEFAULT.tile_tokens):
        pytest.skip("this instruction set has no tiles")
    there, *others = built_in
    tile_thresholds.save(DEFAULT, {there: 4})
    monkeypatch.setattr(tile_thresholds, "measure", lambda context, formats: dict.fromkeys(formats, 5))
    assert tile_thresholds.use(DEFAULT).tile_tokens == {there: 4, **dict.fromkeys(others, 5)}


def test_measuring_tries_every_format(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (built_in := DEFAULT.tile_tokens):
        pytest.skip("this instruction set has no tiles")
    monkeypatch.setattr(tile_thresholds, "ROUNDS", 1)
    found = tile_thresholds.measure(DEFAULT, list(built_in))
    assert set(found) == set(built_in)
    counts = {*tile_thresholds.TOKENS, *tile_thresholds.MORE_TOKENS}
    assert set(found.values()) <= {*counts, NEVER}


def test_what_gains_late_is_tried_with_more_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (built_in := DEFAULT.tile_tokens):
        pytest.skip("this instruction set has no tiles")
    name = next(iter(built_in))
    monkeypatch.setattr(tile_thresholds, "_gains", lambda *given: {n: n / 40 for n in given[-1]})
    assert tile_thresholds.measure(DEFAULT, [name]) == {name: 64}


def test_the_number_decides_which_way_a_matrix_goes() -> None:
    if not DEFAULT.tile_tokens:
        pytest.skip("this instruction set has no tiles")
    generator = torch.Generator().manual_seed(0)
    format = FORMATS["q8_0"]
    matrix = Matrix(format, 64, 96, load("cpu").quantize(torch.randn(64, 96, generator=generator), format))
    x = torch.randn(5, 96, generator=generator)
    dots, tiled = (load("cpu", Context(tiles_from={"q8_0": least})).linear(x, matrix) for least in (6, 5))
    assert not torch.equal(dots, tiled), "the two round differently"
    assert (dots - tiled).norm() < 0.02 * dots.norm()


def test_formats_that_are_not_timed_take_the_threshold_of_one_that_is_like_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "q5_k" not in DEFAULT.tile_tokens:
        pytest.skip("this instruction set has no tiles for it")
    timed: list[str] = []

    def gains(context: Context, format: str, arena: torch.Tensor, counts: Collection[int]) -> dict[int, float]:
        timed.append(format)
        return {FORMATS[format].bits: 2.0}

    monkeypatch.setattr(tile_thresholds, "_gains", gains)
    found = tile_thresholds.measure(DEFAULT, ["q5_k", "q4_k", "iq2_xs", "q3_k"])
    assert found == {"q5_k": 4, "q4_k": 4, "iq2_xs": 6, "q3_k": 6}
    assert timed == ["q4_k", "q6_k"]
