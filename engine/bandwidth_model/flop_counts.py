"""FLOPs of a real architecture: grouped-query or latent attention, shared experts, dense layers, recurrent states.

A matrix of a layer costs two FLOPs an element and token, attention two for every multiply-add over what the query sees,
norms and activations are left out (they are below one percent). The article's own counts are in `planning/articles.py`.
"""

from __future__ import annotations

from ...kernels.formats import KV_BF16, KVFormat
from ...loaders.architecture.architecture import Architecture, Cache, Layer, Mixer

TURNING = 8  # tokens that keys made of latents cost besides, as `kernels/mixers.py` has it, which needs torch
CACHE_WIDTH, STATE_WIDTH = 2, 4  # bytes of an element: bf16 keys and values where nobody chose, float32 states


def layer_flops(layer: Layer) -> int:
    """Of one token in all matrices of a layer, routed experts left out; recurrent states included."""
    matrices = sum(part.elements for part in layer.parts if part.rows > 1)
    return 2 * matrices + state_flops(layer)


def state_flops(layer: Layer) -> int:
    """Of one token in the recurrent state of a layer."""
    return layer.mixer.state_flops if layer.mixer else 0


def expert_flops(layer: Layer) -> int:
    """Of one token in the routed experts that it activates."""
    return 2 * layer.experts.top_k * layer.experts.elements if layer.experts else 0


def head_flops(model: Architecture) -> int:
    return 2 * model.head.elements


def attention_flops(layer: Layer, context: int, decode: bool) -> int:
    """Of one query at a context of so many tokens: scores and weighted sum over the entries that it sees."""
    mixer = layer.mixer
    if mixer is None or not mixer.caches:
        return 0
    pair = mixer.decode_pair_flops if decode and mixer.decode_pair_flops else mixer.pair_flops
    return pair * _entries(mixer.caches[0], context)


def intensity(mixer: Mixer, queries: int = 1, context: int = 1, kv: KVFormat = KV_BF16) -> float:
    """FLOPs of one query's attention for a byte of its cache; with grouped queries the heads of a group. Of latents the
    way that takes fewer of so many new tokens, the last of so many in the cache: to attend to them, or to make keys and
    values, whose making for the new tokens counts with the matrices, in place of what it saves there."""
    pairs = queries * context - queries * (queries - 1) // 2
    flops = pairs * mixer.pair_flops + (context - queries + TURNING) * mixer.made_flops
    if mixer.decode_pair_flops is not None:
        flops = min(flops, pairs * mixer.decode_pair_flops) if mixer.made_flops else pairs * mixer.decode_pair_flops
    return flops / (pairs * kv.bytes(mixer.caches[0].width))


def _entries(cache: Cache, context: int) -> int:
    return cache.read(context) // cache.width


def decode_flops(model: Architecture, context: int) -> int:
    """Of one decoded token that sees `context` tokens."""
    layers = sum(layer_flops(x) + expert_flops(x) + attention_flops(x, context, True) for x in model.layers)
    return layers + head_flops(model)


def prefill_flops(model: Architecture, tokens: int) -> int:
    """Of a prompt: every token sees those before it, half of the prompt on average; the head runs for the last one."""
    per_token = sum(
        layer_flops(x) + expert_flops(x) + attention_flops(x, (tokens + 1) // 2, False) for x in model.layers
    )
    return tokens * per_token + head_flops(model)
