"""`headrace plan` says what drafts gain."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from terminal import folded

Run = Callable[..., tuple[int, str, str]]
MACHINE = ("--hardware", "ddr5-6000-2ch, 64gb, 16cores", "--quant", "q4_0")


@pytest.mark.parametrize("batch", [1, 4])
def test_the_oftener_a_guess_is_right_the_more_drafts_gain(batch: int, run: Run) -> None:
    status, out, err = run("plan", "Qwen3-30B-A3B", *MACHINE, "--batch", batch, "--json")
    assert status == 0, err
    found = json.loads(out)["drafts"]
    assert [one["accepted"] for one in found] == [0.3, 0.6, 0.9]
    gains, lengths = [one["gain"] for one in found], [one["length"] for one in found]
    assert gains == sorted(gains)
    assert lengths == sorted(lengths)
    assert all(one["gain"] == 1 if one["length"] == 0 else one["gain"] > 1 for one in found)
    # At 90 % even 8 tokens are no more than 1 + 0.9 + ... + 0.9^8 for the price of one.
    assert 1 < gains[-1] < sum(0.9**j for j in range(9))


def test_a_draft_reads_the_experts_of_its_tokens(run: Run) -> None:
    """With few experts all are read in any case, so that drafts gain more than with many."""
    of = {
        name: json.loads(run("plan", name, *MACHINE, "--json")[1])["drafts"][-1]["gain"]
        for name in ("Mixtral-8x7B", "Qwen3-30B-A3B")
    }
    assert of["Mixtral-8x7B"] > of["Qwen3-30B-A3B"] > 1


def test_a_line_says_so(run: Run) -> None:
    text = folded(run("plan", "Qwen3-30B-A3B", *MACHINE)[1])
    assert "drafts gain, by how often a drafted token is right: " in text
    assert " at 90% (" in text


def test_what_a_plan_does_not_count_is_refused_or_said(run: Run) -> None:
    for more in (("--draft-vocabulary", 8192), ("--speculate", "mtp")):
        status, _, err = run("plan", "Qwen3-30B-A3B", *MACHINE, "--hosts", "2x ddr5-6000-2ch 96gb, 10gbe", *more)
        assert status == 1
        assert "is about the model's own layer, which a plan with --hosts does not count" in folded(err)
    status, out, _ = run("plan", "Qwen3-30B-A3B", *MACHINE, "--draft-vocabulary", 8192)
    assert status == 0
    assert "--draft-vocabulary changes nothing: the model has no layer of its own that drafts" in folded(out)
