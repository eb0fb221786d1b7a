"""The layer computes what its twin does, however it is stored and whatever the text came in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mtp_gguf
import pytest
from mtp_models import LIKE, Twin, layer_tensors
from mtp_runs import OPTIONS, always, check, opened, prompt, watched

from headrace import LLM, SamplingParams

With, Twins, Checkpoints = Callable[..., Path], Callable[[str], Twin], Callable[[str], Path]
HOW = SamplingParams(max_new_tokens=12, ignore_eos=True)


@pytest.mark.parametrize("variant", LIKE)
def test_logits_are_the_twins(variant: str, with_mtp: With, twin: Twins) -> None:
    """A prompt in chunks, of which states are taken in together; then few by few."""
    with opened(with_mtp(variant), prefill_chunk=24) as llm:
        said = watched(always(llm))
        llm.generate([prompt(101)], HOW)
        llm.generate([prompt(40, 1)], HOW)
    check(said, twin(variant))


@pytest.mark.parametrize("kernels", ["cpu", "reference"])
def test_by_both_kernels_and_at_once(kernels: str, with_mtp: With, twin: Twins) -> None:
    with opened(with_mtp("qwen3_next"), kernels=kernels) as llm:
        said = watched(always(llm))
        llm.generate([prompt(101)], HOW)
    check(said, twin("qwen3_next"))


@pytest.mark.parametrize("way", ["beside it", "a shard of its own"])
@pytest.mark.parametrize("variant", ["qwen3_moe", "glm4_moe"])
def test_wherever_the_layer_lies(variant: str, way: str, with_mtp: With, twin: Twins) -> None:
    with opened(with_mtp(variant, way)) as llm:
        said = watched(always(llm))
        llm.generate([prompt(45)], HOW)
    check(said, twin(variant))


def test_a_file_that_is_given(with_mtp: With, checkpoints: Checkpoints, twin: Twins) -> None:
    file = with_mtp("qwen3_moe", "beside it") / "mtp.safetensors"
    with opened(checkpoints("qwen3_moe"), mtp=file) as llm:
        said = watched(always(llm))
        llm.generate([prompt(45)], HOW)
    check(said, twin("qwen3_moe"))


@pytest.mark.parametrize("is_apart", [False, True])
@pytest.mark.parametrize("variant", ["qwen3_next", "qwen3_5_moe_text", "deepseek_v3", "glm4_moe", "deepseek_v32"])
def test_of_gguf(variant: str, is_apart: bool, checkpoints: Checkpoints, twin: Twins, tmp_path: Path) -> None:
    path, apart = tmp_path / "m.gguf", tmp_path / "mtp.gguf" if is_apart else None
    mtp_gguf.write(variant, checkpoints(variant), layer_tensors(variant, checkpoints(variant)), path, apart)
    with LLM(str(path), **OPTIONS, speculate="mtp", mtp=apart) as llm:
        said = watched(always(llm))
        llm.generate([prompt(45)], HOW)
    check(said, twin(variant))


def test_pages_that_are_taken_over_have_the_layers_keys(with_mtp: With, twin: Twins) -> None:
    """Also those of an answer, in the next turn of a conversation."""
    with opened(with_mtp("qwen3_moe")) as llm:
        said = watched(always(llm))
        answer = llm.generate([prompt(60)], SamplingParams(max_new_tokens=40, ignore_eos=True))[0].token_ids
        turn = prompt(60) + answer + prompt(5, 9)
        assert llm.generate([turn], HOW)[0].reused_tokens >= 80
        assert llm.generate([prompt(60) + prompt(30, 3)], HOW)[0].reused_tokens >= 32
    check(said[:-12], twin("qwen3_moe"))
