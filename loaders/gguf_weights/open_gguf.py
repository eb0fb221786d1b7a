"""A GGUF model that can be run: read as far as its headers, like a directory of safetensors.

Tensors have the same names in every arch; metadata become the config of the family, which checks them. What a file has
and the family does not use is refused by name, as it would change the result.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from ...errors import CheckpointError, ConfigError, listed
from ..architecture.architecture import refuse_dense
from ..families import spec_of
from ..families.config_reader import ConfigReader
from ..files import gguf_set
from ..files.entry import Entry
from ..gguf.model import describe
from ..gguf.of_tensors import Metadata
from ..gguf.runnable import ARCHS
from ..gguf.stored_names import names_of
from ..spec import ModelSpec
from ..weights import chosen_formats
from ..weights.checkpoint import Checkpoint, check_entry, fitted
from ..weights.chosen_formats import LoadOptions
from ..weights.tables import row_table
from ..weights.targets import Target, empty_targets
from . import entries as gguf_entries
from . import mtp, rope_factors
from .shapes import as_matrices

# Archs whose converters put the rows of a query's or key's head in pairs, for a rope that turns neighbours; ERNIE and
# Llama 4 have them so.
PAIRED = ("llama", "granitemoe", "granitehybrid", "nemotron_h_moe", "ernie4_5-moe", "llama4")
LAYER = re.compile(r"blk\.(\d{1,9})\.")  # of a name: what has no such number is no tensor of a layer


def open_gguf(path: Path, options: LoadOptions) -> Checkpoint:
    """Reads the headers of a GGUF model, any of its parts given; raises ConfigError or CheckpointError for what is
    wrong, or not supported, in them."""
    header = gguf_set.of_path(path)
    values, described, _ = describe(header, str(path))
    refuse_dense(described.architecture, str(path))
    arch = str(header.metadata["general.architecture"])
    if arch not in ARCHS:
        raise ConfigError(
            f"{path} is of the arch '{arch}', which the engine does not run yet (it runs {', '.join(ARCHS)}): headrace "
            "plan predicts its speed"
        )
    config = ConfigReader(values, str(path), options.ignore_config_keys)
    family, spec = spec_of(config, options.experts_per_token)
    found = _without_ignored(gguf_entries.read(gguf_set.files_of(path)), options.ignore_tensors, config.notes)
    meta = Metadata(values=header.metadata, arch=arch)
    whole = as_matrices(found)
    found = _without_extra_layers(whole, meta, spec)
    found, spec = rope_factors.taken(path, found, spec, meta, config.notes)
    names = names_of(found)
    wanted = empty_targets(spec, names)
    tables = row_table.find(path, found, spec, names)
    _check_all_there(path, wanted, found, arch, {name for parts in tables.values() for name in parts})
    ahead = None if options.mtp is None else mtp.find(path, whole, spec, options.mtp, config.notes)
    if ahead is not None:
        spec, found, wanted = replace(spec, mtp=ahead.layer), found | ahead.entries, wanted | ahead.wanted
    elif options.mtp is None:
        _say_what_is_left_out(len(whole) - len(found), config.notes)
    found = fitted(found, wanted)
    formats = chosen_formats.resolve(spec, wanted, found, options)
    for name, target in wanted.items():
        check_entry(found[name], target)
    return Checkpoint(
        directory=path, family=family, spec=spec, names=names, formats=formats, entries=found, is_converted=False,
        notes=tuple(config.notes), pairs_of_halves=arch in PAIRED, mtp_names=None if ahead is None else ahead.names,
    )  # fmt: skip


def _say_what_is_left_out(count: int, notes: list[str]) -> None:
    if count:
        notes.append(f"{count} tensors of layers for multi-token prediction are left out: nobody asks for them")


def _without_extra_layers(found: Mapping[str, Entry], meta: Metadata, spec: ModelSpec) -> dict[str, Entry]:
    """The tensors without those of layers for multi-token prediction, behind the last one of the decoder."""
    extra = [name for name in found if (number := LAYER.match(name)) and int(number[1]) >= len(spec.layers)]
    if extra and meta.number("nextn_predict_layers"):
        return {name: entry for name, entry in found.items() if name not in {*extra}}
    return dict(found)


def _check_all_there(
    path: Path, wanted: Mapping[str, Target], found: Mapping[str, Entry], arch: str, tables: Collection[str]
) -> None:
    """Every tensor of the model, and none that the family has no use for. tables: of which rows are read as they
    lie."""
    if missing := [name for name in wanted if name not in found]:
        raise CheckpointError(
            f"{path} has {len(missing)} tensors fewer than a model of the arch '{arch}', as '{missing[0]}': "
            "download it again, or get another conversion"
        )
    if left := sorted(name for name in found if name not in wanted and name not in tables):
        raise CheckpointError(
            f"{path} has tensors that the engine does not use for '{arch}': {listed(left, 3)}; the result would "
            f"differ. --ignore-tensors '{left[0]}' computes without"
        )


def _without_ignored(found: Mapping[str, Entry], patterns: Collection[str], notes: list[str]) -> dict[str, Entry]:
    kept = {n: e for n, e in found.items() if not any(fnmatchcase(n, pattern) for pattern in patterns)}
    if count := len(found) - len(kept):
        notes.append(f"{count} tensors are ignored: the model computes as if they had not been trained")
    return kept
