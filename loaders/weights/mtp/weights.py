"""The weights of a layer for multi-token prediction (MTP): a decoder layer, and what joins its two inputs.

Embedding and head are the model's own, as they were in training; copies of them in a checkpoint are not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ....kernels.packed import Matrix

if TYPE_CHECKING:
    from ..model_weights import LayerWeights

MTP = "mtp."  # what its names in `ModelWeights.named` begin with


@dataclass(frozen=True, kw_only=True)
class MtpWeights:
    """project: [hidden, 2 * hidden], of the normed embedding of a token beside the normed hidden state before it. norm:
    in front of the head. Norms float32 [hidden]."""

    project: Matrix
    embed_norm: Tensor
    hidden_norm: Tensor
    layer: LayerWeights
    norm: Tensor

    @property
    def own(self) -> dict[str, Tensor]:
        """What is stored beside the layer, by name."""
        norms = {name: getattr(self, name) for name in ("embed_norm", "hidden_norm", "norm")}
        return {f"{MTP}{name}": one for name, one in {"project": self.project.data, **norms}.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return sum(one.nbytes for one in self.own.values()) + sum(part.nbytes for _, part in self.layer.parts())
