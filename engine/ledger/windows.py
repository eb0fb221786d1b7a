"""How far back layers see, and how many pages of the cache that takes: a window of the last tokens, or a chunk.

Layers of one kind share a pool of pages. A sequence holds there what its next token sees, and SLACK tokens more, so
that its newest tokens can be taken back; what lies behind is dropped. Knows numbers, no tensors and no owners.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...loaders.spec import AttentionSpec, CompressedSpec, MixerSpec, ModelSpec

PAGE = 32  # tokens
SLACK = PAGE  # tokens behind what is seen: so many of the newest may be taken back


def pages_for(tokens: int) -> int:
    """Pages that hold so many tokens."""
    return -(-tokens // PAGE)


@dataclass(frozen=True)
class Window:
    """A query sees the last `length` tokens, itself included; or, in_chunks, its own chunk of `length` positions up to
    itself."""

    length: int
    in_chunks: bool = False

    def begin(self, position: int) -> int:
        """The first position that a query sees."""
        if self.in_chunks:
            return position - position % self.length
        return max(0, position - self.length + 1)

    def first_page(self, computed: int) -> int:
        """The first page that is still needed, with so many tokens in the cache."""
        return self.begin(max(0, computed - SLACK)) // PAGE

    def held(self, context: int) -> int:
        """Most pages that a sequence of up to so many tokens holds between two passes; one of them is what rounding may
        add in a pass."""
        return min(pages_for(context), pages_for(self.length + SLACK) + 2)

    def pool(self, context: int, sequences: int, chunk: int) -> int:
        """Pages that are always enough for so many sequences at once, in passes of up to `chunk` new tokens, or one of
        each sequence; and one that belongs to nobody."""
        return sequences * self.held(context) + pages_for(max(chunk, sequences)) + 1


def window_of(mixer: MixerSpec | None) -> Window | None:
    """That of a layer; None: it sees everything, or no other token."""
    if isinstance(mixer, CompressedSpec):
        return Window(mixer.window)
    if not isinstance(mixer, AttentionSpec):
        return None
    if mixer.chunk is not None:
        return Window(mixer.chunk, in_chunks=True)
    return None if mixer.window is None else Window(mixer.window)


def page_elements(mixer: MixerSpec | None) -> dict[Window | None, int]:
    """Elements that a page holds of a layer, by the window of its pages; None: of those that see everything."""
    if mixer is None:
        return {}
    if isinstance(mixer, CompressedSpec):
        return {window_of(mixer): PAGE * mixer.row, None: mixer.entry_rows(PAGE) * mixer.entry}
    return {window_of(mixer): PAGE * mixer.cached}


def windows_of(spec: ModelSpec) -> tuple[Window, ...]:
    """The different ones of a model's layers."""
    found = (window_of(layer.mixer) for layer in spec.layers)
    return tuple(dict.fromkeys(one for one in found if one is not None))
