"""`replay` in C++ (kernels/cpu/replay), for policies of the box: the same counts, a hundred times as fast.

A policy that is none of those, a subclass too, is replayed by its own Python.
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from ....kernels import _cpu
from .. import ahead, frequency, recency
from ..ahead import NextLayer, Split
from ..fixed import AllInRam, FirstLayers, Frequency, Uniform
from ..optimum import Belady
from ..protocol import Policy, Shape
from ..residents import Counts, Residents
from ..second_gpu import SecondGpu
from .choices import Choices
from .replay import NO_EVENTS, Events, Rates, Replayed, replay

KINDS: dict[type, int] = {
    AllInRam: 0, FirstLayers: 0, Uniform: 0, Frequency: 0, SecondGpu: 0, recency.Lru: 1, frequency.AgedLfu: 2,
    recency.SegmentedLru: 3, recency.AdmitOnSecondMiss: 4, frequency.Classes: 5, Split: 6, Belady: 7, NextLayer: 8,
}  # fmt: skip
NO_TIME = Rates(cpu=0.0, link=0.0, gpu=0.0)


def replayed(
    policy: Policy, shape: Shape, budget: int, choices: Choices, rates: Rates | None = None, late: bool = False,
    events: Events = NO_EVENTS,
) -> Replayed:  # fmt: skip
    """A trace through a policy, by C++ where it has it; `late` answers and `events` are Python's. Raises
    PolicyError where a start does not fit, or an answer cannot be carried out, OptionError where a second GPU's rate is
    not known."""
    kind = KINDS.get(type(policy))
    if rates is not None:
        rates.check(policy)
    if kind is None or late or events:
        return replay(policy, shape, budget, choices, tokens=choices.tokens, rates=rates, late=late, events=events)
    found = _cpp(policy, kind, shape, budget, choices, rates or NO_TIME)
    seconds = found.pop("seconds")
    return Replayed(
        policy=policy.name, budget=budget, passes=choices.passes, tokens=choices.tokens,
        counts=Counts(**{name: int(value) for name, value in found.items()}),
        seconds=None if rates is None else seconds,
    )  # fmt: skip


def _cpp(
    policy: Policy, kind: int, shape: Shape, budget: int, choices: Choices, rates: Rates
) -> dict[str, float]:  # fmt: skip
    """Arrays are kept in variables until the call is over: only their addresses go along."""
    assert choices.layers == shape.layers, f"a trace of {choices.layers} layers, a model of {shape.layers}"
    experts, sizes = np.array(shape.experts, np.int32), np.array(shape.expert_bytes, np.int64)
    first = np.concatenate([[0], np.cumsum(experts, dtype=np.int64)])
    at_start, stored = np.zeros((2, int(first[-1])), np.uint8)
    if not isinstance(policy, Belady):  # its own start is in C++
        begun = Residents(policy, shape, budget)
        for marks, by_layer in ((at_start, begun.by_layer), (stored, begun.stored)):
            for layer, there in enumerate(by_layer):
                marks[first[layer] + np.array(sorted(there), np.int64)] = 1
    slots = np.array(shape.slots(budget), np.int64)
    offsets, chosen = np.ascontiguousarray(choices.offsets), np.ascontiguousarray(choices.chosen)
    return dict(
        _cpu.replay(
            kind=kind, budget=budget, slots=slots.ctypes.data, at_start=at_start.ctypes.data, stored=stored.ctypes.data,
            fetched=list(policy.fetched) if isinstance(policy, Split) else [], age=float(frequency.AGE),
            protected_share=recency.PROTECTED, window=recency.WINDOW, followers=ahead.FOLLOWERS,
            layers=shape.layers, passes=choices.passes, experts=experts.ctypes.data, sizes=sizes.ctypes.data,
            offsets=offsets.ctypes.data, chosen=chosen.ctypes.data,
            rates=[float(value) for value in asdict(rates).values()],
        )
    )  # fmt: skip
