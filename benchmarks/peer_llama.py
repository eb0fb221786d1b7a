"""llama.cpp as a side of a comparison: a GGUF model that decodes and prefills token ids, timed from outside.

Through the low-level API of llama-cpp-python. As many threads as we have, logits of the last token only, one greedy
choice a token as ours makes it; flash attention and the repacking of weights are llama.cpp's own choice (the default).
Weights are read into memory, not mapped, as ours are. Its thread pool (OpenMP) spins a few milliseconds after each call
and then sleeps. This file knows nothing of our engine.
"""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Any

import llama_cpp as api
import numpy as np

ERROR_LEVEL = 4  # of GGML_LOG_LEVEL
MAX_CONTEXT = 1024
MAX_BATCH = 512


@api.llama_log_callback  # type: ignore[untyped-decorator,unused-ignore]
def _log(level: int, text: bytes, _: Any) -> None:
    if level == ERROR_LEVEL:
        print(text.decode(errors="replace"), end="", flush=True)


class LlamaModel:
    """A GGUF file in memory with one context of one sequence; `close` gives the memory back."""

    def __init__(self, path: Path, threads: int) -> None:
        api.llama_log_set(_log, ctypes.c_void_p(0))
        api.llama_backend_init()
        options = api.llama_model_default_params()
        options.load_mode = api.LLAMA_LOAD_MODE_NONE
        options.n_gpu_layers = 0
        self.model = api.llama_model_load_from_file(str(path).encode(), options)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path.name}")
        context = api.llama_context_default_params()
        context.n_ctx = MAX_CONTEXT
        context.n_batch = context.n_ubatch = MAX_BATCH
        context.n_threads = context.n_threads_batch = threads
        self.context = api.llama_init_from_model(self.model, context)
        if not self.context:
            raise RuntimeError(f"llama.cpp cannot make a context for {path.name}")
        self.vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))

    def run(self, tokens: list[int]) -> int:
        """Computes tokens behind those before them and returns the likeliest next one."""
        assert len(tokens) <= MAX_BATCH, f"{len(tokens)} tokens"
        ids = (api.llama_token * len(tokens))(*tokens)
        status = api.llama_decode(self.context, api.llama_batch_get_one(ids, len(tokens)))
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        logits = api.llama_get_logits_ith(self.context, -1)  # waits for the result
        return int(np.ctypeslib.as_array(logits, (self.vocab,)).argmax())

    def clear(self) -> None:
        """Forgets every token."""
        api.llama_memory_clear(api.llama_get_memory(self.context), True)

    def token_times(self, prompt: list[int], count: int) -> list[float]:
        """Seconds until the first token (the prefill), then of each of `count` more."""
        self.clear()
        times, token = [], 0
        for i in range(count + 1):
            start = time.perf_counter()
            token = self.run([token] if i else prompt)
            times.append(time.perf_counter() - start)
        return times

    def close(self) -> None:
        api.llama_free(self.context)
        api.llama_model_free(self.model)


def build() -> str:
    """What llama.cpp says it was built with and found."""
    return str(api.llama_print_system_info().decode().strip())
