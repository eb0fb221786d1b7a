"""How far the positions of a model reach, by its config."""

from __future__ import annotations

from ..families.config_reader import ConfigReader

CONTEXT = (
    "max_position_embeddings", "model_max_length", "max_seq_len", "max_sequence_length", "seq_length", "n_positions",
)  # fmt: skip
NO_LIMIT = 2**48


def context_length(c: ConfigReader) -> int:
    """Tokens that the positions reach to, with what yarn adds; without limit where no number says one, since it changes
    no size."""
    longest = c.get(*CONTEXT)
    longest = NO_LIMIT if not isinstance(longest, int) or longest < 1 else longest
    for name in ("rope_scaling", "rope_parameters"):
        rope = c.get(name)
        for kind in ("full_attention", "compress"):
            if isinstance(rope, dict) and isinstance(of_kind := rope.get(kind), dict):
                rope = of_kind
        if isinstance(rope, dict) and "yarn" in (rope.get("rope_type"), rope.get("type")):
            original, factor = rope.get("original_max_position_embeddings") or longest, rope.get("factor")
            if isinstance(original, int) and isinstance(factor, (int, float)) and 0 < factor < NO_LIMIT:
                longest = max(longest, int(original * factor))
    return longest
