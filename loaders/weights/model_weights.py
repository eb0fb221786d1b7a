"""Every weight of a model, packed, in the places where it stays: `ModelWeights`, and how to allocate it.

Small vectors (norms, biases) are float32, the router is a float32 matrix, the rest are packed matrices. What looks at
other tokens has weights of its own kind (`mixers/`). Gate and up of a dense or shared MLP are stacked into one matrix,
one pass over memory.
The routed experts of a layer are one bank, or a bank on each of several tiers, each with only its experts
(`TierBanks`). Allocated on torch's `meta` device the same code gives the sizes without taking memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol, get_args

from torch import Tensor

from ...kernels import FORMATS, ExpertLayout, Format
from ...kernels.formats import PARTS, Part
from ...kernels.packed import Around, ExpertBank, Fitting, GatedMixing, Matrix, Mixing, Mlp, Stacked, Tail
from ...kernels.recipes import SWIGLU, Activation
from ..spec import BankedStreamsSpec, DenseSpec, ModelSpec, MoeSpec
from . import mixers
from .mixers import MixerWeights
from .mixers.allocator import Allocator, FormatOf
from .mtp.weights import MTP, MtpWeights
from .tables import streams
from .tables.grams import GramsWeights
from .tables.grams import allocate as _allocate_grams
from .tables.row_table import RowTable


@dataclass(frozen=True, kw_only=True)
class Formats:
    """Which packed format each group of tensors takes, and single tensors that have another one.

    `own` goes by place: "embed", "head", or the layer's number, a point and the tensor's role: gate, up, down of the
    routed experts; mlp_gate, mlp_up, mlp_down of a dense or shared MLP; q, k, v, o, and others of `mixers/`."""

    experts: Format
    dense: Format
    embed: Format  # the input embedding where the head is not tied to it; one row a token is read
    own: Mapping[str, Format] = field(default_factory=dict)

    def of(self, place: str, group: Literal["experts", "dense", "embed"]) -> Format:
        """The format of the tensor at a place."""
        found: Format = self.own.get(place) or getattr(self, group)
        return found

    @property
    def names(self) -> dict[str, str]:
        """The formats of each group by name, its usual one first: q4_k, or q4_k/q6_k."""
        return {group: "/".join(self._of_group(group)) for group in ("experts", "dense", "embed")}

    @property
    def used(self) -> tuple[str, ...]:
        """Every format that a tensor has, by name."""
        kept = (self.experts, self.dense, self.embed, *self.own.values())
        return tuple(dict.fromkeys(format.name for format in kept))

    def _of_group(self, group: str) -> list[str]:
        others = [format.name for place, format in self.own.items() if group_of(place) == group]
        return list(dict.fromkeys((getattr(self, group).name, *others)))

    def layout(self, spec: ModelSpec, layer: int) -> ExpertLayout:
        """The layout of a layer's experts."""
        gate, up, down = (self.of(f"{layer}.{part}", "experts") for part in PARTS)
        moe, ffn = spec.moe, spec.layer_at(layer).ffn
        assert ffn is not None, f"layer {layer} has no experts"
        return ExpertLayout(
            format=gate if ffn.activation.gated else up, up_format=up, down_format=down,
            hidden=moe.latent or spec.hidden, width=moe.width, biased=moe.expert_bias, activation=ffn.activation,
            weighs_input=moe.weighs_input,
        )  # fmt: skip


PLAIN = Formats(experts=FORMATS["f32"], dense=FORMATS["f32"], embed=FORMATS["f32"])  # where only shapes count


def group_of(place: str) -> str:
    """The group of a place of `Formats.own`."""
    role = place.rsplit(".", 1)[-1]
    return "experts" if role in PARTS else "embed" if role == "embed" else "dense"


@dataclass(frozen=True)
class TierBanks:
    """The routed experts of one layer in several banks, by the name of their tier. Expert e is number `owners[e][1]` of
    the bank of tier `owners[e][0]`; numbers rise with e."""

    banks: Mapping[str, ExpertBank]
    owners: tuple[tuple[str, int], ...]

    @property
    def layout(self) -> ExpertLayout:
        return next(iter(self.banks.values())).layout

    @property
    def experts(self) -> int:
        return len(self.owners)

    @property
    def nbytes(self) -> int:
        return sum(bank.nbytes for bank in self.banks.values())

    def matrix(self, expert: int, part: Part) -> Matrix:
        """One matrix of one expert as a view, wherever it lies."""
        tier, number = self.owners[expert]
        return self.banks[tier].matrix(number, part)

    def bias(self, expert: int, part: Part) -> Tensor | None:
        """The bias of one of them, float32; None: there is none."""
        tier, number = self.owners[expert]
        return self.banks[tier].bias(number, part)

    def runs(self) -> Iterator[tuple[int, Tensor]]:
        """Neighbouring experts that lie side by side in one bank: the first one, and the bytes [experts,
        layout.bytes]."""
        start = 0
        for end in range(1, self.experts + 1):
            if end == self.experts or self.owners[end][0] != self.owners[start][0]:
                tier, number = self.owners[start]
                yield start, self.banks[tier].data[number : number + end - start]
                start = end


class Pool(Protocol):
    """Memory that banks are taken from."""

    def take(self, name: str, size: int, block: int) -> Tensor:
        """The next bytes: uint8 [size], in blocks of `block`."""


@dataclass(frozen=True, kw_only=True)
class Where:
    """On which of torch's devices weights are allocated: the common ones, the embedding (if it is not the head), and
    the experts by layer and number, each on a tier; `tiers` says which device a tier is. A tier of `pools` takes its
    banks from there."""

    common: str
    embed: str
    experts: Sequence[Sequence[str]]
    tiers: Mapping[str, str]
    pools: Mapping[str, Pool] = field(default_factory=dict)


class Held(NamedTuple):
    """The part of a model that is here: layers [first, last); outside: with embedding, last norm and head."""

    first: int
    last: int
    outside: bool


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """One decoder layer, or one part of such: then the mixer or the second norm is None. Norms behind its parts are as
    in `Block` and `Tail`. Norms and biases float32; `router` and `experts` are None in a dense layer, and `mlp` is then
    the dense MLP; else `mlp` is the shared expert, or None."""

    attn_norm: Tensor
    attn_norm_bias: Tensor | None
    mixer: MixerWeights | None
    mlp_norm: Tensor | None
    mlp_norm_bias: Tensor | None
    router: Matrix | None
    router_bias: Tensor | None
    choice_bias: Tensor | None
    experts: ExpertBank | TierBanks | None
    mlp: Mlp | None
    shared_gate: Matrix | None
    out_norm: Tensor | None
    router_norm: Tensor | None
    factors: Tensor | None
    tail: Tail | None
    mixer_mixing: Mixing | GatedMixing | Fitting | None = None
    ffn_mixing: Mixing | GatedMixing | Fitting | None = None
    grams: GramsWeights | None = None
    around: Around | None = None
    table: Tensor | None = None  # float32 [vocabulary, top_k], of each token its experts

    def keeping(self) -> Iterator[Tensor | Matrix]:
        """Of `parts`, what a pass reads that only keeps keys and values, or states."""
        if self.mixer is None:
            return
        yield self.attn_norm
        if self.attn_norm_bias is not None:
            yield self.attn_norm_bias
        for also in ("mixer_mixing", "grams"):
            yield from (part for _, part in parts_of(also, getattr(self, also)) if not isinstance(part, Banks))
        for name in self.mixer.KEEPING:
            yield from (part for _, part in parts_of(name, getattr(self.mixer, name)) if not isinstance(part, Banks))

    def parts(self) -> Iterator[tuple[str, Tensor | Matrix | ExpertBank | TierBanks]]:
        """Everything that is stored, by name: vectors, matrices, and the routed experts."""
        for name, value in vars(self).items():
            yield from parts_of(name, value)

    def common(self) -> Iterator[tuple[str, Tensor | Matrix]]:
        """What every token reads: all of it but the routed experts, and a table, of which it reads a row."""
        return ((name, part) for name, part in self.parts() if not isinstance(part, Banks) and name != "table")


Banks = (ExpertBank, TierBanks)


@dataclass(frozen=True, kw_only=True)
class ModelWeights:
    """The whole model; `head` is `embed` itself where the two are tied."""

    embed: Matrix
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor
    final_norm_bias: Tensor | None
    head: Matrix
    head_bias: Tensor | None
    turns: Tensor | None = None  # float32, learned logarithms of frequencies
    last_mixing: Mixing | GatedMixing | None = None  # of streams, behind the last layer
    last_fitting: Fitting | None = None  # of a stream with states that are kept, behind the last layer
    tables: dict[int, RowTable] = field(default_factory=dict)  # by layer, of runs of tokens: they stay in their file
    mtp: MtpWeights | None = None

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.named().values())

    def outside(self) -> Iterator[tuple[str, Tensor | Matrix]]:
        """What lies outside of layers besides embedding and head: the final norm, and what a model has more."""
        for name in ("final_norm", "final_norm_bias", "head_bias", "turns", "last_mixing", "last_fitting"):
            yield from ((own, it) for own, it in parts_of(name, getattr(self, name)) if not isinstance(it, Banks))

    def named(self) -> dict[str, Tensor]:
        """Every stored tensor once, under a name that does not depend on the family."""
        named = {"embed": self.embed.data, **{name: _data(part) for name, part in self.outside()}}
        if self.head is not self.embed:
            named["head"] = self.head.data
        for i, layer in enumerate(self.layers):
            named.update({f"layers.{i}.{name}": data for name, data in _stored(layer)})
        if self.mtp is not None:
            named |= self.mtp.own | {f"{MTP}{name}": data for name, data in _stored(self.mtp.layer)}
        return named


def _stored(layer: LayerWeights) -> Iterator[tuple[str, Tensor]]:
    for name, part in layer.parts():
        if isinstance(part, TierBanks):
            yield from ((f"{name}.{tier}", bank.data) for tier, bank in part.banks.items())
        else:
            yield name, _data(part)


def _data(part: Tensor | Matrix | ExpertBank) -> Tensor:
    return part if isinstance(part, Tensor) else part.data


def parts_of(name: str, value: Any) -> Iterator[tuple[str, Tensor | Matrix | ExpertBank | TierBanks]]:
    """What a field of weights stores, by name; nothing where it is None."""
    if isinstance(value, (Tensor, Matrix, *Banks)):
        yield name, value
    elif isinstance(value, Stacked):
        parts = value.parts
        yield from ((name if len(parts) == 1 else f"{name}.{i}", part) for i, part in enumerate(parts))
    elif isinstance(value, Mlp):
        yield from parts_of(f"{name}.gate_up", value.gate_up)
        yield f"{name}.down", value.down
    elif isinstance(value, (Tail, Mixing, GatedMixing, Fitting, GramsWeights, Around)):
        yield from ((f"{name}.{own}", part) for own, part in vars(value).items() if part is not None)
    elif isinstance(value, get_args(MixerWeights)):
        for own, part in vars(value).items():
            yield from parts_of(own, part)


class _Allocator(Allocator):
    """With routed experts, on the same device."""

    def bank(self, layout: ExpertLayout, experts: int, index: int) -> ExpertBank | TierBanks:
        return ExpertBank.empty(layout, experts, self.device)


class _TierAllocator(_Allocator):
    """Makes common tensors on one device and every bank on the tiers of its experts."""

    def __init__(self, where: Where) -> None:
        super().__init__(where.common)
        self.where = where

    def bank(self, layout: ExpertLayout, experts: int, index: int) -> ExpertBank | TierBanks:
        names = self.where.experts[index]
        assert len(names) == experts, f"layer {index}: {len(names)} places for {experts} experts"
        counts = dict.fromkeys(names, 0)
        owners = []
        for name in names:
            owners.append((name, counts[name]))
            counts[name] += 1
        banks = {name: replace(self._bank(name, layout, n, index), among=experts) for name, n in counts.items()}
        return TierBanks(banks, tuple(owners))

    def _bank(self, tier: str, layout: ExpertLayout, experts: int, index: int) -> ExpertBank:
        pool = self.where.pools.get(tier)
        if pool is None:
            return ExpertBank.empty(layout, experts, self.where.tiers[tier])
        data = pool.take(f"layer {index}", experts * layout.bytes, layout.bytes)
        return ExpertBank(layout, data.view(experts, layout.bytes))


def allocate(
    spec: ModelSpec, formats: Formats, device: str = "cpu", where: Where | None = None, held: Held | None = None
) -> ModelWeights:
    """Uninitialised weights of a model, each expert one contiguous block of its layer's bank: all on one device, or
    where `where` says. held: the part that is here; the rest is on the meta device."""
    here = _Allocator(device) if where is None else _TierAllocator(where)
    make = here if held is None or held.outside else _Allocator("meta")
    table = make if where is None or spec.tied_head else _Allocator(where.embed)
    layers = range(len(spec.layers))
    of_layer = [here if held is None or held.first <= i < held.last else _Allocator("meta") for i in layers]
    embed = table.matrix(formats.of("embed", "dense" if spec.tied_head else "embed"), spec.vocab, spec.hidden)
    return ModelWeights(
        embed=embed,
        layers=tuple(_allocate_layer(one, spec, formats, i) for i, one in enumerate(of_layer)),
        final_norm=make.vector(spec.norm_size),
        final_norm_bias=make.vector(spec.hidden) if spec.layernorms else None,
        head=embed if spec.tied_head else make.matrix(formats.of("head", "dense"), spec.vocab, spec.hidden),
        head_bias=make.vector(spec.vocab) if spec.head_bias else None,
        turns=here.vector(spec.learned_turns) if spec.learned_turns else None,
        last_mixing=streams.of_end(make, spec),
        last_fitting=streams.fitting(make, spec, spec.streams) if isinstance(spec.streams, BankedStreamsSpec) else None,
        mtp=None if spec.mtp is None else _allocate_mtp(_Allocator(make.device), spec, formats),
    )


def _allocate_mtp(make: _Allocator, spec: ModelSpec, formats: Formats) -> MtpWeights:
    """All of it in one place: its experts, too."""
    index, hidden = len(spec.layers), spec.hidden
    return MtpWeights(
        project=make.matrix(formats.of(f"{index}.eh_proj", "dense"), hidden, 2 * hidden),
        embed_norm=make.vector(hidden),
        hidden_norm=make.vector(hidden),
        layer=_allocate_layer(make, spec, formats, index),
        norm=make.vector(hidden),
    )


def _allocate_layer(make: _Allocator, spec: ModelSpec, formats: Formats, index: int) -> LayerWeights:
    hidden, layer = spec.hidden, spec.layer_at(index)
    ffn, f32 = layer.ffn, FORMATS["f32"]

    def dense(role: str) -> Format:
        return formats.of(f"{index}.{role}", "dense")

    moe = ffn if isinstance(ffn, MoeSpec) else None
    width = 0 if ffn is None else ffn.width if isinstance(ffn, DenseSpec) else ffn.shared_width
    activation = SWIGLU if ffn is None else (moe.shared_activation if moe else None) or ffn.activation
    has_second = layer.mixer is not None and ffn is not None
    return LayerWeights(
        attn_norm=make.vector(spec.norm_size),
        attn_norm_bias=make.vector(hidden) if spec.layernorms else None,
        mixer=None if layer.mixer is None else mixers.allocate(make, layer.mixer, hidden, dense),
        mlp_norm=make.vector(spec.norm_size) if has_second else None,
        mlp_norm_bias=make.vector(hidden) if has_second and spec.layernorms else None,
        router=make.matrix(f32, moe.experts, hidden) if moe else None,
        router_bias=make.vector(moe.experts) if moe and moe.router_bias else None,
        choice_bias=make.vector(moe.experts) if moe and moe.choice_bias else None,
        experts=make.bank(formats.layout(spec, index), moe.experts, index) if moe else None,
        mlp=_allocate_mlp(make, dense, hidden, width, activation) if width else None,
        shared_gate=make.matrix(f32, 1, hidden) if moe and moe.shared_gate else None,
        out_norm=make.vector(hidden) if layer.own_norms else None,
        router_norm=make.vector(hidden) if layer.own_norms else None,
        factors=make.vector(moe.experts) if moe and moe.factors else None,
        tail=_allocate_tail(make, hidden) if layer.own_norms else None,
        mixer_mixing=streams.of_layer(make, spec),
        ffn_mixing=streams.of_layer(make, spec),
        grams=_allocate_grams(make, spec, layer.grams, dense) if layer.grams else None,
        table=make.vector(spec.vocab, moe.top_k) if moe and moe.by_token else None,
        around=_allocate_around(make, moe, hidden, dense) if moe and moe.latent else None,
    )


def _allocate_around(make: _Allocator, moe: MoeSpec, hidden: int, format_of: FormatOf) -> Around:
    return Around(
        into=make.matrix(format_of("experts_in"), moe.latent, hidden),
        back=make.matrix(format_of("experts_back"), hidden, moe.latent),
        norm=make.vector(moe.latent) if moe.latent_norm else None,
    )


def _allocate_tail(make: _Allocator, hidden: int) -> Tail:
    mlp_in, mlp_out, experts_out, out = (make.vector(hidden) for _ in range(4))
    return Tail(mlp_in=mlp_in, mlp_out=mlp_out, experts_out=experts_out, out=out, scale=make.vector(1))


def _allocate_mlp(make: _Allocator, format_of: FormatOf, hidden: int, width: int, activation: Activation) -> Mlp:
    roles = ("mlp_gate", "mlp_up") if activation.gated else ("mlp_up",)
    gate_up = make.stacked([format_of(role) for role in roles], [width] * len(roles), hidden)
    return Mlp(gate_up=gate_up, down=make.matrix(format_of("mlp_down"), hidden, width), activation=activation)
