"""Perplexity: which tokens are scored with what before them, and that its numbers are transformers' and statistics'."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from headrace import LLM, OptionError
from headrace.engine.bench.quality.perplexity import Scores, Window, change, of_scores, perplexity, score, windows
from headrace.loaders.hub.locate import DEMO_DIRECTORY

Run = Callable[..., tuple[int, str, str]]
HELD_OUT = Path(__file__).parents[2] / "demo" / "heldout.txt"


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("demo", dtype="float32")


@pytest.fixture(scope="module")
def teacher() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(DEMO_DIRECTORY, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def ids(llm: LLM) -> list[int]:
    return llm.encode(HELD_OUT.read_text(encoding="utf-8"))[:2000]


def oracle(model: PreTrainedModel, ids: list[int], window: int, stride: int) -> torch.Tensor:
    """transformers' negative log-likelihoods, every token by a window of its own: the first one that holds it, as the
    definition says, without a plan of windows."""
    found = []
    logits: dict[int, torch.Tensor] = {}
    for token in range(1, len(ids)):
        start = max(0, math.ceil((token + 1 - window) / stride)) * stride
        if start == token:
            continue
        if start not in logits:
            with torch.no_grad():
                logits[start] = model(torch.tensor([ids[start : start + window]])).logits[0].double().log_softmax(-1)
        found.append(-logits[start][token - 1 - start, ids[token]])
    return torch.stack(found)


@pytest.mark.parametrize(("window", "stride"), [(512, 512), (512, 128), (300, 299), (256, 100), (2000, 7)])
def test_the_demo_model_has_the_perplexity_that_transformers_finds(
    window: int, stride: int, llm: LLM, teacher: PreTrainedModel, ids: list[int]
) -> None:
    window = min(window, llm.parts.kv_budget.max_context)
    part = ids[:1000] if stride == 7 else ids
    wanted = oracle(teacher, part, window, stride)
    found = perplexity(llm, part, window, stride)
    assert found.tokens == len(wanted)
    assert found.value == pytest.approx(float(wanted.mean().exp()), rel=1e-3)
    assert found.nll == pytest.approx(float(wanted.mean()), rel=1e-4)
    assert found.nll_error == pytest.approx(float(wanted.std()) / math.sqrt(len(wanted)), rel=1e-3)


def test_more_before_a_token_predicts_it_better(llm: LLM, ids: list[int]) -> None:
    far, near = (perplexity(llm, ids, 512, stride).value for stride in (128, 512))
    assert far < near


@pytest.mark.parametrize("count", [2, 3, 9, 10, 11, 64, 101])
@pytest.mark.parametrize(("window", "stride"), [(10, 10), (10, 1), (10, 7), (10, 9), (2, 1), (2, 2), (64, 64)])
def test_each_token_is_scored_once_with_enough_before_it(count: int, window: int, stride: int) -> None:
    found = list(windows(count, window, stride))
    scored = [token for one in found for token in range(one.scored, one.end)]
    assert scored == sorted(set(scored))
    unscored = set(range(count)) - set(scored)
    assert unscored == (set(range(0, count, stride)) if stride == window else {0})
    for one in found:
        assert one.end - one.start <= window
        assert one.start < one.scored
        assert one.start == 0 or one.scored - one.start >= window - stride


def test_windows_are_these() -> None:
    assert list(windows(23, 10, 6)) == [Window(0, 1, 10), Window(6, 10, 16), Window(12, 16, 22), Window(18, 22, 23)]


@pytest.mark.parametrize("stride", [0, -4, 65])
def test_a_stride_that_leaves_tokens_out_is_refused(stride: int, llm: LLM, ids: list[int]) -> None:
    with pytest.raises(OptionError, match=f"stride is {stride} with windows of 64 tokens: give 1 to 64"):
        perplexity(llm, ids, 64, stride)


def scores(values: list[float]) -> Scores:
    return Scores(torch.tensor(values, dtype=torch.float64), len(values) + 1, 8, 8, 1.0)


def test_the_standard_error_is_that_of_a_mean() -> None:
    found = of_scores(scores([1.0, 2.0, 3.0, 6.0]), text_bytes=10)
    assert found.nll == 3.0
    assert found.nll_error == pytest.approx(math.sqrt((4 + 1 + 0 + 9) / 3) / 2)
    assert found.value == pytest.approx(math.exp(3))
    assert found.error == pytest.approx(math.exp(3) * math.sqrt(14 / 3) / 2)
    assert found.bits_per_byte == pytest.approx(3 / math.log(2) * 5 / 10)
    assert of_scores(scores([1.0])).error is None
    assert of_scores(scores([1.0])).bits_per_byte is None


def test_the_error_of_a_mean_is_about_how_far_means_of_samples_lie_apart() -> None:
    torch.manual_seed(0)
    samples = torch.rand(400, 100, dtype=torch.float64)
    errors = [of_scores(Scores(one, 101, 8, 8, 1.0)).nll_error for one in samples]
    assert sum(error or 0 for error in errors) / 400 == pytest.approx(float(samples.mean(1).std()), rel=0.1)


def test_a_change_is_told_by_what_tokens_differ_in_not_by_what_they_are_like() -> None:
    base = scores([1.0, 5.0, 0.1, 9.0])
    found, error = change(scores([1.1, 5.1, 0.2, 9.1]), base)
    assert found == pytest.approx(math.exp(0.1) - 1)
    assert error == pytest.approx(0, abs=1e-9)
    assert change(base, base) == (0, 0)


def test_scores_are_of_the_windows_asked_for(llm: LLM, ids: list[int]) -> None:
    found = score(llm, ids[:100], 64)
    assert (found.window, found.stride, found.tokens, len(found.losses_S)) == (64, 64, 100, 98)
    assert found.tok_s > 0


def test_the_command_says_all_of_it(run: Run, tmp_path: Path) -> None:
    text = HELD_OUT.read_text(encoding="utf-8")[:6000] + "\u00e9"
    (file := tmp_path / "text.txt").write_text(text, encoding="utf-8")
    where = ("--window", 256, "--stride", 64, "--dtype", "float32")
    status, out, _ = run("perplexity", "demo", file, *where, "--json")
    assert status == 0
    found = json.loads(out)
    llm = LLM("demo", dtype="float32")
    ids = llm.encode(text)
    wanted = perplexity(llm, ids, 256, 64, len(text.encode()))
    assert found["value"] == pytest.approx(wanted.value)
    assert found["tokens"] == len(ids) - 1
    assert (found["window"], found["stride"]) == (256, 64)
    total = found["nll"] / math.log(2) * len(ids)
    assert found["bits_per_byte"] == pytest.approx(total / len(text.encode()))
    assert len(text.encode()) == len(text) + 1
    status, out, _ = run("perplexity", "demo", file, *where)
    said = f"perplexity {found['value']:.4f} +- {found['error']:.4f} over {found['tokens']} tokens, "
    assert out.startswith(f"{said}{found['bits_per_byte']:.4f} bits per byte, ")
    assert out.endswith(" tokens/s\n")
    status, _, err = run("perplexity", "demo", file, "--window", 64, "--stride", 65)
    assert status == 1
    assert "stride is 65 with windows of 64 tokens: give 1 to 64" in err
