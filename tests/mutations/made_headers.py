"""Headers of GGUF and safetensors files in pieces that are known by what they mean, and the ways to spoil them.

A spoiled file is made by a list of `Edit`s: which piece, what is done to it, and with what. All three are numbers that
are taken modulo what there is, so that any list of edits is a file, and a shorter list a simpler one.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, NamedTuple

from tiny_gguf import SIZES, metadata_of, tensors_of

WIDTHS = {1: "<B", 2: "<H", 4: "<I", 8: "<Q"}
NUMBERS = (
    0, 1, 2, 3, 7, 8, 9, 12, 13, 31, 32, 33, 64, 100, 255, 256, 1000, 2**15, 2**16 - 1, 2**16, 2**20, 2**24, 2**31 - 1,
    2**31, 2**32 - 1, 2**32, 2**40, 2**48, 2**62, 2**63 - 1, 2**63, 2**64 - 1,
)  # fmt: skip
TEXTS = (
    b"", b"\0", b"\xff\xfe", b"a\nb\x1b[31m", b"a" * 300, b"blk.99999999999.ffn_up_exps.weight", b"\xf0\x9f\x98\x80",
    b"blk." + b"1" * 5000 + b".attn_q.weight", b"blk.0.ffn_down_exps.weight", b"general.architecture", b"output.weight",
    b"general.alignment", b"qwen3moe.block_count", b"tokenizer.ggml.tokens", b"split.count", b"grok",
    b"token_embd.weight",
    b"{% for i in range(9) %}{{ i.x.y }}{% endfor %}", b"{{ raise_exception('no') }}", b"." * 200, b"gpt2", b"llama",
)  # fmt: skip


class Edit(NamedTuple):
    """piece: which; way: what is done to it; value: with what."""

    piece: int
    way: int
    value: int


class Piece(NamedTuple):
    """Bytes that are one number, one text, or content (data, padding, one long array)."""

    kind: str
    data: bytes


def number(value: int, width: int) -> Piece:
    return Piece("number", struct.pack(WIDTHS[width], value % 2 ** (8 * width)))


class GgufPieces:
    """A small Qwen3-MoE with a tokenizer as pieces of a GGUF file."""

    def __init__(self, version: int = 3, more: Sequence[tuple[str, Any]] = (), kind: str = "gpt2") -> None:
        self.width = 4 if version == 1 else 8
        tokenizer = {**dict(TOKENIZER), "tokenizer.ggml.model": kind, **OF_KINDS.get(kind, {})}
        pairs = [*metadata_of(SIZES).items(), *tokenizer.items(), *more]
        tensors = [(name, shape, 4 * _product(shape)) for name, shape in tensors_of(SIZES).items()]
        self.pieces = [Piece("text", b"GGUF"), number(version, 4), number(len(tensors), self.width)]
        self.pieces += [number(len(pairs), self.width)]
        for key, value in pairs:
            self._text(key.encode())
            self._value(value)
        at = 0
        for name, shape, size in tensors:
            self._text(name.encode())
            self.pieces.append(number(len(shape), 4))
            self.pieces += [number(n, self.width) for n in reversed(shape)]
            self.pieces += [number(0, 4), number(at, 8)]
            at += -(-size // 32) * 32
        length = sum(len(piece.data) for piece in self.pieces)
        self.pieces.append(Piece("content", bytes(-length % 32)))
        self.pieces.append(Piece("content", bytes(at)))

    def _text(self, text: bytes) -> None:
        self.pieces += [number(len(text), self.width), Piece("text", text)]

    def _value(self, value: Any) -> None:
        if isinstance(value, list):
            self.pieces.append(number(9, 4))
            self._array(value)
        elif isinstance(value, str):
            self.pieces.append(number(8, 4))
            self._text(value.encode())
        elif isinstance(value, float):
            self.pieces += [number(6, 4), Piece("number", struct.pack("<f", value))]
        else:
            self.pieces += (
                [number(7, 4), number(value, 1)] if isinstance(value, bool) else [number(4, 4), number(value, 4)]
            )

    def _array(self, values: list[Any]) -> None:
        kind = {list: 9, str: 8, float: 6, int: 5}[type(values[0])]
        self.pieces += [number(kind, 4), number(len(values), self.width)]
        if kind in (5, 6):
            self.pieces.append(Piece("content", struct.pack(f"<{len(values)}{'i' if kind == 5 else 'f'}", *values)))
        for value in values:
            if kind == 9:
                self._array(value)
            elif kind == 8:
                self._text(value.encode())


TOKENS = ["<unk>", "<s>", "</s>", *(chr(97 + i) for i in range(26)), "ab", "cd", "abcd", "<|im_end|>"]
TOKENIZER: tuple[tuple[str, Any], ...] = (
    ("general.alignment", 32),
    ("tokenizer.ggml.model", "gpt2"),
    ("tokenizer.ggml.pre", "qwen2"),
    ("tokenizer.ggml.tokens", TOKENS),
    ("tokenizer.ggml.token_type", [2, 3, 3, *[1] * 29, 3]),
    ("tokenizer.ggml.scores", [0.5] * len(TOKENS)),
    ("tokenizer.ggml.merges", ["a b", "c d", "ab cd"]),
    ("tokenizer.ggml.eos_token_id", 2),
    ("tokenizer.ggml.add_bos_token", False),
    ("tokenizer.chat_template", "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"),
    ("of.arrays", [[1, 2], [3]]),
    ("qwen3moe.rope.freq_base", 1e6),
)
OF_KINDS: dict[str, dict[str, Any]] = {
    "t5": {"tokenizer.ggml.unknown_token_id": 0, "tokenizer.ggml.precompiled_charsmap": [0, 0, 0, 0, 0, 0, 0, 0]},
    "llama": {"tokenizer.ggml.add_space_prefix": True},
}


def _product(shape: Sequence[int]) -> int:
    found = 1
    for n in shape:
        found *= n
    return found


def spoiled_gguf(file: GgufPieces, edits: Sequence[Edit]) -> bytes:
    """The file after all edits."""
    pieces = list(file.pieces)
    for edit in edits:
        at = edit.piece % len(pieces)
        pieces[at : at + 1] = _spoiled(pieces, at, edit)
    data = b"".join(piece.data for piece in pieces)
    last = edits[-1] if edits else Edit(0, 0, 0)
    return data[: last.value % (len(data) + 1)] if last.way % 11 == 10 else data


def _spoiled(pieces: Sequence[Piece], at: int, edit: Edit) -> list[Piece]:
    """What stands in the place of a piece."""
    piece, way = pieces[at], edit.way % 11
    other = pieces[edit.value % len(pieces)]
    if way in (0, 1, 2) and len(piece.data) in WIDTHS and piece.kind == "number":
        old = int.from_bytes(piece.data, "little")
        near = (old + 1, old - 1, 2 * old, old // 2)
        values = (*NUMBERS, *near)
        return [number(values[edit.value % len(values)], len(piece.data))]
    if way in (0, 1) and piece.kind == "text":  # its length stays right
        text = TEXTS[edit.value % len(TEXTS)]
        return [Piece("text", text)] if edit.value % 3 else [piece._replace(data=piece.data + text)]
    if way in (2, 3):
        return [piece._replace(data=bytes((edit.value >> (8 * i)) % 256 for i in range(len(piece.data[:8]))))]
    if way == 4:
        return []
    if way == 5:
        return [piece, piece]
    if way == 6:
        return [other]
    if way == 7:  # arrays of arrays of arrays
        return [piece, *[number(9, 4), number(1 + edit.value % 3, 8)] * (edit.value % 40)]
    if way == 8 and piece.data:
        spoiled = bytearray(piece.data)
        spoiled[edit.value % len(spoiled)] ^= 1 << (edit.value // 7 % 8)
        return [piece._replace(data=bytes(spoiled))]
    return [piece._replace(data=piece.data[: edit.value % (len(piece.data) + 1)])] if way == 9 else [piece]


# safetensors

VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 7, 1.5, 1e308, float("inf"), float("nan"), 2**31, 2**53, 2**63, 10**400, "", "x",
    "F32", "F3", "I4", "BF16", "\ud800", [], {}, [None], [[]], [0], [0, 0], [8, 0], [-8, 0], [0, 2**62], [0, 10**30],
    [1] * 40, [2**62] * 12, ["1", "2"], [True, 4], [0.0, 8.0], {"dtype": "F32"}, [0, 4, 8],
    {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}, "\n\x1b[31m" + "y" * 400,
)  # fmt: skip
FIELDS = ("dtype", "shape", "data_offsets")
RAW = (
    b"[" * 5000,
    b'{"a":' * 5000,
    b"\xff\xfe",
    b"1" * 5000,
    b"NaN",
    b'"\\ud800"',
    b"{}",
    b"[]",
    b'"',
    b"\0",
    b"",
    b"1e999",
)


def spoiled_safetensors(header: dict[str, Any], edits: Sequence[Edit], data: int) -> bytes:
    """A file of a header after all edits, with so many bytes of data behind it."""
    changed: dict[str, Any] = {name: dict(entry) for name, entry in header.items()}
    raw = [edit for edit in edits if edit.way % 12 >= 7]
    for edit in edits:
        if edit.way % 12 < 7:
            _spoil(changed, edit)
    text = json.dumps(changed).encode()
    for edit in raw:
        text = _spoiled_text(text, edit)
    length = len(text)
    for edit in raw:
        if edit.way % 12 == 11:
            length = (*NUMBERS, length - 1, length + 1, 2 * length)[edit.value % (len(NUMBERS) + 3)]
    blob = struct.pack("<Q", length % 2**64) + text + bytes(data)
    cut = next((edit.value for edit in raw if edit.way % 12 == 10), None)
    return blob if cut is None else blob[: cut % (len(blob) + 1)]


def _spoil(header: dict[str, Any], edit: Edit) -> None:
    """One change of an object."""
    names = list(header)
    name = names[edit.piece % len(names)] if names else "a"
    value, entry, way = deepcopy(VALUES[edit.value % len(VALUES)]), header.get(name), edit.way % 12
    other = header.get(names[edit.value % len(names)]) if names else None
    if way in (0, 1, 2) and isinstance(entry, dict):
        entry[FIELDS[way]] = value
    elif way == 3:
        header[name] = value
    elif way == 4:
        header.pop(name, None)
    elif way == 5 and isinstance(entry, dict) and isinstance(other, dict):
        entry.update({key: other[key] for key in FIELDS[edit.piece % 3 :] if key in other})
    elif way == 6:
        header[TEXTS[edit.value % len(TEXTS)].decode("utf-8", "replace")] = header.pop(name, value)


def _spoiled_text(text: bytes, edit: Edit) -> bytes:
    """One change of the JSON as it lies in the file."""
    at, way = edit.piece % (len(text) + 1), edit.way % 12
    if way == 7:
        return text[:at] + RAW[edit.value % len(RAW)] + text[at:]
    if way == 8:
        return text[:at] + bytes([edit.value % 256]) + text[at + 1 :]
    if way == 9:  # something twice
        return text[:at] + text[max(0, at - edit.value % 200) :]
    return text
