"""The decoder: one forward pass of any grouped-query mixture-of-experts model, driven by its `ModelSpec`.

    x = embed(ids)
    each layer:  x += attention(norm(x));  x += mlp(norm(x))      one op, or two a layer with the seam between
    logits = head(norm(x))

It never says where a weight lies, on how many threads an op runs, or which family this is. Shapes are named as in
`kernels/reference.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...kernels import Ops
from ...kernels.decoder_layer import AttentionBlock, Choice, Layer, Router, Stack, run_layers
from ...kernels.packed import ExpertBank
from ...loaders.spec import ModelSpec
from ...loaders.weights.model_weights import LayerWeights, ModelWeights
from ..experts.backend import Experts
from ..ledger.ledger import Ledger
from ..ledger.pass_bytes import common_bytes, dense_sizes
from . import rope
from .batch import Inputs
from .inputs import Home
from .kv_cache import KVCache

Choose = Callable[[int, Choice], Choice]


class Decoder:
    """Weights, cache and experts of one model, and the ops that run it."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: ModelWeights,
        ops: Ops,
        experts: Experts,
        cache: KVCache,
        ledger: Ledger,
        max_context: int,
        home: Home,
    ) -> None:
        self.spec = spec
        self.weights = weights
        self.ops = ops
        self.experts = experts
        self.cache = cache
        self.ledger = ledger
        self.home = home
        self.cos, self.sin = map(home.device.put, rope.tables(spec.rope, max_context))
        self.stack = Stack(layers=tuple(self._layer(layer, i) for i, layer in enumerate(weights.layers)))
        self.sizes = dense_sizes(weights)
        self.choose: Choose | None = None  # what becomes of the router's choice in a layer: for a test, or a trace

    def _layer(self, layer: LayerWeights, index: int) -> Layer:
        block = self._block(layer, index)
        bank = layer.experts if isinstance(layer.experts, ExpertBank) else None  # else it is behind the seam
        return Layer(block=block, bank=bank, mlp=layer.mlp, shared_gate=layer.shared_gate)

    def _block(self, layer: LayerWeights, index: int) -> AttentionBlock:
        spec, moe, router = self.spec, self.spec.moe, None
        k_PGBd, v_PGBd = self.cache.layers[index]
        if layer.router is not None:
            router = Router(matrix=layer.router, top_k=moe.top_k, scoring=moe.scoring, renormalise=moe.renormalise)
        return AttentionBlock(
            heads=spec.attention.heads,
            pre_norm=layer.attn_norm,
            qkv=layer.qkv,
            qkv_bias=layer.qkv_bias,
            q_norm=layer.q_norm,
            k_norm=layer.k_norm,
            o=layer.o,
            o_bias=layer.o_bias,
            post_norm=layer.mlp_norm,
            k_PGBd=k_PGBd,
            v_PGBd=v_PGBd,
            cos_Pr=self.cos,
            sin_Pr=self.sin,
            eps=spec.norm_eps,
            clip=spec.attention.clip,
            scale=spec.attention.scale,
            residual_scale=spec.residual_scale,
            router=router,
        )

    def forward(self, inputs: Inputs) -> Tensor:
        """Runs the new tokens through all layers, writing their keys and values; logits float32 [rows, vocabulary]."""
        return self.run(self.home.take(self.enter(inputs)), self.experts)

    def enter(self, inputs: Inputs) -> Inputs:
        """What a pass does before its device has a part: books what it reads besides experts, and looks up embedding
        rows that lie elsewhere."""
        self._book(inputs)
        inputs = self.home.look_up(self.weights.embed, inputs, self.spec.embedding_scale)
        self.home.book(inputs)
        return inputs

    def run(self, inputs: Inputs, experts: Experts) -> Tensor:
        """The rest of a pass: inputs are on the device, `experts` are behind the seam. It books nothing itself, and
        asks for no value of a tensor, so that it can be recorded."""
        spec, ops = self.spec, self.ops
        x_TD = self.home.embed(self.weights.embed, inputs, spec.embedding_scale)
        x_TD, update_TD = self._layers(x_TD, inputs, experts)
        if x_TD.shape[0] == 0:
            return x_TD.new_empty(0, spec.vocab)
        h_TD = ops.add_rmsnorm_(x_TD, update_TD, self.weights.final_norm, spec.norm_eps, spec.residual_scale)
        logits = ops.linear(h_TD, self.weights.head)
        if spec.logits_divisor != 1:
            logits.div_(spec.logits_divisor)
        return logits

    def _layers(self, x_TD: Tensor, inputs: Inputs, experts: Experts) -> tuple[Tensor, Tensor]:
        """All layers, in one call if all experts lie where the rest does: x and what is still to be added to it. After
        the last attention only those tokens go on that are asked for."""
        rows_R = inputs.rows if len(inputs.rows) < len(inputs.ids_T) else None
        if self.choose is None and experts.is_local:
            x_TD, update_TD, distinct_L = self.ops.layers(x_TD, self.stack, inputs.places, rows_R)
            experts.book(distinct_L.tolist())
            return x_TD, update_TD
        seam = experts if self.choose is None else _Chosen(experts, self.choose)
        return run_layers(self.ops, x_TD, self.stack, inputs.places, rows_R, seam)

    def _book(self, inputs: Inputs) -> None:
        """Books what a pass reads besides experts: the dense weights, the embedding rows, the cache, the head."""
        found = common_bytes(
            self.sizes,
            self.cache.token_bytes,
            tokens=len(inputs.ids_T),
            context=inputs.context,
            logits=len(inputs.rows) > 0,
            home=self.home.device.tier.channel,
            table=self.home.table.tier.channel,
        )
        for channel, groups in found.items():
            for group, size in groups.items():
                self.ledger.read(channel, group, size)


class _Chosen:
    """The seam with `Decoder.choose` before it."""

    def __init__(self, experts: Experts, choose: Choose) -> None:
        self.experts = experts
        self.choose = choose

    def submit(self, layer: int, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Any:
        return self.experts.submit(layer, x_TD, *self.choose(layer, (ids_TK, weights_TK)))

    def collect(self, job: Any) -> Tensor:
        return self.experts.collect(job)
