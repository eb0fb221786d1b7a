"""Which format every stored tensor gets when it is loaded as it is: the rule, for the engine and for plans alike.

Blocks stay as they are. Plain tensors of a group (experts, dense, embed) share the type that holds them all, unless the
group has blocks. Vectors and routers are float32. Imports no torch.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from ...kernels import FORMATS, Format
from ..architecture.tensor_names import LEFT_OUT, place
from ..files.headers import Stored

F32 = FORMATS["f32"]
NARROW = 32  # columns; a matrix of fewer is a convolution, which is float32
# What decides on a delta rule's changes and their decay, and weighs the heads of an indexer: small, and float32 too.
SMALL = re.compile(r"\.(?:ssm_(?:ba|alpha|beta)|in_proj_(?:ba|a|b)|indexer\.(?:weights_)?proj)\.weight$")
UP, OUTPUT = re.compile(r"\.(?:kv_b_proj|attn_kv_b)\.weight$"), (".o_proj.weight", ".attn_output.weight")


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
        is_small = len(tensor.shape) < 2 or tensor.shape[-1] < NARROW or SMALL.search(tensor.name)
        if is_small or tensor.name.endswith(("bias", "sinks")) or group == "router":
            found[tensor.name] = F32
        elif group != "norms":
            groups[_group(group, is_tied)].append((tensor.name, stored))
    for many in groups.values():
        shared = usual([stored for _, stored in many])
        found.update((name, as_loaded(stored, shared)) for name, stored in many)
    return found


def turned_rows(tensors: Iterable[Stored]) -> dict[str, int]:
    """Of up-projections of latents, by name, the rows for keys, which are stored the other way round: all but those
    for values, of which the output projection has as many columns."""
    tensors = list(tensors)
    values = {t.name[: -len(end)]: t.shape[-1] for t in tensors for end in OUTPUT if t.name.endswith(end)}
    found = {t.name: (t.shape[0], values.get(UP.sub("", t.name), 0)) for t in tensors if UP.search(t.name)}
    return {name: rows - of_values for name, (rows, of_values) in found.items()}


def _group(group: str, is_tied: bool) -> str:
    """The group of `Formats` that a tensor's group belongs to."""
    return "experts" if group == "experts" else "embed" if group == "embedding" and not is_tied else "dense"
