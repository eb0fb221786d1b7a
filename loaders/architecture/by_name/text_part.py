"""The text model of a config that wraps it together with vision, audio or speech: found by what it holds.

Wrappers call it text_config, language_config, llm_config, thinker_config.text_config and more. It is the part with the
sizes of a decoder; where there are several, names and experts decide.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
TEXT = re.compile(r"text|language|llm|thinker|decoder|backbone")
NOT_TEXT = re.compile(
    r"vision|visual|vit|audio|speech|talker|code2wav|token2wav|tts|image|video|encoder|draft|mtp|projector"
)
# What a wrapper says for all its parts.
FOR_ALL = (
    "quantization_config", "quantization", "compression_config", "tie_word_embeddings", "torch_dtype", "dtype",
)  # fmt: skip


def text_part(values: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The config of the text model, and a note on what is not counted; the config itself where it wraps nothing."""
    found = [(path, part) for path, part in _parts(values, ()) if not NOT_TEXT.search(".".join(path))]
    named = [pair for pair in found if TEXT.search(".".join(pair[0]))]
    is_whole = any(key in values for key in LAYERS)
    if not found or (is_whole and not named):
        return values, ()
    path, inner = max(
        named or found, key=lambda pair: ("expert" in " ".join(pair[1]), "vocab_size" in pair[1], -len(pair[0]))
    )
    outer = {key: values[key] for key in FOR_ALL if key in values}
    kind = {"model_type": values["model_type"]} if "model_type" in values else {}
    others = sorted(key for key in values if NOT_TEXT.search(key) and isinstance(values[key], dict) and values[key])
    beside = f"; left out: {', '.join(others)}" if others else ""
    return {**outer, **kind, **inner}, (f"the text model is taken, {'.'.join(path)} of the config{beside}",)


def _parts(values: dict[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every part, however deep, that has layers."""
    for key, value in values.items():
        if isinstance(value, dict) and len(path) < 3:
            if any(name in value for name in LAYERS):
                yield (*path, key), value
            yield from _parts(value, (*path, key))
