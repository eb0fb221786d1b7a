"""The mailbox's flags written and awaited by kernels of one warp: a way for a stream to signal where the driver has no
memory operations in streams, or slow ones.

    post    done := 0, then ready := 1; the host sees them in this order, after all that came before in the stream
    wait    looks at done until it is not 0; what comes after in the stream finds y written

A flag is read by an acquiring load over the link, a quarter of a microsecond of sleep apart. A wait does not hold the
GPU for ever: after its time it writes 1 into `gave_up`, a word of the host, and ends; later waits that find it look
once. In the interpreter, which has no clock and no fences, a look counts as a microsecond.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .kernel import INTERPRETED, kernel

# One lane: a scalar is computed by all of them, and the flag must be written once.
RELEASE = tl.constexpr("""
{
    .reg .pred one; .reg .b32 lane; .reg .b64 value;
    mov.u32 lane, %tid.x;
    setp.eq.u32 one, lane, 0;
    mov.u64 value, 1;
    @one fence.acq_rel.sys;
    @one st.release.sys.global.u64 [$1], value;
    mov.u32 $0, lane;
}
""")


@kernel()
def _post(ready_ptr, done_ptr, HARDWARE: tl.constexpr):
    tl.store(done_ptr, 0)
    if HARDWARE:
        tl.inline_asm_elementwise(RELEASE, "=r,l", [ready_ptr.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1)
    else:
        tl.store(ready_ptr, 1)


@triton.jit
def look(flag_ptr):
    """A flag of the host, with all that was written before it: nothing added is a load."""
    return tl.atomic_add(flag_ptr, 0, sem="acquire", scope="sys")


@triton.jit
def sleep():
    tl.inline_asm_elementwise("nanosleep.u32 250; mov.u32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=False, pack=1)


@kernel("limit_ns")
def _wait(done_ptr, gave_up_ptr, limit_ns, HARDWARE: tl.constexpr):
    done = look(done_ptr)
    if done == 0:
        limit = tl.where(look(gave_up_ptr) == 0, limit_ns, 0)
        spent = limit * 0
        begin = spent
        if HARDWARE:
            begin = tl.extra.cuda.globaltimer()
        while (done == 0) & (spent < limit):
            if HARDWARE:
                sleep()
            done = look(done_ptr)
            if HARDWARE:
                spent = tl.extra.cuda.globaltimer() - begin
            else:
                spent += 1000
        if done == 0:
            tl.store(gave_up_ptr, 1)


def post(ready: Tensor, done: Tensor) -> None:
    """Hands a slot over. ready, done: int64 [1], of memory that is registered with the driver."""
    for flag in (ready, done):
        launch.check(flag, launch.I64, 1)
    _post[(1,)](ready, done, HARDWARE=not INTERPRETED, num_warps=1)


def wait(done: Tensor, gave_up: Tensor, limit_s: float) -> None:
    """Waits for an answer, for so many seconds at most. done, gave_up: as in `post`."""
    for flag in (done, gave_up):
        launch.check(flag, launch.I64, 1)
    _wait[(1,)](done, gave_up, int(limit_s * 1e9), HARDWARE=not INTERPRETED, num_warps=1)
