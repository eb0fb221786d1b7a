"""Experts in RAM behind a decoder whose steps a GPU replays: jobs go into the mailbox, in the order of the stream.

`submit` and `collect` only enqueue: what writes the slot, a post, a wait. So a graph can hold them, and in a replay no
Python runs. y stays in the slot: whoever uses it reads it there, over the link, without a copy before. What a step read
is asked for afterwards (`bytes_read`): its choices lie in the slots, which are memory of the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ...kernels.cpu.mailbox import Mailbox, Slot
from ..ledger.passes import CPU_DRAM, D2H
from ..ledger.timers import Spans, wait
from .capture import nothing
from .signals import Signals


class Pack(Protocol):
    """Writes a job: `to` is a slot's ids, weights and x. Ids become their number in the mailbox's bank, by `local_E` if
    there is one, and -1 where `padding_T` (bool) is set. Tensors are on the decoder's device, shapes as in `submit`."""

    def __call__(
        self,
        to: tuple[Tensor, Tensor, Tensor],
        x_TD: Tensor,
        ids_TK: Tensor,
        weights_TK: Tensor,
        local_E: Tensor | None,
        padding_T: Tensor,
    ) -> None: ...


def copy_job(
    to: tuple[Tensor, Tensor, Tensor],
    x_TD: Tensor,
    ids_TK: Tensor,
    weights_TK: Tensor,
    local_E: Tensor | None,
    padding_T: Tensor,
) -> None:
    """A `Pack` of torch's copies. `kernels/gpu/pack.py` is one of a single launch."""
    to_ids, to_weights, to_x = to
    if local_E is not None:
        ids_TK = local_E[ids_TK.long()]
    to_ids.copy_(ids_TK.masked_fill(padding_T.unsqueeze(1), -1), non_blocking=True)
    to_weights.copy_(weights_TK, non_blocking=True)
    to_x.copy_(x_TD, non_blocking=True)


class Posted(NamedTuple):
    """A job that was posted; its answer will lie in the slot."""

    layer: int
    slot: Slot


class MailboxExperts:
    """`submit` and `collect` as of `ExpertBackend` (`experts/backend.py`) for one captured batch size at a time: `use`
    says which.

    numbers: a model's layer -> its place in the mailbox. local: a layer -> int32 [experts] on the decoder's device, an
    expert's number in the mailbox's bank or -1; a layer left out has all its experts there. stream: the handle of the
    stream that the decoder runs in. pack: how a job is written. apart: what comes next in the stream waits in the usual
    way for what came before: a kernel must not come early over a wait for the CPU.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        signals: Signals,
        stream: Callable[[], int],
        local: Mapping[int, Tensor] | None = None,
        pack: Pack = copy_job,
        apart: Callable[[], None] = nothing,
    ) -> None:
        self.mailbox, self.signals, self.stream, self.apart = mailbox, signals, stream, apart
        self.numbers = {layer: number for number, layer in enumerate(mailbox.layers)}
        self.local = dict(local or {})
        self.pack = pack
        self.batches = mailbox.batches
        self.batch: int | None = None
        self.padding_B: Tensor | None = None
        self.spans: Spans | None = None  # of the stream that the decoder runs in

    def use(self, batch: int, padding_B: Tensor) -> None:
        """From now on jobs are of the mailbox's `batch`-th size; rows where `padding_B` (bool, on the decoder's device)
        is set belong to no sequence, and read no expert."""
        self.batch, self.padding_B = batch, padding_B

    def begin(self, batch: int, patient: bool = False) -> None:
        """A step of this size is about to run (`Mailbox.begin`)."""
        self.mailbox.begin(batch, patient)

    def check(self) -> None:
        """Raises DeviceError if the step that ran has no result."""
        self.mailbox.check()

    def submit(self, layer: int, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Posted:
        """Posts a layer's experts: x [T, D], ids int32 and weights float32 [T, K] on the decoder's device."""
        assert self.batch is not None, "submit before use"
        assert self.padding_B is not None, "submit before use"
        slot = self.mailbox.slot(self.numbers[layer], self.batch)
        to = slot.ids_TK, slot.weights_TK, slot.x_TD
        self.pack(to, x_TD, ids_TK, weights_TK, self.local.get(layer), self.padding_B)
        self.apart()
        self.signals.publish(self.stream(), slot)
        self.apart()
        self._span(D2H)
        return Posted(layer, slot)

    def collect(self, job: Posted) -> Tensor:
        """y float32 [T, D], valid as everything else in the stream is: in the slot, for kernels to read and never to
        write. No copy of torch's: its tensor is one of the host, which only kernels of ours take for the device's."""
        self.apart()
        self.signals.await_result(self.stream(), job.slot)
        self.apart()
        self._span(wait(CPU_DRAM))
        return job.slot.y_TD

    def _span(self, what: str) -> None:
        if self.spans is not None:
            self.spans.span(what)

    def bytes_read(self, batch: int) -> int:
        """Bytes of experts that the last step of this batch size read, all layers; the step must be over."""
        total = 0
        for number, bank in enumerate(self.mailbox.banks):
            ids = self.mailbox.slot(number, batch).ids_TK
            total += int(torch.unique(ids[ids >= 0]).numel()) * bank.layout.bytes
        return total
