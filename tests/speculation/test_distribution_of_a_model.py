"""Sampled text of a model that drafts are verified by has the model's own distribution: chi-squared, from the request
to the text.

The model's attention writes nothing, so that its likelihoods depend on the last token alone, and a table of them is all
there is to know. HEADRACE_DRAWN=100000 takes as many tokens; fewer are drawn else.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator

import pytest
import torch
from scripted_drafts import speculate
from torch import Tensor
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from headrace import LLM, SamplingParams
from headrace.engine.generation.sequence import Sequence
from headrace.engine.speculation import drafts
from headrace.engine.speculation.drafter import Draft
from headrace.kernels import Ops

VOCAB, TOGETHER, LENGTH = 16, 64, 400  # tokens; sequences; tokens of each
DRAWN = int(os.environ.get("HEADRACE_DRAWN", "25600"))
SURE = 3.0902  # standard deviations of 0.999
LEAST = 5.0  # expected of a token; rarer ones of a row count as one


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    torch.manual_seed(3)
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(
        vocab_size=VOCAB, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=32, intermediate_size=64, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2,
        norm_topk_prob=True, max_position_embeddings=1024, tie_word_embeddings=False,
    ))  # fmt: skip
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.lm_head.weight.normal_(std=0.35)  # the likeliest token is drawn about half of the time
    path = tmp_path_factory.mktemp("memoryless")
    model.save_pretrained(path)
    with LLM(
        str(path), dtype="float32", max_context=LENGTH + 1, max_sequences=TOGETHER, speculate="off", no_measure=True
    ) as llm:
        yield llm


@pytest.fixture(scope="module")
def likelihoods(llm: LLM) -> Tensor:
    """Behind each token those of all: float64 [before, behind]."""
    return torch.stack([llm.logits([token])[-1] for token in range(VOCAB)]).double().softmax(-1)


class Likeliest:
    """Drafts the likeliest of the first tokens one after the other, one of ten by chance."""

    is_free, token_s = True, 0.0

    def __init__(self, likelihoods: Tensor, first: int = VOCAB) -> None:
        self.next = likelihoods[:, :first].argmax(-1).tolist()
        self.random, self.first = random.Random(1), first

    def draft(self, sequence: Sequence, most: int) -> Draft:
        said = [sequence.tokens[-1]]
        for _ in range(most):
            said.append(self.next[said[-1]] if self.random.random() < 0.9 else self.random.randrange(self.first))
        return Draft(said[1:], "script", range(self.first, VOCAB))

    def forget(self, sequence: Sequence) -> None:
        """Nothing is known of one sequence alone."""


def write(llm: LLM, likelihoods: Tensor, drawn: int, first: int = VOCAB) -> tuple[Tensor, int, int]:
    """How often each token came behind each, float64 [before, behind], of so many tokens at temperature 1; tokens that
    were drafted and accepted."""
    speculate(llm, Likeliest(likelihoods, first), length=3)  # type: ignore[arg-type]
    many = -(-drawn // LENGTH)
    params = [SamplingParams(max_new_tokens=LENGTH, temperature=1.0, ignore_eos=True, seed=i) for i in range(many)]
    with llm.ledger.recording() as passes:
        texts = llm.generate([[i % VOCAB] for i in range(many)], params)
    counts = torch.zeros(VOCAB * VOCAB, dtype=torch.float64)
    for i, text in enumerate(texts):
        tokens = torch.tensor([i % VOCAB, *text.token_ids])
        counts += torch.bincount(tokens[:-1] * VOCAB + tokens[1:], minlength=VOCAB**2)
    return counts.view(VOCAB, VOCAB), sum(p.drafted for p in passes), sum(p.accepted for p in passes)


def chi_squared(counts: Tensor, likelihoods: Tensor) -> tuple[float, int]:
    """The statistic of all rows together, and its degrees of freedom; tokens that are expected less than LEAST times in
    a row count as one."""
    chi, freedom = 0.0, 0
    for seen, expected in zip(counts, likelihoods * counts.sum(1, keepdim=True), strict=True):
        rare = expected < LEAST
        groups = [*zip(seen[~rare].tolist(), expected[~rare].tolist(), strict=True)]
        rest = float(seen[rare].sum()), float(expected[rare].sum())
        groups += [rest] if rest[1] >= LEAST else []
        chi += sum((n - mean) ** 2 / mean for n, mean in groups)
        freedom += max(0, len(groups) - 1)
    return chi, freedom


def quantile(freedom: int) -> float:
    """What chi-squared stays below in 999 of 1000 cases, by Wilson and Hilferty."""
    part = 2 / (9 * freedom)
    return freedom * (1 - part + SURE * math.sqrt(part)) ** 3


def test_likelihoods_depend_on_the_last_token_alone(llm: LLM, likelihoods: Tensor) -> None:
    for before in ([3], [7, 7, 1], list(range(VOCAB))):
        found = llm.logits([*before, 5])[-1].double().softmax(-1)
        assert torch.allclose(found, likelihoods[5], atol=1e-6)


def test_tokens_come_as_often_as_they_are_likely(llm: LLM, likelihoods: Tensor) -> None:
    counts, drafted, accepted = write(llm, likelihoods, DRAWN)
    assert counts.sum() >= DRAWN
    assert drafted > 0.5 * DRAWN
    assert 0.25 < accepted / drafted < 0.6  # of up to three, those behind a wrong one being none
    chi, freedom = chi_squared(counts, likelihoods)
    assert freedom > VOCAB * VOCAB / 4
    assert chi < quantile(freedom), f"chi-squared {chi:.1f} with {freedom} degrees of freedom"


def test_drafts_of_the_first_tokens_alone_leave_the_others_as_likely(llm: LLM, likelihoods: Tensor) -> None:
    """A drafter that cannot say twelve of the sixteen tokens."""
    counts, drafted, accepted = write(llm, likelihoods, DRAWN, first=4)
    assert drafted > 0.5 * DRAWN
    assert 0.02 < accepted / drafted < 0.4
    chi, freedom = chi_squared(counts, likelihoods)
    assert freedom > VOCAB * VOCAB / 4
    assert chi < quantile(freedom), f"chi-squared {chi:.1f} with {freedom} degrees of freedom"


def test_drafts_that_are_believed_are_found(llm: LLM, likelihoods: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same test of the same path, but one drafted token of four holds whatever was drawn."""
    chance, rightly = random.Random(2), drafts.accept

    def accept(logits, batch, starts, draw, ops, take):  # type: ignore[no-untyped-def]
        held = {id(batch.sequences[i]): (draft, len(batch.sequences[i].tokens)) for i, draft in batch.drafts.items()}

        def believing(logits: Tensor, sequences: list[Sequence], ops: Ops) -> list[int]:
            drawn = draw(logits, sequences, ops)
            for i, sequence in enumerate(sequences):
                draft, start = held[id(sequence)]
                place = len(sequence.tokens) - start + 1
                if place < len(draft) and chance.random() < 0.25:
                    drawn[i] = draft[place]
            return drawn

        return rightly(logits, batch, starts, believing, ops, take)

    monkeypatch.setattr(drafts, "accept", accept)
    chi, freedom = chi_squared(write(llm, likelihoods, DRAWN)[0], likelihoods)
    assert chi > quantile(freedom)


@pytest.mark.parametrize(("bias", "is_found"), [(0.0, False), (0.05, True)])
def test_the_statistic_tells_a_bias_of_one_token_in_twenty(bias: float, is_found: bool, likelihoods: Tensor) -> None:
    """10^5 tokens drawn from a table, of which a share is the likeliest whatever was drawn."""
    likeliest = torch.nn.functional.one_hot(likelihoods.argmax(1), VOCAB)
    table = (1 - bias) * likelihoods + bias * likeliest
    drawn = torch.multinomial(table, 100_000 // VOCAB, True, generator=torch.Generator().manual_seed(3))
    counts = torch.stack([torch.bincount(row, minlength=VOCAB) for row in drawn]).double()
    chi, freedom = chi_squared(counts, likelihoods)
    assert (chi > quantile(freedom)) == is_found


def test_the_quantile_is_that_of_tables() -> None:
    assert [round(quantile(n), 1) for n in (10, 100, 400)] == pytest.approx([29.6, 149.4, 493.1], abs=0.3)
