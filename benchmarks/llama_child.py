"""The process that has llama.cpp: reads one JSON call a line, answers with one line. Started by `peer_llama.py`.

    PYTHON benchmarks/llama_child.py

PYTHON needs llama-cpp-python and what that brings (numpy). Through its low-level API: weights are read into memory, not
mapped, as ours are; flash attention and the repacking of weights are llama.cpp's own choice unless a call says
otherwise. Its threads (OpenMP) spin a few milliseconds after each call and then sleep; a timed call answers when they
do. This file knows nothing of our engine.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import sys
import time
from typing import Any

import llama_cpp as api
import numpy as np
from numpy.typing import NDArray

ERROR_LEVEL = 4  # of GGML_LOG_LEVEL
MAX_BATCH = 512
STEP_S, LIMIT_S = 0.02, 2.0
TYPES = {"f32": 0, "f16": 1}  # of GGML_TYPE, for the KV cache


@api.llama_log_callback  # type: ignore[untyped-decorator,unused-ignore]
def _log(level: int, text: bytes, _: Any) -> None:
    if level == ERROR_LEVEL:
        print(text.decode(errors="replace"), end="", file=sys.stderr, flush=True)


class Child:
    """The calls, by name. One model with one context of one sequence at a time."""

    model: Any = None
    context: Any = None
    vocab = 0

    def build(self) -> dict[str, Any]:
        """Version of the package, and what llama.cpp says it was built with and found."""
        return {"version": api.__version__, "build": str(api.llama_print_system_info().decode().strip())}

    def quantise(self, source: str, to: str, kind: str, even: dict[str, int] | None = None) -> dict[str, Any]:
        """Writes a file of plain floats anew, as llama-quantize does it: `kind` is a name as "Q4_K_M". even: tensors
        with the number of their columns, of all experts: each column counts as much as any other, for types that are
        refused without an importance matrix."""
        options = api.llama_model_quantize_default_params()
        options.nthread = 1
        options.ftype = getattr(api, f"LLAMA_FTYPE_MOSTLY_{kind}")
        entries = (api.llama_model_imatrix_data * (len(even or {}) + 1))()  # the last one has no name
        for entry, (name, columns) in zip(entries, (even or {}).items(), strict=False):
            ones = (ctypes.c_float * columns)(*[1.0] * columns)
            entry.name, entry.data, entry.size = name.encode(), ctypes.cast(ones, type(entry.data)), columns
        if even:
            options.imatrix = ctypes.cast(entries, type(options.imatrix))
        status = api.llama_model_quantize(source.encode(), to.encode(), ctypes.byref(options))
        if status:
            raise RuntimeError(f"llama_model_quantize to {kind} returned {status}")
        return {}

    def load(
        self,
        path: str,
        threads: int,
        context: int,
        cache: str = "f16",
        flash: bool | None = None,
        repack: bool = True,
        copies: bool = False,
    ) -> dict[str, Any]:
        """A model file; one that is loaded goes. cache: the type of keys and values; flash None: as it likes. copies:
        `fill_with_copies` will be called."""
        self.free()
        options = api.llama_model_default_params()
        options.load_mode = api.LLAMA_LOAD_MODE_NONE
        options.n_gpu_layers = 0
        options.use_extra_bufts = repack
        self.model = api.llama_model_load_from_file(path.encode(), options)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        wanted = api.llama_context_default_params()
        wanted.n_ctx = context
        wanted.n_batch = wanted.n_ubatch = MAX_BATCH
        wanted.n_threads = wanted.n_threads_batch = threads
        wanted.type_k = wanted.type_v = TYPES[cache]
        wanted.n_seq_max, wanted.kv_unified = (2, True) if copies else (1, wanted.kv_unified)
        wanted.flash_attn_type = -1 if flash is None else int(flash)
        self.context = api.llama_init_from_model(self.model, wanted)
        if not self.context:
            raise RuntimeError(f"llama.cpp cannot make a context for {path}")
        self.vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        return {"vocab": self.vocab}

    def free(self) -> dict[str, Any]:
        """Gives the memory back."""
        if self.context:
            api.llama_free(self.context)
        if self.model:
            api.llama_model_free(self.model)
        self.model = self.context = None
        return {}

    def tokens(self, text: str) -> dict[str, Any]:
        """The token ids of a text by the file's own vocabulary, without tokens in front."""
        data = text.encode()
        room = (api.llama_token * (len(data) + 8))()
        vocab = api.llama_model_get_vocab(self.model)
        count = api.llama_tokenize(vocab, data, len(data), room, len(room), False, False)
        if count < 0:
            raise RuntimeError(f"llama_tokenize needs room for {-count} tokens")
        return {"ids": list(room[:count])}

    def times(self, prompt: list[int], count: int) -> dict[str, Any]:
        """Seconds until the first token (the prefill), then of each of `count` more. The likeliest one is looked for,
        and a random one is gone on with."""
        self._clear()
        return self._timed([prompt], count)

    def fill(self, ids: list[int]) -> dict[str, Any]:
        """Computes a long text, in parts; what `go_on` times stands behind it."""
        self._clear()
        for at in range(0, len(ids), MAX_BATCH):
            self._run(ids[at : at + MAX_BATCH], last_only=True)
        _quiet()
        return {}

    def fill_with_copies(self, ids: list[int]) -> dict[str, Any]:
        """Computes the beginning of a text, and fills the cache up to its length with copies of that, which stand at
        the same positions: so many keys are read behind it, and that is all."""
        self._clear()
        self._run(ids[:MAX_BATCH], last_only=True)
        size = api.llama_state_seq_get_size(self.context, 0)
        state, memory = (ctypes.c_uint8 * size)(), api.llama_get_memory(self.context)
        api.llama_state_seq_get_data(self.context, state, size, 0)
        for _ in range(MAX_BATCH, len(ids), MAX_BATCH):
            if not api.llama_state_seq_set_data(self.context, state, size, 1):
                raise RuntimeError(f"llama.cpp has no room for {len(ids)} tokens")
            api.llama_memory_seq_cp(memory, 1, 0, -1, -1)
            api.llama_memory_seq_rm(memory, 1, -1, -1)
        self._run(ids[-1:], last_only=True)
        _quiet()
        return {}

    def go_on(self, count: int) -> dict[str, Any]:
        """Seconds of each of `count` more random tokens behind what there is."""
        return self._timed([], count)

    def _timed(self, first: list[list[int]], count: int) -> dict[str, Any]:
        found, draw = list[float](), random.Random(0)
        for ids in [*first, *([draw.randrange(self.vocab)] for _ in range(count))]:
            start = time.perf_counter()
            self._run(ids, last_only=True).argmax()
            found.append(time.perf_counter() - start)
        _quiet()
        return {"seconds": found}

    def greedy(self, prompt: list[int], count: int, logits: str) -> dict[str, Any]:
        """The likeliest tokens, one after another; what they were chosen from is saved as `logits` (.npy)."""
        self._clear()
        rows, ids = [], list[int]()
        for _ in range(count):
            rows.append(self._run(ids[-1:] or prompt, last_only=True)[0].copy())
            ids.append(int(rows[-1].argmax()))
        np.save(logits, np.stack(rows))
        return {"ids": ids}

    def logits(self, ids: list[int], to: str) -> dict[str, Any]:
        """Logits after every token, saved as .npy."""
        self._clear()
        parts = [ids[at : at + MAX_BATCH] for at in range(0, len(ids), MAX_BATCH)]
        np.save(to, np.concatenate([self._run(part, last_only=False).copy() for part in parts]))
        return {}

    def loss(self, ids: list[int]) -> dict[str, Any]:
        """The sum of negative log likelihoods of all tokens but the first, and how many those are."""
        self._clear()
        scores = self._run(ids, last_only=False).astype(np.float64)[:-1]
        scores -= scores.max(-1, keepdims=True)
        of_next = scores[np.arange(len(scores)), ids[1:]]
        return {"loss": float((np.log(np.exp(scores).sum(-1)) - of_next).sum()), "tokens": len(scores)}

    def _clear(self) -> None:
        api.llama_memory_clear(api.llama_get_memory(self.context), True)

    def _run(self, ids: list[int], *, last_only: bool) -> NDArray[np.float32]:
        """Computes tokens behind those before them: logits of the last one, or of all; valid until the next call."""
        assert 0 < len(ids) <= MAX_BATCH, f"{len(ids)} tokens"
        raw = (api.llama_token * len(ids))(*ids)
        batch = api.llama_batch_get_one(raw, len(ids))
        flags = (ctypes.c_int8 * len(ids))(*([0 if last_only else 1] * (len(ids) - 1)), 1)
        batch.logits = ctypes.cast(flags, type(batch.logits))
        status = api.llama_decode(self.context, batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        rows = 1 if last_only else len(ids)
        found = api.llama_get_logits_ith(self.context, -1) if last_only else api.llama_get_logits(self.context)
        return np.ctypeslib.as_array(found, (rows, self.vocab))


def _quiet() -> None:
    """Waits until the threads of this process sleep."""
    start = time.perf_counter()
    while time.perf_counter() - start < LIMIT_S:
        wall, used = time.perf_counter(), time.process_time()
        time.sleep(STEP_S)
        if time.process_time() - used < 0.1 * (time.perf_counter() - wall):
            return
    raise RuntimeError(f"threads of llama.cpp still spin {LIMIT_S} s after their work")


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    api.llama_log_set(_log, ctypes.c_void_p(0))
    api.llama_backend_init()
    child = Child()
    for line in sys.stdin:
        call = json.loads(line)
        try:
            answer = getattr(child, call.pop("call"))(**call)
        except Exception as error:  # the caller raises it
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({**answer, "cpu_s": time.process_time()}), file=answers, flush=True)


if __name__ == "__main__":
    main()
