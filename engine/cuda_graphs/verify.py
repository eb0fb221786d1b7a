"""Whether decode steps run as graphs here: captured at start, held against the eager path on the model itself, timed.

    capture     every batch size (`graphed_decode.py`)
    compare     COMPARED steps of one sequence, each as a graph and then by hand: the same bits, or it is wrong
    time        ROUNDS more of them, in turns: medians; not again where an earlier start did it (`saved_trials.py`)

Bits, and no tolerance: both paths run the same kernels on the same shapes (the tables are as wide as a graph's), the
CPU's part is the same C++ from both sides, and every sum has one order. So a difference is a job that was read too
early, a stale input or a wrong slot, however small it looks. The graph comes first: what it fails to write into the
cache must not be there already.

The steps write keys and values into the spare page, which belongs to no sequence, and read them there; a recurrent
state, which a step changes, is put back before the other path takes the same step. They are outside of every pass, so
that nothing is booked. `auto` takes the eager path where anything fails, with the reason; a way that
was asked for is then an error.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...errors import DeviceError, first_words
from ...kernels.decoder_layer import Pages, Places
from ..model.batch import Inputs
from ..model.decoder import Decoder, Output
from ..model.kv_cache import PAGE
from . import saved_trials
from .gpu_runtime import Runtime
from .graphed_decode import GraphedDecode
from .saved_trials import StepTimes
from .signal_choice import EAGER
from .signals import SignalChoice

COMPARED = 2  # steps: the first attends to itself alone
ROUNDS = 5  # timed steps, after one that is not


@dataclass(frozen=True, kw_only=True)
class Start:
    """How graphs are to start. choice: the way, by which `asked` was meant. digest: of the model, its placement and
    the options."""

    asked: str
    choice: SignalChoice
    runtime: Runtime
    digest: str


class Steps:
    """Decode steps of one sequence that leave nothing behind, before the first sequence comes. pages: of the longest
    sequence; spare_page: of the cache; spare_slot: of recurrent states, None: there are none."""

    def __init__(self, decoder: Decoder, pages: int, spare_page: int, spare_slot: int | None = None) -> None:
        self.decoder = decoder
        self.pages, self.spare_page, self.spare_slot = pages, spare_page, spare_slot

    def inputs(self, number: int) -> Inputs:
        """Of the step at a position of the spare page; every one has another token."""
        assert number < PAGE, f"step {number} in a page of {PAGE}"
        ints = torch.int32
        window = Pages(torch.tensor([number]), torch.zeros((1, self.pages), dtype=ints))  # their spare page is page 0
        places = Places(
            positions_T=torch.tensor([number], dtype=ints),
            slots_T=torch.tensor([self.spare_page * PAGE + number]),
            tables_SM=torch.full((1, self.pages), self.spare_page, dtype=ints),
            starts_S1=torch.tensor([0, 1], dtype=ints),
            contexts_S=torch.tensor([number + 1], dtype=ints),
            states_S=None if self.spare_slot is None else torch.tensor([self.spare_slot], dtype=ints),
            windows=(window,) * len(self.decoder.cache.windows),
        )
        token = (7919 * number + 1) % self.decoder.spec.vocab
        return Inputs(ids_T=torch.tensor([token]), places=places, spans=((1, number + 1),), rows=torch.tensor([0]))

    def by_hand(self, number: int) -> Output:
        """A step by the eager path, which is over then."""
        out = self.decoder.forward(self.inputs(number))
        self.decoder.device_inputs.device.wait()
        return out

    def keep_state(self) -> None:
        """Copies the state into slot 0, which is nobody's yet."""
        if self.spare_slot is not None:
            self.decoder.cache.copy_state(self.spare_slot, 0)

    def put_back(self) -> None:
        """The state as it was kept."""
        if self.spare_slot is not None:
            self.decoder.cache.copy_state(0, self.spare_slot)


def start(how: Start, steps: Steps, build: Callable[[], GraphedDecode]) -> tuple[GraphedDecode | None, SignalChoice]:
    """Graphs that were checked, or None; and the choice with what was found. Raises DeviceError where a way was asked
    for and fails, or where the GPU is of no use after it did."""
    with torch.inference_mode(), steps.decoder.device_inputs.device.current():
        try:
            graphed = build()
        except Exception as error:  # of CUDA, of the driver, of Triton's compiler or launcher
            return None, _refused(how, steps, first_words(error))
        try:
            problem, choice = _checked(how, steps, graphed)
        except BaseException:
            graphed.close()
            raise
        if problem:
            graphed.close()
            return None, _refused(how, steps, problem)
        return graphed, choice


def _checked(how: Start, steps: Steps, graphed: GraphedDecode) -> tuple[str, SignalChoice]:
    """Why the graphs cannot be taken, or ""; the choice with the times."""
    problem = _compare(steps, graphed)
    if problem:
        return problem, how.choice
    times: StepTimes | str | None
    times, when = saved_trials.check(how.runtime, how.digest), " (measured at an earlier start)"
    if times is None:
        times, when = _time(steps, graphed), ""
    if isinstance(times, str):
        return times, how.choice
    if not times.is_faster and how.asked == "auto":
        return f"as a graph it is no faster: {times}", how.choice
    if times.is_faster and not when:
        saved_trials.keep_check(how.runtime, how.digest, times)
    return "", replace(how.choice, reason=f"{how.choice.reason}; same bits as by hand, {times}{when}")


def _compare(steps: Steps, graphed: GraphedDecode) -> str:
    """What differs between the two paths, or why there is no result; "" if nothing does. Hidden states are compared
    where a graph hands them out."""
    for number in range(COMPARED):
        steps.keep_state()
        try:
            found = _ends(graphed.forward(steps.inputs(number)))
        except Exception as error:
            return f"a step as a graph failed: {first_words(error)}"
        steps.put_back()
        wanted = _ends(steps.by_hand(number))
        for name, of_graph in found.items():
            if problem := _difference(wanted[name], of_graph, name):
                return problem
    return ""


def _ends(out: Output) -> dict[str, Tensor]:
    """What a step hands out, in memory of the host, by its name."""
    named = {"logits": out.logits, "values of hidden states": out.hidden}
    return {name: one.cpu() for name, one in named.items() if one is not None}


def _difference(wanted: Tensor, found: Tensor, name: str) -> str:
    same = (wanted == found) | (wanted.isnan() & found.isnan())
    if bool(same.all()):
        return ""
    off, most = float((wanted - found).abs().max()), float(wanted.abs().max())
    return (
        f"a step as a graph differs from the same step by hand: {int((~same).sum())} of {same.numel()} {name}, "
        f"by up to {off:.3g} (the largest is {most:.3g})"
    )


def _time(steps: Steps, graphed: GraphedDecode) -> StepTimes | str:
    """Medians of both paths, taken in turns; the reason where a step fails."""
    by_hand, as_graph = [], []
    for number in range(COMPARED, COMPARED + 1 + ROUNDS):
        by_hand.append(_seconds(steps.by_hand, number))
        try:
            as_graph.append(_seconds(lambda n: graphed.forward(steps.inputs(n)), number))
        except Exception as error:
            return f"a step as a graph failed: {first_words(error)}"
    return StepTimes(graph_s=statistics.median(as_graph[1:]), eager_s=statistics.median(by_hand[1:]))


def _seconds(step: Callable[[int], object], number: int) -> float:
    begin = time.perf_counter()
    step(number)
    return time.perf_counter() - begin


def _refused(how: Start, steps: Steps, problem: str) -> SignalChoice:
    """Eager with the reason, or an error where graphs were asked for. One step by hand shows first that the GPU goes
    on: some of CUDA's errors end everything."""
    if how.asked != "auto":
        raise DeviceError(f"handoff is {how.asked!r}, and {problem}: take handoff 'eager'")
    try:
        steps.by_hand(0)
    except Exception as error:
        raise DeviceError(
            f"the GPU does not go on after a trial of graphs ({problem}): {first_words(error)}. Take handoff 'eager'"
        ) from error
    return SignalChoice(name=EAGER, reason=f"{how.choice.name} was tried, and {problem}", fell_back=True)
