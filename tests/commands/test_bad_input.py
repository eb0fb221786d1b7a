"""What a user can get wrong: refused by name and value, with what to do, before anything runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_tokenizer
from refusals import refused

from headrace import LLM, ContextOverflow, HubError, MemoryNeeded, OptionError, SamplingParams, TokenizerError
from headrace.engine.devices import device
from headrace.engine.ledger.ledger import Ledger
from headrace.loaders import memory

Checkpoints = Callable[[str], Path]
Make = Callable[..., Path]


# ---- tokenizer and prompts


@pytest.fixture(scope="module")
def silent(checkpoints: Checkpoints) -> Iterator[LLM]:
    """A model without a tokenizer."""
    with LLM(str(checkpoints("qwen3_moe")), kernels="reference") as llm:
        yield llm


ONE = SamplingParams(max_new_tokens=1)


def test_without_a_tokenizer_text_is_refused_and_ids_work(silent: LLM) -> None:
    with refused(TokenizerError, "tokenizer.json", "token ids"):
        silent.generate("Hello", ONE)
    with refused(TokenizerError, "tokenizer.json", "chat"):
        silent.chat([{"role": "user", "content": "Hello"}])
    with refused(TokenizerError, "tokenizer.json", "stop strings"):
        silent.generate([5], SamplingParams(max_new_tokens=1, stop=("x",)))
    assert len(silent.generate([5, 6], ONE)[0].token_ids) == 1


def test_tokenizer_with_more_tokens_than_the_embedding_has_rows(make: Make) -> None:
    tiny_tokenizer.save(directory := make(), extra=100)
    with refused(TokenizerError, "201 tokens", "160 rows", "belong together"):
        LLM(str(directory), kernels="reference")


@pytest.mark.parametrize(
    ("prompt", "said"), [([], ["empty"]), ([160], ["160", "vocabulary"]), ([3, -1], ["-1", "160 tokens"])]
)
def test_prompt_that_cannot_be_run(prompt: list[int], said: list[str], silent: LLM) -> None:
    with refused(OptionError, *said):
        silent.generate([prompt], ONE)
    with refused(OptionError, *said):
        silent.stream(prompt, ONE)


def test_empty_text(make: Make) -> None:
    tiny_tokenizer.save(directory := make())
    with LLM(str(directory), kernels="reference") as llm, refused(OptionError, "empty", "at least one token"):
        llm.generate("", ONE)


def test_prompt_and_completion_longer_than_the_context(silent: LLM) -> None:
    with refused(ContextOverflow, "300 tokens", "holds 256", "shorten"):
        silent.generate([5] * 300, ONE)
    with refused(ContextOverflow, "250 prompt tokens", "8 new", "258", "holds 256", "max_new_tokens to 7"):
        silent.generate([5] * 250, SamplingParams(max_new_tokens=8))


def test_as_many_new_tokens_as_the_context_holds(silent: LLM) -> None:
    params = SamplingParams(max_new_tokens=-1, ignore_eos=True)
    assert [len(one.token_ids) for one in silent.generate([[5] * 250, [5] * 256], params)] == [7, 1]
    with refused(ContextOverflow, "257 tokens", "holds 256"):
        silent.generate([5] * 257, params)
    with refused(OptionError, "max_new_tokens is -2"):
        SamplingParams(max_new_tokens=-2)


def test_context_that_was_asked_for_is_named(checkpoints: Checkpoints) -> None:
    llm = LLM(str(checkpoints("qwen3_moe")), kernels="reference", max_context=20)
    with refused(ContextOverflow, "21 tokens", "holds 20", "raise max_context", "256"):
        llm.generate([5] * 21, ONE)


def test_as_many_sampling_parameters_as_prompts(silent: LLM) -> None:
    with refused(OptionError, "2 sampling parameters", "3 prompts"):
        silent.generate([[1], [2], [3]], [ONE, ONE])


# ---- memory


def test_context_above_the_models(checkpoints: Checkpoints) -> None:
    with refused(OptionError, "max_context is 257", "256"):
        LLM(str(checkpoints("qwen3_moe")), kernels="reference", max_context=257)


def test_more_context_than_memory(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = LLM(str(checkpoints("qwen3_moe")), kernels="reference", max_context=256)
    free = needed.parts.weights.nbytes + needed.parts.kv_budget.work_bytes + 100_000
    monkeypatch.setattr(device, "free_memory", lambda: free)
    with refused(MemoryNeeded, "256 tokens", "GB", "lower max_context"):
        LLM(str(checkpoints("qwen3_moe")), kernels="reference", max_context=256)


def test_more_weights_than_memory(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 100_000)
    monkeypatch.setattr(device, "free_memory", lambda: 100_000)
    with refused(MemoryNeeded, "weights 0.00 GB", "is free", "--expert-format", "q4_0"):
        LLM(str(checkpoints("qwen3_moe")), kernels="reference")


def test_memory_message_has_every_need_in_gb() -> None:
    with refused(MemoryNeeded, "30.00 GB", "weights 20.00 GB", "cache 10.00 GB", "16.00 GB is free", "buy"):
        memory.require_memory({"weights": 20 * 10**9, "cache": 10 * 10**9}, "buy", free=16 * 10**9)
    memory.require_memory({"weights": 15 * 10**9}, "buy", free=16 * 10**9)


# ---- options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kernels": "cuda"}, ["kernels", "'cuda'", "cpu, reference"]),
        ({"dtype": "int8"}, ["dtype", "'int8'", "bfloat16"]),
        ({"expert_format": "q5_k_x"}, ["expert_format", "'q5_k_x'", "q4_0", "did you mean q5_k_s?"]),
        ({"dense_format": "Q4_0"}, ["dense_format", "'Q4_0'", "did you mean q4_0?"]),
        ({"expert_format": "q4km"}, ["did you mean q4_k_m?", "native, f32", "more"]),
        ({"threads": 0}, ["threads is 0", "at least 1"]),
        ({"max_context": 0}, ["max_context is 0", "at least 1"]),
        ({"prefill_chunk": -1}, ["prefill_chunk is -1", "at least 1"]),
        ({"max_sequences": 0}, ["max_sequences is 0", "at least 1"]),
        ({"colour": "red"}, ["'colour'", "expert_format"]),
    ],
)
def test_engine_options(options: dict[str, Any], said: list[str]) -> None:
    with refused(OptionError, *said):
        LLM("nowhere", **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_new_tokens": 0}, ["max_new_tokens is 0", "at least 1"]),
        ({"temperature": -0.1}, ["temperature is -0.1", "at least 0"]),
        ({"temperature": float("nan")}, ["temperature is nan"]),
        ({"temperature": float("inf")}, ["temperature is inf"]),
        ({"top_k": -2}, ["top_k is -2", "at least -1"]),
        ({"top_p": -0.1}, ["top_p is -0.1", "at least 0"]),
        ({"top_p": 1.1}, ["top_p is 1.1", "at most 1"]),
        ({"top_p": float("nan")}, ["top_p is nan"]),
        ({"min_p": -0.5}, ["min_p is -0.5", "at least 0"]),
        ({"min_p": 2.0}, ["min_p is 2.0", "at most 1"]),
        ({"repetition_penalty": 0.0}, ["repetition_penalty is 0.0"]),
        ({"presence_penalty": float("inf")}, ["presence_penalty is inf", "number"]),
        ({"stop": ("a", "")}, ["stop", "not empty"]),
    ],
)
def test_sampling_options(options: dict[str, Any], said: list[str]) -> None:
    with refused(OptionError, *said):
        SamplingParams(**options)


def test_no_such_model(tmp_path: Path) -> None:
    with refused(HubError, str(tmp_path / "nothing"), "check the path"):
        LLM(str(tmp_path / "nothing"), kernels="reference")


@pytest.mark.parametrize(("name", "said"), [("missing/ledger.jsonl", "No such file"), ("", "Is a directory")])
def test_ledger_that_cannot_be_written(name: str, said: str, tmp_path: Path) -> None:
    with refused(OptionError, str(tmp_path / name), said, "another path"):
        Ledger.check_path(tmp_path / name)


# ---- from the command line: one line, no traceback


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "{model}"], ["no prompt", "-i"]),
        (["generate", "{model}", "hi", "-i"], ["-i", "PROMPTS"]),
        (["generate", "{model}", "hi", "--system", "be brief"], ["--system", "--chat"]),
        (["generate", "{model}/nothing", "hi"], ["/nothing", "path"]),
        (["generate", "{model}", "hi"], ["tokenizer.json"]),
        (["generate", "{model}", "hi", "--expert-format", "q5"], ["'q5'", "q4_0"]),
        (["generate", "{model}", "hi", "--threads", "0"], ["threads is 0"]),
        (["generate", "{model}", "hi", "--top-p", "7"], ["top_p is 7.0"]),
        (["generate", "{model}", "hi", "--ledger", "{model}"], ["{model}", "Is a directory"]),
        (["generate", "{model}", "hi", "--max-context", "1000"], ["max_context is 1000", "256"]),
        (["generate", "{model}/model.safetensors", "hi"], ["is a file"]),
        (["convert", "{model}", "{model}"], ["{model}", "other files"]),
        (["perplexity", "{model}", "{model}/nothing.txt"], ["nothing.txt", "No such file"]),
        (["perplexity", "{model}", "{model}/model.safetensors"], ["model.safetensors", "UTF-8"]),
    ],
)
def test_command_line(
    arguments: list[str], said: list[str], checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    from headrace import cli

    model = str(checkpoints("qwen3_moe"))
    monkeypatch.setattr(sys, "argv", ["headrace", *(a.format(model=model) for a in arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capfd.readouterr()
    last = err.strip().splitlines()[-1]
    assert (caught.value.code, out) == (1, "")
    assert last.startswith("headrace: "), err
    assert "Traceback" not in err
    assert "not measured" not in err  # a user does not wait for that to learn of a mistake
    assert [s for s in said if s.format(model=model) not in last] == [], last


def test_unknown_instruction_set(checkpoints: Checkpoints) -> None:
    command = [sys.executable, "-m", "headrace", "generate", str(checkpoints("qwen3_moe")), "hi"]
    done = subprocess.run(command, env={**os.environ, "HEADRACE_ISA": "nonsense"}, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "HEADRACE_ISA" in done.stderr
    assert "nonsense" in done.stderr
    assert "portable" in done.stderr
