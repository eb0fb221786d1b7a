"""What attention on a cache of bf16 multiplies: what is measured, kept, and never rounded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from headrace.engine.bandwidth_model.profile import hardware_key
from headrace.engine.llm import LLM
from headrace.engine.measure import attention_products, expert_times
from headrace.engine.terminal.generate_report import placement_rows
from headrace.kernels.context import Context

DEFAULT = Context()
pytestmark = pytest.mark.skipif(not DEFAULT.has_bf16_attention, reason="this CPU multiplies no bf16 in attention")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def measured(monkeypatch: pytest.MonkeyPatch, gain: float) -> None:
    monkeypatch.setattr(attention_products, "measure", lambda context: gain)


def test_what_was_measured_is_kept_and_used(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, 1.5)
    assert attention_products.use(DEFAULT) == replace(DEFAULT, attention="bf16")
    monkeypatch.setattr(attention_products, "measure", lambda context: pytest.fail("it was measured already"))
    assert attention_products.use(DEFAULT).attention == "bf16"
    assert attention_products.use(DEFAULT, may_measure=False).attention == "bf16"
    monkeypatch.setattr(expert_times, "kernels_digest", lambda: "other kernels")
    measured(monkeypatch, 1.05)
    assert attention_products.use(DEFAULT) == DEFAULT, "a tie goes to float32"


def test_nothing_is_measured_that_may_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_products, "measure", lambda context: pytest.fail("it was measured"))
    assert attention_products.use(DEFAULT, may_measure=False) == DEFAULT


def test_activations_that_are_not_rounded_are_not_rounded_in_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    attention_products.save(DEFAULT, "bf16")
    exact = Context(activations="bf16")
    assert attention_products.use(exact) == exact


@pytest.mark.parametrize("content", ["", "[]", "{}", "no", '{"DIGEST": 1}', '{"DIGEST": "bf17"}'])
def test_a_file_that_says_nothing_is_measured_anew(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "headrace" / f"attention-{hardware_key(DEFAULT)}.json"
    path.parent.mkdir()
    path.write_text(content.replace("DIGEST", expert_times.kernels_digest()))
    measured(monkeypatch, 2.0)
    assert attention_products.use(DEFAULT).attention == "bf16"


def test_measuring_gives_a_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_products, "ROUNDS", 2)
    monkeypatch.setattr(attention_products, "CALLS", 2)
    assert 0.0 < attention_products.measure(DEFAULT) < float("inf")


def kernel_of_the_cache(llm: LLM) -> str:
    return next(row.kernel for row in placement_rows(llm) if row.what.startswith("KV"))


def test_the_startup_table_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, 2.0)
    for options, expected in (({}, True), ({"deterministic": True}, False), ({"cpu_activations": "bf16"}, False)):
        with LLM("demo", max_context=64, **options) as llm:  # type: ignore[arg-type]
            assert ("bf16 products" in kernel_of_the_cache(llm)) is expected, options
            assert (llm.parts.context.attention == "bf16") is expected, options
