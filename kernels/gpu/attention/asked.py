"""What the op `attention` is asked for, looked at once: tensors that are checked, sizes, and what kernels are told."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .. import launch
from ..kernel import INTERPRETED


class Asked(NamedTuple):
    """The arguments of `attention`, where the result goes, and sizes by their letters; v: the width of a value. scale:
    in units of log2(e); window, chunk: 0 for none; is_latent: values are the first numbers of keys."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
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
    kind: launch.Product

    @property
    def most_seen(self) -> int:
        """Keys that a token sees at most."""
        every = self.M * self.page
        return min(every, self.window or every, self.chunk or every)

    @property
    def widths(self) -> dict[str, int]:
        """Tiles of a key and of a value. VALUE: the width of a value where keys have another one, else 0."""
        value = 0 if self.v == self.d else self.v
        return dict(SIZE=launch.pow2(self.d, 16), VALUE=value, V_SIZE=launch.pow2(self.v, 16))

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
    k_PGBd: Tensor,
    v_PGBv: Tensor,
    tables_SM: Tensor,
    starts_S1: Tensor,
    contexts_S: Tensor,
    scale: float,
    window: int | None,
    sinks_N: Tensor | None,
    chunk: int | None,
) -> Asked:
    """The arguments of `attention`, checked, with memory for what comes out."""
    (T, N, d), (S, M), (P, G, page, size), dtype = q_TNd.shape, tables_SM.shape, k_PGBd.shape, k_PGBd.dtype
    v = v_PGBv.shape[3]
    is_latent = v < d and v_PGBv.stride() == k_PGBd.stride()
    assert dtype in (torch.float32, torch.bfloat16), f"{dtype}"
    assert size == d, f"heads of {d} on a cache of {size}"
    assert N % G == 0, f"{N} heads on {G}"
    assert chunk is None or not is_latent, "latents that are attended within chunks"
    launch.check(k_PGBd, dtype, P, G, page, d)
    if not is_latent:
        launch.check(v_PGBv, dtype, P, G, page, v)
    for tensor, shape in ((tables_SM, (S, M)), (starts_S1, (S + 1,)), (contexts_S, (S,))):
        launch.check(tensor, launch.I32, *shape)
    if sinks_N is not None:
        launch.check(sinks_N, launch.F32, N)
    kind: launch.Product = "bf16" if dtype == torch.bfloat16 and not INTERPRETED else "f32"
    return Asked(
        q_TNd, k_PGBd, v_PGBv, tables_SM, starts_S1, contexts_S, sinks_N, q_TNd.new_empty(T, N, v), T, N, G, S, M, page,
        d, v, launch.heads(q_TNd), scale * math.log2(math.e), window or 0, chunk or 0, is_latent, kind,
    )  # fmt: skip
