"""The decoder: one forward pass of any mixture-of-experts model, driven by its `ModelSpec`.

    x = embed(ids)
    each layer:  x += mixer(norm(x));  x += experts(norm(x)), an MLP, or both      `layers`, or one fused call
    logits = head(norm(x))

It never says where a weight lies, on how many threads an op runs, or which family this is. Shapes are named as in
`kernels/reference.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from ...kernels import Ops
from ...kernels.decoder_layer import TOKENS, Layer, Stack, added_and_normed, beside, finish_, mlp
from ...kernels.packed import GatedMixing, Mixing
from ...kernels.passes.tally import Choice, Tally
from ...kernels.residual.around import back, into
from ...kernels.residual.banked import taken
from ...kernels.residual.gated import weigh
from ...kernels.residual.streams import added, closed, opened, weighed
from ...loaders.spec import BankedStreamsSpec, ModelSpec, StreamsSpec
from ...loaders.weights.model_weights import ModelWeights
from ..experts.backend import Chosen, CpuExperts, ExpertBackend
from ..ledger.pass_bytes import EXPERTS, dense_sizes, table_bytes
from ..ledger.passes import CPU_DRAM, Bytes, LayerWork, add_bytes
from .batch import Inputs
from .inputs import DeviceInputs
from .kv_cache import KVCache
from .prepare import make_stack

Choose = Callable[[int, Choice], Choice]


class Output(NamedTuple):
    """Of a pass. logits: float32 [rows, vocabulary]. read: its bytes as the ledger has them, but for those of `layers`:
    what the experts of each layer read and sent, to be asked when the device is done. likeliest: of each row the
    largest logit and where it stands, if they are in memory of the host already. by_layer: bytes of each layer's
    experts, where they are in `read`. chosen: what each layer chose, to be asked as `layers`. tally: what the
    call of all layers has counted, with the choices where they are wanted; then `chosen` has none. hidden: float32
    [., hidden] behind the final norm (`Decoder.before_norm`: in front of it), of the rows of logits, or with
    `Decoder.goes_on` of all tokens; of a captured step with that alone."""

    logits: Tensor
    read: Bytes
    layers: Callable[[], list[LayerWork]] = list
    likeliest: tuple[Tensor, Tensor] | None = None
    by_layer: tuple[int, ...] = ()
    chosen: Callable[[], list[Chosen]] = list
    tally: Tally | None = None
    hidden: Tensor | None = None


class Ends(NamedTuple):
    """Of a pass that tells no bytes. logits: float32 [R, V]; hidden: float32 [T, D] behind the final norm, None where
    nothing goes on from there."""

    logits: Tensor
    hidden: Tensor | None = None


class Beyond(Protocol):
    """Runs layers that are not the decoder's own, with their caches."""

    def begin(self, is_idle: bool) -> bool:
        """To be called between two passes: whether what was in the caches is gone. is_idle: nobody has anything
        there."""

    def run(self, x_TX: Tensor, inputs: Inputs, tally: Tally | None) -> tuple[Tensor, Bytes]:
        """The residual streams behind all of them, of the rows whose logits are wanted, float32 [R, X]; and what was
        read and sent. Raises CacheLost."""

    def close(self) -> None:
        """Lets go of whoever runs them."""


class Head:
    """Hidden states to logits, by all rows of the head or by some that are neighbours."""

    def __init__(self, spec: ModelSpec, weights: ModelWeights) -> None:
        self.spec = spec
        self.weight, self.bias = weights.head, weights.head_bias

    def part(self, start: int, stop: int) -> Head:
        """Rows [start, stop) as views."""
        found = copy(self)
        found.weight = self.weight.slice_rows(start, stop)
        found.bias = None if self.bias is None else self.bias[start:stop]
        return found

    def __call__(self, ops: Ops, h_TD: Tensor) -> Tensor:
        """Logits: float32 [R, rows]."""
        if h_TD.shape[0] == 0:
            return h_TD.new_empty(0, self.weight.rows)
        logits = ops.linear(h_TD, self.weight, self.bias)
        if self.spec.logits_divisor != 1:
            logits.div_(self.spec.logits_divisor)
        if self.spec.logits_cap is not None:
            logits.div_(self.spec.logits_cap).tanh_().mul_(self.spec.logits_cap)
        return logits


class Decoder:
    """Weights, cache and experts of one model, and the ops that run it. beyond: runs the layers, if these are others
    than the decoder's own."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: ModelWeights,
        ops: Ops,
        experts: ExpertBackend,
        cache: KVCache,
        max_context: int,
        device_inputs: DeviceInputs,
        may_make_keys: bool = True,
        beyond: Beyond | None = None,
    ) -> None:
        self.spec, self.beyond = spec, beyond
        self.weights = weights
        self.ops = ops
        self.experts = experts
        self.cache = cache
        self.device_inputs = device_inputs
        device = device_inputs.device
        self.stack: Stack = make_stack(spec, weights, cache, max_context, device.put, device.is_host and may_make_keys)
        self.sizes = dense_sizes(weights)
        self.head: Callable[[Ops, Tensor], Tensor] = Head(spec, weights)  # hidden states to logits
        self.goes_on = False  # whether all tokens go to the end, not only those whose logits are wanted
        self.before_norm = False  # whether states that are handed out are those in front of the final norm
        self.goes_by_tokens = bool(weights.tables) or any(layer.table is not None for layer in weights.layers)
        self.choose: Choose | None = None  # what becomes of the router's choice in a layer, for a test

    def forward(self, inputs: Inputs, tally: Tally | None = None) -> Output:
        """Runs the new tokens through all layers, writing their keys and values. tally: takes in who chose which
        expert, where all layers are one call."""
        if self.goes_by_tokens:
            inputs.places.chosen[TOKENS] = inputs.ids_T
        entered, read = self.enter(inputs)
        inputs = self.device_inputs.take(entered)
        if self.beyond is not None:
            x_TX, more = self.beyond.run(self._embed(inputs), inputs, tally)
            add_bytes(read, more)
            return Output(self._ends(x_TX, None, inputs)[0], read, tally=tally)
        if self.choose is None and isinstance(self.experts, CpuExperts):
            return self._fused(inputs, self.experts, read, tally)
        experts = self.experts if self.choose is None else ForcedChoice(self.experts, self.choose)
        x_TD, update_TD, chosen = self.layers(self._embed(inputs), inputs, experts)
        logits, hidden = self._ends(x_TD, update_TD, inputs)
        works = lambda: [experts.work(one) for one in chosen]  # noqa: E731
        return Output(logits, read, works, chosen=lambda: chosen, hidden=hidden)

    def through(self, x_TD: Tensor, inputs: Inputs) -> Output:
        """All layers and the head, of what goes into the first layer; all on the device. Of bytes it tells those of
        experts alone."""
        x_TD, update_TD, chosen = self.layers(x_TD, inputs, self.experts)
        logits, hidden = self._ends(x_TD, update_TD, inputs)
        return Output(logits, {}, lambda: [self.experts.work(one) for one in chosen], hidden=hidden)

    def enter(self, inputs: Inputs) -> tuple[Inputs, Bytes]:
        """What a pass does before its device has a part: looks up embedding rows that lie elsewhere. Besides, what the
        pass will read and send, but for experts."""
        inputs = self.device_inputs.look_up(self.weights.embed, inputs, self.spec.embedding_scale)
        read = self.device_inputs.bytes_of(inputs, self.sizes, self.cache.sizes, goes_on=self.goes_on)
        add_bytes(read, table_bytes(self.spec, self.weights, len(inputs.ids_T)))
        return inputs, read

    def run(self, inputs: Inputs, experts: ExpertBackend) -> Ends:
        """The rest of a pass, of inputs on the device. It asks for no value of a tensor, so that it can be captured in
        a graph."""
        x_TD, update_TD, _ = self.layers(self._embed(inputs), inputs, experts)
        logits, hidden = self._ends(x_TD, update_TD, inputs)
        return Ends(logits, hidden if self.goes_on else None)

    def layers(self, x_TD: Tensor, inputs: Inputs, experts: ExpertBackend) -> tuple[Tensor, Tensor, list[Chosen]]:
        """All layers: x, what is still to be added to it, and what each layer's experts had to do. After the last
        attention only those tokens go on whose logits are wanted."""
        update_TD: Tensor | None = None
        chosen: list[Chosen] = []
        for i, layer in enumerate(self.stack.layers):
            rows_R = self._rows(inputs) if i == len(self.stack.layers) - 1 else None
            x_TD, h_TD, choice = self.ops.attention_block(x_TD, update_TD, layer.block, inputs.places, rows_R)
            if x_TD.shape[0] == 0:
                return x_TD, h_TD, chosen  # its keys and values are written, and nobody asks for more
            if choice is None:  # a layer without an MLP ends with its mixer: h is what is to be added
                update_TD = h_TD if layer.mlp is None else mlp(self.ops, layer.mlp, h_TD)
            else:
                update_TD, one = self._experts(i, layer, x_TD, h_TD, choice, experts)
                chosen.append(one)
        assert update_TD is not None, "a model without layers"
        return x_TD, update_TD, chosen

    def _experts(
        self, index: int, layer: Layer, x_TD: Tensor, h_TD: Tensor, choice: Choice, experts: ExpertBackend
    ) -> tuple[Tensor, Chosen]:
        """A layer's routed experts, with the shared one computed meanwhile: float32 [T, D]. x: the residual stream."""
        job = experts.submit(index, into(self.ops, layer.around, h_TD), *choice)
        if layer.tail is not None:
            beside_TD = beside(self.ops, x_TD, layer, layer.tail)
            y_TD, chosen = experts.collect(job)
            return finish_(self.ops, x_TD, y_TD, beside_TD, layer.tail, layer.block.eps), chosen
        if layer.mlp is None:
            y_TD, chosen = experts.collect(job)
            return back(self.ops, layer.around, y_TD, layer.block.eps), chosen
        shared_TD = mlp(self.ops, layer.mlp, h_TD)
        gate_T1 = None if layer.shared_gate is None else self.ops.linear(h_TD, layer.shared_gate)
        y_TD, chosen = experts.collect(job)
        y_TD = back(self.ops, layer.around, y_TD, layer.block.eps)
        self.ops.gated_add_(y_TD, shared_TD, gate_T1, shared_TD)  # y may be memory of the host, to be read once
        return shared_TD, chosen

    def _fused(self, inputs: Inputs, experts: CpuExperts, read: Bytes, tally: Tally | None) -> Output:
        """`forward` where all experts lie beside attention: all layers in one call, of which `layers` is the twin."""
        x_TD = self._embed(inputs)
        x_TD, update_TD, distinct_L = self.ops.layers(x_TD, self.stack, inputs.places, self._rows(inputs), tally)
        by_layer = experts.bytes_of(distinct_L.tolist())
        add_bytes(read, {CPU_DRAM: {EXPERTS: sum(by_layer)}})
        logits, hidden = self._ends(x_TD, update_TD, inputs)
        return Output(logits, read, by_layer=by_layer, tally=tally, hidden=hidden)

    def _rows(self, inputs: Inputs) -> Tensor | None:
        """The rows that go on behind the last mixer; None: all."""
        return None if self.goes_on else inputs.wanted_rows

    def _embed(self, inputs: Inputs) -> Tensor:
        x_TD = self.device_inputs.embed(self.weights.embed, inputs, self.spec.embedding_scale)
        return x_TD if self.spec.streams is None else opened(x_TD, self.spec.streams.count)

    def _ends(self, x_TD: Tensor, update_TD: Tensor | None, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Logits of the wanted rows, and the hidden states of all that are left. update: None where it was added
        before."""
        h_TD = self._normed(x_TD, update_TD)  # the update is in x then
        wanted_R = inputs.wanted_rows if self.goes_on else None
        logits = self.head(self.ops, h_TD if wanted_R is None else h_TD[wanted_R])
        return logits, x_TD if self.before_norm else h_TD

    def _normed(self, x_TD: Tensor, update_TD: Tensor | None) -> Tensor:
        """Hidden states of the rows that are left, behind the final norm: float32 [R, D]."""
        spec, ops, weights = self.spec, self.ops, self.weights
        if x_TD.shape[0] == 0:
            return x_TD.new_empty(0, spec.hidden)
        norm = weights.final_norm, weights.final_norm_bias, spec.norm_eps
        if spec.streams is None:
            return added_and_normed(ops, x_TD, update_TD, *norm, spec.residual_scale)
        if isinstance(weights.last_mixing, Mixing) and isinstance(spec.streams, StreamsSpec):
            x_TmD = added(ops, x_TD, update_TD, spec.streams.count)
            end_TD = weighed(ops, weights.last_mixing, x_TmD, spec.streams.eps, spec.norm_eps)
            return ops.rmsnorm(end_TD, weights.final_norm, spec.norm_eps)
        if isinstance(spec.streams, BankedStreamsSpec):
            assert weights.last_fitting is not None, "states that nothing brings together"
            x_TmD = added(ops, x_TD, update_TD, spec.streams.count)
            by_D = weights.last_fitting.whole
            return taken(ops, x_TmD, spec.streams.count - 1, by_D, weights.final_norm, spec.norm_eps)
        if isinstance(weights.last_mixing, GatedMixing):
            x_TmD = added(ops, x_TD, update_TD, spec.streams.count)
            return weigh(ops, weights.last_mixing, x_TmD, weights.final_norm, spec.norm_eps).taken_TD
        return ops.rmsnorm(closed(ops, x_TD, update_TD, spec.streams.count), weights.final_norm, spec.norm_eps)


class ForcedChoice:
    """Experts with `Decoder.choose` before them."""

    def __init__(self, experts: ExpertBackend, choose: Choose) -> None:
        self.experts, self.choose = experts, choose
        self.collect, self.work = experts.collect, experts.work

    def submit(self, layer: int, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Any:
        return self.experts.submit(layer, x_TD, *self.choose(layer, (ids_TK, weights_TK)))
