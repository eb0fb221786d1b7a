"""Sampling rules against frequencies and against rules worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from headrace import OptionError, SamplingParams
from headrace.engine.generation import sampler
from headrace.engine.generation.sampler import penalise
from headrace.engine.generation.sequence import Sequence, make_sequence
from headrace.kernels import load


def sequence(prompt: list[int], completion: list[int] | None = None, **params: Any) -> Sequence:
    one = make_sequence(0, prompt, SamplingParams(**params))
    one.tokens += completion or []
    return one


def sample(logits: torch.Tensor, sequences: list[Sequence]) -> list[int]:
    return sampler.sample(logits, sequences, load("cpu"))


def draw(logits: torch.Tensor, count: int, **params: Any) -> torch.Tensor:
    """How often each token is drawn, as shares."""
    one = sequence([0], temperature=params.pop("temperature", 1.0), seed=7, **params)
    drawn = torch.tensor([sample(logits.unsqueeze(0), [one])[0] for _ in range(count)])
    return torch.bincount(drawn, minlength=len(logits)) / count


LOGITS = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05]).log()


def test_greedy_takes_the_largest_and_the_lowest_of_equals() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [4.0, 4.0, 1.0]])
    assert sample(logits, [sequence([0]), sequence([0])]) == [1, 0]


def test_draws_follow_the_softmax() -> None:
    assert (draw(LOGITS, 4000) - LOGITS.exp()).abs().max() < 0.03


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_divides_the_logits(temperature: float) -> None:
    wanted = (LOGITS / temperature).softmax(-1)
    assert (draw(LOGITS, 4000, temperature=temperature) - wanted).abs().max() < 0.03


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({"top_k": 2}, [0, 1]),
        ({"top_p": 0.5}, [0]),
        ({"top_p": 0.6}, [0, 1]),
        ({"top_p": 0.85}, [0, 1, 2]),
        ({"min_p": 0.25}, [0, 1, 2]),
        ({"top_k": 3, "top_p": 0.75}, [0, 1]),  # of the three, the first two hold 0.7 / 0.85
    ],
)
def test_rules_keep_the_right_tokens(params: dict[str, Any], kept: list[int]) -> None:
    shares = draw(LOGITS, 2000, **params)
    wanted = torch.zeros(5)
    wanted[kept] = LOGITS[kept].softmax(-1)
    assert (shares - wanted).abs().max() < 0.04
    assert shares[wanted == 0].sum() == 0


def test_a_temperature_near_zero_is_greedy() -> None:
    one = sequence([0], temperature=1e-40, seed=1)
    assert {sample(torch.tensor([[1.0, 1.001, 0.5]]), [one])[0] for _ in range(20)} == {1}


def test_top_p_over_a_large_vocabulary_keeps_the_shortest_run() -> None:
    """More tokens than the short list that is looked at first."""
    logits = torch.zeros(5000)
    one = sequence([0], temperature=1.0, top_p=0.5, seed=1)
    drawn = {sample(logits.unsqueeze(0), [one])[0] for _ in range(3000)}
    assert 1500 < len(drawn) <= 2501


def test_repetition_penalty_touches_prompt_and_completion_once() -> None:
    logits = torch.tensor([2.0, -2.0, 1.0, 3.0])
    got = penalise(logits, sequence([0, 0, 1], [3], repetition_penalty=2.0))
    assert got.tolist() == [1.0, -4.0, 1.0, 1.5]
    assert logits.tolist() == [2.0, -2.0, 1.0, 3.0], "the caller's logits stay"


def test_presence_penalty_touches_the_completion_only() -> None:
    got = penalise(torch.zeros(4), sequence([0, 1], [2, 2], presence_penalty=1.5))
    assert got.tolist() == [0.0, 0.0, -1.5, 0.0]


def test_same_seed_same_draws_whatever_the_neighbours() -> None:
    alone = sequence([0], temperature=1.0, seed=3)
    first = [sample(LOGITS.unsqueeze(0), [alone])[0] for _ in range(20)]
    again, other = sequence([0], temperature=1.0, seed=3), sequence([0], temperature=1.0, seed=4)
    both = [sample(LOGITS.repeat(2, 1), [other, again])[1] for _ in range(20)]
    assert first == both
    assert len(set(first)) > 1


def test_without_a_seed_runs_differ() -> None:
    runs = []
    for _ in range(2):
        one = sequence([0], temperature=1.0)
        runs.append([sample(torch.zeros(1, 1000), [one])[0] for _ in range(8)])
    assert runs[0] != runs[1]


def test_logits_that_are_not_finite_are_an_error_of_their_sequence() -> None:
    for bad in (float("nan"), float("inf")):
        one, other = sequence([0]), sequence([0])
        assert sample(torch.tensor([[0.0, bad], [0.0, 1.0]]), [one, other])[1] == 1
        assert "not finite" in str(one.failure)
        assert other.failure is None


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"temperature": -1}, "temperature"), ({"temperature": float("nan")}, "temperature"), ({"top_p": -1}, "top_p"),
        ({"top_p": 1.5}, "top_p"), ({"top_k": -2}, "top_k"), ({"min_p": 2}, "min_p"), ({"stop": ("",)}, "stop"),
        ({"max_new_tokens": 0}, "max_new_tokens"), ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": float("inf")}, "presence_penalty"), ({"temperature": "hot"}, "temperature"),
        ({"top_k": 2.5}, "top_k"), ({"seed": 10**23}, "seed"),
    ],
)  # fmt: skip
def test_values_outside_their_range_are_refused(params: dict[str, Any], name: str) -> None:
    with pytest.raises(OptionError, match=name):
        SamplingParams(**params)
