"""By which of the names that a model's tensors may have a checkpoint calls them.

Libraries that save the same weights differ in the prefix of all names (a wrapper, an adapter, a compiled module), in
the module that holds router and experts, and in whether the experts of a layer are one tensor each or two for all.
What is there decides; a family says only the names of its release.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

from ...errors import CheckpointError, listed
from ..families import Family, TensorNames
from ..files.safetensors import Entry
from ..spec import ModelSpec

MODULES = ("mlp.", "block_sparse_moe.", "feed_forward.", "moe.")
ROUTERS = ("gate.weight", "router.weight", "router.layer.weight", "gate.wg.weight")
# Gate, up and down of one expert; gate and up together and down of all experts of a layer.
SEPARATE = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"), ("w1", "v1", "w2"))
FUSED = (
    ("experts.gate_up_proj", "experts.down_proj"),
    ("experts.gate_up_proj.weight", "experts.down_proj.weight"),
    ("input_linear.weight", "output_linear.weight"),
    ("experts.w13_weight", "experts.w2_weight"),
)
# Tensors that nothing here computes with, as patterns of names: tables and buffers that are made anew, scales of a
# cache in 8 bits, layers that predict further tokens, and the parts of a model that see and hear.
SPARE = (
    "*rotary_emb.*", "*.rotary_pos_emb.*", "*.masked_bias", "*.attn.bias", "*position_ids", "*num_batches_tracked",
    "*.k_scale", "*.v_scale", "*.q_scale", "*.prob_output_scale", "mtp.*", "model.mtp*", "visual.*", "vision_*",
    "model.visual.*", "model.vision_*", "audio_*", "model.audio_*", "multi_modal_projector.*", "mm_projector.*",
    "model.multi_modal_projector.*", "model.mm_projector.*", "model.image_newline", "score.weight",
)  # fmt: skip


def canonical(entries: Mapping[str, Entry], names: TensorNames, notes: list[str]) -> dict[str, Entry]:
    """Entries by names that begin as a family's do, "model." and the head's; other prefixes are said."""
    end = names.embed.removeprefix("model.")
    found = sorted((name[: -len(end)] for name in entries if name == end or name.endswith(f".{end}")), key=len)
    wanted = names.embed[: -len(end)]
    if not found or wanted in found:
        return dict(entries)
    prefix = max(found, key=lambda start: sum(name.startswith(start) for name in entries))
    outer = prefix[: -len(wanted)] if prefix.endswith(wanted) else prefix  # in front of the head
    notes.append(f"names of tensors begin with '{prefix}' instead of '{wanted}', which is taken for the same")
    return {_renamed(name, prefix, wanted, outer, names.head): entry for name, entry in entries.items()}


def _renamed(name: str, prefix: str, wanted: str, outer: str, head: str) -> str:
    if name.endswith(head) and len(name) <= len(outer) + len(head):
        return head
    return wanted + name[len(prefix) :] if name.startswith(prefix) else name


def as_stored(entries: Collection[str], family: Family, spec: ModelSpec) -> TensorNames:
    """The family's names with those of router and experts that a checkpoint has; the family's own where it has none."""
    first = next((i for i, is_moe in enumerate(spec.is_moe) if is_moe), None)
    if first is None:
        return family.tensors
    layer = family.tensors.layer.format(layer=first)
    for names in _writings(family.tensors):
        gate = names.fused_gate_up or (names.expert_gate or "").format(e=0)
        if layer + gate in entries and layer + names.expert_down.format(e=0) in entries:
            there = [router for router in _routers(names) if layer + router in entries]
            return replace(names, router=(there or [names.router])[0])
    return family.tensors


def _writings(names: TensorNames) -> Iterator[TensorNames]:
    """A family's own names of its experts, then every other way to write them."""
    yield names
    for module in MODULES:
        for gate, up, down in SEPARATE:
            one = module + "experts.{e}."
            yield replace(
                names, fused_gate_up=None, expert_gate=f"{one}{gate}.weight", expert_up=f"{one}{up}.weight",
                expert_down=f"{one}{down}.weight",
            )  # fmt: skip
        for both, down in FUSED:
            yield replace(
                names, fused_gate_up=module + both, expert_gate=None, expert_up=None, expert_down=module + down
            )


def _routers(names: TensorNames) -> Iterator[str]:
    yield names.router
    for module in MODULES:
        yield from (module + router for router in ROUTERS)


def is_spare(name: str, names: TensorNames, spec: ModelSpec) -> bool:
    """Whether a tensor may be stored and is not needed."""
    if spec.tied_head and name == names.head:
        return True
    start = names.layer.partition("{layer}")[0]
    number = name.removeprefix(start).partition(".")[0] if name.startswith(start) else ""
    beyond = number.isdigit() and int(number) >= spec.layers  # predicts further tokens
    return beyond or any(fnmatchcase(name, pattern) for pattern in SPARE)


def check_names(
    directory: object, entries: Collection[str], wanted: Collection[str], family: Family, left: Collection[str]
) -> None:
    """Raises CheckpointError for tensors that are missing or left over, with what is there instead."""
    missing = [name for name in wanted if name not in entries]
    if missing:
        near = difflib.get_close_matches(missing[0], list(left)[:2000], n=1, cutoff=0.6)
        there = near or sorted(left)[:1]
        found = f"; there is '{there[0]}', which {family.architecture} does not use" if there else ""
        cause = "the config belongs to another model" if found else "the download is incomplete, or the config wrong"
        raise CheckpointError(
            f"{directory} lacks {len(missing)} of the {len(wanted)} tensors that its config promises, first "
            f"'{missing[0]}'{found}: {cause}"
        )
    if left:
        some = listed([f"'{name}'" for name in sorted(left)], 2)
        raise CheckpointError(
            f"{directory} has {len(left)} tensors that {family.architecture} does not use, {some}: this variant is not "
            "supported, or the config is another model's; if nothing is lost without them, --ignore-tensors PATTERN"
        )
