"""What frequencies of positions are divided by, a tensor of GGUF files whose layers turn a part of each head: 1, and
for the pairs that are not turned so much that nothing is left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...errors import CheckpointError
from ..files import safetensors
from ..files.entry import Entry
from ..spec import AttentionSpec, ModelSpec

NAME = "rope_freqs.weight"
NOTHING = 1e20  # from here on a pair is not turned


def checked(path: Path, found: Mapping[str, Entry], spec: ModelSpec) -> dict[str, Entry]:
    """The tensors without it. Raises CheckpointError where it is not there, or says something else than the spec."""
    ropes = [mixer.rope for mixer in spec.mixers if isinstance(mixer, AttentionSpec)]
    rope = next((one for one in ropes if one.kind == "proportional"), None)
    if rope is None:
        return dict(found)
    entry, pairs = found.get(NAME), rope.rotary_dim // 2
    if entry is None:
        raise CheckpointError(f"{path} has no '{NAME}', which says what is turned of a head: get another conversion")
    turned = round(rope.share * pairs)
    values = safetensors.read_rows(entry, 0, 1).flatten().float() if entry.shape == (pairs,) else None
    if values is None or not (values[:turned] == 1).all() or not (values[turned:] >= NOTHING).all():
        raise CheckpointError(
            f"{path}: '{NAME}' is supported where it has {pairs} values, {turned} of 1 and the others {NOTHING:g} or "
            "more: get another conversion"
        )
    return {name: one for name, one in found.items() if name != NAME}
