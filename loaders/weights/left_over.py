"""Tensors of a checkpoint that the model has no place for, and places that no tensor is for: which matter, and why.

What nothing here computes with is read over, and said. For the rest the names tell what the files are.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path

from ...errors import CheckpointError, listed
from ..architecture.tensor_names import LEFT_OUT, PREDICTION, place
from ..families import Family, TensorNames
from ..spec import ModelSpec

# Made anew here, of no use to a model that runs, or of a cache in 8 bits, which there is not.
SPARE: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("rotary tables and masks", re.compile(
        r"(?:^|[._])ple_embedding\.(?:layer_multipliers|ngram_heads_\w+)$|(?:^|[._])(?:rotary_emb|rotary_pos_emb|rope)\.|(?:^|\.)(?:rope_freqs|inv_freq|position_ids|masked_bias"
        r"|(?:causal_|attention_)?mask)\b|\.attn\.bias$"
    )),
    ("scales of an 8-bit cache", re.compile(r"\.(?:[qkv]|kv|prob|prob_output)_scale$")),
    (PREDICTION, re.compile(r"(?:^|\.)(?:mtp\w*|nextn|medusa\w*|eagle\w*)\.")),
    ("counters and states of training", re.compile(r"num_batches_tracked$|(?:^|\.)_*extra_state$|^(?:v_head|score)\.")),
)  # fmt: skip
# Names by which files show that they are something else: what they are, and what to do.
FOREIGN: tuple[tuple[re.Pattern[str], str], ...] = tuple((re.compile(pattern), what) for pattern, what in (
    (r"\.lora_[AB]\.|\.lora_embedding_", "an adapter lies beside its model: merge the two (merge_and_unload)"),
    (r"\.(?:qweight|qzeros|weight_packed|weight_scale\w*|absmax|quant_map|trellis|q_weight)$",
     "the weights are quantised, which config.json does not say: get the unquantised checkpoint"),
    (r"^(?:tok_embeddings\.|layers\.\d+\.attention\.w[qkvo]\b)",
     "these are names of Mistral's and Meta's own releases: get the version in the layout of transformers"),
    (r"^(?:blk\.\d+|token_embd)\.", "these are names of GGUF: get the version in the layout of transformers"),
    (r"word_embeddings\.|linear_qkv\.|query_key_value\.",
     "these are names of Megatron: convert it to the layout of transformers"),
    (r"^(?:unet|vae|first_stage_model|text_encoder)\.", "this is a diffusion model, no language model"),
))  # fmt: skip


def check(
    directory: Path,
    wanted: Collection[str],
    stored: Collection[str],
    family: Family,
    spec: ModelSpec,
    notes: list[str],
) -> None:
    """Says which stored tensors are read over; raises CheckpointError for others that are not wanted."""
    unused = [name for name in stored if name not in wanted]
    more = _decoder_layers(unused, family.tensors, spec)
    kinds = {name: _kind(name, more, family.tensors, spec) for name in unused}
    spare = [kind for kind in kinds.values() if kind]
    if spare:
        notes.append(
            f"{len(spare)} tensors are read over, since nothing here needs them: {', '.join(dict.fromkeys(spare))}"
        )
    left = sorted(name for name, kind in kinds.items() if kind is None)
    if not left:
        return
    if what := _foreign(left):
        raise CheckpointError(f"{directory} has {what}")
    beyond = [layer for name in left if (layer := _layer_beyond(name, family.tensors, spec)) is not None]
    if beyond:
        layers, pattern = len(spec.layers), f"{family.tensors.layer.format(layer=min(beyond))}*"
        raise CheckpointError(
            f"{directory} has {max(beyond) + 1} layers, config.json counts {layers} (num_hidden_layers): it is another "
            f"model's; to run the first {layers} alone, --ignore-tensors '{pattern}', and so on"
        )
    raise CheckpointError(
        f"{directory} has {len(left)} tensors that {family.architecture} does not use, "
        f"{listed([repr(name) for name in left], 2)}: this variant is not supported, or the config is another "
        "model's; if nothing is lost without them, --ignore-tensors PATTERN"
    )


def missing(
    directory: Path, names: list[str], stored: Collection[str], wanted: Collection[str], family: Family
) -> CheckpointError:
    """The error for tensors that are not there, by what is there instead of them."""
    left = sorted(name for name in stored if name not in wanted)
    if what := _foreign(left):
        return CheckpointError(f"{directory} has {what}")
    if names == [family.tensors.head]:
        return CheckpointError(
            f"{directory} has no '{names[0]}', and by config.json the head is not the embedding: the download is "
            "incomplete, or, if the model has no head of its own, set tie_word_embeddings to true there"
        )
    near = difflib.get_close_matches(names[0], left[:2000], n=1, cutoff=0.6) or left[:1]
    found = f"; there is '{near[0]}', which {family.architecture} does not use" if near else ""
    cause = "the config belongs to another model" if near else "the download is incomplete, or the config wrong"
    return CheckpointError(
        f"{directory} lacks {len(names)} of the {len(wanted)} tensors that its config promises, first "
        f"'{names[0]}'{found}: {cause}"
    )


def _foreign(left: Iterable[str]) -> str | None:
    """A name that shows what the files are, and what that is."""
    for pattern, what in FOREIGN:
        if shown := next((name for name in left if pattern.search(name)), None):
            return f"'{shown}': {what}"
    return None


def _kind(name: str, more: Collection[int], names: TensorNames, spec: ModelSpec) -> str | None:
    """What a tensor is that is not needed, "" for the copy of a tied head; None: not known. more: decoder layers that
    the config does not count."""
    if spec.tied_head and name == names.head:
        return ""
    if (layer := _layer_beyond(name, names, spec)) is not None:
        return None if layer in more else PREDICTION
    group = place(name, len(spec.layers))[1]
    return next((what for what, pattern in SPARE if pattern.search(name)), group if group in LEFT_OUT else None)


def _layer_beyond(name: str, names: TensorNames, spec: ModelSpec) -> int | None:
    """The number of the layer that a tensor belongs to, if the config does not count that far."""
    start = names.layer.partition("{layer}")[0]
    number = name.removeprefix(start).partition(".")[0] if name.startswith(start) else ""
    return int(number) if number.isdigit() and int(number) >= len(spec.layers) else None


def _decoder_layers(unused: Iterable[str], names: TensorNames, spec: ModelSpec) -> set[int]:
    """Layers behind the last that are more of the decoder: those for further tokens have parts of their own."""
    layers: defaultdict[int, set[str]] = defaultdict(set)
    for name in unused:
        if (layer := _layer_beyond(name, names, spec)) is not None:
            layers[layer].add(name.removeprefix(names.layer.format(layer=layer)))
    whole = {names.attn_norm, names.mlp_norm}
    return {n for n, have in layers.items() if whole <= have and not any(_predicts(f".{name}") for name in have)}


def _predicts(name: str) -> bool:
    return place(name, 0)[1] == PREDICTION
