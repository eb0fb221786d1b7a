"""One pass as the decoder gets it: new tokens, where they stand in the cache, which rows are wanted."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...kernels.decoder_layer import Places
from ..ledger.pass_bytes import Span


@dataclass(frozen=True)
class Inputs:
    """A batch as tensors: T new tokens of S sequences. Names as in `kernels/reference.py`."""

    ids_T: Tensor  # int64
    places: Places
    spans: tuple[Span, ...]  # of each sequence its new tokens, and its tokens in the cache after the pass
    rows: Tensor  # int64: the rows whose logits are wanted, those of the last tokens of `Batch.ready`
    x_TD: Tensor | None = None  # float32: rows of the embedding, where they were looked up before

    @property
    def wanted_rows(self) -> Tensor | None:
        """`rows`; None where the logits of all tokens are wanted."""
        return self.rows if len(self.rows) < len(self.ids_T) else None


def sizes_up_to(most: int) -> list[int]:
    """1, 2, 4, 8 ... up to the first that holds `most` sequences."""
    assert most > 0, f"batches of {most}"
    return [1 << n for n in range((most - 1).bit_length() + 1)]
