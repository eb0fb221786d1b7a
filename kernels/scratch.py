"""What GPU ops take besides their tensors, for who plans memory: to be read where Triton is not installed."""

from __future__ import annotations

GPU_EXPERT_BYTES = 1 << 29  # of float32 for every pair's output of `experts`; a longer prompt goes through in chunks
