"""The assembler that makes bf16 of codes, executed here instruction by instruction: no GPU and no interpreter does."""

from __future__ import annotations

import re
import struct

import pytest
import torch

pytest.importorskip("triton", reason="the GPU kernels need Triton", exc_type=ImportError)
from headrace.kernels import FORMATS, Format
from headrace.kernels.gpu.cores.constants import CONSTANTS
from headrace.kernels.gpu.cores.skinny.values import ASSEMBLER

ALL = 0xFFFFFFFF
BLOCKS = [form for form in FORMATS.values() if form.is_block]


def permuted(a: int, b: int, picked: int) -> int:
    """prmt: bytes of eight, by four numbers; with 8 in one the sign of the byte instead."""
    both, found = (b << 32 | a).to_bytes(8, "little"), []
    for n in range(4):
        pick = picked >> 4 * n & 15
        byte = both[pick & 7]
        found.append((255 if byte > 127 else 0) if pick & 8 else byte)
    return int.from_bytes(bytes(found), "little")


def number(bits: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", bits << 16))[0])


def multiplied(a: int, b: int, c: int) -> int:
    """fma.rn.bf16x2, whose results are exact here: what does not fit into bf16 would not come back as it was."""
    found = 0
    for at in (0, 16):
        x = torch.tensor([number(word >> at & 0xFFFF) for word in (a, b, c)], dtype=torch.float64)
        y = x[0] * x[1] + x[2]
        rounded = y.float().bfloat16()
        assert torch.equal(rounded.double(), y) or y.isnan(), f"{x} gives {y}"
        found |= (int(rounded.view(torch.int16)) & 0xFFFF) << at
    return found


def run(text: str, given: dict[str, int]) -> dict[str, int]:
    """All registers at the end."""
    known = dict(given)

    def value(word: str) -> int:
        return int(word, 0) if word[0].isdigit() else known[word]

    for line in re.findall(r"([^;{}]+);", text):
        op, rest = line.split(None, 1)
        if op == ".reg":
            continue
        to, *words = (word.strip() for word in rest.split(","))
        a, *more = (value(word) for word in words)
        match op.split(".")[0]:
            case "mov":
                out = a
            case "and":
                out = a & more[0]
            case "or":
                out = a | more[0]
            case "add":
                out = a + more[0] & ALL
            case "shr":
                out = a >> more[0]
            case "shl":
                out = a << more[0] & ALL
            case "lop3":
                assert more[2] == 0xEA
                out = a & more[0] | more[1]
            case "prmt":
                out = permuted(a, *more)
            case "fma":
                out = multiplied(a, *more)
            case _:
                raise AssertionError(op)
        known[to] = out
    return known


def expected(form: Format, code: int, with_minimum: bool) -> float:
    if form.codes.table:
        return form.codes.table[code]
    if form.codes.bits == 8:
        return float(code - 256 if code > 127 else code)
    return float(code - form.codes.offset + (128 if with_minimum else 0))


def operands(low: int, high: int, words: tuple[int, int], moves: tuple[int, int], first: int) -> dict[str, int]:
    """Registers by number, as `values.operands` counts them."""
    listed = [words[0], *([moves[0]] * 4 if low < 4 else [])]
    if high:
        listed += [words[1]] * (4 if high == 1 else 1) + [moves[1]] * 4
    return {f"${first + n}": value for n, value in enumerate([*listed, 0, 0, 0, 0])}


@pytest.mark.parametrize("form", BLOCKS, ids=lambda form: form.name)
def test_values_are_exact(form: Format) -> None:
    """Of every code, in every place of a word, where neighbours are anything."""
    said = dict(dict(CONSTANTS.value)[form.name])
    low, high, text = said["low"], said["high"], dict(ASSEMBLER.value)[form.name]
    first = 2 if low == 8 else 6 if said["minimums"] else 4
    g, seen = torch.Generator().manual_seed(1), set()
    for turn in range(150):
        words = tuple(int(n) for n in torch.randint(1 << 32, (2,), generator=g))
        j = 4 * (turn % 4)  # of the 16 weights whose bytes a kernel holds
        moves = tuple(bits * (j // (4 * bits)) if bits else 0 for bits in (low, high))
        known = run(text, operands(low, high, (words[0], words[1]), (moves[0], moves[1]), first))
        for half in range(1 if low == 8 else 2):
            for n in range(4):
                code = words[0] >> 8 * n >> (moves[0] + 4 * half) & (1 << low) - 1
                if high:
                    code |= (words[1] >> 8 * n >> (moves[1] + 4 * half) & (1 << high) - 1) << low
                got = number(known[f"${2 * half + n // 2}"] >> 16 * (n % 2) & 0xFFFF)
                want = expected(form, code, said["minimums"])
                assert got == want or (got != got and want != want), f"code {code}: {got}, not {want}"
                seen.add(code)
        if said["minimums"]:
            assert known["$4"] == known["$5"] == 0x3F803F80
    assert len(seen) > 0.9 * 2 ** min(form.codes.bits, 8)
