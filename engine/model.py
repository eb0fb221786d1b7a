"""The decoder: one forward pass of any grouped-query mixture-of-experts model, driven by its `ModelSpec`.

    x = embed(ids)
    each layer:  x += attention(norm(x));  x += mlp(norm(x))      the sum and the next norm are one op
    logits = head(norm(x))

It never says where a weight lies, on how many threads an op runs, or which family this is. Shapes are named as in
`kernels/reference.py`.
"""

from __future__ import annotations

from torch import Tensor

from ..kernels import Ops
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
        norms = [layer.attn_norm for layer in weights.layers] + [weights.final_norm]
        self.norm_after = norms[1:]
        self.sizes = dense_sizes(weights)

    def forward(self, inputs: Inputs) -> Tensor:
        """Runs the new tokens through all layers, writing their keys and values; logits float32 [rows, vocabulary]."""
        spec, ops = self.spec, self.ops
        self._book(inputs)
        x_TD = ops.embed(self.weights.embed, inputs.ids_T, spec.embedding_scale)
        h_TD = ops.rmsnorm(x_TD, self.weights.layers[0].attn_norm, spec.norm_eps)
        for i, layer in enumerate(self.weights.layers):
            q_TNd = self._project(i, layer, h_TD, inputs)
            if layer is self.weights.layers[-1] and not len(inputs.rows):
                return x_TD.new_empty(0, spec.vocab)  # its keys and values are written, and nobody asks for more
            a_TN = self._attend(i, q_TNd, inputs)
            if layer is self.weights.layers[-1] and len(inputs.rows) < len(x_TD):
                a_TN, x_TD = a_TN[inputs.rows], x_TD[inputs.rows]  # after the last attention tokens are on their own
            a_TD = ops.linear(a_TN, layer.o, layer.o_bias)
            h_TD = ops.add_rmsnorm_(x_TD, a_TD, layer.mlp_norm, spec.norm_eps, spec.residual_scale)
            m_TD = self._mlp(i, layer, h_TD)
            h_TD = ops.add_rmsnorm_(x_TD, m_TD, self.norm_after[i], spec.norm_eps, spec.residual_scale)
        logits = ops.linear(h_TD, self.weights.head)
        if spec.logits_divisor != 1:
            logits.div_(spec.logits_divisor)
        return logits

    def _project(self, index: int, layer: LayerWeights, h_TD: Tensor, inputs: Inputs) -> Tensor:
        """Queries of the new tokens [T, heads, head size], rotated; their keys and values go into the cache."""
        ops, att = self.ops, self.spec.attention
        qkv = ops.linear(h_TD, layer.qkv, layer.qkv_bias)
        heads = qkv.view(len(qkv), -1, att.head_dim)
        q_TNd: Tensor
        q_TNd, k_TGd, v_TGd = heads.split([att.heads, att.kv_heads, att.kv_heads], dim=1)
        if layer.q_norm is not None and layer.k_norm is not None:
            self._normalise(qkv, layer.q_norm, 0, att.q_rows)
            self._normalise(qkv, layer.k_norm, att.q_rows, att.kv_rows)
        if att.clip is not None:
            qkv.clamp_(-att.clip, att.clip)
        ops.rope_(heads[:, : att.heads + att.kv_heads], self.cos, self.sin, inputs.positions_T)
        ops.kv_write_(*self.cache.layers[index], k_TGd, v_TGd, inputs.slots_T)
        return q_TNd

    def _attend(self, index: int, q_TNd: Tensor, inputs: Inputs) -> Tensor:
        """Attention of the new tokens over the cache: [T, heads * head size]."""
        tables, starts, contexts = inputs.tables_SM, inputs.starts_S1, inputs.contexts_S
        k_cache, v_cache = self.cache.layers[index]
        out = self.ops.attention(q_TNd, k_cache, v_cache, tables, starts, contexts, self.spec.attention.scale)
        return out.view(len(q_TNd), -1)

    def _normalise(self, qkv: Tensor, weight: Tensor, start: int, rows: int) -> None:
        """RMSNorm in place over heads, or over all of them, whichever the weight's length says."""
        part = qkv[:, start : start + rows]
        self.ops.rmsnorm_(part.unflatten(1, (-1, len(weight))), weight, self.spec.norm_eps)

    def _mlp(self, index: int, layer: LayerWeights, h_TD: Tensor) -> Tensor:
        if layer.router is None:
            assert layer.mlp is not None
            return self._dense(layer.mlp, h_TD)
        ids_TK, weights_TK = self.choose(index, self.ops.linear(h_TD, layer.router))
        job = self.experts.submit(index, h_TD, ids_TK, weights_TK)
        if layer.mlp is None:
            return self.experts.collect(job)
        shared_TD = self._dense(layer.mlp, h_TD)
        gate_T1 = None if layer.shared_gate is None else self.ops.linear(h_TD, layer.shared_gate)
        y_TD = self.experts.collect(job)
        self.ops.gated_add_(y_TD, shared_TD, gate_T1)
        return y_TD

    def choose(self, index: int, logits_TE: Tensor) -> tuple[Tensor, Tensor]:
        """Experts and their weights for the tokens of layer `index`; a test or a trace may put its own choice here."""
        moe = self.spec.moe
        return self.ops.route(logits_TE, moe.top_k, moe.scoring, moe.renormalise)

    def _dense(self, mlp: Mlp, h_TD: Tensor) -> Tensor:
        return self.ops.linear(self.ops.silu_mul(self.ops.linear(h_TD, mlp.gate_up)), mlp.down)

    def _book(self, inputs: Inputs) -> None:
        """Books what a pass reads besides experts: the dense weights, the embedding rows, the cache, the head."""
        tokens, context, logits = len(inputs.ids_T), int(inputs.contexts_S.sum()), len(inputs.rows) > 0
        self.ledger.read(CPU_DRAM, DENSE, dense_bytes(self.sizes, tokens, logits))
        self.ledger.read(CPU_DRAM, KV, kv_bytes(self.sizes, tokens, context, self.cache.token_bytes, logits))
        if logits:
            self.ledger.read(CPU_DRAM, HEAD, self.weights.head.nbytes)
