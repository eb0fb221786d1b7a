"""The numbers of a trace, against such that were worked out by hand or by counting plainly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headrace import OptionError
from headrace.engine.terminal.trace import stats_plot
from headrace.engine.terminal.trace.stats_plot import heat
from headrace.engine.traces.layout import Header, pack_choices
from headrace.engine.traces.reader import Trace
from headrace.engine.traces.stats import stats


def trace_of(
    ids: Sequence[Sequence[Sequence[int]]], experts: int, sequences: Sequence[int], positions: Sequence[int]
) -> Trace:
    """ids: [layers][tokens][top_k], -1 for none."""
    given = np.array(ids, np.int32)
    header = Header(
        model="m", family="f", digest="", formats={"experts": "f32"}, layers=list(range(len(ids))),
        expert_bytes=[10] * len(ids), experts=experts,
        top_k=given.shape[2], most_weight=1.0, version="0",
    )  # fmt: skip
    choices = pack_choices(header, np.where(given < 0, experts, given), np.full(given.shape, 0.5, np.float32))
    number = np.arange(given.shape[1], dtype=np.uint32)
    return Trace(
        header=header, passes=number, sequences=np.array(sequences, np.uint32), lost=0, damage="",
        positions=np.array(positions, np.uint32), generated=number % 2 == 1, choices=choices,
    )  # fmt: skip


def test_one_layer_by_hand() -> None:
    """Five tokens of two sequences, which take turns: a0 b0 a1 b1 a2."""
    ids = [[[0, 1], [2, 3], [1, 0], [2, 0], [4, 1]]]
    found = stats(trace_of(ids, 10, [7, 8, 7, 8, 7], [0, 0, 1, 1, 2]))
    (layer,) = found.layers
    assert (found.tokens, found.generated, found.sequences) == (5, 2, 2)
    assert (layer.choices, layer.unused) == (10, 5)
    assert (layer.hottest, layer.hottest_share) == (0, 3 / 5)
    assert layer.hot_share == 0.3, "one of ten experts is a tenth of them"
    assert layer.overlap == pytest.approx((2 + 1 + 1) / 2 / 3), "a0 a1: both, b0 b1: one, a1 a2: one"
    assert layer.reuse == 2, "0: after 2 and 1 tokens, 1: 2 and 2, 2: 2"
    counts = np.array([3, 3, 2, 1, 1]) / 10
    assert layer.effective == pytest.approx(np.exp(-(counts * np.log(counts)).sum()))
    assert found.next_layer is None


def test_batches_and_windows_count_different_experts() -> None:
    """Tokens in a row want the same experts, tokens of anywhere do not."""
    ids = [[[t // 16 % 8] for t in range(256)]]
    found = stats(trace_of(ids, 8, [1] * 256, range(256)))
    assert found.batches[1] == found.windows[1] == 1
    assert found.windows[4] < 1.3
    assert found.batches[4] > 2.5
    assert found.windows[256] == found.batches[256] == 8
    even = stats(trace_of([[[t % 8] for t in range(256)]], 8, [1] * 256, range(256)))
    assert [even.windows[n] for n in (1, 2, 4, 8, 16)] == [1, 2, 4, 8, 8]


def test_the_next_layer_is_known_where_it_follows() -> None:
    draws = np.random.default_rng(2).integers(0, 16, (400, 1))
    follows = stats(trace_of([draws.tolist(), ((draws * 5 + 3) % 16).tolist()], 16, [1] * 400, range(400)))
    assert follows.next_layer is not None
    assert follows.next_layer.by_experts == 1.0
    assert follows.next_layer.by_heat < 0.2
    other = np.random.default_rng(3).integers(0, 16, (400, 1))
    apart = stats(trace_of([draws.tolist(), other.tolist()], 16, [1] * 400, range(400)))
    assert apart.next_layer is not None
    assert apart.next_layer.by_experts < 0.2


def test_layers_that_tokens_left_out_are_counted_where_they_did_not() -> None:
    ids = [[[0, 1], [0, 1], [0, 1]], [[-1, -1], [-1, -1], [2, 3]]]
    found = stats(trace_of(ids, 4, [1, 1, 1], [0, 1, 2]))
    assert [one.choices for one in found.layers] == [6, 2]
    assert found.layers[1].overlap is None
    assert found.layers[1].reuse is None
    assert found.batches == {1: 2.0, 2: 2.0}, "of the first layer alone"


def test_how_soon_an_expert_is_chosen_again() -> None:
    """Of a0 b0 a1 b1 a2 in the first layer: gaps 2 1 (expert 0), 2 2 (expert 1), 2 (expert 2); the second layer went
    round four experts."""
    ids = [[[0, 1], [2, 3], [1, 0], [2, 0], [4, 1]], [[0, 1], [2, 3], [0, 1], [2, 3], [0, 1]]]
    found = stats(trace_of(ids, 10, [7, 8, 7, 8, 7], [0, 0, 1, 1, 2]))
    assert found.again == {1: (0.1, 0.0), 2: (0.5, 0.6), 4: (0.5, 0.6)}
    left_out = stats(trace_of([*ids, [[-1, -1]] * 5], 10, [7, 8, 7, 8, 7], [0, 0, 1, 1, 2]))
    assert left_out.again == found.again, "a layer that no token went through has no share"


def test_a_trace_without_tokens_has_numbers_too() -> None:
    empty = trace_of([[[0, 1]]], 4, [1], [0])
    none = Trace(
        **{
            **empty.__dict__,
            **{name: getattr(empty, name)[:0] for name in ("passes", "sequences", "positions", "generated")},
            "choices": empty.choices[:, :0],
        }
    )
    found = stats(none)
    assert (found.tokens, found.batches, found.again, found.next_layer) == (0, {}, {}, None)
    assert found.layers[0].choices == 0


def test_heat_is_sorted_multiples_of_an_even_share() -> None:
    trace = trace_of([[[0, 1], [1, 3], [1, 2]], [[-1, -1], [-1, -1], [-1, -1]]], 4, [1, 1, 1], [0, 1, 2])
    assert heat(trace).tolist() == [[2, pytest.approx(2 / 3), pytest.approx(2 / 3), pytest.approx(2 / 3)], [0, 0, 0, 0]]


def test_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    trace = trace_of([[[t % 8] for t in range(40)]], 8, [1] * 40, range(40))
    one = trace_of([[[3]]], 8, [1], [0])
    for drawn, name in ((trace, "plot.png"), (one, "plot.svg")):
        stats_plot.save(drawn, stats(drawn), tmp_path / name)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "plot.svg").read_text()
    with pytest.raises(OptionError, match=r"\.png or \.svg"):
        stats_plot.save(trace, stats(trace), tmp_path / "plot.txt")
    with pytest.raises(OptionError, match="the trace has none"):
        stats_plot.save(trace, replace(stats(trace), tokens=0), tmp_path / "plot.png")
