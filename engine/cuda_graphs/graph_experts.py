"""Experts inside a captured decode step: the GPU's own by its kernels, a second one's by that one, those in RAM through
the mailbox.

    submit     a job into the layer's slot, posted; the second GPU's part starts; then this GPU's part, beside both
    collect    y = part of gpu0; y += part of gpu1; y += part of the CPU, when the stream has seen it
                                                                                the order of `experts/tiered.py`

Everything only enqueues, so that a graph can hold it. What was chosen is read when the step is over: of a layer whose
experts are all in RAM from its slot, of others from where the step brings it (`step_results.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.packed import ExpertBank
from ...kernels.passes.tally import Choice
from ..devices.device import Device
from ..experts.backend import Chosen
from ..experts.cache.cached_experts import CachedExperts, tiers_of
from ..experts.cache.graph_steps import CachedSteps
from ..experts.tiered import TieredExperts
from ..ledger.passes import GPU_HBM, H2D, LayerWork
from ..ledger.timers import Spans
from ..placement.placement import Placement, Tier
from .beside.second_gpu import SecondGpu
from .capture import nothing
from .mailbox_experts import MailboxExperts, Posted
from .step_results import Places


class Work(NamedTuple):
    """A layer under way: this GPU's part, the job that was posted, and the second GPU's part, as far as there are
    any."""

    layer: int
    ids_TK: Tensor
    part_TD: Tensor | None
    posted: Posted | None
    second_TD: Tensor | None = None


class Choices(NamedTuple):
    """Of a step that is over, by layer: int32 [layers, rows, K] in memory of its own; weights: float32, if wanted."""

    layers: list[int]
    ids_LTK: Tensor
    weights_LTK: Tensor | None = None

    def each(self) -> list[Chosen]:
        """A layer each, in their order."""
        weights = [None] * len(self.layers) if self.weights_LTK is None else self.weights_LTK
        found = zip(self.layers, self.ids_LTK, weights, strict=True)
        return [Chosen(layer, ids, weights_TK=of) for layer, ids, of in sorted(found, key=lambda one: one[0])]


class GraphedExperts:
    """experts: the same outside of graphs. `mail` has every layer with experts in RAM, None where no layer has;
    `sizes` are the batch sizes. steps: of a cache, if there is one. apart: as in `SecondGpu`."""

    def __init__(
        self,
        experts: TieredExperts | CachedExperts,
        mail: MailboxExperts | None,
        sizes: Sequence[int],
        steps: CachedSteps | None = None,
        apart: Callable[[], None] = nothing,
    ) -> None:
        tiered = tiers_of(experts)
        placement, main = tiered.placement, tiered.main
        self.outside, self.timers = experts, tiered.timers
        self.timed: list[Spans] = []  # by size, where steps are timed
        self.main, self.mail, self.batches = main, mail, list(sizes)
        self.banks: dict[int, ExpertBank] = {}
        self.local: dict[int, Tensor | None] = {}  # None: experts have the same numbers there
        for layer, split in enumerate(tiered.banks):
            if split is not None and placement.main.value in split.banks:
                self.banks[layer] = split.banks[placement.main.value]
                self.local[layer] = _numbers_here(placement, layer, main)
            elif split is not None and steps is not None and (bank := steps.bank(layer)) is not None:
                self.banks[layer], self.local[layer] = bank, steps.here(layer)
        self.second = _second(tiered, apart) if steps is None else _stored(tiered, steps, apart)
        self.kept = list({**self.banks, **({} if self.second is None else self.second.banks)})  # layers: see `choices`
        self.chosen: dict[int, Choice] = {}  # of the step that is captured, by layer
        in_slots = {} if mail is None else {layer: n for layer, n in mail.numbers.items() if layer not in self.kept}
        self.in_slots, self.slots_L = list(in_slots), torch.tensor(list(in_slots.values()), dtype=torch.int64)
        self.batch: int | None = None
        self.padding_B: Tensor | None = None
        self.spans: Spans | None = None  # of the step that is captured or runs, if it is timed

    def use(self, batch: int, padding_B: Tensor) -> None:
        self.batch, self.padding_B, self.chosen = batch, padding_B, {}
        self.spans = self.timed[batch] if self.timed else None
        if self.mail is not None:
            self.mail.spans = self.spans
            self.mail.use(batch, padding_B)

    def begin(self, batch: int, patient: bool = False) -> None:
        self.timers.span(H2D)  # the inputs are in their places
        if self.mail is not None:
            self.mail.begin(batch, patient)

    def check(self) -> None:
        if self.mail is not None:
            self.mail.check()

    def submit(self, layer: int, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Work:
        """Enqueues both parts; tensors are on the main device."""
        assert self.batch is not None, "submit before use"
        posted = None
        self._span()
        if self.mail is not None and layer in self.mail.numbers:
            posted = self.mail.submit(layer, x_TD, ids_TK, weights_TK)
        second_TD = part_TD = None
        if layer in self.kept:
            self.chosen[layer] = ids_TK, weights_TK
        if self.second is not None and layer in self.second.banks:
            assert self.padding_B is not None, "submit before use"
            second_TD = self.second.submit(layer, x_TD, ids_TK, weights_TK, self.padding_B)
        if layer in self.banks:
            part_TD = self._here(layer, x_TD, ids_TK, weights_TK)
        return Work(layer, ids_TK, part_TD, posted, second_TD)

    def _here(self, layer: int, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """This GPU's part; rows without a sequence read nothing."""
        assert self.padding_B is not None, "submit before use"
        local_E = self.local[layer]
        if len(x_TD) > 1:  # a step of one sequence has no other rows
            local_TK = ids_TK if local_E is None else local_E[ids_TK.long()]
            ids_TK, local_E = local_TK.masked_fill(self.padding_B.unsqueeze(1), -1), None
        part_TD: Tensor = self.main.ops.experts(x_TD, ids_TK, weights_TK, self.banks[layer], local_E)
        return part_TD

    def collect(self, job: Work) -> tuple[Tensor, Chosen]:
        """The sum of the parts, valid as everything else in the stream is: on the main device, or, where the CPU's is
        the only one, in its slot. What a replay chose, `choices` says."""
        return self._sum(job), Chosen(job.layer, job.ids_TK)

    def _sum(self, job: Work) -> Tensor:
        part_TD = job.part_TD
        if job.second_TD is not None and self.second is not None:
            part_TD = self._added(part_TD, self.second.collect(job.second_TD))
        if job.posted is not None and self.mail is not None:
            self._span()
            part_TD = self._added(part_TD, self.mail.collect(job.posted))
        assert part_TD is not None, "a layer without experts"
        return part_TD

    def _added(self, part_TD: Tensor | None, more_TD: Tensor) -> Tensor:
        """What there is of a sum, and what comes to it."""
        if part_TD is None:
            return more_TD
        self.main.ops.gated_add_(part_TD, more_TD)
        return part_TD

    def _span(self) -> None:
        """What came before is this GPU's work."""
        if self.spans is not None:
            self.spans.span(GPU_HBM)

    def work(self, chosen: Chosen) -> LayerWork:
        """As of a step by hand, where nothing is copied."""
        return self.outside.work(chosen)

    def choices(self, batch: int, count: int, here: Places, with_weights: bool = False) -> Choices:
        """What the first `count` rows of the last step of this size chose. here: of the layers `kept`; in slots
        lie those of the others, whose experts are all in RAM, numbered as in the model."""
        ids = [here.ids_LBK[:, :count]] if self.kept else []
        weights = [here.weights_LBK[:, :count]] if self.kept else []
        if self.mail is not None and self.in_slots:
            ids.append(self.mail.mailbox.ids(batch)[self.slots_L, :count])
            if with_weights:
                weights.append(self.mail.mailbox.weights(batch)[self.slots_L, :count])
        return Choices([*self.kept, *self.in_slots], torch.cat(ids), torch.cat(weights) if with_weights else None)


def _numbers_here(placement: Placement, layer: int, main: Device) -> Tensor | None:
    """`numbers` of the main device; None where it has all experts: two launches less in every layer of a step."""
    here = placement.local_ids(layer, placement.main)
    return None if list(here) == list(range(len(here))) else numbers(placement, layer, placement.main, main)


def _second(tiered: TieredExperts, apart: Callable[[], None]) -> SecondGpu | None:
    """The second GPU's experts, if a placement gives it any."""
    name, placement = Tier.GPU1.value, tiered.placement
    banks = {layer: split.banks[name] for layer, split in enumerate(tiered.banks) if split and name in split.banks}
    if not banks:
        return None
    local = {layer: numbers(placement, layer, Tier.GPU1, tiered.main) for layer in banks}
    return SecondGpu(tiered.main, tiered.devices[Tier.GPU1], banks, local, apart)


def _stored(tiered: TieredExperts, steps: CachedSteps, apart: Callable[[], None]) -> SecondGpu | None:
    """Those that a policy stores there, if it does."""
    banks = steps.store_banks()
    if not banks:
        return None
    local = {layer: steps.stored(layer) for layer in banks}
    return SecondGpu(tiered.main, tiered.devices[Tier.GPU1], banks, local, apart)


def numbers(placement: Placement, layer: int, tier: Tier, there: Device) -> Tensor:
    """On a device: expert -> its number in the tier's bank of a layer, or -1; int32 [E]."""
    return torch.tensor(placement.local_ids(layer, tier), dtype=torch.int32).to(there.place)
