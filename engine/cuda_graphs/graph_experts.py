"""The seam inside a captured decode step: the GPU's own experts by its kernels, those in RAM through the mailbox.

    submit     a job into the layer's slot, posted; then this GPU's part, which the CPU computes beside
    collect    y = part of gpu0; y += part of the CPU, when the stream has seen it        the order of
    `experts/tiered.py`

Everything only enqueues, so that a graph can hold it. What was chosen is read when the step is over: of a layer whose
experts are all in RAM from its slot, of others from the router's own result, a tensor that lives as long as the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.packed import ExpertBank
from ...loaders.weights.model_weights import TierBanks
from ..devices.device import Device
from ..ledger.ledger import GPU_HBM, H2D
from ..ledger.timers import Clock, Laps
from ..placement.placement import Placement, Tier
from .mailbox_experts import MailboxExperts, Posted


class Work(NamedTuple):
    """A layer under way: this GPU's part, and the job that was posted, if there is one."""

    part_TD: Tensor | None
    posted: Posted | None


class GraphedExperts:
    """`mail` has every layer with experts in RAM, None where no layer has; `sizes` are the batch sizes; `clock` has the
    laps of what comes before and after a step."""

    is_local = False

    def __init__(
        self,
        banks: Sequence[TierBanks | None],
        placement: Placement,
        home: Device,
        mail: MailboxExperts | None,
        sizes: Sequence[int],
        clock: Clock | None = None,
    ) -> None:
        self.clock = clock or Clock()
        self.timed: list[Laps] = []  # by size, where steps are timed
        self.home, self.mail, self.batches = home, mail, list(sizes)
        self.banks: dict[int, ExpertBank] = {}
        self.local: dict[int, Tensor] = {}
        for layer, split in enumerate(banks):
            if split is not None and placement.home.value in split.banks:
                self.banks[layer] = split.banks[placement.home.value]
                self.local[layer] = numbers(placement, layer, placement.home, home)
        self.chosen: list[dict[int, Tensor]] = [{} for _ in sizes]  # by size: layer -> ids of its last step
        self.batch: int | None = None
        self.padding_B: Tensor | None = None
        self.laps: Laps | None = None  # of the step that is captured or runs, if it is timed

    def book(self, distinct: list[int]) -> None:
        raise AssertionError("a captured step books nothing")

    def use(self, batch: int, padding_B: Tensor) -> None:
        self.batch, self.padding_B = batch, padding_B
        self.laps = self.timed[batch] if self.timed else None
        if self.mail is not None:
            self.mail.laps = self.laps
            self.mail.use(batch, padding_B)

    def begin(self, batch: int, patient: bool = False) -> None:
        self.clock.lap(H2D)  # the inputs are in their places
        if self.mail is not None:
            self.mail.begin(batch, patient)

    def check(self) -> None:
        if self.mail is not None:
            self.mail.check()

    def submit(self, layer: int, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Work:
        """Enqueues both parts; tensors are on the home device."""
        assert self.batch is not None, "submit before use"
        posted = None
        self._lap()
        if self.mail is not None and layer in self.mail.numbers:
            posted = self.mail.submit(layer, x_TD, ids_TK, weights_TK)
        if layer not in self.banks:
            return Work(None, posted)
        self.chosen[self.batch][layer] = ids_TK
        return Work(self._here(layer, x_TD, ids_TK, weights_TK), posted)

    def _here(self, layer: int, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """This GPU's part; rows without a sequence read nothing."""
        assert self.padding_B is not None, "submit before use"
        local_TK = self.local[layer][ids_TK.long()]
        if len(x_TD) > 1:  # a step of one sequence has no other rows
            local_TK = local_TK.masked_fill(self.padding_B.unsqueeze(1), -1)
        part_TD: Tensor = self.home.ops.experts(x_TD, local_TK, weights_TK, self.banks[layer])
        return part_TD

    def collect(self, job: Work) -> Tensor:
        """The sum of the parts on the home device, valid as everything else in the stream is."""
        if job.posted is None or self.mail is None:
            assert job.part_TD is not None, "a layer without experts"
            return job.part_TD
        self._lap()
        y_TD = self.mail.collect(job.posted)
        if job.part_TD is None:
            return y_TD
        self.home.ops.gated_add_(job.part_TD, y_TD)
        return job.part_TD

    def _lap(self) -> None:
        """What came before is this GPU's work."""
        if self.laps is not None:
            self.laps.lap(GPU_HBM)

    def choices(self, batch: int, count: int) -> dict[int, Tensor]:
        """What the first `count` rows of the last step of this size chose, by layer: int32 [count, K] in host
        memory. Slots are views: valid until the next step of the size."""
        chosen = self.chosen[batch]
        found: dict[int, Tensor] = {}
        if chosen:
            down_LTK = torch.stack([ids[:count] for ids in chosen.values()]).cpu()  # one copy for all layers
            found.update(zip(chosen, down_LTK, strict=True))
        if self.mail is not None:
            for layer, number in self.mail.numbers.items():
                if layer not in chosen:  # all its experts are in RAM, numbered as in the model
                    found[layer] = self.mail.mailbox.slot(number, batch).ids_TK[:count]
        return dict(sorted(found.items()))


def numbers(placement: Placement, layer: int, tier: Tier, there: Device) -> Tensor:
    """On a device: expert -> its number in the tier's bank of a layer, or -1; int32 [E]."""
    return torch.tensor(placement.local_ids(layer, tier), dtype=torch.int32).to(there.place)
