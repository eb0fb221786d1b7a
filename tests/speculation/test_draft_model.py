"""A second model as drafter: text is that of the first alone, whatever the second says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf_files
import pytest
import tiny

from headrace import LLM, OptionError, SamplingParams
from headrace.engine.core import weight_source
from headrace.engine.speculation.draft_model import DraftModel
from headrace.loaders.weights.checkpoint import Checkpoint, open_directory
from headrace.loaders.weights.chosen_formats import LoadOptions

Checkpoints = Callable[[str], Path]
OPTIONS: dict[str, Any] = {"dtype": "float32", "max_context": 160, "max_sequences": 3, "no_measure": True}
PROMPTS = [[(7 * i + 11 * n) % 150 + 3 for i in range(40 + n)] for n in range(3)]
HOW = [
    SamplingParams(max_new_tokens=60, ignore_eos=True),
    SamplingParams(max_new_tokens=60, ignore_eos=True, temperature=0.8, seed=4),
]


def answers(llm: LLM, how: SamplingParams) -> list[list[int]]:
    alone = [llm.generate([one], how)[0].token_ids for one in PROMPTS]
    assert [one.token_ids for one in llm.generate(PROMPTS, how)] == alone
    return alone


@pytest.fixture(scope="module")
def plain(checkpoints: Checkpoints) -> list[list[list[int]]]:
    with LLM(str(checkpoints("qwen3_moe")), **OPTIONS, speculate="off") as llm:
        return [answers(llm, how) for how in HOW]


@pytest.mark.parametrize("draft", ["qwen3_moe", "mixtral", "deepseek_v3"])
def test_text_is_that_without(draft: str, plain: list[list[list[int]]], checkpoints: Checkpoints) -> None:
    with LLM(str(checkpoints("qwen3_moe")), **OPTIONS, speculate=str(checkpoints(draft))) as llm:
        assert [answers(llm, how) for how in HOW] == plain
        found = llm.ledger.summary("decode")
        assert found.drafted > 0
        if draft == "qwen3_moe":  # in bfloat16, and greedy: it says nearly what the model does
            assert found.accepted > 0.5 * found.drafted
            assert found.passes < 0.6 * found.tokens
        drafter = llm.loop.drafts.speculation.drafter  # type: ignore[union-attr]
        assert isinstance(drafter, DraftModel)
        assert not drafter.mine
        assert drafter.pages.available == len(drafter.pages.owners)


def test_text_is_that_without_where_it_says_the_first_tokens_alone(
    plain: list[list[list[int]]], checkpoints: Checkpoints
) -> None:
    path = str(checkpoints("qwen3_moe"))
    with LLM(path, **OPTIONS, speculate=path, draft_vocabulary=80) as llm:
        assert [answers(llm, how) for how in HOW] == plain
        found = llm.ledger.summary("decode")
        assert found.drafted > found.accepted > 0
        assert found.guesses.mean_rows == 80
        assert found.guesses.nbytes > 0


def test_a_text_longer_than_its_context_gets_no_draft(plain: list[list[list[int]]], checkpoints: Checkpoints) -> None:
    with LLM(str(checkpoints("qwen3_moe")), **OPTIONS, speculate=str(checkpoints("qwen3_moe"))) as llm:
        drafter = llm.loop.drafts.speculation.drafter  # type: ignore[union-attr]
        drafter.max_context = 64  # type: ignore[attr-defined]
        with llm.ledger.recording() as passes:
            assert llm.generate([PROMPTS[0]], HOW[0])[0].token_ids == plain[0][0]
    assert any(one.drafted for one in passes)
    assert not any(one.drafted for one in passes if one.context > 72)


def test_it_is_opened_once(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []

    def counted(directory: Path, options: LoadOptions) -> Checkpoint:
        opened.append(directory)
        return open_directory(directory, options)

    monkeypatch.setattr(weight_source, "open_directory", counted)
    model, draft = checkpoints("qwen3_moe"), checkpoints("mixtral")
    with LLM(str(model), **OPTIONS, speculate=str(draft)) as llm:
        assert opened == [draft, model]
        assert llm.draft_model is not None
        assert llm.draft_model.name == draft.name
        said = next(note for note in llm.notes if note.startswith(f"{draft.name} drafts: mixtral, up to "))
        assert "for texts of up to 160 tokens" in said


def test_a_model_of_a_shorter_context_drafts(
    plain: list[list[list[int]]], checkpoints: Checkpoints, tmp_path: Path
) -> None:
    tiny.build("qwen3_moe", tmp_path, max_position_embeddings=96)
    with LLM(str(checkpoints("qwen3_moe")), **OPTIONS, speculate=str(tmp_path)) as llm:
        drafter = llm.loop.drafts.speculation.drafter  # type: ignore[union-attr]
        assert drafter.max_context == 96  # type: ignore[attr-defined]
        assert llm.generate([PROMPTS[0]], HOW[0])[0].token_ids == plain[0][0]


def test_a_model_that_cannot_draft_is_refused(checkpoints: Checkpoints, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="recurrent states, which refused tokens would spoil"):
        LLM(str(checkpoints("qwen3_moe")), **OPTIONS, speculate=str(checkpoints("qwen3_next")))
    tiny.build("qwen3_moe", tmp_path, vocab_size=192)
    with pytest.raises(OptionError, match="give a model of the same vocabulary"):
        LLM(str(checkpoints("qwen3_moe")), **OPTIONS, speculate=str(tmp_path))


@pytest.mark.parametrize("both", [False, True], ids=["the small one", "both"])
def test_gguf_files_draft_and_are_drafted_for(both: bool, checkpoints: Checkpoints, tmp_path: Path) -> None:
    """A file is a model as any other, on either side."""
    path = tmp_path / "model.gguf"
    config, tensors = gguf_files.read(checkpoints("qwen3_moe"))
    gguf_files.write(path, config, tensors)
    model = str(path) if both else str(checkpoints("qwen3_moe"))
    with LLM(model, **OPTIONS, speculate="off") as llm:
        alone = [answers(llm, how) for how in HOW]
    with LLM(model, **OPTIONS, speculate=str(path)) as llm:
        assert llm.draft_model is not None
        assert llm.draft_model.parts.checkpoint.directory == path
        assert [answers(llm, how) for how in HOW] == alone
        found = llm.ledger.summary("decode")
        assert found.accepted > 0.5 * found.drafted > 0
