"""The file of a trace: a header, then blocks. `docs/traces.md` says the same for other programs.

    "HRTRACE1"   uint32 length   header, JSON
    blocks       4 letters   uint32: tokens, passes, bytes that follow, their CRC-32   these bytes
                 "TOKS"   tokens and their choices, compressed by zlib
                 "LOST"   tokens that were not kept, nothing follows
                 "DONE"   the end: all tokens and passes of the file

All numbers are little endian. A choice is 2 bytes: the expert in the low bits, which also hold "none" (the number of
experts), the weight in the others, as a share of the largest that the model has.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MAGIC = b"HRTRACE1"
LENGTH = struct.Struct("<I")
BLOCK = struct.Struct("<4s4I")
TOKENS, LOST, DONE = b"TOKS", b"LOST", b"DONE"
MOST_HEADER = 1 << 24  # bytes; a longer one is none of ours
LEVEL = 1  # of zlib: a third of the size for a few ms a megabyte
MOST_INFLATED = 1032  # bytes that zlib makes of one, at most: 258 of two bits


@dataclass(frozen=True, kw_only=True)
class Header:
    """What was recorded: of which model, in which shape. layers: the numbers of those with experts, expert_bytes: the
    bytes of one expert of each; most_weight: the largest weight that a choice can have; digest: of the model
    (`recorder.py`)."""

    model: str
    family: str
    digest: str
    formats: dict[str, str]
    layers: list[int]
    expert_bytes: list[int]
    experts: int
    top_k: int
    most_weight: float
    version: str

    @property
    def id_bits(self) -> int:
        """Bits of an expert's number, and of `none`."""
        return self.experts.bit_length()

    @property
    def none(self) -> int:
        """The expert of a token that did not go through a layer."""
        return self.experts

    @property
    def steps(self) -> int:
        """What a weight of `most_weight` is as a whole number."""
        return (1 << (16 - self.id_bits)) - 1

    def as_bytes(self) -> bytes:
        """The beginning of the file."""
        text = json.dumps({**asdict(self), "id_bits": self.id_bits}).encode()
        return MAGIC + LENGTH.pack(len(text)) + text


def pack_choices(header: Header, ids: NDArray[np.int32], weights: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Two bytes a choice."""
    shares = np.nan_to_num(weights / header.most_weight, nan=0.0)  # a broken model has no weights
    scaled = np.rint(np.clip(shares, 0.0, 1.0) * header.steps).astype(np.uint16)
    packed: NDArray[np.uint16] = (scaled << header.id_bits) | ids.astype(np.uint16)
    return packed


class Columns(NamedTuple):
    """Tokens in the order in which they ran: the pass that each was part of, its sequence, its place there, whether it
    was generated (uint8); and choices, uint16 [layers with experts, tokens, top_k]."""

    passes: NDArray[np.uint32]
    sequences: NDArray[np.uint32]
    positions: NDArray[np.uint32]
    generated: NDArray[np.uint8]
    choices: NDArray[np.uint16]


def block(columns: list[Columns], passes: int) -> bytes:
    """Tokens of so many passes as one block."""
    flat = [np.concatenate(column) for column in zip(*(one[:4] for one in columns), strict=True)]
    choices = np.concatenate([one.choices for one in columns], axis=1)
    payload = b"".join(np.ascontiguousarray(one).tobytes() for one in (*flat, choices))
    packed = zlib.compress(payload, LEVEL)
    return BLOCK.pack(TOKENS, len(flat[0]), passes, len(packed), zlib.crc32(packed)) + packed


def unpacked_bytes(header: Header, tokens: int) -> int:
    """Bytes of so many tokens, decompressed."""
    return tokens * (13 + 2 * len(header.layers) * header.top_k)


def unpack(header: Header, tokens: int, packed: bytes) -> Columns:
    """The tokens of a block whose CRC is right. Raises ValueError where they are not what the header says."""
    size = len(header.layers) * tokens * header.top_k
    payload = _inflate(packed, unpacked_bytes(header, tokens))
    passes, sequences, positions = np.frombuffer(payload, "<u4", 3 * tokens).reshape(3, tokens)
    generated = np.frombuffer(payload, "u1", tokens, 12 * tokens)
    choices = np.frombuffer(payload, "<u2", size, 13 * tokens).reshape(len(header.layers), tokens, header.top_k)
    return Columns(passes, sequences, positions, generated, choices)


def _inflate(packed: bytes, size: int) -> bytes:
    """Exactly so many bytes; never more memory than that, whatever a file says."""
    machine = zlib.decompressobj()
    try:
        payload = machine.decompress(packed, size + 1) if size <= len(packed) * MOST_INFLATED else b""
    except zlib.error as error:
        raise ValueError(f"it cannot be decompressed ({error})") from error
    if len(payload) != size:
        raise ValueError(f"it holds {'more' if len(payload) > size else 'fewer'} than {size} bytes")
    return payload
