"""One pass of a layer for multi-token prediction: two inputs joined, then a decoder of one layer, with the model's own
embedding and head.

    x_i = project(norm(embedding of token i + 1), norm(hidden state of token i))
    h_i = final norm of the layer's output; its head says token i + 2

The hidden state is the model's behind its final norm, as vLLM hands it to such layers (`qwen3_next_mtp.py`,
`deepseek_mtp.py`); for a token further it is h_i itself. Knows one pass, no sequence.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ....kernels import Ops
from ....kernels.formats import KVFormat
from ....kernels.packed import ExpertBank
from ....loaders.spec import ModelSpec
from ....loaders.weights.model_weights import ModelWeights
from ....loaders.weights.mtp.weights import MtpWeights
from ...experts.backend import CpuExperts
from ...ledger.timers import Timers
from ...model.batch import Inputs
from ...model.decoder import Decoder, Output
from ...model.inputs import DeviceInputs
from ...model.kv_cache import KVCache


class MtpLayer:
    """weights: of the model, whose spec and `mtp` say what the layer is. pages: of its cache, which are those of the
    model's under the same numbers. inputs: the model's way to the device where all of it lies, but for the embedding;
    the layer's passes come between those of the model, so that both may use one buffer."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: ModelWeights,
        inputs: DeviceInputs,
        pages: int,
        format: KVFormat,
        max_context: int,
    ) -> None:
        assert spec.mtp is not None, "a model without a layer for multi-token prediction"
        assert weights.mtp is not None, "a spec with such a layer, and no weights of it"
        self.spec, self.own, self.main = replace(spec, layers=(spec.mtp,), mtp=None), weights.mtp, inputs.device
        main = inputs.device
        cache = KVCache(self.spec, pages, format, main.place)
        whole = replace(weights, layers=(self.own.layer,), final_norm=self.own.norm, tables={}, mtp=None)
        bank = self.own.layer.experts
        assert bank is None or isinstance(bank, ExpertBank), "experts of the layer on several tiers"
        inputs = replace(inputs, timers=Timers(None))
        experts = CpuExperts([bank], main.ops)
        self.decoder = Decoder(self.spec, whole, main.ops, experts, cache, max_context, inputs)
        sizes, joining = self.decoder.sizes, sum(one.nbytes for one in self.own.own.values()) - self.own.norm.nbytes
        self.decoder.sizes = replace(sizes, layers=sizes.layers + joining)

    def forward(self, inputs: Inputs, hidden_TD: Tensor) -> Output:
        """Of tokens and the hidden states before them: logits of the wanted rows, and what the next state is."""
        way, table, scale = self.decoder.device_inputs, self.decoder.weights.embed, self.spec.embedding_scale
        if self.main.is_host:
            x_TD = joined(self, self.main.ops, way.embed(table, inputs, scale), hidden_TD)
            return self.decoder.forward(replace(inputs, x_TD=x_TD))
        inputs = way.look_up(table, inputs, scale)
        read = way.bytes_of(inputs, self.decoder.sizes, self.decoder.cache.sizes)
        inputs = way.take(inputs)
        x_TD = joined(self, self.main.ops, way.embed(table, inputs, scale), hidden_TD)
        return self.decoder.through(x_TD, inputs)._replace(read=read)


def joined(layer: MtpLayer, ops: Ops, embedded_TD: Tensor, hidden_TD: Tensor) -> Tensor:
    """What goes into the layer: float32 [T, D]."""
    own: MtpWeights = layer.own
    parts = (
        ops.rmsnorm(embedded_TD, own.embed_norm, layer.spec.norm_eps),
        ops.rmsnorm(hidden_TD, own.hidden_norm, layer.spec.norm_eps),
    )
    return ops.linear(torch.cat(parts, dim=1), own.project)
