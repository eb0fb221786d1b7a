"""Keys and values of every sequence in pages, and which page belongs to whom.

A page holds `PAGE` tokens of all layers. Sequences own pages through a table; a full page is known by a digest of the
tokens up to its end, so that a later prompt with the same beginning takes it over instead of computing it again (a
chat's history, a shared system prompt). Released pages keep their content until their room is needed
(`idle_pages.py` says which goes first).

Layers that see a window have pools of pages of their own (`windows.py`). One head's keys of a page are one run of
bytes, of q8_0 with their scales (`kernels/blocks/cache_rows.py`). A recurrent state is no page: every running sequence
has a slot.
This file knows no model and no schedule.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count as counter

import torch
from torch import Tensor

from ...kernels.blocks import cache_rows
from ...kernels.blocks.cache_rows import Rows
from ...kernels.formats import KV_BF16, KVFormat
from ...loaders.spec import (
    AttentionSpec,
    CompressedSpec,
    ConvSpec,
    DeltaSpec,
    LatentSpec,
    LayerSpec,
    MixerSpec,
    ModelSpec,
    SpaceSpec,
)
from ..experts.cache.shared_memory import SharedMemory
from ..ledger.pass_bytes import cache_sizes
from ..ledger.windows import PAGE as PAGE
from ..ledger.windows import Window, window_of
from ..ledger.windows import pages_for as pages_for
from .idle_pages import IdlePages

Digest = bytes


def row_sizes(mixer: MixerSpec) -> tuple[int, ...]:
    """Elements of a row of each cache of a layer: of keys and of values, of latents, or of none."""
    if isinstance(mixer, AttentionSpec):
        return mixer.head_dim, mixer.v_dim
    return (mixer.row,) if isinstance(mixer, LatentSpec | CompressedSpec) else ()


def paged_units(spec: ModelSpec, format: KVFormat, apart: Sequence[Window]) -> Iterator[int]:
    """Bytes of a page in each tensor, in the order in which a cache makes them; apart: windows with pools of their own,
    of which there are none."""
    made = KV_BF16 if format.name == "q8_0" else format
    for layer in spec.layers:
        mixer = layer.mixer
        if isinstance(mixer, AttentionSpec | LatentSpec | CompressedSpec) and window_of(mixer) not in apart:
            groups = mixer.kv_heads if isinstance(mixer, AttentionSpec) else 1
            yield from (PAGE * groups * format.bytes(width) for width in row_sizes(mixer))
            if not isinstance(mixer, CompressedSpec) and mixer.index_key:
                yield PAGE * made.bytes(mixer.index_key)
        if isinstance(mixer, CompressedSpec) and (count := mixer.entry_rows(PAGE)):
            yield from (count * made.bytes(width) for width in (mixer.head_dim, mixer.index_key) if width)


@dataclass(frozen=True)
class Latents:
    """Of one layer with latent attention: of each token its latent and its rotary key, [pages, 1, PAGE, both], and the
    key of the layer's indexer, [pages, 1, PAGE, dim], dim 0 where it has none."""

    rows: Rows
    keys: Tensor


@dataclass(frozen=True)
class States:
    """Of one recurrent layer, float32 by slot: the last inputs of the convolution [slots, channels, taps - 1], and the
    state [slots, heads, k, v], if there is more than the convolution."""

    inputs: Tensor
    state: Tensor | None

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (self.inputs,) if self.state is None else (self.inputs, self.state)


@dataclass(frozen=True)
class KeysAndValues:
    """Of one layer with grouped-query attention: [pages, kv_heads, PAGE, .], the width of a key and that of a value;
    and the key of the layer's indexer, [pages, 1, PAGE, dim], dim 0 where it has none. kind: of its pages, 0 for those
    of layers that see everything."""

    k: Rows
    v: Rows
    index: Tensor
    kind: int = 0


@dataclass(frozen=True)
class Compressed:
    """Of one layer over a window and compressed entries: keys of tokens [pages, 1, PAGE, width], in pages of a kind;
    entries and the indexer's keys of them [pages, 1, entries of a page, .], in pages of layers that see everything; and
    what is known of entries that are not whole, None where there are none."""

    rows: Rows
    entries: Tensor
    index: Tensor
    states: States | None
    kind: int


LayerCache = KeysAndValues | Latents | Compressed | States | None  # None: the layer looks at no other token


class KVCache:
    """The tensors of all layers. Memory is reserved here and taken by the system bit by bit, as tokens are written.
    slots: sequences that can have a recurrent state at once. windows: those with pools of their own, and their pages;
    layers over another one share the pages of those that see everything. shared: where the pages of these lie, whose
    numbers are then those of its room."""

    def __init__(
        self,
        spec: ModelSpec,
        pages: int,
        format: KVFormat,
        place: torch.device | None = None,
        slots: int = 1,
        windows: Sequence[tuple[Window, int]] = (),
        shared: SharedMemory | None = None,
    ) -> None:
        self.format, self.pages, self.is_shared = format, pages, shared is not None
        self.sizes = cache_sizes(spec, format)
        self.windows = tuple(window for window, _ in windows)
        pools, numbers = [pages, *(many for _, many in windows)], counter()

        def plain(width: int, rows: int = PAGE, kind: int = 0) -> Tensor:
            """Rows of keys that an indexer made, or of entries, as kernels make them whatever the format."""
            if shared is not None and kind == 0 and rows * width:
                pages_of = shared.rows(next(numbers)).view(cache_rows.made_dtype(format))
                return pages_of.view(-1, 1, rows, width)
            size = (pools[kind], 1, rows, width)
            return torch.empty(size, dtype=cache_rows.made_dtype(format), device=place)

        def rows(groups: int, width: int, kind: int = 0) -> Rows:
            if shared is not None and kind == 0:
                return cache_rows.over(format, shared.rows(next(numbers)), groups, PAGE, width)
            found = cache_rows.empty(format, pools[kind], groups, PAGE, width, place)
            if kind:  # what is masked is multiplied by 0, which must not be 0 times anything
                cache_rows.memory(found)[0] = 0
            return found

        def layer(mixer: MixerSpec | None) -> LayerCache:
            if mixer is None:
                return None
            if isinstance(mixer, AttentionSpec):
                kind = self._kind(mixer)
                keys, values = (rows(mixer.kv_heads, width, kind) for width in row_sizes(mixer))
                return KeysAndValues(keys, values, plain(mixer.index_key, kind=kind), kind)
            if isinstance(mixer, LatentSpec):
                return Latents(rows(1, mixer.row), plain(mixer.index_key))
            if isinstance(mixer, CompressedSpec):
                kind = self._kind(mixer)
                keys, count = rows(1, mixer.row, kind), mixer.entry_rows(PAGE)
                entries, index = (plain(width, count) for width in (mixer.head_dim, mixer.index_key))
                return Compressed(keys, entries, index, _unfinished(mixer, slots, place), kind)
            return _recurrent(mixer, slots, place)

        self.layers = [layer(one.mixer) for one in spec.layers]
        assert shared is None or next(numbers) == len(shared.room.units), "tensors that are shared, and others"
        self.grams = [_grams(spec, one, slots, place) for one in spec.layers]

    def _kind(self, mixer: MixerSpec) -> int:
        """The kind of a layer's pages."""
        window = window_of(mixer)
        return self.windows.index(window) + 1 if window in self.windows else 0

    def memories(self, kind: int = 0) -> list[Tensor]:
        """What pages of a kind lie in, of every layer: [pages, ...], each contiguous."""
        paged = [layer for layer in self.layers if isinstance(layer, KeysAndValues) and layer.kind == kind]
        keys = [one for layer in paged for one in (layer.k, layer.v, layer.index)]
        latents = [layer for layer in self.layers if isinstance(layer, Latents) and kind == 0]
        both = [one for layer in latents for one in (layer.rows, layer.keys)]
        memories = [cache_rows.memory(one) for one in (*keys, *both, *self._compressed(kind))]
        return [one for one in memories if one.numel()]

    def page_parts(self, page: int, kind: int = 0) -> list[Tensor]:
        """What a page holds of every layer of a kind, each contiguous: views."""
        return [one[page] for one in self.memories(kind)]

    def state_parts(self, slot: int) -> list[Tensor]:
        """The recurrent state in a slot, of every layer that has one: views."""
        return [one[slot] for layer in self._states() for one in layer.parts]

    def copy_state(self, slot: int, to: int) -> None:
        """Copies the recurrent state of a slot into another one, in every layer that has such."""
        for layer in self._states():
            for one in layer.parts:
                one[to] = one[slot]

    def _compressed(self, kind: int) -> list[Rows]:
        """Of layers with entries what lies in pages of a kind."""
        found: list[Rows] = []
        for layer in self.layers:
            if isinstance(layer, Compressed):
                found += [layer.rows] if layer.kind == kind else []
                found += [layer.entries, layer.index] if kind == 0 else []
        return found

    def _states(self) -> list[States]:
        """Of mixers, then of runs of tokens."""
        layers = [layer.states if isinstance(layer, Compressed) else layer for layer in self.layers]
        return [one for one in (*layers, *self.grams) if isinstance(one, States)]


def _recurrent(mixer: ConvSpec | SpaceSpec | DeltaSpec, slots: int, place: torch.device | None) -> States:
    """The state of a layer, all zeros."""
    inputs = torch.zeros((slots, mixer.channels, mixer.taps - 1), device=place)
    if isinstance(mixer, ConvSpec):
        return States(inputs, None)
    heads = mixer.heads if isinstance(mixer, SpaceSpec) else mixer.v_heads
    return States(inputs, torch.zeros((slots, heads, mixer.k_dim, mixer.v_dim), device=place))


def _unfinished(mixer: CompressedSpec, slots: int, place: torch.device | None) -> States | None:
    """Of a layer's entries those that are not whole, and of the indexer's keys of them."""
    if not mixer.series:
        return None
    widths = mixer.head_dim, mixer.index_key
    inputs, state = (torch.zeros((slots, mixer.series, 3, width), device=place) for width in widths)
    return States(inputs, state if mixer.index_key else None)


def _grams(spec: ModelSpec, layer: LayerSpec, slots: int, place: torch.device | None) -> States | None:
    if layer.grams is None:
        return None
    inputs = torch.zeros((slots, spec.norm_size, layer.grams.past), device=place)
    return States(inputs, torch.zeros((slots, layer.grams.size - 1), device=place))


class PageTable:
    """Hands out pages, counts their owners, and finds pages whose content a prompt can take over. pages: how many, or
    their numbers."""

    def __init__(self, pages: int | range) -> None:
        numbers = range(pages) if isinstance(pages, int) else pages
        self.free = list(reversed(numbers))
        self.total = len(numbers)
        self.owners = [0] * numbers.stop
        self.digest_of: dict[int, Digest] = {}
        self.page_of: dict[Digest, int] = {}
        self.idle = IdlePages()  # known pages without an owner
        self.found = [False] * numbers.stop  # whether content was taken over by a prompt since it was computed
        self.taken = [0] * numbers.stop  # how often each was handed out: the same number, the same content
        self.on_known: Callable[[int, list[Digest], int], None] | None = None  # a page, digests, of them its own one

    def between_passes(self) -> None:
        """Another pass begins."""

    @property
    def available(self) -> int:
        """Pages that can be allocated now."""
        return len(self.free) + len(self.idle)

    def allocate(self, count: int) -> list[int]:
        """Takes pages, forgetting idle content if need be; the caller has looked at `available`."""
        assert count <= self.available, f"{count} pages asked, {self.available} available"
        return [self._take() for _ in range(count)]

    def _take(self) -> int:
        if self.free:
            page = self.free.pop()
        else:
            page = self.idle.pop()
            del self.page_of[self.digest_of.pop(page)]
        self.owners[page] = 1
        self.taken[page] += 1
        self.found[page] = False
        return page

    def adopt(self, digest: Digest) -> int:
        """A page for content that is known under a digest, and comes from elsewhere; it is nobody's."""
        page = self._take()
        self.owners[page] = 0
        self.page_of[digest], self.digest_of[page] = page, digest
        self.idle.add(page, was_found=False)
        return page

    def known(self, tokens: list[int], memo: list[Digest] | None = None, salt: Digest = b"") -> list[Digest]:
        """Digests of the longest run of known pages at the start of `tokens`, never all of them: the last token has to
        be computed for its logits. memo: digests of the first pages that were worked out before, which grows. salt:
        pages of another one are not found."""
        worked_out = [] if memo is None else memo
        digests: list[Digest] = []
        for page, end in enumerate(range(PAGE, len(tokens), PAGE)):
            if page == len(worked_out):
                worked_out.append(_extend(worked_out, tokens[end - PAGE : end], salt))
            if worked_out[page] not in self.page_of:
                break
            digests.append(worked_out[page])
        return digests

    def take_over(self, digests: list[Digest]) -> list[int]:
        """One owner more of each of these known pages."""
        pages = [self.page_of[digest] for digest in digests]
        for page in pages:
            self.hold(page)
        return pages

    def reuse(self, tokens: list[int], salt: Digest = b"") -> tuple[list[int], list[Digest]]:
        """Takes over all that is known at the start of `tokens`: the pages, and the digests of their content."""
        digests = self.known(tokens, salt=salt)
        return self.take_over(digests), digests

    def hold(self, page: int) -> None:
        """One owner more of a known page, which a prompt takes over."""
        self.idle.remove(page)
        self.owners[page] += 1
        self.found[page] = True

    def publish(
        self, tokens: list[int], pages: list[int], digests: list[Digest], computed: int, salt: Digest = b""
    ) -> None:
        """Makes full pages known, now that the keys and values of `computed` tokens are written. `digests` are those of
        the sequence's first pages, and grow; a page whose content another page already has stays private."""
        for i in range(len(digests), computed // PAGE):
            digest = _extend(digests, tokens[i * PAGE : (i + 1) * PAGE], salt)
            digests.append(digest)
            self.make_known(pages[i], digests, i)

    def make_known(self, page: int, digests: list[Digest], place: int) -> None:
        """A page has the content that ends with the `place`th of a prompt's pages; it stays private where another one
        is known for that."""
        if digests[place] not in self.page_of:
            self.page_of[digests[place]] = page
            self.digest_of[page] = digests[place]
            if self.on_known is not None:
                self.on_known(page, digests, place)

    def forget(self) -> None:
        """Nothing is known any more; who has pages keeps them."""
        for page in self.digest_of:
            if self.owners[page] == 0:
                self.idle.remove(page)
                self.free.append(page)
        self.digest_of.clear()
        self.page_of.clear()

    def release(self, pages: list[int], goes_first: bool = False) -> None:
        """Gives pages back; those with known content stay idle until their room is needed. goes_first: before all
        others."""
        for page in reversed(pages):
            self.owners[page] -= 1
            if self.owners[page] == 0:
                if page in self.digest_of:
                    self.idle.add(page, self.found[page], goes_first)
                else:
                    self.free.append(page)


def work_out(tokens: list[int], memo: list[Digest], salt: Digest = b"") -> list[Digest]:
    """Digests of all pages of a prompt that could be taken over; memo: of the first ones, which grows. salt: what they
    begin with."""
    for end in range(PAGE * (len(memo) + 1), len(tokens), PAGE):
        memo.append(_extend(memo, tokens[end - PAGE : end], salt))
    return memo[: max(0, len(tokens) - 1) // PAGE]


def salted(text: str) -> Digest:
    """What the digests of prompts begin with that share nothing with prompts of another text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _extend(before: list[Digest], tokens: list[int], salt: Digest) -> Digest:
    """The digest of a page: of its tokens and of everything before them, which begins with the salt."""
    last = before[-1] if before else salt
    return hashlib.blake2b(last + array("q", tokens).tobytes(), digest_size=16).digest()
