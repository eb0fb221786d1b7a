"""In which layouts the assembler of `kernels/gpu/cores/skinny/values.py` gets its operands; prints JSON.

    python layouts_of_words.py FORMAT ...      [format, type of the first operand, layout] of each

A process of its own, since interpreted and compiled kernels do not mix in one.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import gpu_compile
import torch
import triton
from triton.backends.compiler import GPUTarget

from headrace.kernels import FORMATS, gpu
from headrace.kernels.gpu.kernel import Kernel, watched
from headrace.kernels.packed import Matrix

COLS, TARGET = 1024, 90


def launched(name: str) -> tuple[Kernel, tuple[Any, ...], dict[str, Any]]:
    """What a product of two tokens launches."""
    found = []
    with watched(lambda kernel, args, constants: found.append((kernel, args, constants))):
        gpu.linear(torch.empty(2, COLS, device="meta"), Matrix.empty(FORMATS[name], 256, COLS, "meta"))
    (one,) = found
    return one


def main() -> None:
    rows = []
    for name in sys.argv[1:]:
        kernel, args, kwargs = launched(name)
        source = gpu_compile.source_of(kernel, args, kwargs)
        options = {key: value for key, value in kwargs.items() if key in gpu_compile.OPTIONS}
        text = triton.compile(source, target=GPUTarget("cuda", TARGET, 32), options=options).asm["ttgir"]
        layouts = dict(re.findall(r"^(#\w+) = (.*)$", text, re.MULTILINE))
        for line in text.splitlines():
            if "packed_element = 4" in line:
                given = line.rsplit(" : ", 1)[1]
                (of,) = set(re.findall(r"(#ttg\.dot_op<\{[^}]*\}>|#\w+)>", given.split(" -> ")[0]))
                rows.append([name, given.split(",")[0], layouts.get(of, of)])
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
