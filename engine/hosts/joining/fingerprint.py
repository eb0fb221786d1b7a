"""A hash that tells whether two machines have the same model: shapes, formats, and samples of the weights.

Hashed are the model's shape, the formats that experts are computed in, name, type and shape of every tensor, and of up
to MOST tensors, dealt out evenly, 256 bytes at their start, middle and end. A fine-tune changes nearly all weights, so
it shows; that every byte is the same it does not prove.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ....errors import CheckpointError
from ....loaders import regular
from ....loaders.files.entry import Entry
from ....loaders.weights.checkpoint import Checkpoint

MOST, SAMPLE = 4096, 256


def of(checkpoint: Checkpoint) -> str:
    """64 hexadecimal digits. Raises CheckpointError where a file cannot be read."""
    found = hashlib.sha256()
    formats = checkpoint.formats
    layouts = [formats.layout(checkpoint.spec, i) for i, is_moe in enumerate(checkpoint.spec.is_moe) if is_moe]
    for layout in dict.fromkeys(layouts):
        found.update(f"{layout}\n".encode())
    found.update(f"{checkpoint.spec.layers}\n".encode())
    behind = checkpoint.names.layer.format(layer=len(checkpoint.spec.layers))  # a layer that no host has a part of
    names = sorted(name for name in checkpoint.entries if not name.startswith(behind))
    entries = [checkpoint.entries[name] for name in names]
    for entry in entries:
        found.update(f"{entry.name} {entry.dtype} {entry.shape} {entry.blocks}\n".encode())
    _samples(found, [entry for entry in entries if entry.packed is None])
    return found.hexdigest()


def _samples(found: hashlib._Hash, entries: list[Entry]) -> None:
    step, open_files = max(1, -(-len(entries) // MOST)), dict[Path, int]()
    try:
        for entry in entries[::step]:
            if entry.path not in open_files:
                open_files[entry.path] = regular.descriptor(entry.path)
            for at in (0, entry.nbytes // 2, max(0, entry.nbytes - SAMPLE)):
                size = min(SAMPLE, entry.nbytes - at)
                found.update(os.pread(open_files[entry.path], size, entry.offset + at))
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename or 'a weight file'}: {error.strerror}") from error
    finally:
        for one in open_files.values():
            os.close(one)
