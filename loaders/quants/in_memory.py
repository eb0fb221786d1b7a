"""Which format every stored tensor gets when it is loaded as it is: the rule, for the engine and for plans alike.

Blocks stay as they are. Plain tensors of a group (experts, dense, embed) share the type that holds them all, unless the
group has blocks. Vectors and routers are float32. Imports no torch.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from ...kernels import FORMATS, Format
from ..architecture.tensor_names import LEFT_OUT, place
from ..files.headers import Stored

F32 = FORMATS["f32"]
NARROW = 32  # columns; a matrix of fewer is a convolution, which has no format


def usual(found: Sequence[Format]) -> Format:
    """The format of a group whose tensors are stored so; float32, which holds them all, where plain ones differ."""
    if len({*found}) == 1:
        return found[0]
    return most([format for format in found if format.is_block]) or F32


def most(found: Sequence[Format]) -> Format | None:
    """The format that most of these have."""
    return Counter(found).most_common(1)[0][0] if found else None


def as_loaded(stored: Format, group: Format) -> Format:
    """The format of a tensor of a group whose usual one is `group`."""
    return stored if stored.is_block or group.is_block else group


def of_tensors(tensors: Iterable[Stored], layers: int) -> Mapping[str, Format]:
    """The formats of a checkpoint's tensors in memory, by name; left out are those that no kernel computes with."""
    found: dict[str, Format] = {}
    groups: defaultdict[str, list[tuple[str, Format]]] = defaultdict(list)
    placed = [(tensor, place(tensor.name, layers)[1]) for tensor in tensors]
    is_tied = not any(group == "head" for _, group in placed)
    for tensor, group in placed:
        stored = FORMATS.get(tensor.dtype.lower())
        if stored is None or group in (*LEFT_OUT, "tables"):
            continue
        if len(tensor.shape) < 2 or tensor.name.endswith(".bias") or group == "router":
            found[tensor.name] = F32
        elif group != "norms" and tensor.shape[-1] >= NARROW:
            groups[_group(group, is_tied)].append((tensor.name, stored))
    for many in groups.values():
        shared = usual([stored for _, stored in many])
        found.update((name, as_loaded(stored, shared)) for name, stored in many)
    return found


def _group(group: str, is_tied: bool) -> str:
    """The group of `Formats` that a tensor's group belongs to."""
    return "experts" if group == "experts" else "embed" if group == "embedding" and not is_tied else "dense"
