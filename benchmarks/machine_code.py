"""What stands in a compiled kernel: reads cubin files with the tools that Triton's wheel carries.

A loop is a backward jump and what lies between it and its target; an inner loop contains no other. In the inner loops
most of a kernel's time is spent, so what matters is counted there: instructions, and barriers, where all warps of a
program wait for each other.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton

LINE = re.compile(r"^\s+/\*([0-9a-f]+)\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);")
JUMP = re.compile(r"`\((\.L_\w+)\)")
LABEL = re.compile(r"^(\.L_\w+):")


@dataclass(frozen=True)
class Loop:
    """An inner loop: its instructions and how many of them are barriers."""

    instructions: int
    barriers: int


def tool(name: str) -> Path:
    """A program of Triton's wheel."""
    return next(Path(triton.__file__).parent.glob(f"backends/nvidia/bin/{name}"))


def _run(name: str, option: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool(name), option, file.name], capture_output=True, text=True, check=True).stdout


def inner_loops(cubin: bytes) -> list[Loop]:
    """The inner loops of a kernel, in the order of the code."""
    return loops_of(_run("nvdisasm", "-c", cubin))


def loops_of(text: str) -> list[Loop]:
    """The inner loops of disassembled code; a jump to itself, which ends every kernel, is none."""
    names: list[str] = []
    labels: dict[str, int] = {}
    jumps: list[tuple[int, str]] = []
    for line in text.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(names)
        elif code := LINE.match(line):
            if code[2].startswith("BRA") and (target := JUMP.search(code[3])):
                jumps.append((len(names), target[1]))
            names.append(code[2])
    spans = sorted({(labels[to], at) for at, to in jumps if labels.get(to, at) < at})
    inner = [a for a in spans if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    return [Loop(last - first + 1, _barriers(names[first : last + 1])) for first, last in inner]


def _barriers(names: list[str]) -> int:
    return sum(name.startswith("BAR.") for name in names)


def usage(cubin: bytes) -> dict[str, int]:
    """Registers of a thread, and bytes of stack and of local memory: what did not fit into registers."""
    text = _run("cuobjdump", "-res-usage", cubin)
    return {name.lower(): int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
