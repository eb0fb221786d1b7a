"""kt-kernel (the CPU kernels of KTransformers) as a side of a comparison: layers of experts in its int4 or int8.

Constructed as its own Python wrapper does it, without the GPU that the wrapper asks for (it pins memory): `MOEConfig`
with bfloat16 weights, quantised by kt-kernel while loading. Its formats keep one scale for a whole row of weights
where ours keep one for 32, so that its int4 has 4.0 bits a weight and our q4_0 4.5. Inputs and outputs are bfloat16, as
it takes them. Besides the threads of its pool, one that hands out tasks waits by spinning: on a small machine that
takes a core from the others, and pools of different sizes have to be tried. After a call all spin on for some tens of
milliseconds. Knows nothing of our engine.
"""

from __future__ import annotations

import torch
from kt_kernel import __cpu_variant__, kt_kernel_ext
from torch import Tensor

MAX_TOKENS = 512
CLASSES = {"int4": "AMXInt4_MOE", "int8": "AMXInt8_MOE"}
VARIANT = str(__cpu_variant__)


class KtPool:
    """A thread pool of kt-kernel's on the first NUMA node."""

    def __init__(self, threads: int) -> None:
        config = kt_kernel_ext.WorkerPoolConfig()
        config.subpool_count, config.subpool_numa_map, config.subpool_thread_count = 1, [0], [threads]
        self.infer = kt_kernel_ext.CPUInfer(config)

    def run(self, task: tuple[int, int]) -> None:
        self.infer.submit(task)
        self.infer.sync()


class KtLayer:
    """The experts of one layer, quantised from bfloat16: gate and up [E, width, hidden], down [E, hidden, width]."""

    def __init__(self, pool: KtPool, kind: str, gate: Tensor, up: Tensor, down: Tensor, top_k: int) -> None:
        (experts, width, hidden), self.pool, self.top_k = gate.shape, pool, top_k
        on_gpu = torch.zeros(experts, dtype=torch.bool)
        order = torch.arange(experts, dtype=torch.int64)
        config = kt_kernel_ext.moe.MOEConfig(experts, top_k, hidden, width, on_gpu.data_ptr())
        config.max_len = MAX_TOKENS
        config.pool = pool.infer.backend_
        config.gate_proj, config.up_proj, config.down_proj = (t.data_ptr() for t in (gate, up, down))
        self.keep = on_gpu, order  # read during calls
        self.moe = getattr(kt_kernel_ext.moe, CLASSES[kind])(config)
        pool.run(self.moe.load_weights_task(order.data_ptr()))

    def forward(self, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """x bfloat16, ids int64, weights float32 -> bfloat16 [T, D]."""
        assert (x_TD.dtype, ids_TK.dtype, weights_TK.dtype) == (torch.bfloat16, torch.int64, torch.float32)
        count = torch.tensor([len(x_TD)], dtype=torch.int32)
        out = torch.empty_like(x_TD)
        tensors = (t.data_ptr() for t in (ids_TK, weights_TK, x_TD, out))
        self.pool.run(self.moe.forward_task(count.data_ptr(), self.top_k, *tensors, False))
        return out
