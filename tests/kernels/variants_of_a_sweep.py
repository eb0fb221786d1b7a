"""Which variants of kernels a model asks for over batches, contexts and prompts of many sizes, by Triton's own count.

    python variants_of_a_sweep.py                shapes of Qwen3-30B-A3B: how many are compiled
    python variants_of_a_sweep.py CHECKPOINT     a loaded model: which of them loading did not compile

A process of its own with a driver that does nothing; nothing is compiled, only asked for. Prints JSON.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import stub_cuda
import torch
import triton

from headrace.kernels import FORMATS, gpu
from headrace.kernels.decoder_layer import AttentionBlock, Block, Pages, Places, Router
from headrace.kernels.formats import ExpertLayout
from headrace.kernels.packed import ExpertBank, Matrix, Stacked

D, WIDTH, EXPERTS, TOP_K, HEADS, GROUPS, HEAD, VOCABULARY = 2048, 768, 128, 8, 32, 4, 128, 151936
PAGES = (1, 3, 8, 9, 16, 17, 33, 65, 128, 200, 512, 1024)
PROMPTS = (2, 3, 7, 16, 17, 31, 64, 65, 100, 128, 200, 257, 511, 512)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def places(tokens: int, sequences: int, pages: int) -> Places:
    slots_T, tables_SM = meta(tokens, dtype=torch.int64), meta(sequences, pages, dtype=torch.int32)
    return Places(
        positions_T=meta(tokens, dtype=torch.int32), slots_T=slots_T, tables_SM=tables_SM,
        starts_S1=meta(sequences + 1, dtype=torch.int32), contexts_S=meta(sequences, dtype=torch.int32),
        states_S=meta(sequences, dtype=torch.int32), windows=(Pages(slots_T, tables_SM),),
    )  # fmt: skip


def passes(most_tokens: int, most_sequences: int, most_pages: int) -> Iterator[tuple[int, int, int]]:
    """Tokens, sequences, pages of the longest."""
    for sequences in (n for n in (1, 2, 3, 4, 5, 8, 9, 15, 16) if n <= most_sequences):
        for pages in PAGES:
            if pages <= most_pages:
                yield sequences, sequences, pages
    for tokens in PROMPTS:
        for sequences in (1, 2, 5, 8, 11):
            if tokens <= most_tokens and sequences <= min(most_sequences, tokens - 1):
                yield from ((tokens, sequences, pages) for pages in (1, 16, 513) if pages <= most_pages)


def run(block: Block, bank: ExpertBank, head: Matrix, one: tuple[int, int, int]) -> None:
    """A pass through a layer, the last one too, and the head."""
    tokens, sequences, _ = one
    hidden, top_k = len(block.pre_norm), 1 if block.router is None else block.router.top_k
    x, where = meta(tokens, hidden), places(*one)
    for update in (None, x):
        gpu.attention_block(x, update, block, where)
    rows = None if sequences == tokens else meta(sequences, dtype=torch.int64)
    _, h, choice = gpu.attention_block(x, x, block, where, rows)
    for count in {tokens, len(h)}:
        gpu.experts(meta(count, hidden), meta(count, top_k, dtype=torch.int32), meta(count, top_k), bank)
    assert choice is not None
    gpu.argmax(gpu.linear(h, head))


def qwen3() -> tuple[AttentionBlock, ExpertBank, Matrix]:
    form, k = FORMATS["q4_0"], meta(64, GROUPS, 32, HEAD, dtype=torch.bfloat16)
    router = Matrix.empty(FORMATS["f32"], EXPERTS, D, "meta")
    block = AttentionBlock(
        heads=HEADS, pre_norm=meta(D), qkv_bias=None,
        qkv=Stacked((Matrix.empty(form, (HEADS + 2 * GROUPS) * HEAD, D, "meta"),)),
        q_norm=meta(HEAD), k_norm=meta(HEAD), o=Matrix.empty(form, D, HEADS * HEAD, "meta"), o_bias=None,
        post_norm=meta(D), k_PGBd=k, v_PGBd=k.clone(), cos_Pr=meta(4096, HEAD // 2), sin_Pr=meta(4096, HEAD // 2),
        eps=1e-6, clip=None, scale=0.1, residual_scale=1.0,
        router=Router(matrix=router, top_k=TOP_K, scoring="softmax", renormalise=True),
    )  # fmt: skip
    bank = ExpertBank.empty(ExpertLayout(format=form, hidden=D, width=WIDTH), EXPERTS, "meta")
    return block, bank, Matrix.empty(form, VOCABULARY, D, "meta")


def counted() -> Counter[str]:
    """Variants of each kernel that Triton would compile."""
    keys: dict[str, str] = {}

    def refuse(**asked: Any) -> bool:
        keys[f"{asked['fn'].name} {asked['key']}"] = asked["fn"].name.rpartition(".")[2]
        return True

    triton.knobs.runtime.jit_cache_hook = refuse
    model = qwen3()
    for one in passes(512, 16, 1024):
        run(*model, one)
    return Counter(keys.values())


def left_out(checkpoint: str) -> dict[str, Any]:
    """Of a loaded model: kernels that passes ask for and loading does not, and how many it does."""
    from headrace import LLM
    from headrace.engine.core import compile_ahead
    from headrace.engine.experts.tiered import TieredExperts
    from headrace.kernels.gpu import ahead

    llm = LLM(checkpoint, device="simulated", placement="gpu", prefill_chunk=512, max_sequences=16, max_context=256)
    decoder, tiered = llm.parts.decoder, llm.parts.decoder.experts
    assert isinstance(tiered, TieredExperts)
    tiered.main = replace(tiered.main, ops=gpu)  # type: ignore[arg-type]
    sizes = compile_ahead.Sizes(tokens=512, sequences=16, pages=8)
    loaded = ahead.wanted(compile_ahead.calls(decoder, tiered, tiered.main, sizes))
    head = compile_ahead.on_meta(decoder.weights.head)
    layers = [
        (compile_ahead.on_meta(layer.block), compile_ahead.on_meta(next(iter(split.banks.values()))))
        for layer, split in zip(decoder.stack.layers, tiered.banks, strict=True)
        if split is not None
    ]
    asked = ahead.wanted(partial(run, *layer, head, one) for one in passes(512, 16, 8) for layer in layers)
    have = {(kernel, kernel.key(0, args, constants)) for kernel, args, constants in loaded}
    missing = [k.__name__ for k, args, constants in asked if (k, k.key(0, args, constants)) not in have]
    return {"loaded": len(loaded), "asked": len(asked), "missing": missing}


if __name__ == "__main__":
    stub_cuda.use()
    with torch.inference_mode():
        found = left_out(sys.argv[1]) if len(sys.argv) > 1 else counted()
    print(json.dumps(found))
