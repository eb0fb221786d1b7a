"""How fast a disk gives experts, measured by reading some of this model's, and what that means for a token."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from ...policies.protocol import Shape
from ...units import GB, size
from .disk_cache import DiskCache
from .reads import Reading
from .staging import Staging

SECONDS, FEWEST, MOST = 0.5, 8, 256  # of a measurement; experts that are read


def measure(cache: DiskCache, staging: Staging) -> float:
    """Bytes a second of the file, by reads of experts chosen at random, as many at a time as there are blocks for."""
    draw, files, reads = random.Random(0), cache.files, cache.reads
    under_way: dict[Reading, tuple[list[int], int]] = {}
    start, done, read = time.perf_counter(), 0, 0
    while done < FEWEST or (done < MOST and time.perf_counter() - start < SECONDS):
        layer = draw.randrange(cache.shape.layers)
        layout = files.layouts[layer]
        while not (free := staging.free[layout]):
            _end(reads.wait(under_way), under_way)
        block = free.pop()
        reading = files.reading((layer, draw.randrange(cache.shape.experts[layer])), staging.banks[layout].data[block])
        under_way[reading] = free, block
        reads.start(reading)
        done, read = done + 1, read + files.read_bytes[layer]
    while under_way:
        _end(reads.wait(under_way), under_way)
    return read / (time.perf_counter() - start)


def _end(done: list[Reading], under_way: dict[Reading, tuple[list[int], int]]) -> None:
    """Gives the blocks of reads back; raises what one failed of."""
    for reading in done:
        if reading.error is not None:
            raise reading.error
        free, block = under_way.pop(reading)
        free.append(block)


def token_bytes(shape: Shape, read_bytes: Sequence[int], resident: Sequence[int], top_k: int) -> float:
    """What a token is expected to read, if every expert is chosen as often as every other; resident: by layer."""
    each = zip(shape.experts, read_bytes, resident, strict=True)
    return sum(min(top_k, experts) * one * (1 - there / experts) for experts, one, there in each)


def notes(cache: DiskCache, top_k: int, rate: float | None) -> list[str]:
    """For people: what stays on the disk, how slow that is, and what would make it faster."""
    files, resident = cache.files, [len(there) for there in cache.residents.by_layer]
    experts = cache.shape.nbytes
    kept, of = f"{size(cache.budget)} of {size(experts)} of experts", f"policy {cache.policy.name}"
    if all(there == experts for there, experts in zip(resident, cache.shape.experts, strict=True)):
        return ["all experts fit into RAM, and none is read after the start: without --placement disk it is faster"]
    lines = [f"experts stay on the disk; RAM holds up to {kept} ({of}), the others are read when they are chosen"]
    if files.held.refused:
        lines.append(f"the file system refuses direct reads ({files.held.refused}): reads go through the page cache")
    if not files.is_straight:
        lines.append("experts are not stored as they are computed with: each is converted after it is read")
    if rate is not None:
        read = token_bytes(cache.shape, files.read_bytes, resident, top_k)
        better = ["more RAM (--ram-limit)", "a smaller --expert-format"]
        better += [] if files.is_straight else ["headrace convert"]
        lines.append(
            f"the disk gives {rate / GB:.2f} GB/s of experts; where all are chosen alike a token reads {size(read)}, "
            f"which takes {read / rate:.2g} s; faster: {', '.join(better)}, or a faster disk"
        )
    return lines
