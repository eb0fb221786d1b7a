"""The layer for multi-token prediction of a GGUF model: a block behind the last one of the decoder, in the model's own
file or in one of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ...errors import CheckpointError, OptionError
from ..files import gguf_set
from ..files.entry import Entry
from ..gguf.stored_names import NAMES, names_of
from ..spec import ModelSpec
from ..weights.mtp import find as found_of
from ..weights.mtp.asked import MtpAsked
from ..weights.mtp.find import Mtp
from . import entries as gguf_entries
from .shapes import as_matrices

BLOCK = re.compile(r"(blk\.\d{1,9}\.)" + re.escape(NAMES.mtp_project))


def find(path: Path, entries: Mapping[str, Entry], spec: ModelSpec, asked: MtpAsked, notes: list[str]) -> Mtp | None:
    """The layer among the tensors of a model, or in the file that was given; None: there is none, and need not be.
    Raises OptionError, CheckpointError or ConfigError."""
    where, mine = path, dict(entries)
    if asked.file is not None:
        where, mine = asked.file, as_matrices(_of_file(asked.file, spec))
    if not found_of.is_in(mine, NAMES, spec):
        found_of.none_there(path, asked, spec, mine)
        return None
    prefix = NAMES.layer.format(layer=len(spec.layers))
    names = names_of([name for name in mine if name.startswith(prefix)])
    return found_of.made(where, mine, names, spec, asked, notes)


def _of_file(path: Path, spec: ModelSpec) -> dict[str, Entry]:
    """The tensors of a file whose block may have another number."""
    if not path.is_file():
        raise OptionError(f"mtp is {path}, which is no file: give the one that holds the layer")
    if not gguf_set.is_gguf(path):
        raise OptionError(f"mtp is {path}, and the model is a GGUF file: give its layer as GGUF, too")
    try:
        gguf_set.of_path(path)
        found = gguf_entries.read(gguf_set.files_of(path))
    except CheckpointError as error:
        raise CheckpointError(f"the layer for multi-token prediction cannot be read: {error}") from error
    start = next((match[1] for name in found if (match := BLOCK.fullmatch(name))), None)
    if start is None:
        return found
    prefix = NAMES.layer.format(layer=len(spec.layers))
    return {prefix + name.removeprefix(start): one for name, one in found.items() if name.startswith(start)}
