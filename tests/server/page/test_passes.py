"""Rows of passes, sums of requests, and how many are read of a ledger that another thread fills."""

from __future__ import annotations

import base64
from collections import deque

from headrace.engine.ledger import drift
from headrace.engine.ledger.passes import LayerWork, Pass, in_turn
from headrace.engine.server.page.passes import Rows, newest, window


def step(index: int, phase: str = "decode", tokens: int = 1, predicted_s: float | None = 1e-3, **more: object) -> Pass:
    found = {"bytes": {"cpu_dram": {"experts": 800, "dense": 200}}, "measured_s": 2e-3, "by_layer": (400, 400), **more}
    return Pass(
        index=index, phase=phase, sequences=[0], tokens=tokens, context=7,
        expect=None if predicted_s is None else lambda _: in_turn({"cpu_dram": predicted_s}), **found,  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_row_has_times_and_bytes_by_column() -> None:
    rows = Rows([1600, 1600])
    assert rows.of([step(3)]) == [[3, 2, 1, 1, 7, 2.0, 1.0, 800, 200]]
    assert rows.columns == ["cpu_dram.experts", "cpu_dram.dense"]
    assert rows.of([step(4, predicted_s=None)])[0][6] is None


def test_columns_only_grow_and_rows_follow_them() -> None:
    rows = Rows([1600, 1600])
    rows.of([step(0)])
    (row,) = rows.of([step(1, bytes={"gpu_hbm": {"kv": 5}, "h2d": {"inputs": 9}})])
    assert rows.columns == ["cpu_dram.experts", "cpu_dram.dense", "gpu_hbm.kv", "h2d.inputs"]
    assert row[7:] == [0, 0, 5, 9]


def test_heat_is_the_share_of_each_layers_experts() -> None:
    """A half, a quarter; nothing of a layer without experts; of several tiers what memories read, not what links
    carried."""
    rows = Rows([800, 1600, 0])
    assert base64.b64decode(rows.heat([step(0, by_layer=(400, 400, 0))])) == bytes([128, 64, 0])
    work = LayerWork(
        layer=1, tokens=1, pairs={},
        bytes={"cpu_dram": {"experts": 400}, "gpu_hbm": {"experts": 400}, "h2d": {"experts": 5000}},
    )  # fmt: skip
    assert base64.b64decode(rows.heat([step(0, by_layer=(), layers=[work])])) == bytes([0, 128, 0])


def test_newest_are_the_last_ones_in_their_order() -> None:
    recent = deque(step(i) for i in range(10))
    assert [one.index for one in newest(recent, 4, 100)] == [4, 5, 6, 7, 8, 9]
    assert [one.index for one in newest(recent, 4, 2)] == [8, 9]
    assert newest(recent, 10, 5) == []


def test_what_a_pass_should_have_taken_is_not_asked_by_reading() -> None:
    recent = deque([step(0)])
    (one,) = newest(recent, 0, 5)
    assert "predicted" not in one.__dict__
    Rows([1600, 1600]).of([one])
    assert "predicted" in one.__dict__


def test_a_window_holds_the_last_decode_tokens_and_says_what_is_off() -> None:
    passes = [step(i, tokens=8) for i in range(10)] + [step(10, "prefill", 100)]
    found = window(passes, 20)
    assert found is not None
    assert (found.passes, found.tokens) == (3, 24)
    line = drift.sentence(found)
    assert line is not None
    assert "0.25 ms a token, predicted 0.12" in line
    assert window(passes[-1:], 20) is None


def test_within_a_fifth_there_is_no_sentence() -> None:
    found = window([step(i, measured_s=1.1e-3) for i in range(40)], 32)
    assert found is not None
    assert drift.sentence(found) is None
