"""Passes with drafts take no matrix tiles, whose rounding goes by all tokens of a pass."""

from __future__ import annotations

import pytest
from scripted_drafts import Script, speculate

from headrace import LLM, SamplingParams
from headrace.engine.speculation.row_kernels import is_by_row, row_kernels
from headrace.kernels import FORMATS, load
from headrace.kernels.context import NEVER, Context

PARAMS = SamplingParams(max_new_tokens=24, ignore_eos=True)


@pytest.fixture
def _tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU that has them."""
    monkeypatch.setattr(Context, "tile_tokens", {"q4_0": 6})


@pytest.mark.usefixtures("_tiles")
def test_tiles_are_left_out_and_come_back() -> None:
    ops = load("cpu", Context(tiles_from={"q4_0": 6}))
    before = ops.context  # type: ignore[attr-defined]
    with row_kernels(ops):
        assert ops.context.tiles_from == dict.fromkeys(FORMATS, NEVER)  # type: ignore[attr-defined]
    assert ops.context is before  # type: ignore[attr-defined]
    with row_kernels(load("reference", Context())):
        pass


@pytest.mark.skipif(not Context().tile_tokens, reason="this CPU has no tiles")
def test_a_format_whose_tiles_never_pay_is_no_such_pass() -> None:
    ops = load("cpu", Context(tiles_from={"q4_0": NEVER}))
    assert not is_by_row(ops)
    with row_kernels(ops):
        assert is_by_row(ops)
    assert not is_by_row(ops)


@pytest.mark.usefixtures("_tiles")
def test_passes_with_drafts_alone_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = list(range(40, 90))
    with LLM("demo", speculate="off", no_measure=True, max_context=128) as llm:
        plain = llm.generate([prompt], PARAMS)[0].token_ids
        speculate(llm, Script([prompt + plain], 0.8, llm.spec.vocab))
        seen: list[tuple[int, bool]] = []
        forward = llm.parts.decoder.forward

        def watched(inputs, tally=None):  # type: ignore[no-untyped-def]
            context = llm.parts.main.ops.context  # type: ignore[attr-defined]
            seen.append((len(inputs.ids_T), context.tiles_from == dict.fromkeys(FORMATS, NEVER)))
            return forward(inputs, tally)

        monkeypatch.setattr(llm.parts.decoder, "forward", watched)
        assert llm.generate([prompt], PARAMS)[0].token_ids == plain
    prompt_pass, *passes = seen
    assert not prompt_pass[1]
    assert all(without == (tokens > 1) for tokens, without in passes)
    assert any(without for _, without in seen)
