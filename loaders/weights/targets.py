"""Where each tensor of a checkpoint goes: name -> `Target`, from a family's names and allocated weights."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

from ...kernels.formats import Part
from ...kernels.packed import ExpertBank, Fitting, GatedMixing, Matrix, Mixing, Mlp, Tail
from ..families.family import TensorNames
from ..spec import ModelSpec
from . import mixers
from .mixers.target import Change, Named, Piece, Target, vector, whole
from .model_weights import PLAIN, LayerWeights, ModelWeights, TierBanks, allocate
from .mtp.weights import MtpWeights
from .tables import gated, grams

__all__ = ["Piece", "Target", "empty_targets", "of_mtp", "targets"]

Parts = tuple[Part, ...]


def targets(spec: ModelSpec, names: TensorNames, weights: ModelWeights) -> dict[str, Target]:
    """The target of every tensor that a checkpoint of this spec must have."""
    embed = whole(weights.embed, "dense" if spec.tied_head else "embed", "embed")
    norm: Change = "plus one" if names.norms_from_one else ""
    found = {names.embed: embed, names.final_norm: vector(weights.final_norm, norm)}
    for name, values in (
        (names.final_norm_bias, weights.final_norm_bias),
        (names.head_bias, weights.head_bias),
        (names.turns, weights.turns),
    ):
        if values is not None:
            found[name] = vector(values)
    if weights.last_mixing is not None:
        found.update(_mixing(names.last_mixing, names, weights.last_mixing))
    if weights.last_fitting is not None:
        found.update(_fitting(*names.last_fitting, weights.last_fitting))
    if not spec.tied_head:
        found[names.head] = whole(weights.head, "dense", "head")
    for i, layer in enumerate(weights.layers):
        prefix = names.layer.format(layer=i)
        found.update({prefix + name: target for name, target in _layer(spec, names, layer, i, norm)})
    return found


def empty_targets(spec: ModelSpec, names: TensorNames) -> dict[str, Target]:
    """The same without memory: names and shapes do not depend on formats."""
    return targets(spec, names, allocate(spec, PLAIN, "meta"))


def of_mtp(spec: ModelSpec, names: TensorNames, it: MtpWeights) -> dict[str, Target]:
    """The target of every tensor of the layer for multi-token prediction. names: as its files have them."""
    norm: Change = "plus one" if names.norms_from_one else ""
    index = len(spec.layers)
    found = {
        names.mtp_project: whole(it.project, "dense", f"{index}.eh_proj"),
        names.mtp_embed_norm: vector(it.embed_norm, norm),
        names.mtp_hidden_norm: vector(it.hidden_norm, norm),
        names.mtp_norm: vector(it.norm, norm),
        **dict(_layer(spec, names, it.layer, index, norm)),
    }
    prefix = names.layer.format(layer=index)
    return {prefix + name: target for name, target in found.items()}


def _layer(spec: ModelSpec, names: TensorNames, layer: LayerWeights, index: int, norm: Change) -> Named:
    at = f"{index}."
    yield names.attn_norm, vector(layer.attn_norm, norm)
    if layer.mlp_norm is not None:
        yield names.mlp_norm, vector(layer.mlp_norm, norm)
    for name, values in ((names.attn_norm_bias, layer.attn_norm_bias), (names.mlp_norm_bias, layer.mlp_norm_bias)):
        if values is not None:
            yield name, vector(values)
    if layer.tail is not None:
        yield from _own_norms(names, layer, layer.tail, norm)
    for name, mixing in zip(names.mixings, (layer.mixer_mixing, layer.ffn_mixing), strict=True):
        if isinstance(mixing, Mixing | GatedMixing):
            yield from _mixing(name, names, mixing)
    for (by, norm_of), fitting in zip(names.fittings, (layer.mixer_mixing, layer.ffn_mixing), strict=True):
        if isinstance(fitting, Fitting):
            yield from _fitting(by, norm_of, fitting)
    if layer.grams is not None:
        yield from grams.targets(names.grams, layer.grams, at, norm)
    mixer = spec.layer_at(index).mixer
    if mixer is not None and layer.mixer is not None:
        yield from mixers.targets(mixer, names, layer.mixer, at, norm)
    if layer.router is not None and layer.experts is not None:
        yield names.router, whole(layer.router)
        if layer.router_bias is not None:
            yield names.router_bias, vector(layer.router_bias)
        if layer.choice_bias is not None:
            bias = vector(layer.choice_bias)
            yield names.choice_bias, replace(bias, shape=(1, *bias.shape)) if names.choice_bias_is_row else bias
        if layer.table is not None:
            yield names.expert_table, replace(whole(Matrix.plain(layer.table)), change="whole numbers")
        yield from of_bank(names, layer.experts, at)
        if layer.around is not None:
            yield names.experts_in, whole(layer.around.into, "dense", at + "experts_in")
            yield names.experts_back, whole(layer.around.back, "dense", at + "experts_back")
            if layer.around.norm is not None:
                yield names.latent_norm, vector(layer.around.norm, norm)
        if layer.mlp is not None:
            yield from _shared(names, layer.mlp, at)
        if layer.shared_gate is not None:
            yield names.shared_expert_gate, whole(layer.shared_gate)
    elif layer.mlp is not None:
        yield from _mlp(layer.mlp, names.mlp_gate, names.mlp_up, names.mlp_down, at)


def _fitting(by: str, norm: str, it: Fitting) -> Named:
    """What states of a residual stream fit to."""
    yield by, vector(it.by)
    if it.norm is not None:
        yield norm, vector(it.norm)


def _mixing(name: str, names: TensorNames, it: Mixing | GatedMixing) -> Named:
    """Of several streams. name: with a place for that of each part."""
    if isinstance(it, GatedMixing):
        yield from gated.targets(name, names.gates, it)
        return
    yield name.format("fn"), whole(it.fn)
    yield name.format("base"), vector(it.base)
    yield name.format("scale"), vector(it.scale)


def of_bank(names: TensorNames, bank: ExpertBank | TierBanks, at: str) -> Named:
    """Of a layer's routed experts. at: the layer's number and a point."""
    yield from _experts(names, bank, at)
    if bank.layout.biased:
        yield from _expert_biases(names, bank)


def _own_norms(names: TensorNames, layer: LayerWeights, tail: Tail, norm: Change) -> Named:
    """What a layer with norms behind its parts has more."""
    for name, weights in (
        (names.out_norm, layer.out_norm),
        (names.mlp_in, tail.mlp_in),
        (names.mlp_out, tail.mlp_out),
        (names.experts_out, tail.experts_out),
        (names.ffn_out, tail.out),
    ):
        if weights is not None:
            yield name, vector(weights, norm)
    if layer.router_norm is not None:
        yield names.router_norm, vector(layer.router_norm, "over root")
    if layer.factors is not None:
        yield names.factors, vector(layer.factors)
    yield names.layer_scale, vector(tail.scale)


def _experts(names: TensorNames, bank: ExpertBank | TierBanks, at: str) -> Named:
    """Each tensor holds the rows of some parts, of one expert or of all of the layer one after the other; with
    `gate_up_in_turns` gate and up by turns."""
    fused: list[tuple[str | None, Parts]] = [(names.fused_gate_up, ("gate", "up"))]
    separate: list[tuple[str | None, Parts]] = [(names.expert_gate, ("gate",)), (names.expert_up, ("up",))]
    separate = separate if bank.layout.activation.gated else separate[1:]
    for name, parts in [*(fused if names.fused_gate_up else separate), (names.expert_down, ("down",))]:
        assert name is not None
        places = tuple(at + part for part in parts)
        by_turns = names.gate_up_in_turns and len(parts) == 2
        if "{e}" in name:
            for e in range(bank.experts):
                one = [bank.matrix(e, part) for part in parts]
                shape, pieces = (sum(m.rows for m in one), one[0].cols), _stack(one, by_turns)
                yield name.format(e=e), Target(shape, pieces, "experts", places)
            continue
        matrices = [bank.matrix(e, part) for e in range(bank.experts) for part in parts]
        rows, cols = sum(m.rows for m in matrices) // bank.experts, matrices[0].cols
        pieces = _stack(matrices, by_turns)
        if names.experts_turned:
            yield name, Target((bank.experts, cols, rows), _turned(pieces, rows), "experts", places)
        else:
            yield name, Target((bank.experts, rows, cols), pieces, "experts", places)


def _expert_biases(names: TensorNames, bank: ExpertBank | TierBanks) -> Named:
    """A tensor has a row for each expert: the biases of gate and up, side by side or by turns, or of one part."""
    fused: list[tuple[str | None, Parts]] = [(names.fused_gate_up_bias, ("gate", "up"))]
    separate: list[tuple[str | None, Parts]] = [(names.expert_gate_bias, ("gate",)), (names.expert_up_bias, ("up",))]
    for name, parts in [*(fused if names.fused_gate_up_bias else separate), (names.expert_down_bias, ("down",))]:
        assert name is not None
        pieces, by_turns = [], names.gate_up_in_turns and len(parts) == 2
        for e in range(bank.experts):
            biases = [bias for part in parts if (bias := bank.bias(e, part)) is not None]
            columns = _stack([Matrix.plain(bias.view(-1, 1)) for bias in biases], by_turns)
            pieces += [Piece(e, piece.into, column=piece.first, step=piece.step) for piece in columns]
        size = sum(piece.into.rows for piece in pieces) // bank.experts
        yield name, Target((bank.experts, size), tuple(pieces))


def _stack(matrices: list[Matrix], by_turns: bool = False) -> tuple[Piece, ...]:
    """Matrices one below the other, or each two of them row by row in turns."""
    if by_turns:
        rows = matrices[0].rows
        return tuple(Piece(i // 2 * 2 * rows + i % 2, m, step=2) for i, m in enumerate(matrices))
    ends = accumulate(m.rows for m in matrices)
    return tuple(Piece(end - m.rows, m) for end, m in zip(ends, matrices, strict=True))


def _turned(pieces: tuple[Piece, ...], rows: int) -> tuple[Piece, ...]:
    """The same of a tensor whose columns are the matrices' rows, `rows` of them side by side."""
    return tuple(
        Piece(piece.first // rows * piece.into.cols, piece.into, column=piece.first % rows, step=piece.step)
        for piece in pieces
    )


def _shared(names: TensorNames, mlp: Mlp, at: str) -> Named:
    """The shared expert, its gate and up apart or one below the other."""
    if names.shared_gate_up is None:
        yield from _mlp(mlp, names.shared_gate, names.shared_up, names.shared_down, at)
        return
    width = mlp.down.cols
    halves = [mlp.gate_up.slice_rows(0, width), mlp.gate_up.slice_rows(width, 2 * width)]
    places = (at + "mlp_gate", at + "mlp_up")
    yield names.shared_gate_up, Target((2 * width, halves[0].cols), _stack(halves), "dense", places)
    yield names.shared_down, whole(mlp.down, "dense", at + "mlp_down")


def _mlp(mlp: Mlp, gate: str, up: str, down: str, at: str) -> Named:
    width = mlp.down.cols
    first = mlp.gate_up.rows - width  # of up: there may be no gate
    if first:
        yield gate, whole(mlp.gate_up.slice_rows(0, width), "dense", at + "mlp_gate")
    yield up, whole(mlp.gate_up.slice_rows(first, first + width), "dense", at + "mlp_up")
    yield down, whole(mlp.down, "dense", at + "mlp_down")
