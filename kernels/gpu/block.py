"""All of a layer before its experts, from this backend's ops: a graph can take them all
at once, so that nothing is gained by one launch."""

from __future__ import annotations

from torch import Tensor

from .. import load
from ..blocks import AttentionBlock, Choice, Places, compose


def attention_block(
    x_TD: Tensor, update_TD: Tensor | None, block: AttentionBlock, places: Places, rows_R: Tensor | None = None
) -> tuple[Tensor, Tensor, Choice | None]:
    return compose(load("gpu"), x_TD, update_TD, block, places, rows_R)
