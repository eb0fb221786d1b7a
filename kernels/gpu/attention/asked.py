"""What the op `attention` is asked for, looked at once: tensors that are checked, sizes, and what kernels are told."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ...blocks.cache_rows import Q8Rows, Rows
from .. import launch
from ..kernel import INTERPRETED
from .cache_rows import Stored, is_float, shared_scale, stored


class Asked(NamedTuple):
    """The arguments of `attention`, where the result goes, and sizes by their letters; v: the width of a value. scale:
    in units of log2(e); window, chunk: 0 for none; is_latent: values are the first numbers of keys; shared: SHARED of
    `load_rows`."""

    q: Tensor
    k: Stored
    v_rows: Stored
    tables: Tensor
    starts: Tensor
    contexts: Tensor
    sinks: Tensor | None
    out: Tensor
    T: int
    N: int
    G: int
    S: int
    M: int
    page: int
    d: int
    v: int
    q_stride: int
    scale: float
    window: int
    chunk: int
    is_latent: bool
    shared: int
    kind: launch.Product

    @property
    def most_seen(self) -> int:
        """Keys that a token sees at most."""
        every = self.M * self.page
        return min(every, self.window or every, self.chunk or every)

    @property
    def widths(self) -> dict[str, int]:
        """Tiles of a key and of a value. VALUE: the width of a value where keys have another one, else 0."""
        value, least = 0 if self.v == self.d else self.v, max(16, self.shared)
        return dict(SIZE=launch.pow2(self.d, least), VALUE=value, V_SIZE=launch.pow2(self.v, least))

    @property
    def is_wide(self) -> bool:
        """Whether heads are so wide that a program has room for few of them: tiles are then smaller."""
        return self.d > 256

    @property
    def stages(self) -> int:
        """How many steps' keys and values a program has room for at a time."""
        return 1 if self.is_wide and self.kind == "f32" else 2

    @property
    def sinks_or_any(self) -> Tensor:
        """The sinks, or something that is not read."""
        return self.q if self.sinks is None else self.sinks


def asked(
    q_TNd: Tensor,
    k_PGBd: Rows,
    v_PGBv: Rows,
    tables_SM: Tensor,
    starts_S1: Tensor,
    contexts_S: Tensor,
    scale: float,
    window: int | None,
    sinks_N: Tensor | None,
    chunk: int | None,
) -> Asked:
    """The arguments of `attention`, checked, with memory for what comes out."""
    (T, N, d), (S, M), (_P, G, page, size), v = q_TNd.shape, tables_SM.shape, k_PGBd.shape, v_PGBv.shape[3]
    assert size == d, f"heads of {d} on a cache of {size}"
    assert N % G == 0, f"{N} heads on {G}"
    is_latent = _is_part(v_PGBv, k_PGBd)
    assert chunk is None or not is_latent, "latents that are attended within chunks"
    check_caches(k_PGBd, k_PGBd if is_latent else v_PGBv)
    for tensor, shape in ((tables_SM, (S, M)), (starts_S1, (S + 1,)), (contexts_S, (S,))):
        launch.check(tensor, launch.I32, *shape)
    if sinks_N is not None:
        launch.check(sinks_N, launch.F32, N)
    k, shared = stored(k_PGBd), shared_scale(k_PGBd, v if is_latent else 0)
    kind: launch.Product = "f32" if k.codes.dtype == torch.float32 or INTERPRETED else "bf16"
    return Asked(
        q_TNd, k, stored(v_PGBv), tables_SM, starts_S1, contexts_S, sinks_N, q_TNd.new_empty(T, N, v), T, N, G, S, M,
        page, d, v, launch.heads(q_TNd), scale * math.log2(math.e), window or 0, chunk or 0, is_latent, shared, kind,
    )  # fmt: skip


def _is_part(values: Rows, keys: Rows) -> bool:
    """Whether values are the first numbers of keys."""
    if isinstance(values, Tensor) and isinstance(keys, Tensor):
        return values.shape[3] < keys.shape[3] and values.stride() == keys.stride()
    return isinstance(values, Q8Rows) and values.width < values.row


def check_caches(keys: Rows, values: Rows) -> None:
    """Keys and values side by side, of one format, in pages of one shape."""
    assert keys.shape[:3] == values.shape[:3], f"keys {list(keys.shape)}, values {list(values.shape)}"
    if isinstance(keys, Tensor) and isinstance(values, Tensor):
        assert is_float(keys.dtype), f"{keys.dtype}"
        for rows in (keys, values):
            launch.check(rows, keys.dtype, *rows.shape)
        return
    assert isinstance(keys, Q8Rows), "values in q8_0 of keys that are not"
    assert isinstance(values, Q8Rows), "keys in q8_0 of values that are not"
    for planes in (keys.planes, values.planes):
        launch.check(planes, launch.U8, *planes.shape)
