"""By which of the names that a model's tensors may have a checkpoint calls them.

Libraries that save the same weights differ in the prefix of all names (a wrapper, an adapter, a compiled module), in
the module that holds router and experts, and in how many tensors the experts of a layer are. What is there decides; a
family says only the names of its release.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from ...errors import CheckpointError
from ..families import Family, TensorNames
from ..files.entry import Entry
from ..spec import ModelSpec

# Modules that training wraps around others, inside of a name.
WRAPPERS = re.compile(
    r"(?<=\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module|base_layer)\."
)
MODULES = ("mlp.", "block_sparse_moe.", "feed_forward.", "moe.")
ROUTERS = ("gate.weight", "router.weight", "router.layer.weight", "gate.wg.weight")
# Gate, up and down of an expert, or of all experts of a layer in three tensors.
THREE = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"), ("w1", "v1", "w2"))
PLACES = ("experts.{e}.%s.weight", "experts.%s", "experts.%s.weight", "switch_mlp.%s.weight")
# Gate and up together, and down: of one expert, or of all of a layer.
TWO = (
    ("experts.{e}.gate_up_proj.weight", "experts.{e}.down_proj.weight"),
    ("experts.gate_up_proj", "experts.down_proj"),
    ("experts.gate_up_proj.weight", "experts.down_proj.weight"),
    ("input_linear.weight", "output_linear.weight"),
    ("experts.w13_weight", "experts.w2_weight"),
)


def canonical(entries: Mapping[str, Entry], names: TensorNames, notes: list[str]) -> dict[str, Entry]:
    """Entries by names that begin as a family's do, "model." and the head's; other beginnings are said.

    Raises CheckpointError where two tensors come to the same name."""
    found: dict[str, Entry] = {}
    wrapped = {match[1] for name in entries for match in WRAPPERS.finditer(name)}
    plain = {WRAPPERS.sub("", name) for name in entries}
    start, wanted = _beginnings(plain, names)
    if wrapped:
        notes.append(f"{' and '.join(sorted(wrapped))} in names of tensors is read over")
    if start != wanted:
        notes.append(f"names of tensors begin with '{start}' instead of '{wanted}', which is taken for the same")
    outer = start[: -len(wanted)] if start.endswith(wanted) else start  # in front of the head
    for name, entry in entries.items():
        new = WRAPPERS.sub("", name)
        new = new if start == wanted else _renamed(new, start, wanted, outer, names.head)
        if new in found:
            raise CheckpointError(f"'{found[new].name}' and '{name}' are both '{new}': leave one of them in the files")
        found[new] = entry
    return found


def _beginnings(stored: Collection[str], names: TensorNames) -> tuple[str, str]:
    """What stands in front of the layers, and what should; the same where no layers are found."""
    layer, _, rest = names.layer.partition("layers.{layer}.")
    first = f"layers.0.{rest}{names.attn_norm}"
    found = sorted((n[: -len(first)] for n in stored if n == first or n.endswith(f".{first}")), key=len)
    if not found or layer in found:
        return layer, layer
    return max(found, key=lambda start: sum(name.startswith(f"{start}layers.") for name in stored)), layer


def _renamed(name: str, start: str, wanted: str, outer: str, head: str) -> str:
    if name.endswith(head) and len(name) <= len(outer) + len(head):
        return head
    return wanted + name[len(start) :] if name.startswith(start) else name


def as_stored(
    entries: Mapping[str, Entry], family: Family, spec: ModelSpec, notes: list[str], layer: int | None = None
) -> TensorNames:
    """The family's names with those of router and experts that a checkpoint has; the family's own where it has none.
    layer: whose names count; None: the first that has experts."""
    first = next((i for i, is_moe in enumerate(spec.is_moe) if is_moe), None) if layer is None else layer
    if first is None:
        return family.tensors
    prefix = family.tensors.layer.format(layer=first)
    for names in _writings(family.tensors):
        gate = prefix + (names.fused_gate_up or names.expert_gate or "").format(e=0)
        down = prefix + names.expert_down.format(e=0)
        if gate in entries and down in entries:
            there = [router for router in _routers(names) if prefix + router in entries]
            names = replace(names, router=(there or [names.router])[0])
            return _turned(names, entries[gate], entries[down], spec, notes)
    return family.tensors


def _writings(names: TensorNames) -> Iterator[TensorNames]:
    """A family's own names of its experts, then every other way to write them."""
    yield names
    for module in MODULES:
        for place in PLACES:
            for words in THREE:
                gate, up, down = (module + place % word for word in words)
                yield replace(names, fused_gate_up=None, expert_gate=gate, expert_up=up, expert_down=down)
        for both, down in TWO:
            yield replace(
                names, fused_gate_up=module + both, expert_gate=None, expert_up=None, expert_down=module + down
            )


def _routers(names: TensorNames) -> Iterator[str]:
    yield names.router
    for module in MODULES:
        yield from (module + router for router in ROUTERS)


def _turned(names: TensorNames, gate: Entry, down: Entry, spec: ModelSpec, notes: list[str]) -> TensorNames:
    """The names, with a word on experts that are stored the other way round: [experts, in, out]. Where a family has
    them so, those that are quantised have their rows first all the same."""
    moe, hidden = spec.moe, spec.moe.latent or spec.hidden
    width = 2 * moe.width if names.fused_gate_up else moe.width
    turned = (moe.experts, hidden, width), (moe.experts, moe.width, hidden)
    straight = (moe.experts, width, hidden), (moe.experts, hidden, moe.width)
    if names.experts_turned and (gate.shape, down.shape) == straight:
        return replace(names, experts_turned=False)
    if names.experts_turned or (gate.shape, down.shape) != turned or turned == straight or gate.packed:
        return names
    notes.append("experts are stored as [experts, in, out]: they are turned while loading")
    return replace(names, experts_turned=True)
