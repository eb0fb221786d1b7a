"""Passes whose tokens are each computed as alone: without matrix tiles, which round by all tokens of a pass.

Dot products take one token after the other over the same weights, so a token's logits do not depend on what else is in
its pass, and greedy text with drafts is that without. On a CPU without tiles nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from ...kernels import FORMATS, Ops
from ...kernels.context import NEVER, Context
from ...kernels.cpu import CpuOps


def without_tiles(context: Context) -> Context:
    """The same context with dot products for any number of tokens."""
    return replace(context, tiles_from=dict.fromkeys(FORMATS, NEVER))


@contextmanager
def row_kernels(ops: Ops) -> Iterator[None]:
    """Within it the C++ kernels take no tiles; others have none of their own kind."""
    if not isinstance(ops, CpuOps) or not ops.context.tile_tokens:
        yield
        return
    before = ops.context
    ops.context = without_tiles(before)
    try:
        yield
    finally:
        ops.context = before


def is_by_row(ops: Ops) -> bool:
    """Whether such a pass is under way."""
    return isinstance(ops, CpuOps) and {*ops.context.tile_tokens.values()} == {NEVER}
