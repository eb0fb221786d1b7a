"""The layer for multi-token prediction of a folder of safetensors: with the model, or in a file of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ....errors import CheckpointError, OptionError
from ...families import Family
from ...families.quantisation import Quantisation
from ...files import safetensors
from ...files.entry import Entry
from ...quantised.gather import gather
from ...spec import ModelSpec
from .. import stored_names
from . import find as found_of
from .asked import MtpAsked
from .find import BESIDE, Mtp


def find(
    directory: Path,
    entries: Mapping[str, Entry],
    family: Family,
    spec: ModelSpec,
    asked: MtpAsked,
    notes: list[str],
    how: Quantisation | None = None,
) -> Mtp | None:
    """The layer among the tensors of a model, or in a file of its own; None: there is none, and need not be. how: its
    weights are quantised. Raises OptionError, CheckpointError or ConfigError."""
    where, mine = directory, found_of.renamed(entries, family.tensors, spec)
    file = asked.file or (directory / BESIDE if (directory / BESIDE).is_file() else None)
    if file is not None and (asked.file is not None or not found_of.is_in(mine, family.tensors, spec)):
        where, mine = file, found_of.renamed(_of_file(file, how, notes), family.tensors, spec)
    if not found_of.is_in(mine, family.tensors, spec):
        found_of.none_there(directory, asked, spec, mine)
        return None
    names = stored_names.as_stored(mine, family, spec, notes, len(spec.layers))
    return found_of.made(where, mine, names, spec, asked, notes)


def _of_file(path: Path, how: Quantisation | None, notes: list[str]) -> dict[str, Entry]:
    """The tensors of one file by name."""
    if not path.is_file():
        raise OptionError(f"mtp is {path}, which is no file: give the one that holds the layer")
    if path.suffix != ".safetensors":
        raise OptionError(f"mtp is {path}, and the model is of safetensors: give its layer as .safetensors, too")
    try:
        entries = safetensors.read_header(path)
    except CheckpointError as error:
        raise CheckpointError(f"the layer for multi-token prediction cannot be read: {error}") from error
    return entries if how is None else gather(entries, how, notes)
