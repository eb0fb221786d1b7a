"""Sampled text with drafts has the distribution without: chi-squared over 10^5 tokens of a table of likelihoods."""

from __future__ import annotations

import random

import pytest
import torch

from headrace import SamplingParams
from headrace.engine.generation.sampler import sample
from headrace.engine.generation.schedule.batch import Batch
from headrace.engine.generation.sequence import Sequence, make_sequence
from headrace.engine.speculation.verify import accept, first_rows
from headrace.kernels import load
from headrace.kernels.context import Context

VOCAB, TOKENS, SEQUENCES = 8, 100_000, 50
OPS = load("cpu", Context())
TABLE = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(7)) * 1.5  # logits behind each token


def write(sequences: list[Sequence], tokens: int, right: float) -> list[int]:
    """How many drafted tokens held; sequences grow to so many tokens, by drafts of which a share is the likeliest."""
    guess, held = random.Random(1), 0

    def take(sequence: Sequence, token: int) -> bool:
        sequence.tokens.append(token)
        return True

    while min(len(one.tokens) for one in sequences) < tokens:
        drafts: dict[int, list[int]] = {}
        rows = []
        for i, sequence in enumerate(sequences):
            last, drafts[i] = sequence.tokens[-1], []
            rows.append(last)
            for _ in range(guess.randrange(1, 5)):
                likely = int(TABLE[last].argmax())
                last = likely if guess.random() < right else guess.randrange(VOCAB)
                drafts[i].append(last)
                rows.append(last)
        counts = [1 + len(draft) for draft in drafts.values()]
        for sequence in sequences:
            sequence.computed = len(sequence.tokens) - 1
        batch = Batch(sequences, counts, len(sequences), drafts)
        logits = TABLE[rows]
        first, starts = first_rows(logits, batch)
        for sequence, token in zip(sequences, sample(first, sequences, OPS), strict=True):
            take(sequence, token)
        held += sum(accept(logits, batch, starts, sample, OPS, take).values())
    return [held]


@pytest.mark.parametrize(("right", "how"), [(0.9, {}), (0.5, {"top_p": 0.9})])
def test_pairs_of_tokens_come_as_often_as_they_are_likely(right: float, how: dict[str, float]) -> None:
    temperature = 0.8
    params = [
        SamplingParams(max_new_tokens=10 * TOKENS, temperature=temperature, seed=seed, **how)  # type: ignore[arg-type]
        for seed in range(SEQUENCES)
    ]
    sequences = [make_sequence(i, [i % VOCAB], one) for i, one in enumerate(params)]
    (held,) = write(sequences, TOKENS // SEQUENCES, right)
    counts = torch.zeros(VOCAB, VOCAB, dtype=torch.float64)
    for sequence in sequences:
        tokens = torch.tensor(sequence.tokens[: TOKENS // SEQUENCES])
        counts += torch.bincount(tokens[:-1] * VOCAB + tokens[1:], minlength=VOCAB**2).view(VOCAB, VOCAB)
    assert held > 0.1 * TOKENS
    expected = _likelihoods(temperature, how) * counts.sum(1, keepdim=True)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    chi = float((((counts - expected) ** 2)[possible] / expected[possible]).sum())
    freedom = int(possible.sum()) - VOCAB
    assert chi < freedom + 4 * (2 * freedom) ** 0.5, f"chi-squared {chi:.1f} with {freedom} degrees of freedom"


def test_the_statistics_would_find_a_draft_that_is_believed() -> None:
    """The same test refuses text in which one token of twenty is the likeliest whatever was drawn."""
    generator = torch.Generator().manual_seed(3)
    likely = _likelihoods(0.8, {})
    wrong = 0.95 * likely + 0.05 * torch.nn.functional.one_hot(likely.argmax(1), VOCAB)
    drawn = torch.multinomial(wrong, TOKENS // VOCAB, True, generator=generator)
    counts = torch.stack([torch.bincount(row, minlength=VOCAB) for row in drawn]).double()
    expected = likely * counts.sum(1, keepdim=True)
    freedom = VOCAB * (VOCAB - 1)
    assert float(((counts - expected) ** 2 / expected).sum()) > freedom + 4 * (2 * freedom) ** 0.5


def _likelihoods(temperature: float, how: dict[str, float]) -> torch.Tensor:
    """Behind each token those of all: float64 [before, behind]."""
    found = (TABLE.double() / temperature).softmax(-1)
    values, ids = found.sort(descending=True)
    if "top_k" in how:
        values[:, int(how["top_k"]) :] = 0
    if "top_p" in how:
        values[values.cumsum(-1) - values >= how["top_p"]] = 0
    found = torch.zeros_like(found).scatter(1, ids, values)
    return found / found.sum(-1, keepdim=True)
