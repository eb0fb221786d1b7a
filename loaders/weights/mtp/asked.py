"""What is asked of a layer for multi-token prediction: whether there must be one, and in which file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class MtpAsked:
    """must: a model without such a layer, or with one that cannot be used, is refused; else it runs without. file:
    that holds the layer; None: the model's own files, or `mtp.safetensors` beside them."""

    must: bool
    file: Path | None = None
