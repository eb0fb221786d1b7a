"""Measurements that read little and models that are small: wrong figures, soon."""

from __future__ import annotations

from functools import partial

import pytest

from headrace.engine.bench import overhead
from headrace.engine.measure import (
    attention_products,
    kernel_rates,
    link_rates,
    other_load,
    tile_thresholds,
    weight_prefetch,
)

MB = 1 << 20


def overheads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The models that overheads are learned with, from small matrices."""
    monkeypatch.setitem(overhead.BASE, "hidden_size", 256)
    monkeypatch.setitem(overhead.BASE, "vocab_size", 4096)
    monkeypatch.setattr(overhead, "ROUNDS", 1)
    monkeypatch.setattr(overhead, "measure", partial(overhead.measure, many=4, few=2, width=32))


def calibrations(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a first start times, on small experts and short sequences, each way but a few times."""
    monkeypatch.setattr(tile_thresholds, "HIDDEN", 256)
    monkeypatch.setattr(tile_thresholds, "WIDTH", 256)
    monkeypatch.setattr(weight_prefetch, "SHAPES", (("q4_0", 256, 256), ("q8_0", 288, 256)))
    for module in (tile_thresholds, weight_prefetch):
        monkeypatch.setattr(module, "ARENA", 8 * MB)
    for module in (tile_thresholds, weight_prefetch, attention_products):
        monkeypatch.setattr(module, "ROUNDS", 2)
    monkeypatch.setattr(attention_products, "TOKENS", 256)


def measure(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that `headrace measure` does, however many others compute meanwhile."""
    monkeypatch.setattr(kernel_rates, "SMALLEST_ARENA", 64 * MB)
    plain = kernel_rates.measure
    monkeypatch.setattr(kernel_rates, "measure", lambda context, *given: plain(context, 1, 64 * MB, *given[2:]))
    monkeypatch.setattr(kernel_rates, "LINEAR_TOKENS", {4: 4 * MB})
    monkeypatch.setattr(kernel_rates, "EXPERT_TOKENS", (2,))
    monkeypatch.setattr(kernel_rates, "QUERIES", ((1, 1), (8, 1), (8, 4)))
    monkeypatch.setattr(kernel_rates, "BY_THREADS_ROUNDS", 1)
    monkeypatch.setattr(other_load, "PATIENCE", 0)
    monkeypatch.setattr(other_load, "LOOK_S", 0.0)
    monkeypatch.setattr(other_load.Strangers, "cores", lambda self: 0.0)
    monkeypatch.setattr(link_rates, "FILE", 16 * MB)
    monkeypatch.setattr(kernel_rates, "PIECE", 16 * MB)
    monkeypatch.setattr(kernel_rates, "HALF", 8 * MB)
    overheads(monkeypatch)
    calibrations(monkeypatch)
