"""What chooses the keys of latent attention, from a config: its sizes, and which layers have one of their own."""

from __future__ import annotations

from dataclasses import replace

from ..spec import IndexerSpec, LatentSpec, MixerSpec
from . import learned_positions
from .config_reader import ConfigReader
from .family import Family

INDEXED = "indexed_attention"
FULL, SHARED = "full", "shared"
LETTERS = {"F": FULL, "S": SHARED}


def with_indexers(family: Family, config: ConfigReader, latent: LatentSpec, count: int) -> list[MixerSpec]:
    """The latent attention of so many layers, each with an indexer or with the choice of an earlier one."""
    if latent.q_rank == 0 and not family.still_layers:
        raise config.bad("q_lora_rank", None, "a whole number: queries of an indexer are made of a latent")
    indexer = _read(family, config, latent)
    kinds = kinds_of(config, count) if family.index_shared else [FULL] * count
    names = config.get("layer_types")
    if names is not None and names != [INDEXED] * count:
        raise config.bad("layer_types", names, f"a list of {count} times {INDEXED}, or null")
    found = [replace(latent, indexer=replace(indexer, own=kind == FULL)) for kind in kinds]
    return list(learned_positions.with_still(config, found) if family.still_layers else found)


def _read(family: Family, config: ConfigReader, latent: LatentSpec) -> IndexerSpec:
    config.only("indexer_rope_interleave", (family.index_neighbours, None))
    dim = config.integer("index_head_dim")
    if dim < latent.rope_dim:
        config.refuse(config.bad("index_head_dim", dim, f"at least the {latent.rope_dim} dims that are rotated"))
    return IndexerSpec(
        heads=config.integer("index_n_heads"),
        dim=dim,
        top=config.integer("index_topk"),
        neighbours=family.index_neighbours,
        from_hidden=family.still_layers,
    )


def kinds_of(config: ConfigReader, count: int) -> list[str]:
    """Which layers have an indexer: by a list, by a pattern of letters, or every so many behind the first ones."""
    kinds, pattern = config.get("indexer_types"), config.get("index_topk_pattern")
    step, first = config.get("index_topk_freq"), config.get("index_skip_topk_offset")
    name, found = "indexer_types", kinds
    if kinds is None and pattern is not None:
        name, found = "index_topk_pattern", [LETTERS.get(one, one) for one in pattern]
    if found is None:
        step, first = 1 if step is None else config.integer("index_topk_freq"), 2 if first is None else first
        found = [SHARED if max(i - first + 1, 0) % step else FULL for i in range(count)]
    if not isinstance(found, list) or len(found) != count or set(found) - {FULL, SHARED} or found[0] != FULL:
        raise config.bad(name, found, f"a list of {count} times {FULL} or {SHARED}, {FULL} first")
    return found
