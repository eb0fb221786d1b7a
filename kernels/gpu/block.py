"""All of a layer before its experts, and all layers, from this backend's ops: a graph can take them all at once, so
that nothing is gained by one launch."""

from __future__ import annotations

from torch import Tensor

from .. import load
from ..decoder_layer import Block, Places, Stack, compose, compose_layers
from ..passes.tally import Choice, Tally


def attention_block(
    x_TD: Tensor, update_TD: Tensor | None, block: Block, places: Places, rows_R: Tensor | None = None
) -> tuple[Tensor, Tensor, Choice | None]:
    return compose(load("gpu"), x_TD, update_TD, block, places, rows_R)


def layers(
    x_TD: Tensor, stack: Stack, places: Places, rows_R: Tensor | None = None, tally: Tally | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    return compose_layers(load("gpu"), x_TD, stack, places, rows_R, tally)
