"""Logits of llama.cpp, for `same_as_llama.py`: runs in a Python that has llama-cpp-python, which may be another one.

    python llama_logits.py MODEL.gguf OUT.npy 5,11,3 24

reads the prompt's ids, says so many tokens, the likeliest each, and writes the logits after every token of both as
float32 [tokens, vocabulary]. Keys and values are float32, on one thread.
"""

from __future__ import annotations

import ctypes
import sys

import llama_cpp as api
import numpy as np
from numpy.typing import NDArray

F32 = 0  # of ggml_type


def main(path: str, out: str, prompt: str, count: str) -> None:
    api.llama_backend_init()
    options = api.llama_model_default_params()
    options.n_gpu_layers = 0
    model = api.llama_model_load_from_file(path.encode(), options)
    if not model:
        sys.exit("llama.cpp cannot load it")
    context = api.llama_context_default_params()
    context.n_ctx = context.n_batch = context.n_ubatch = 256
    context.n_threads = context.n_threads_batch = 1
    context.type_k = context.type_v = F32
    context.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
    opened = api.llama_init_from_model(model, context)
    if not opened:
        sys.exit("llama.cpp cannot make a context for it")
    vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    ids, rows = [int(one) for one in prompt.split(",")], []
    for i in range(len(ids) + int(count)):
        rows.append(after(opened, ids[i], i, vocab))
        if i + 1 == len(ids):
            ids.append(int(rows[-1].argmax()))
    np.save(out, np.stack(rows))


def after(context: ctypes.c_void_p, token: int, at: int, vocab: int) -> NDArray[np.float32]:
    """The logits after one more token, at position `at`."""
    one = (api.llama_token * 1)(token)
    if status := api.llama_decode(context, api.llama_batch_get_one(one, 1)):
        sys.exit(f"llama_decode returned {status} at token {at}")
    return np.ctypeslib.as_array(api.llama_get_logits_ith(context, -1), (vocab,)).copy()


if __name__ == "__main__":
    main(*sys.argv[1:])
