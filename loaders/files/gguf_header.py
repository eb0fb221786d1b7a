"""The header of a GGUF file: metadata and tensors, without the weights.

The gguf library maps the whole file and needs numpy views of every tensor, so it cannot read the first megabytes of a
file that lies on a hub. The header is small and plain: magic, version, counts, key-value pairs, then for each tensor
its name, dimensions, type and offset. Everything is checked before use; nothing here knows a model. What a damaged or
made-up header asks for is bounded: by the file, by MOST, and by what its values take as Python's objects (MOST_SPENT).

A type that is not in the table, as those of forks, costs no more than its name: where the next tensor begins says how
many bytes it takes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...errors import CheckpointError, brief
from . import recognise
from .headers import MOST_WEIGHTS, Fetch, Stored, shown

MAGIC = b"GGUF"
VERSIONS = (1, 2, 3)
DEEPEST = 8  # arrays in arrays
UNKNOWN = "type "  # a tensor's type that is not in the table is called by its number
STEP = 1 << 20  # how much more is fetched when the header goes on
MOST = 96 << 20  # bytes of a header
MOST_SPENT = 96 << 20  # bytes of objects that are made of it, by these estimates:
OF_A_NUMBER, OF_A_TEXT, OF_A_PAIR, OF_A_TENSOR = 40, 16, 250, 500
LONGEST_NAME = 65535  # bytes of a key or a tensor's name
LONG = 1 << 20  # bytes of a text that nobody reads, as a whole tokenizer.json
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


@dataclass(frozen=True, repr=False)
class Texts:
    """An array of strings as it lies in the file: a plan does not look into vocabularies, so nothing is decoded before
    somebody asks. `width`: the bytes of a length."""

    data: bytes
    count: int
    width: int

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        return f"an array of {self.count} texts"

    def __iter__(self) -> Iterator[str]:
        """The strings in order; bytes that are no UTF-8 become U+FFFD."""
        data, at, width = self.data, 0, self.width
        length_at = struct.Struct("<I" if width == 4 else "<Q").unpack_from
        for _ in range(self.count):
            begin = at + width
            at = begin + length_at(data, at)[0]
            yield data[begin:at].decode("utf-8", "replace")


@dataclass(frozen=True)
class Header:
    """Metadata by key (arrays of strings and very long strings as `Texts`, arrays of arrays as their length alone),
    tensors in file order, bytes of the header. data: where the first tensor begins."""

    metadata: dict[str, Any]
    tensors: tuple[Stored, ...]
    nbytes: int
    data: int = 0


class _Cursor:
    """Reads forward, fetching more as the header goes on. `count`: the format of a length, shorter in version 1.
    size: bytes of the file, None: not known."""

    def __init__(self, fetch: Fetch, source: str, size: int | None) -> None:
        self.fetch, self.source, self.size = fetch, source, size
        self.data, self.at = bytearray(), 0
        self.count = "Q"
        self.spent = 0

    def spend(self, nbytes: int) -> None:
        """Count what objects take; raises CheckpointError if that is more than any model's header needs."""
        self.spent += nbytes
        if self.spent > MOST_SPENT:
            raise self.damaged("it holds more values than that of any model: get the file from another source")

    def take(self, count: int) -> bytes:
        begin = self.at
        self._reach(begin + count)
        self.at = begin + count
        with memoryview(self.data) as view:
            return bytes(view[begin : self.at])

    def _reach(self, end: int) -> None:
        """Fetch up to a byte; what a damaged length asks for is refused before memory is taken."""
        if len(self.data) >= end:
            return
        if self.size is not None and end > self.size:
            raise self._cut(self.size)
        if end > MOST:
            raise self.damaged(f"it would be over {MOST >> 20} MB")
        while len(self.data) < end:
            more = self.fetch(len(self.data), max(STEP, end - len(self.data)))
            if not more:
                raise self._cut(len(self.data))
            self.data += more

    def _cut(self, at: int) -> CheckpointError:
        return CheckpointError(f"{self.source} ends inside its header, at byte {at}: download it again")

    def damaged(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self.source} has a damaged header: {why}")

    def number(self, format: str) -> Any:
        return struct.unpack("<" + format, self.take(struct.calcsize("<" + format)))[0]

    def name(self, what: str) -> str:
        """A key, or the name of a tensor."""
        length = self.number(self.count)
        if length > LONGEST_NAME:
            raise self.damaged(f"{what} has a name of {length} bytes")
        return self.take(length).decode("utf-8", "replace")

    def _text(self) -> str | Texts:
        begin, length = self.at, self.number(self.count)
        if length > LONG:
            width = self.at - begin
            self.at = begin
            return Texts(self.take(width + length), 1, width)
        self.spend(4 * length)
        return self.take(length).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self._text()
        if kind == ARRAY and depth < DEEPEST:
            return self._array(self.number("I"), self.number(self.count), depth + 1)
        raise self.damaged(f"there is no value of type {kind}")

    def _array(self, kind: int, count: int, depth: int) -> Any:
        if kind in SCALARS:
            begin, size = self.at, struct.calcsize("<" + SCALARS[kind])
            self._reach(begin + count * size)
            self.spend(count * OF_A_NUMBER)
            self.at = begin + count * size
            return list(struct.unpack_from(f"<{count}{SCALARS[kind]}", self.data, begin))
        if kind == STRING:
            return self._texts(count)
        for _ in range(count):  # arrays: read over them
            self.spend(OF_A_PAIR)
            self.value(kind, depth)
        return count

    def _texts(self, count: int) -> Texts:
        """Walks over the lengths of an array of strings: half a million of them in a large vocabulary."""
        length_at = struct.Struct("<" + self.count).unpack_from
        width, at = struct.calcsize("<" + self.count), self.at
        self._reach(at + count * width)
        self.spend(count * OF_A_TEXT)
        for _ in range(count):
            if at + width > len(self.data):
                self._reach(at + width)
            at += width + length_at(self.data, at)[0]
        return Texts(self.take(at - self.at), count, width)


def read(fetch: Fetch, source: str, size: int | None = None) -> Header:
    """The header that `fetch` gives of a file of so many bytes (None: not known); raises CheckpointError if it is none,
    or damaged."""
    cursor = _Cursor(fetch, source, size)
    _check_begin(cursor)
    tensors, pairs = cursor.number(cursor.count), cursor.number(cursor.count)
    metadata: dict[str, Any] = {}
    for _ in range(pairs):
        key = cursor.name("a key")
        if key in metadata:
            raise cursor.damaged(f"it has the key '{shown(key)}' twice: get the file from another source")
        cursor.spend(OF_A_PAIR)
        metadata[key] = cursor.value(cursor.number("I"))
    found = [_tensor(cursor) for _ in range(tensors)]
    refuse_twice(found, source)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= MOST or alignment & (alignment - 1):
        raise cursor.damaged(f"general.alignment is {brief(alignment)}, a power of two is needed")
    data = -(-cursor.at // alignment) * alignment
    end = max(size - data, 0) if size is not None else None
    sized = tuple(_sized(found, end, source))
    _check_layout(sized, alignment, source)
    return Header(metadata, sized, cursor.at, data)


def _check_begin(cursor: _Cursor) -> None:
    """Magic and version, which say how lengths are written."""
    first = cursor.take(4)
    if first != MAGIC:
        what = recognise.explain(bytes(cursor.data[: recognise.FIRST]), cursor.source)
        raise CheckpointError(f"{cursor.source} {what or 'is no GGUF file: it does not begin with GGUF'}")
    version = cursor.number("I")
    if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
        raise CheckpointError(
            f"{cursor.source} is big-endian: get the little-endian file, or convert it with gguf's "
            "gguf_convert_endian.py FILE little"
        )
    if version not in VERSIONS:
        raise CheckpointError(
            f"{cursor.source} is GGUF version {version}; versions {VERSIONS[0]} to {VERSIONS[-1]} can be read: "
            "convert the model again"
        )
    cursor.count = "I" if version == 1 else "Q"


def _check_layout(tensors: Sequence[Stored], alignment: int, source: str) -> None:
    """Tensors begin where the alignment allows, and none lies over another."""
    end, last = 0, ""
    for tensor in sorted(tensors, key=lambda t: (t.start, t.nbytes)):
        if tensor.start % alignment:
            raise CheckpointError(
                f"{source}: tensor '{shown(tensor.name)}' begins at byte {tensor.start}, no multiple of the alignment "
                f"{alignment}: download it again"
            )
        if tensor.start < end:
            raise CheckpointError(
                f"{source}: tensors '{shown(last)}' and '{shown(tensor.name)}' overlap: download it again"
            )
        end, last = tensor.start + tensor.nbytes, tensor.name


def refuse_twice(tensors: Iterable[Stored], source: str) -> None:
    """Raises CheckpointError if two tensors have the same name."""
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise CheckpointError(
                f"{source} has the tensor '{shown(tensor.name)}' twice: get the file from another source"
            )
        seen.add(tensor.name)


def _tensor(cursor: _Cursor) -> Stored:
    """One tensor; 0 bytes where its type is not known."""
    name, rank = cursor.name("a tensor"), cursor.number("I")
    cursor.spend(OF_A_TENSOR)
    if rank > 8:
        raise CheckpointError(f"{cursor.source}: tensor '{shown(name)}' has {rank} dimensions: download the file again")
    shape = tuple(cursor.number(cursor.count) for _ in range(rank))
    if not 1 <= math.prod(shape) <= MOST_WEIGHTS:
        raise CheckpointError(
            f"{cursor.source}: tensor '{shown(name)}' has {list(reversed(shape))} weights, 1 to {MOST_WEIGHTS} can be: "
            "download it again"
        )
    code, start = cursor.number("I"), cursor.number("Q")
    if code not in TYPES:
        return Stored(name, f"{UNKNOWN}{code}", tuple(reversed(shape)), 0, start)
    kind, block, size = TYPES[code]
    elements = math.prod(shape)
    if shape and shape[0] % block:
        raise CheckpointError(
            f"{cursor.source}: rows of '{shown(name)}' have {shape[0]} weights, no multiple of {block}: download it "
            "again"
        )
    return Stored(name, kind, tuple(reversed(shape)), elements // block * size, start)


def _sized(tensors: Sequence[Stored], end: int | None, source: str) -> Iterable[Stored]:
    """The tensors with the bytes of those whose type is not known: up to where the next one begins, or the data end;
    of a last one in a file whose size is not known, as many a weight as others of its type take."""
    starts = sorted({tensor.start for tensor in tensors})
    following = dict(zip(starts, [*starts[1:], end], strict=bool(starts)))
    per_weight: dict[str, float] = {}
    for tensor in tensors:
        stop = following[tensor.start]
        if is_unknown(tensor.dtype) and stop is not None and stop > tensor.start:
            per_weight.setdefault(tensor.dtype, (stop - tensor.start) / max(1, math.prod(tensor.shape)))
    for tensor in tensors:
        if not is_unknown(tensor.dtype):
            yield tensor
            continue
        stop = following[tensor.start]
        if stop is not None and stop > tensor.start:
            yield replace(tensor, nbytes=stop - tensor.start)
        elif tensor.dtype in per_weight:
            yield replace(tensor, nbytes=round(per_weight[tensor.dtype] * math.prod(tensor.shape)))
        else:
            raise CheckpointError(
                f"{source}: '{shown(tensor.name)}' has {tensor.dtype}, which this version does not know, and nothing "
                "says where its bytes end: download the whole file"
            )


def is_unknown(dtype: str) -> bool:
    """Whether a type has no name here: its tensors' shapes count weights all the same."""
    return dtype.startswith(UNKNOWN)
