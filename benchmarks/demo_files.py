"""The demo model as GGUF files, for `vs_llama_files.py`: in plain floats by the gguf package, in every other type by
llama.cpp's own quantiser, and each of those once more in plain floats, of the values that its blocks hold.

The demo's experts are 64 wide, so their ffn_down has rows of 64. Types with blocks of 256 do not fit these; llama.cpp
then takes a type of smaller blocks (Q8_0 for Q6_K, Q5_1 for Q5_K, Q5_0 for Q4_K, Q4_0 for Q3_K, IQ4_NL for IQ types).
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from pathlib import Path

from peer_llama import Llama

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "gguf"))  # what writes checkpoints as GGUF

import gguf
import gguf_files
from gguf.quants import dequantize

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo" / "model"
KINDS = (
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_0", "Q5_1", "Q4_K_M", "Q4_0", "Q4_1", "IQ4_XS", "IQ4_NL",
    "MXFP4_MOE", "Q3_K_M", "Q2_K", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S",
)  # fmt: skip
NEED_IMPORTANCE = ("IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S")


def write_plain(path: Path) -> None:
    """The demo in float32, with its tokenizer and chat template."""
    path.parent.mkdir(parents=True, exist_ok=True)
    config, tensors = gguf_files.read(DEMO)
    gguf_files.write(path, config, tensors, tokenizer=DEMO)


def write(llama: Llama, plain: Path, kind: str, path: Path) -> None:
    """The demo in one of KINDS, from the file in float32."""
    if kind == "F32":
        path.write_bytes(plain.read_bytes())
        return
    even = _columns(plain) if kind in NEED_IMPORTANCE else None
    llama.call("quantise", source=str(plain), to=str(path), kind=kind, even=even)


def write_twin(path: Path, twin: Path) -> None:
    """A file's values in float32: what its blocks hold, as the gguf package reads them."""
    config, _ = gguf_files.read(DEMO)
    tensors = {
        tensor.name: dequantize(tensor.data, tensor.tensor_type).reshape(_shape(tensor))
        for tensor in gguf.GGUFReader(path).tensors
    }
    gguf_files.write(twin, config, tensors, tokenizer=DEMO)


def types(path: Path) -> dict[str, int]:
    """How many matrices of a file have each type."""
    matrices = [t for t in gguf.GGUFReader(path).tensors if len(t.shape) > 1 and "gate_inp" not in t.name]
    return dict(Counter(str(t.tensor_type.name) for t in matrices).most_common())


def _shape(tensor: gguf.ReaderTensor) -> tuple[int, ...]:
    return tuple(int(n) for n in reversed(tensor.shape))


def _columns(path: Path) -> dict[str, int]:
    """Columns of every matrix, of one with experts those of all."""
    found = {tensor.name: _shape(tensor) for tensor in gguf.GGUFReader(path).tensors}
    return {name: shape[-1] * math.prod(shape[:-2]) for name, shape in found.items() if len(shape) > 1}
