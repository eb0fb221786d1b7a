"""Tables that say which experts a token has."""

from __future__ import annotations

from torch import Tensor

from ....errors import CheckpointError


def checked(table_VK: Tensor | None, experts: int) -> Tensor | None:
    """The table. Raises CheckpointError where it names an expert that is not there."""
    if table_VK is None:
        return None
    least, most = int(table_VK.min()), int(table_VK.max())
    if not 0 <= least <= most < experts:
        raise CheckpointError(
            f"a table of experts by token has numbers from {least} to {most}, of {experts} experts: the checkpoint is "
            "damaged: download it again"
        )
    return table_VK
