"""How much context fits: the pages of the KV cache, from what was asked, what the model allows and what memory is
free.

Layers that see everything have `pages`. Layers over a window have a pool of their own where that is smaller: enough for
every sequence that may run at once, or, where memory is short, for as many as fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ...errors import MemoryNeeded, OptionError
from ...kernels import scratch
from ...kernels.compressed.attention import KEYS, together
from ...kernels.cpu import EXPERT_OUT_BYTES, MADE_BYTES
from ...kernels.formats import KV_BF16, KV_F32, KV_FORMATS, ExpertLayout, KVFormat
from ...loaders.choosers import BlockIndexerSpec
from ...loaders.spec import AttentionSpec, CompressedSpec, LatentSpec, MixerSpec, ModelSpec
from ...loaders.weights.model_weights import Formats
from ..config import EngineConfig
from ..ledger.pass_bytes import seen_at_most
from ..ledger.windows import Window, page_elements, windows_of
from ..model.kv_cache import PAGE, pages_for, row_sizes
from ..planning.options import check_kv_rows
from ..units import GB

CHOSEN_AT_ONCE = 1 << 20  # scores of entries that are in memory together, of eight tokens at least

# Of the memory that is free after the weights, how much the cache may come to take when nobody said.
CACHE_SHARE = 0.5


@dataclass(frozen=True)
class KVBudget:
    """The KV cache: pages of layers that see everything, the longest sequence, and the bytes it takes when full; and
    `work_bytes`, what one pass takes besides. windows: those with pools of their own, and their pages."""

    pages: int
    max_context: int
    kv_bytes: int
    work_bytes: int
    windows: tuple[tuple[Window, int], ...] = ()


class PageBytes:
    """What pages of a model's cache take, by the kind of layers. chunk: most new tokens of a pass."""

    def __init__(self, spec: ModelSpec, format: KVFormat, chunk: int) -> None:
        self.chunk = chunk
        elements = dict.fromkeys((None, *windows_of(spec)), 0)
        for layer in spec.layers:
            for window, count in page_elements(layer.mixer).items():
                elements[window] += count
        if spec.mtp is not None:  # in the pages of layers that see everything
            elements[None] += sum(page_elements(spec.mtp.mixer).values())
        self.each = {window: format.bytes(count) for window, count in elements.items()}

    @property
    def page(self) -> int:
        """Of a page in all layers."""
        return sum(self.each.values())

    def pools(self, pages: int, context: int, sequences: int) -> tuple[tuple[Window, int], ...]:
        """Windows whose pool for so many sequences is smaller than the `pages` of layers that see everything."""
        pools = ((window, window.pool(context, sequences, self.chunk)) for window in self.each if window is not None)
        return tuple((window, count) for window, count in pools if count < pages)

    def total(self, pages: int, context: int, sequences: int) -> int:
        """Of all pools."""
        pools = dict(self.pools(pages, context, sequences))
        return sum(each * (pages if window is None else pools.get(window, pages)) for window, each in self.each.items())

    def context(self, most: int, sequences: int, left: float) -> int:
        """The longest context of up to `most` tokens whose pages fit into so many bytes, once; at least a page."""
        return PAGE * largest(1, pages_for(most), lambda one: self.total(one, one * PAGE, sequences) <= left)

    def budget(self, context: int, sequences: int, room: float, work: int) -> KVBudget:
        """Pages for one sequence of so many tokens, and for as many of them, up to `sequences`, as `room` bytes hold;
        windows of as many sequences as they hold besides."""
        one = pages_for(context)
        at_once = largest(1, sequences, lambda many: self.total(one, context, many) <= room)
        pages = largest(one, one * sequences, lambda many: self.total(many, context, at_once) <= room)
        total, pools = self.total(pages, context, at_once), self.pools(pages, context, at_once)
        return KVBudget(pages, context, total, work, pools)


def largest(least: int, most: int, fits: Callable[[int], bool]) -> int:
    """The largest number for which something holds that holds for all smaller ones; at least `least`."""
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if fits(middle) else (least, middle - 1)
    return least


def kv_format(config: EngineConfig, spec: ModelSpec, formats: Formats) -> KVFormat:
    """What was asked for; else float32 where the model runs in float32, and bfloat16. Raises OptionError for rows that
    the format does not have."""
    if config.kv_format != "auto":
        asked = KV_FORMATS[config.kv_format]
        has_indexer = any(seen_at_most(one) is not None for one in spec.mixers)
        check_kv_rows(asked, (row for mixer in spec.mixers for row in row_sizes(mixer)), has_indexer=has_indexer)
        return asked
    if config.dtype == "auto":
        return KV_F32 if formats.embed.name == "f32" else KV_BF16
    return KV_F32 if config.dtype == "float32" else KV_BF16


def check_context(asked: int | None, spec: ModelSpec) -> None:
    """Raises OptionError for a context that the model does not have."""
    if asked is not None and asked > spec.context:
        raise OptionError(f"max_context is {asked}, this model allows at most {spec.context} tokens")


def plan(config: EngineConfig, spec: ModelSpec, sizes: PageBytes, left: int, work: int) -> KVBudget:
    """Pages for `max_context` tokens (as asked, or as many as fit), for as many sequences at once as there is room for.

    left: bytes that weights and `work`, the buffers of a pass, leave of the memory that holds the cache. Raises
    OptionError if more is asked than the model allows, MemoryNeeded if more than memory holds.
    """
    asked = config.max_context
    check_context(asked, spec)
    room = max(left, 0) * CACHE_SHARE
    if asked is not None and (takes := sizes.total(pages_for(asked), asked, 1)) > left > 0:
        fits = sizes.context(asked, 1, room)
        remedy = f"lower max_context to about {fits}" if sizes.page <= room else "free memory, or take smaller formats"
        raise MemoryNeeded(
            f"a context of {asked} tokens takes {takes / GB:.2f} GB of KV cache, "
            f"{left / GB:.2f} GB are free after the weights: {remedy}"
        )
    context = asked or min(spec.context, sizes.context(spec.context, config.max_sequences, room))
    return sizes.budget(context, config.max_sequences, room, work)


def work_bytes(spec: ModelSpec, tokens: int, sequences: int, chunk: int = EXPERT_OUT_BYTES) -> int:
    """Most bytes that the activations of a pass of so many tokens take, whatever the context: hidden states,
    queries, keys and values, the products of experts (in chunks of so many bytes), logits; float32 and a copy of each
    as kernels want it. Of latents those keys and values that a prompt of the longest context makes at a time."""
    moe, mixer = spec.moe, max(mixer.work_rows for mixer in spec.mixers)
    attention = 6 * spec.hidden + mixer + 2 * moe.experts
    pairs = tokens * moe.top_k
    products = min(4 * pairs * spec.hidden, chunk) * (2 if moe.weighs_input else 1)
    inner = 4 * 3 * max(moe.width, moe.shared_width, spec.dense_width) * max(pairs, tokens)
    made = max((_made_bytes(mixer, spec.context, tokens) for mixer in spec.mixers), default=0)
    return 4 * tokens * attention + products + inner + 4 * max(sequences, 1) * spec.vocab + made


def unpacked_bytes(spec: ModelSpec, layouts: Iterable[ExpertLayout], tokens: int) -> int:
    """Of the buffer for experts that are unpacked before they are multiplied, in a pass of so many tokens."""
    packed = (layout for layout in layouts if all(form.is_block for form in layout.formats))
    experts, pairs = spec.moe.experts, tokens * spec.moe.top_k
    sizes = (scratch.unpacked_bytes(3 * layout.hidden * layout.width, experts, pairs) for layout in packed)
    return max(sizes, default=0)


def _made_bytes(mixer: MixerSpec, context: int, tokens: int) -> int:
    """Of keys and values that are made, or of keys that are put side by side and scored; of scores of blocks."""
    if isinstance(mixer, AttentionSpec) and isinstance(it := mixer.blocks, BlockIndexerSpec):
        return 4 * tokens * it.heads * -(-context // it.size)
    if isinstance(mixer, CompressedSpec):
        return _side_by_side(mixer, context)
    if not isinstance(mixer, LatentSpec):
        return 0
    head = 4 * context * mixer.made
    return min(mixer.heads * head, max(MADE_BYTES, head))


def _side_by_side(mixer: CompressedSpec, context: int) -> int:
    """Keys of some tokens' windows, and the entries that they see; where an indexer chooses these, its scores."""
    entries, it = (context // mixer.rate if mixer.rate else 0), mixer.indexer
    keys = mixer.window + (entries if it is None else min(entries, it.top))
    scores = 0 if it is None else max(CHOSEN_AT_ONCE, 8 * entries)
    return 4 * (mixer.head_dim * keys * together(keys) + 4 * max(keys, KEYS) + scores)
