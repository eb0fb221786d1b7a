"""The decoder: one forward pass of any grouped-query mixture-of-experts model, driven by its `ModelSpec`.

    x = embed(ids)
    each layer:  x += attention(norm(x));  x += mlp(norm(x))      all up to the experts is one op
    logits = head(norm(x))

It never says where a weight lies, on how many threads an op runs, or which family this is. Shapes are named as in
`kernels/reference.py`.
"""

from __future__ import annotations

from torch import Tensor

from ..kernels import AttentionBlock, Choice, Ops, Router
from ..loaders.spec import ModelSpec
from ..loaders.weights import LayerWeights, Mlp, ModelWeights
from . import rope
from .experts import Experts
from .kvcache import KVCache
from .ledger import CPU_DRAM, Ledger
from .planner import DENSE, HEAD, KV, dense_bytes, dense_sizes, kv_bytes
from .scheduler import Inputs


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
    ) -> None:
        self.spec = spec
        self.weights = weights
        self.ops = ops
        self.experts = experts
        self.cache = cache
        self.ledger = ledger
        self.cos, self.sin = rope.tables(spec.rope, max_context)
        self.blocks = [self._block(layer, i) for i, layer in enumerate(weights.layers)]
        self.sizes = dense_sizes(weights)

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
        spec, ops = self.spec, self.ops
        self._book(inputs)
        x_TD = ops.embed(self.weights.embed, inputs.ids_T, spec.embedding_scale)
        update_TD: Tensor | None = None
        for i, layer in enumerate(self.weights.layers):
            rows = self._rows(i, inputs)
            x_TD, h_TD, choice = ops.attention_block(x_TD, update_TD, self.blocks[i], inputs.places, rows)
            if x_TD.shape[0] == 0:
                return x_TD.new_empty(0, spec.vocab)  # its keys and values are written, and nobody asks for more
            update_TD = self._mlp(i, layer, h_TD, choice)
        assert update_TD is not None, "a model without layers"
        h_TD = ops.add_rmsnorm_(x_TD, update_TD, self.weights.final_norm, spec.norm_eps, spec.residual_scale)
        logits = ops.linear(h_TD, self.weights.head)
        if spec.logits_divisor != 1:
            logits.div_(spec.logits_divisor)
        return logits

    def _rows(self, index: int, inputs: Inputs) -> Tensor | None:
        """The tokens that go on after the attention of a layer: after the last one, only those that are asked for."""
        if index < len(self.blocks) - 1:
            return None
        return inputs.rows if len(inputs.rows) < len(inputs.ids_T) else None

    def _mlp(self, index: int, layer: LayerWeights, h_TD: Tensor, choice: Choice | None) -> Tensor:
        if choice is None:
            assert layer.mlp is not None
            return self._dense(layer.mlp, h_TD)
        ids_TK, weights_TK = self.choose(index, choice)
        job = self.experts.submit(index, h_TD, ids_TK, weights_TK)
        if layer.mlp is None:
            return self.experts.collect(job)
        shared_TD = self._dense(layer.mlp, h_TD)
        gate_T1 = None if layer.shared_gate is None else self.ops.linear(h_TD, layer.shared_gate)
        y_TD = self.experts.collect(job)
        self.ops.gated_add_(y_TD, shared_TD, gate_T1)
        return y_TD

    def choose(self, index: int, choice: Choice) -> Choice:
        """What becomes of the router's choice in layer `index`: nothing; a test or a trace may put its own here."""
        return choice

    def _dense(self, mlp: Mlp, h_TD: Tensor) -> Tensor:
        return self.ops.linear(self.ops.silu_mul(self.ops.linear(h_TD, mlp.gate_up)), mlp.down)

    def _book(self, inputs: Inputs) -> None:
        """Books what a pass reads besides experts: the dense weights, the embedding rows, the cache, the head."""
        tokens, context, logits = len(inputs.ids_T), inputs.context, len(inputs.rows) > 0
        self.ledger.read(CPU_DRAM, DENSE, dense_bytes(self.sizes, tokens, logits))
        self.ledger.read(CPU_DRAM, KV, kv_bytes(self.sizes, tokens, context, self.cache.token_bytes, logits))
        if logits:
            self.ledger.read(CPU_DRAM, HEAD, self.weights.head.nbytes)
