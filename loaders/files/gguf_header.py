"""The header of a GGUF file: metadata and tensors, without the weights.

The gguf library maps the whole file and needs numpy views of every tensor, so it cannot read the first megabytes of a
file that lies on a hub. The header is small and plain: magic, version, counts, key-value pairs, then for each tensor
its name, dimensions, type and offset. Everything is checked before use; nothing here knows a model.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

from ...errors import CheckpointError
from .headers import Fetch, Stored

MAGIC = b"GGUF"
STEP = 1 << 20  # how much more is fetched when the header goes on
MOST = 256 << 20
# Code of a value's type -> its format for struct.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
# Code of a tensor's type -> name, weights in a block, bytes of a block.
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36),
}  # fmt: skip


@dataclass(frozen=True)
class Header:
    """Metadata by key (arrays of strings as their length alone), tensors in file order, bytes of the header."""

    metadata: dict[str, Any]
    tensors: tuple[Stored, ...]
    nbytes: int


class _Cursor:
    """Reads forward, fetching more as the header goes on."""

    def __init__(self, fetch: Fetch, source: str) -> None:
        self.fetch, self.source = fetch, source
        self.data, self.at = b"", 0

    def take(self, count: int) -> bytes:
        if not 0 <= count <= MOST or self.at + count > MOST:
            raise CheckpointError(f"{self.source} has a damaged header: it would be over {MOST >> 20} MB")
        while len(self.data) < self.at + count:
            wanted = max(STEP, self.at + count - len(self.data))
            more = self.fetch(len(self.data), wanted)
            if not more:
                raise CheckpointError(
                    f"{self.source} ends inside its header, at byte {len(self.data)}: download it again"
                )
            self.data += more
        found = self.data[self.at : self.at + count]
        self.at += count
        return found

    def number(self, format: str) -> Any:
        return struct.unpack("<" + format, self.take(struct.calcsize("<" + format)))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            return self._array(self.number("I"), self.number("Q"))
        raise CheckpointError(f"{self.source} has a damaged header: there is no value of type {kind}")

    def _array(self, kind: int, count: int) -> Any:
        if kind in SCALARS:
            size = struct.calcsize("<" + SCALARS[kind])
            return list(struct.unpack(f"<{count}{SCALARS[kind]}", self.take(count * size)))
        if kind != STRING:
            raise CheckpointError(f"{self.source} has a damaged header: there is no array of type {kind}")
        for _ in range(count):  # a vocabulary: read over it
            self.value(kind)
        return count


def read(fetch: Fetch, source: str) -> Header:
    """The header that `fetch` gives; raises CheckpointError if it is none, or damaged."""
    cursor = _Cursor(fetch, source)
    if cursor.take(4) != MAGIC:
        raise CheckpointError(f"{source} is no GGUF file: it does not begin with GGUF")
    version = cursor.number("I")
    if version not in (2, 3):
        raise CheckpointError(f"{source} is GGUF version {version}; versions 2 and 3 can be read")
    tensors, pairs = cursor.number("Q"), cursor.number("Q")
    metadata = {}
    for _ in range(pairs):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.number("I"))
    found = tuple(_tensor(cursor) for _ in range(tensors))
    return Header(metadata, found, cursor.at)


def _tensor(cursor: _Cursor) -> Stored:
    name, rank = cursor.text(), cursor.number("I")
    if rank > 8:
        raise CheckpointError(f"{cursor.source}: tensor '{name}' has {rank} dimensions: download the file again")
    shape = tuple(cursor.number("Q") for _ in range(rank))
    code = cursor.number("I")
    cursor.number("Q")  # offset
    if code not in TYPES:
        raise CheckpointError(f"{cursor.source}: tensor '{name}' has type {code}, which this version does not know")
    kind, block, size = TYPES[code]
    elements = math.prod(shape)
    if shape and shape[0] % block:
        raise CheckpointError(f"{cursor.source}: rows of '{name}' have {shape[0]} weights, no multiple of {block}")
    return Stored(name, kind, tuple(reversed(shape)), elements // block * size)


def part_names(name: str, parts: int) -> list[str]:
    """The names of all parts of a file that was split, from that of one: NAME-00001-of-00003.gguf."""
    stem = name.removesuffix(".gguf").rsplit("-", 3)[0]
    return [f"{stem}-{i:05d}-of-{parts:05d}.gguf" for i in range(1, parts + 1)]
