"""How much context fits: the pages of the KV cache, from what was asked, what the model allows and what memory is
free."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import MemoryNeeded, OptionError
from ...kernels.cpu import EXPERT_OUT_BYTES, MADE_BYTES
from ...kernels.formats import KV_BF16, KV_F32, KV_FORMATS, KVFormat
from ...loaders.spec import LatentSpec, ModelSpec
from ...loaders.weights.model_weights import Formats
from ..config import EngineConfig, check_kv_rows
from ..model.kv_cache import PAGE, pages_for, row_sizes
from ..units import GB

# Of the memory that is free after the weights, how much the cache may come to take when nobody said.
CACHE_SHARE = 0.5


@dataclass(frozen=True)
class KVBudget:
    """The KV cache: pages in all, the longest sequence, and the bytes it takes when full; and `work_bytes`, what one
    pass takes besides."""

    pages: int
    max_context: int
    kv_bytes: int
    work_bytes: int


def kv_format(config: EngineConfig, spec: ModelSpec, formats: Formats) -> KVFormat:
    """What was asked for; else float32 where the model runs in float32, and bfloat16. Raises OptionError for rows that
    the format does not have."""
    if config.kv_format != "auto":
        asked = KV_FORMATS[config.kv_format]
        has_indexer = any(isinstance(one, LatentSpec) and one.indexer is not None for one in spec.mixers)
        check_kv_rows(asked, (row for mixer in spec.mixers for row in row_sizes(mixer)), has_indexer=has_indexer)
        return asked
    if config.dtype == "auto":
        return KV_F32 if formats.embed.name == "f32" else KV_BF16
    return KV_F32 if config.dtype == "float32" else KV_BF16


def check_context(asked: int | None, spec: ModelSpec) -> None:
    """Raises OptionError for a context that the model does not have."""
    if asked is not None and asked > spec.context:
        raise OptionError(f"max_context is {asked}, this model allows at most {spec.context} tokens")


def plan(config: EngineConfig, spec: ModelSpec, page_bytes: int, left: int, work: int) -> KVBudget:
    """Pages for `max_context` tokens (as asked, or as many as fit), for as many sequences at once as there is room for.

    left: bytes that weights and `work`, the buffers of a pass, leave of the memory that holds the cache. Raises
    OptionError if more is asked than the model allows, MemoryNeeded if more than memory holds.
    """
    asked = config.max_context
    check_context(asked, spec)
    if asked is not None and pages_for(asked) * page_bytes > left > 0:
        fits = int(left * CACHE_SHARE) // page_bytes * PAGE
        remedy = f"lower max_context to about {fits}" if fits else "free memory, or take smaller formats"
        raise MemoryNeeded(
            f"a context of {asked} tokens takes {pages_for(asked) * page_bytes / GB:.2f} GB of KV cache, "
            f"{left / GB:.2f} GB are free after the weights: {remedy}"
        )
    budget = max(1, int(max(left, 0) * CACHE_SHARE) // max(1, page_bytes))  # 0: recurrent layers alone
    context = asked or min(spec.context, max(PAGE, budget * PAGE))
    pages = max(pages_for(context), min(budget, pages_for(context) * config.max_sequences))
    return KVBudget(pages, context, pages * page_bytes, work)


def work_bytes(spec: ModelSpec, tokens: int, sequences: int, chunk: int = EXPERT_OUT_BYTES) -> int:
    """Most bytes that the activations of a pass of so many tokens take, whatever the context: hidden states,
    queries, keys and values, the products of experts (in chunks of so many bytes), logits; float32 and a copy of each
    as kernels want it. Of latents those keys and values that a prompt of the longest context makes at a time."""
    moe, mixer = spec.moe, max(mixer.work_rows for mixer in spec.mixers)
    attention = 6 * spec.hidden + mixer + 2 * moe.experts
    pairs = tokens * moe.top_k
    products = min(4 * pairs * spec.hidden, chunk) * (2 if moe.weighs_input else 1)
    inner = 4 * 3 * max(moe.width, moe.shared_width, spec.dense_width) * max(pairs, tokens)
    made = max((_made_bytes(mixer, spec.context) for mixer in spec.mixers if isinstance(mixer, LatentSpec)), default=0)
    return 4 * tokens * attention + products + inner + 4 * max(sequences, 1) * spec.vocab + made


def _made_bytes(mixer: LatentSpec, context: int) -> int:
    head = 4 * context * mixer.made
    return min(mixer.heads * head, max(MADE_BYTES, head))
