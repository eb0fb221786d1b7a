"""The hand-off of a layer's experts from a GPU's stream to the CPU: slots that both see, and a thread that answers.

`runtime/mailbox.h` draws a slot byte by byte and says why the order of writes is right. Whoever plays the GPU's part
writes a job into a slot, posts it, does other work, waits, and reads y; the coordinator computes with the same C++ as
`experts` does, bit for bit. How posting and waiting are done (by a stream, by host functions, by hand) is
`engine/cuda_graphs/signals.py`.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import DeviceError
from .. import _cpu
from ..context import Context
from ..packed import ExpertBank
from . import prepare

ALIGN = 4096  # a slot's memory is registered with a driver in pages
TIMEOUT, SPIN = 10.0, 0.002  # seconds
NO_FAILURE, NO_JOB, NO_RESULT, ERROR = range(4)  # `Failure::Kind`

_left_behind: list[object] = []  # memory that a thread may still write to


class Slot(NamedTuple):
    """One job's tensors, all views of the mailbox's memory, and the slot's address.

    ids int32 and weights float32 [T, K]; an id of -1 is computed elsewhere. x float32 or bfloat16 [T, D]. y float32
    [T, D], valid from the end of a wait until the next post. ready, done: the flags, int64 [1].
    """

    address: int
    ids_TK: Tensor
    weights_TK: Tensor
    x_TD: Tensor
    y_TD: Tensor
    ready: Tensor
    done: Tensor


def mailbox_bytes(layers: int, top_k: int, hidden: int, batches: Sequence[int]) -> int:
    """Bytes that a mailbox of this shape takes, with x in float32."""
    shape = _cpu.MailboxShape(layers=layers, top_k=top_k, hidden=hidden, half=False, batches=list(batches))
    return int(shape.bytes) + ALIGN


class Mailbox:
    """Slots for every layer of `banks` and every batch size of `batches`, and the threads that answer them.

    context: how they compute. layers: the model's number of each bank, for messages. timeout: seconds without progress
    after which a step counts as failed. spin: seconds for which the coordinator looks without sleeping, and in a
    step the workers of the team. The banks and
    the memory must stay as they are until `close`.
    """

    def __init__(
        self,
        banks: Sequence[ExpertBank],
        *,
        context: Context,
        layers: Sequence[int],
        top_k: int,
        batches: Sequence[int],
        x_dtype: torch.dtype = torch.float32,
        timeout: float = TIMEOUT,
        spin: float = SPIN,
    ) -> None:
        hidden = banks[0].layout.hidden
        assert len(banks) == len(layers) > 0, f"{len(banks)} banks, {len(layers)} layers"
        assert all(bank.layout.hidden == hidden for bank in banks), "layers of different hidden size"
        assert x_dtype in (torch.float32, torch.bfloat16), f"x in {x_dtype}"
        assert min(batches) > 0, f"batches {batches}"
        assert top_k > 0, f"top_k {top_k}"
        assert timeout > 0, f"timeout {timeout}"
        assert spin >= 0, f"spin {spin}"
        self.banks, self.layers, self.batches, self.timeout = list(banks), list(layers), list(batches), timeout
        self.top_k, self.hidden, self.x_dtype = top_k, hidden, x_dtype
        half = x_dtype == torch.bfloat16
        self.shape = _cpu.MailboxShape(layers=len(banks), top_k=top_k, hidden=hidden, half=half, batches=self.batches)
        self.memory = pages(int(self.shape.bytes) + ALIGN)
        self.gave_up = self.memory[-ALIGN:].view(torch.int64)[:1]  # written by a wait in a stream that gave up
        self.spare = self.memory[-ALIGN // 2 :].view(torch.int64)  # flags of no slot, to try kernels with
        self._gave_up = self.gave_up.numpy()
        self.box = _cpu.Mailbox(
            context=context.native,
            shape=self.shape,
            memory=self.memory.data_ptr(),
            banks=[prepare.bank(bank) for bank in banks],
            timeout=float(timeout),
            spin=float(spin),
        )
        self.is_open = True
        # Also where nobody closes it, as after an error: its threads end before the memory goes that they write to.
        self._stop = weakref.finalize(self, _stop, self.box, self.memory, self.banks)
        self._stop.atexit = False

    def slot(self, layer: int, batch: int) -> Slot:
        """The slot of the `layer`-th bank and the `batch`-th batch size."""
        ids, weights, x, y, size = self.shape.parts(batch)
        start, tokens = int(self.shape.offset(layer, batch)), self.batches[batch]
        bytes_ = self.memory[start : start + size]
        pairs, values = tokens * self.top_k, tokens * self.hidden

        def part(at: int, count: int, dtype: torch.dtype) -> Tensor:
            return bytes_[at : at + count * dtype.itemsize].view(dtype).view(tokens, -1)

        return Slot(
            bytes_.data_ptr(),
            part(ids, pairs, torch.int32),
            part(weights, pairs, torch.float32),
            part(x, values, self.x_dtype),
            part(y, values, torch.float32),
            *(bytes_[at : at + 8].view(torch.int64) for at in (_cpu.READY_AT, _cpu.DONE_AT)),
        )

    def ids(self, batch: int) -> Tensor:
        """Ids of the jobs of all banks, for the `batch`-th size: int32 [banks, T, K], a view."""
        ids, _, _, _, size = self.shape.parts(batch)
        first, tokens = int(self.shape.offset(0, batch)) + ids, self.batches[batch]
        shape, strides = (len(self.banks), tokens, self.top_k), (size // 4, self.top_k, 1)
        return self.memory.view(torch.int32).as_strided(shape, strides, first // 4)

    def weights(self, batch: int) -> Tensor:
        """Their weights: float32, as `ids`."""
        _, weights, _, _, size = self.shape.parts(batch)
        first, tokens = int(self.shape.offset(0, batch)) + weights, self.batches[batch]
        shape, strides = (len(self.banks), tokens, self.top_k), (size // 4, self.top_k, 1)
        return self.memory.view(torch.float32).as_strided(shape, strides, first // 4)

    def begin(self, batch: int, patient: bool = False) -> None:
        """Tells the coordinator that a step of this batch is about to run: all its layers in turn. patient: there may
        be any time between two of them, as in a first run, which compiles kernels."""
        self.check()
        if not self.box.begin(batch, patient):
            raise DeviceError(f"{self.box.steps_left()} steps wait for their experts: read the result of one first")

    @property
    def busy_s(self) -> float:
        """Seconds that the CPU worked on jobs which were answered, since the mailbox was made."""
        return float(self.box.busy())

    def post(self, slot: Slot) -> None:
        """The job is written: hands the slot to the coordinator."""
        _cpu.post_job(slot.address)

    def wait(self, slot: Slot) -> None:
        """Returns when y is written. Raises DeviceError where it will not be."""
        answer = _cpu.wait_done(slot.address, 2 * self.timeout)
        if answer != 1:
            self.check()
            raise DeviceError(f"the experts did not answer within {2 * self.timeout:g} s: was the step begun?")

    def check(self) -> None:
        """Raises DeviceError if a job failed. To be asked after each step, before its numbers are used: a wait that
        cannot be satisfied ends all the same."""
        if not self.is_open:
            raise DeviceError("this hand-off is closed: load the model again")
        if self._gave_up[0]:
            raise DeviceError(
                f"the GPU gave up waiting for experts after {2 * self.timeout:g} s: the CPU did not answer, nor say "
                "why. Load the model again"
            )
        kind, layer, batch, seconds, what = self.box.failure()
        if kind != NO_FAILURE:
            where = f"layer {self.layers[layer]} (batch of {self.batches[batch]})"
            raise DeviceError(_message(kind, where, seconds, what))

    def close(self) -> None:
        """Ends every wait and both threads. What is still to come from a stream must have come before."""
        if self.is_open:
            self.is_open = False
            self._stop()

    def play(self, batch: int, steps: int, gap_ns: int = 0) -> float:
        """Plays the GPU's part for `steps` steps with the jobs that lie in the slots; microseconds of a job, from its
        post to its answer. gap_ns: between an answer and the next post. Raises DeviceError if a job failed."""
        seconds = float(self.box.play(batch, steps, gap_ns))
        if seconds < 0:
            self.check()
        return seconds / (steps * len(self.banks)) * 1e6


def _stop(box: Any, memory: Tensor, banks: list[ExpertBank]) -> None:
    """Ends the threads; what one that hangs may still use is kept for ever."""
    if not box.stop():
        _left_behind.append((memory, banks))


def pages(size: int) -> Tensor:
    """Zeroed memory in whole pages, as uint8: registering it pins nothing of others. Its storage begins where it does:
    torch asks the driver about a storage's first byte alone, and refuses a copy in a capture where that is not
    registered."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return torch.frombuffer(mmap.mmap(-1, -(-size // ALIGN) * ALIGN, flags=flags), dtype=torch.uint8)


def _message(kind: int, where: str, seconds: float, what: str) -> str:
    if kind == ERROR:
        return f"the experts of {where} failed: {what}. The step is lost; load the model again"
    if kind == NO_RESULT:
        return (
            f"the CPU gave no result for the experts of {where} within {seconds:.1f} s: a thread ended or is held up. "
            "Load the model again, with fewer threads if other programs keep the cores busy"
        )
    return (
        f"the GPU did not ask for the experts of {where} within {seconds:.1f} s of waiting: look for an error of the "
        "GPU above (nvidia-smi, dmesg), and load the model again"
    )


def round_trip_us(context: Context, layers: int = 48, steps: int = 200, gap_ns: int = 0) -> float:
    """Microseconds of a job without experts, from its post to its answer, with a thread of this process as the GPU."""
    from ..formats import FORMATS, ExpertLayout

    bank = ExpertBank.empty(ExpertLayout(format=FORMATS["q8_0"], hidden=2048, width=32), 1)
    box = Mailbox([bank] * layers, context=context, layers=range(layers), top_k=8, batches=[1])
    try:
        for layer in range(layers):
            box.slot(layer, 0).ids_TK.fill_(-1)
        box.play(0, 2)
        return box.play(0, steps, gap_ns)
    finally:
        box.close()
