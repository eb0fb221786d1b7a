"""Opens the KV cache's folder for a model that is loaded, under a fingerprint of all that decides on its bits.

The weights are known by samples of their values, whatever file they came from and however that is called: another
training of a model differs in every matrix. Besides count formats, shapes, the cache's type, and the kernels with what
they round by.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from ...kernels.isa import kernels_digest
from .. import writable
from ..config import EngineConfig
from ..experts.disk.disk_cache import DiskCache
from ..generation.disk.kv_disk import KVDisk
from ..generation.disk.page_files import PageFiles
from ..generation.schedule.state_slots import StateSlots
from ..model.kv_cache import PAGE, PageTable
from ..model.windows import Windows
from ..sizes import parse_kv_disk
from .parts import EngineParts

SAMPLES, SAMPLE = 32, 64  # places of a tensor that are looked at, and bytes of each
WHAT = "the KV cache"


def check_folder(config: EngineConfig) -> None:
    """Raises OptionError where the folder that is asked for cannot be written."""
    if config.kv_disk is not None:
        folder, _ = parse_kv_disk(str(config.kv_disk))
        error = writable.problem(folder / "probe", with_folders=True)
        if error is not None:
            raise writable.refusal(folder, WHAT, error) from error


def open_disk(parts: EngineParts, table: PageTable, states: StateSlots | None, windows: Windows) -> KVDisk | None:
    """What a model's cache has on disk; None where none is asked for. Raises OptionError."""
    if parts.config.kv_disk is None:
        return None
    folder, limit = parse_kv_disk(str(parts.config.kv_disk))
    try:
        files = PageFiles(folder, fingerprint(parts), int(limit * 1e9))
    except OSError as error:
        raise writable.refusal(folder, WHAT, error) from error
    return KVDisk(files, parts.decoder.cache, table, states, windows)


def fingerprint(parts: EngineParts) -> bytes:
    """16 bytes that are the same where a prompt's keys and values are."""
    context, main = parts.context, parts.main
    told = (
        PAGE, parts.decoder.cache.windows, parts.spec, parts.checkpoint.formats, parts.kv_format, parts.kernels,
        kernels_digest(), context.isa, context.activations, sorted(context.tile_tokens.items()),
        sorted(t.value for t in parts.placement.tiers), main.backend, main.name if main.is_cuda else "",
        torch.__version__, parts.config.deterministic,
    )  # fmt: skip
    found = hashlib.blake2b(repr(told).encode(), digest_size=16)
    if isinstance(parts.expert_cache, DiskCache):
        found.update(repr(parts.expert_cache.files.held.identity).encode())
    for name, tensor in parts.weights.named().items():
        found.update(name.encode())
        if tensor.is_meta:  # experts that stay in the files
            continue
        found.update(_samples(tensor))
    return found.digest()


def _samples(tensor: Tensor) -> bytes:
    """Bytes from places all over a tensor."""
    flat = tensor.reshape(-1).view(torch.uint8)
    step = max(1, (len(flat) - SAMPLE) // SAMPLES)
    return b"".join(flat[at : at + SAMPLE].cpu().numpy().tobytes() for at in range(0, len(flat), step))
