"""Which layer and group a stored tensor belongs to, by its name in safetensors or GGUF.

Used where headers are read for a plan, of families that the engine may not run; loading goes by the exact names of
`families/`. What a plan leaves out: layers for multi-token prediction, vision and audio.
"""

from __future__ import annotations

import re
from functools import lru_cache

from .architecture import GROUPS, Group

PREDICTION, OTHER_INPUTS = "multi-token prediction", "vision and audio"
LEFT_OUT = (PREDICTION, OTHER_INPUTS)
GROUP_OF: dict[str, Group] = {group: group for group in GROUPS}

# Of the first layer for multi-token prediction as ERNIE-4.5 stores it: what joins its inputs, and the layer itself.
MTP_PART = re.compile(r"(?:.*\.)?mtp_(linear_proj|emb_norm|hidden_norm|block)\.0\.(.*)")
_NUMBER = re.compile(r"\d+")
_LAYER = re.compile(r"(?:^|\.)(?:layers|blk|h)\.(\d{1,9})\.")
# The first that matches decides.
_GROUPS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (group, re.compile(pattern))
    for group, pattern in (
        (PREDICTION, r"(?:^|\.)mtp\w*\.|\.nextn\.|\.eh_proj|\.enorm|\.hnorm|shared_head"),
        (
            OTHER_INPUTS,
            r"(?:^|\.)(?:visual|vision\w*|audio\w*|\w*projector|talker|code2wav|token2wav|tts|image_newline|v\.blk|mm|aligner"
            r"|embed_vision|embed_audio|resampler|vpm|apm|patch_merger|pre_mm_projector_norm)(?:\.|$)",
        ),
        ("router", r"shared_expert_gate|gate_inp|exp_probs_b|e_score_correction|\.router[._]|expert_bias|router_bias"),
        ("router", r"per_expert_scale|ffn_down_exps\.scale"),
        ("tables", r"tid\deid"),
        ("router", r"moe_statics|(?:mlp|moe|ffn|block_sparse_moe|feed_forward|mixer)\.gate\."),
        (
            "shared",
            r"shared_expert|share_expert|shared_mlp|_shexp|fc[12]_latent|ffn_latent|routed_expert_(?:down|up)|ffn_routed_(?:down|up)",
        ),
        ("experts", r"\.experts\.|(?<!norm)_exps|moe\.(?:gate|up|down)_proj|block_sparse_moe\.(?:input|output)_linear"),
        ("experts", r"ffn_(?:gate|up|down)\.\d+\."),
        ("tables", r"ngram|embed_tokens_per_layer|per_layer_token_embd"),
        ("head", r"(?:^|\.)(?:lm_head|head|output)\.(?:weight|bias|qweight|scales)$"),
        ("embedding", r"(?:^|\.)(?:embed_tokens|token_embd|embeddings|embed|wte)\.weight"),
        ("norms", r"norm[._\d]|_hc[._]|hc_|rope_freqs|layer_scalar|layer_output_scale"),
        ("attention", r"attn|attention|mixer|mamba|\.conv\.|shortconv|ssm_|indexer"),
        ("dense", r"mlp|feed_forward|ffn"),
    )
)


def alike(name: str) -> str:
    """A name with 0 for each of its numbers: tensors of all layers and experts have few of these."""
    return _NUMBER.sub("0", name)


@lru_cache(maxsize=1 << 14)
def _group(name: str) -> str | None:
    return next((group for group, pattern in _GROUPS if pattern.search(name)), None)


def place(name: str, layers: int) -> tuple[int | None, str]:
    """The layer (None: outside of layers) and the group of a tensor; an unknown name outside counts as "norms"."""
    group = _group(alike(name))
    match = _LAYER.search(name)
    layer = int(match[1]) if match else None
    if group in LEFT_OUT:
        return None, group
    if layer is not None and layer >= layers:  # stored behind the last layer of the decoder
        return None, PREDICTION
    return layer, group or ("attention" if layer is not None else "norms")
