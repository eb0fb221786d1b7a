"""The Triton kernels behind the op list, for NVIDIA GPUs. Every op's twin is in `reference.py`: shapes and formulas.

Each wrapper checks, allocates its result and launches. None looks at a value, so none waits for the device; shapes
alone decide how many programs run, so all can be captured in a CUDA graph (run once before: the first call compiles).
Tensors are on the GPU, or on the CPU with TRITON_INTERPRET=1, which runs the kernels in numpy for the tests.

Not there yet, and refused by `engine/devices/gpu_gaps.py` before a model is loaded: heads of more than 512 numbers, an
indexer, decays by key, convolutions with a bias or without silu, state spaces, experts without gates, layers of one
part.

Differences from the twin: weights of bf16 and of block formats meet activations rounded to bf16 on tensor cores (not
those of one token in codes of two planes or of 2 bits, nor of one token right behind a norm), with more than 16 tokens
weights rounded to bf16, too; and with a bf16 or a q8_0 cache attention does so, of a q8_0 one as rounded to bf16
(`cases/case.py` knows the error this allows); all else is float32.
"""

from __future__ import annotations

try:
    import triton as _triton  # noqa: F401
except ImportError as missing:
    from ...errors import OptionError

    raise OptionError("the GPU kernels need Triton, which is not installed: pip install 'headrace[gpu]'") from missing

# Packing happens once, while loading; gates are a few numbers a token. Plain torch does both on any device, and what
# few models have: LayerNorms, queries whose temperature goes by their position, indexers, several residual streams.
from ..reference import (
    add_layernorm_,
    choose_blocks,
    choose_entries,
    choose_keys,
    close_streams,
    delta_gates,
    fit_streams,
    fold_entries_,
    gate_streams,
    gated_norm,
    key_gates,
    layernorm,
    mul_,
    place_index_,
    pool_runs,
    quantize,
    repack,
    rotate_pairs_,
    scale_,
    scale_rows_,
    sigmoid_mul_,
    softplus_mul_,
    state_space,
    stream_weights,
    take_streams,
)
from .attention.attention import attention
from .attention.cache_rows import store_rows_
from .attention.qkv import place_qkv_
from .block import attention_block, layers
from .cores.unpack import dequantize, embed
from .experts.experts import experts
from .linear import linear
from .mixers.by_head import linear_by_head
from .mixers.delta_rule import delta_rule
from .mixers.rotate import rotate_
from .mixers.short_conv import short_conv
from .norms import add_rmsnorm_, rmsnorm
from .pointwise import gated_add_, glu
from .router import route
from .sampling import argmax

__all__ = [
    "add_layernorm_", "add_rmsnorm_", "argmax", "attention", "attention_block", "choose_blocks", "choose_entries",
    "choose_keys", "close_streams", "delta_gates", "delta_rule", "dequantize", "embed", "experts", "fit_streams",
    "fold_entries_", "gate_streams", "gated_add_", "gated_norm", "glu", "key_gates", "layernorm", "layers", "linear",
    "linear_by_head", "mul_", "place_index_", "place_qkv_", "pool_runs", "quantize", "repack", "rmsnorm", "rotate_",
    "rotate_pairs_", "route", "scale_", "scale_rows_", "short_conv", "sigmoid_mul_", "softplus_mul_", "state_space",
    "store_rows_", "stream_weights", "take_streams",
]  # fmt: skip
