"""`Architecture`: what a checkpoint consists of, as counts: every tensor by group and layer, and what a token caches.

The planner needs no more than this. Of a family that runs it is derived from its `ModelSpec` (`of_spec`): the spec says
how a model computes, the architecture what it weighs, and the two cannot disagree. For others a config.json gives it
too. Sizes are counts of elements; nothing here knows a format, a file or a device, and nothing imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ...errors import ConfigError

Group = Literal["embedding", "attention", "experts", "shared", "dense", "router", "norms", "head", "tables"]
GROUPS: tuple[Group, ...] = (
    "experts", "attention", "shared", "dense", "router", "norms", "head", "embedding", "tables",
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One matrix [rows, cols] (a vector is one row), cols being the dimension that block formats pack. `plain`: stays
    float32 whatever the format of the rest (norms, biases, routers). `name`: as GGUF calls it, where formats differ by
    that; empty if none does."""

    group: Group
    rows: int
    cols: int
    plain: bool = False
    name: str = ""

    @property
    def elements(self) -> int:
        return self.rows * self.cols


OUTPUTS = ("attn_output", "ssm_out", "out_proj")  # names of parts that mixers end with


@dataclass(frozen=True, kw_only=True)
class Cache:
    """What a layer keeps of the past: `width` elements for every `every`-th token, of the last `window` tokens. A query
    reads all of it, or the `chosen` entries that an indexer picks; nothing in a context of no more than `beyond`
    tokens; in_chunks: those of its own chunk of `window` positions. rows: elements of its rows, where it is not all one
    row."""

    width: int
    window: int | None = None
    every: int = 1
    chosen: int | None = None
    beyond: int = 0
    in_chunks: bool = False
    rows: tuple[int, ...] = ()

    def stored(self, context: int) -> int:
        """Elements kept at a context of so many tokens."""
        return min(context, self.window or context) // self.every * self.width

    def read(self, context: int) -> int:
        """Elements that one query reads, the last one of a context."""
        if context <= self.beyond:
            return 0
        if self.in_chunks and self.window:
            return ((context - 1) % self.window + 1) * self.width
        return min(self.stored(context), (self.chosen or context) * self.width)


@dataclass(frozen=True, kw_only=True)
class Mixer:
    """The part of a layer that looks at other tokens. FLOPs are for one query and one cached entry (`pair_flops`, for a
    prompt and, where latents are attended directly, `decode_pair_flops`), for one token (`state_flops`), or for keys
    and values of one cached entry that a prompt makes anew (`made_flops`)."""

    kind: str
    parts: tuple[Part, ...]
    caches: tuple[Cache, ...] = ()
    state: int = 0  # float32 elements of recurrent and convolution state, read and written for every token
    pair_flops: int = 0
    decode_pair_flops: int | None = None
    state_flops: int = 0
    made_flops: int = 0


@dataclass(frozen=True, kw_only=True)
class Experts:
    """The routed experts of a layer: `matrices` of [width, hidden] (or its transpose) each, `bias` elements besides."""

    count: int
    top_k: int
    hidden: int
    width: int
    matrices: int = 3
    bias: int = 0

    def parts(self) -> tuple[Part, ...]:
        """The parts of one expert: gate and up (or up alone), down, biases."""
        bias = (Part("experts", 1, self.bias, plain=True),) if self.bias else ()
        return (*mlp("experts", self.hidden, self.width, self.matrices), *bias)

    @property
    def elements(self) -> int:
        """Parameters of one expert."""
        return self.matrices * self.width * self.hidden + self.bias


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One block: a mixer, a feed-forward part, or both. `parts` are all tensors but the routed experts."""

    mixer: Mixer | None
    parts: tuple[Part, ...]
    experts: Experts | None

    @property
    def behind(self) -> tuple[Part, ...]:
        """Of `parts`, the matrices behind the mixer, which in the last layer only those tokens meet whose logits are
        wanted: its output projection, and the MLP of every token."""
        return tuple(part for part in self.parts if part.name in OUTPUTS or part.name.startswith("ffn_"))


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A decoder. `extra`: tensors outside of layers besides embedding, final norm and head."""

    family: str
    vocab: int
    hidden: int
    context: int
    layers: tuple[Layer, ...]
    tied_head: bool = False
    extra: tuple[Part, ...] = ()
    lookup: tuple[Part, ...] = ()  # tables of which a token reads a few rows

    @property
    def embedding(self) -> Part:
        return Part("embedding", self.vocab, self.hidden, name="token_embd")

    @property
    def head(self) -> Part:
        """The unembedding; the embedding itself where the two are tied."""
        return Part("head", self.vocab, self.hidden, name="output")

    @property
    def moe_layers(self) -> tuple[int, ...]:
        return tuple(i for i, layer in enumerate(self.layers) if layer.experts is not None)

    def common_parts(self) -> Iterable[Part]:
        """Every tensor that each token reads in full: all but routed experts, lookup tables and an untied embedding."""
        for layer in self.layers:
            yield from layer.parts
        yield Part("norms", 1, self.hidden, plain=True)
        yield from self.extra
        yield self.head

    @property
    def routed_parameters(self) -> int:
        return sum(e.count * e.elements for e in self._experts())

    @property
    def routed_per_token(self) -> int:
        return sum(e.top_k * e.elements for e in self._experts())

    @property
    def common_parameters(self) -> int:
        return sum(part.elements for part in self.common_parts())

    @property
    def active_parameters(self) -> int:
        """Parameters that one token reads; of an untied embedding it reads one row, which is not counted."""
        return self.common_parameters + self.routed_per_token

    @property
    def total_parameters(self) -> int:
        """All parameters of the text model, without extra layers for multi-token prediction."""
        tables = sum(part.elements for part in self.lookup)
        embedding = 0 if self.tied_head else self.embedding.elements
        return self.common_parameters + self.routed_parameters + embedding + tables

    def cache_elements(self, context: int) -> int:
        """Elements that one sequence of `context` tokens keeps in all its caches."""
        return sum(cache.stored(context) for cache in self.caches)

    @property
    def state_elements(self) -> int:
        """float32 elements of recurrent state of one sequence."""
        return sum(layer.mixer.state for layer in self.layers if layer.mixer)

    def _experts(self) -> Iterable[Experts]:
        return (layer.experts for layer in self.layers if layer.experts is not None)

    @property
    def caches(self) -> Iterable[Cache]:
        """Those of all layers."""
        return (cache for layer in self.layers if layer.mixer for cache in layer.mixer.caches)


def vector(size: int, group: Group = "norms") -> Part:
    """A vector of the norms and biases, float32 in every format."""
    return Part(group, 1, size, plain=True)


def matrix(rows: int, cols: int, group: Group = "attention", name: str = "") -> Part:
    return Part(group, rows, cols, name=name)


def mlp(group: Group, hidden: int, width: int, matrices: int = 3) -> tuple[Part, ...]:
    """A feed-forward part: gate, up and down (or up and down)."""
    into = ("ffn_gate", "ffn_up")[-(matrices - 1) :]
    return (*(Part(group, width, hidden, name=name) for name in into), Part(group, hidden, width, name="ffn_down"))


def router(hidden: int, experts: int, bias: bool = False) -> tuple[Part, ...]:
    """The router's matrix, and the vector that biases the choice."""
    weight = Part("router", experts, hidden, plain=True)
    return (weight, vector(experts, "router")) if bias else (weight,)


def refuse_dense(model: Architecture, source: str) -> None:
    """Raises ConfigError for a model without routed experts."""
    if not model.moe_layers:
        raise ConfigError(
            f"{source} is a dense model of the family '{model.family}': it has no experts to place, and those are what "
            "headrace runs; headrace inspect shows what it is"
        )
