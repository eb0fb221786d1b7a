"""A fingerprint of all that decides on the bits of a KV cache: of the model, and of the program that computes.

The weights are known by samples of their values, whatever file they came from and however that is called: another
training of a model differs in every matrix. Besides count formats, shapes, the cache's type and what kernels round by.
Of the program count the built kernels, torch, and the sources of whatever makes a row or reads it: a number that
somebody has to raise would be forgotten. All of that was 10 ms of a core (EPYC of Zen 5, 429 files).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ...kernels.isa import kernels_digest
from ..experts.disk.disk_cache import DiskCache
from ..model.kv_cache import PAGE
from .parts import EngineParts

SAMPLES, SAMPLE = 32, 64  # places of a tensor that are looked at, and bytes of each
HALF = 8  # bytes for the model, and as many for the program
PACKAGE = Path(__file__).parent.parent.parent
ROOMS = (  # weights as they are read, what multiplies them and in what order, and what of it a file has
    "loaders", "kernels", "engine/model", "engine/experts", "engine/cuda_graphs", "engine/hosts",
    "engine/generation/schedule", "engine/generation/disk",
)  # fmt: skip


def fingerprint(parts: EngineParts) -> bytes:
    """16 bytes that are the same where a prompt's keys and values are: 8 of the model and how it is to be computed, 8
    of the program that does it."""
    return _of_model(parts) + of_program()


def _of_model(parts: EngineParts) -> bytes:
    context, config, main = parts.context, parts.config, parts.main
    told = (
        PAGE, parts.decoder.cache.windows, parts.spec, parts.checkpoint.formats, parts.kv_format, parts.kernels,
        context.isa, context.activations, context.attention, sorted(context.tile_tokens.items()),
        sorted(t.value for t in parts.placement.tiers), main.backend, main.name if main.is_cuda else "",
        config.deterministic, config.hosts and config.wire,
    )  # fmt: skip
    found = hashlib.blake2b(repr(told).encode(), digest_size=HALF)
    if isinstance(parts.expert_cache, DiskCache):
        found.update(repr(parts.expert_cache.files.held.identity).encode())
    for name, tensor in parts.weights.named().items():
        found.update(name.encode())
        if tensor.is_meta:  # experts that stay in the files
            continue
        found.update(_samples(tensor))
    return found.digest()


@cache
def of_program() -> bytes:
    """Of the program as it runs, and of this torch."""
    told = kernels_digest(), torch.__version__, sources(PACKAGE / room for room in ROOMS)
    return hashlib.blake2b(repr(told).encode(), digest_size=HALF).digest()


def sources(folders: Iterable[Path]) -> str:
    """Hexadecimal digits of what the Python files of folders say, and of how they are called there."""
    found = hashlib.blake2b(digest_size=16)
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            text = path.read_bytes()
            found.update(f"{folder.name}/{path.relative_to(folder).as_posix()} {len(text)}\n".encode() + text)
    return found.hexdigest()


def _samples(tensor: Tensor) -> bytes:
    """Bytes from places all over a tensor."""
    flat = tensor.reshape(-1).view(torch.uint8)
    step = max(1, (len(flat) - SAMPLE) // SAMPLES)
    return b"".join(flat[at : at + SAMPLE].cpu().numpy().tobytes() for at in range(0, len(flat), step))
