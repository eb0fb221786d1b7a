"""Which dialect a model writes: as its user says, as its chat template or its vocabulary spells, or as its family does.

A template shows how calls of earlier turns are written, so what it spells is what the model was trained on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..tokenizer import Tokenizer
from .dialect import Dialect
from .families import (
    DEEPSEEK_V3,
    DSML,
    GEMMA_4,
    GLM,
    GRANITE_3,
    HARMONY,
    HERMES,
    KIMI,
    MINIMAX,
    MISTRAL,
    NONE,
    QWEN_CODER,
    THINKING,
    named,
)

# What a template spells, all of it, from what is unmistakable to what many have.
SIGNS: tuple[tuple[Dialect, tuple[str, ...]], ...] = (
    (HARMONY, ("<|channel|>", "<|message|>")),
    (DSML, ("｜DSML｜",)),
    (KIMI, ("<|tool_call_begin|>",)),
    (DEEPSEEK_V3, ("<｜tool▁call▁begin｜>",)),
    (MINIMAX, ("<minimax:tool_call>",)),
    (GEMMA_4, ("<|tool_call>",)),
    (GLM, ("<arg_key>",)),
    (QWEN_CODER, ("<function=", "<parameter=")),
    (MISTRAL, ("[TOOL_CALLS]",)),
    (GRANITE_3, ("<|tool_call|>",)),
    (HERMES, ("<tool_call>",)),
    (THINKING, ("</think>",)),
)
# By model_type, where neither template nor vocabulary says anything.
FAMILIES = {
    "qwen3_moe": HERMES, "qwen2_moe": HERMES, "qwen3_next": HERMES, "qwen3_5_moe": QWEN_CODER,
    "granitemoehybrid": HERMES, "deepseek_v3": DEEPSEEK_V3, "deepseek_v32": DSML, "deepseek_v4": DSML,
    "kimi_k2": KIMI, "gpt_oss": HARMONY, "glm4_moe": GLM, "glm4_moe_lite": GLM, "minimax_m2": MINIMAX,
    "gemma4": GEMMA_4, "glm_moe_dsa": GLM, "kimi_linear": KIMI, "mistral4": MISTRAL, "nemotron_h": QWEN_CODER,
    "mistral_large4": MISTRAL, "minimax_m3_vl": MINIMAX, "glm5_next": GLM, "qwen4_exp": QWEN_CODER,
}  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """A dialect, and what it was chosen by: "name", "template", "vocabulary", "family" or "nothing"."""

    dialect: Dialect
    by: str

    def __str__(self) -> str:
        if self.by == "nothing":
            return "none: neither the chat template nor the vocabulary spells calls or reasoning"
        return f"{self.dialect.name}, by {'its' if self.by == 'name' else 'the'} {self.by}"


def choose(
    tokenizer: Tokenizer | None, *, template: str | None = None, family: str | None = None, wanted: str | None = None
) -> Choice:
    """The dialect of a model.

    template: the text of the chat template in use; the tokenizer's own if None. family: its model_type. wanted: the
    name of a dialect that the user asks for. Raises TokenizerError for a name that there is none of.
    """
    if wanted is not None:
        return Choice(named(wanted), "name")
    texts = [template] if template is not None else _templates(tokenizer)
    spelled = _spelled(texts)
    if spelled not in (None, THINKING):
        return Choice(spelled or NONE, "template")
    tokens = _spelled([" ".join(tokenizer.added_tokens)]) if tokenizer is not None else None
    if tokens not in (None, THINKING, HERMES):  # many vocabularies have tokens for those, and templates that say more
        return Choice(tokens or NONE, "vocabulary")
    if not texts and (tokens or family in FAMILIES):
        return Choice(tokens, "vocabulary") if tokens else Choice(FAMILIES[family or ""], "family")
    return Choice(spelled, "template") if spelled else Choice(NONE, "nothing")


def _templates(tokenizer: Tokenizer | None) -> list[str]:
    return [] if tokenizer is None else [one.text for one in tokenizer.templates.values()]


def _spelled(texts: Iterable[str]) -> Dialect | None:
    """The first dialect whose signs are all in the texts."""
    whole = "\n".join(texts)
    return next((dialect for dialect, signs in SIGNS if all(sign in whole for sign in signs)), None)
