"""Values that callers give, taken by what they mean: numbers of other libraries, ids in arrays, names of others."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refused

from headrace import LLM, EngineConfig, OptionError, SamplingParams
from headrace.engine.generation.sampler import sample
from headrace.engine.generation.sequence import make_sequence
from headrace.kernels import load

Checkpoints = Callable[[str], Path]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"max_new_tokens": np.int32(7), "top_k": torch.tensor(3)}, {"max_new_tokens": 7, "top_k": 3}),
        ({"max_new_tokens": 7.0, "seed": np.uint64(2**63)}, {"max_new_tokens": 7, "seed": 2**63}),
        ({"max_new_tokens": "12", "temperature": "0.7"}, {"max_new_tokens": 12, "temperature": 0.7}),
        ({"temperature": np.float32(0.5), "top_p": torch.tensor([0.25])}, {"temperature": 0.5, "top_p": 0.25}),
        ({"temperature": Decimal("0.5"), "min_p": 0}, {"temperature": 0.5, "min_p": 0.0}),
        ({"max_new_tokens": None, "temperature": None, "stop": None, "ignore_eos": None}, {}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"stop": ""}, {"stop": ()}),
        ({"stop": "end"}, {"stop": ("end",)}),
        ({"stop": np.array(["a", "b"])}, {"stop": ("a", "b")}),
        ({"stop": (word for word in ("a", "b"))}, {"stop": ("a", "b")}),
        ({"stop_token_ids": 5}, {"stop_token_ids": (5,)}),
        ({"stop_token_ids": torch.tensor([5, 6])}, {"stop_token_ids": (5, 6)}),
        ({"stop_token_ids": [np.int64(5)], "ignore_eos": np.bool_(True)}, {"stop_token_ids": (5,), "ignore_eos": True}),
        ({"ignore_eos": 1}, {"ignore_eos": True}),
        ({"ignore_eos": "false"}, {"ignore_eos": False}),
    ],
)
def test_sampling_parameters_by_meaning(given: dict[str, Any], meant: dict[str, Any]) -> None:
    found = SamplingParams(**given)
    assert found == SamplingParams(**meant)
    for field in dataclasses.fields(SamplingParams):
        default = getattr(SamplingParams(), field.name)
        assert default is None or type(getattr(found, field.name)) is type(default), field.name


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"dtype": torch.bfloat16, "device": torch.device("cpu")}, {"dtype": "bfloat16", "device": "cpu"}),
        ({"threads": np.int64(2), "vram_limit": np.float64(3), "device": "cuda"}, None),
        ({"cache_dir": b"kept"}, {"cache_dir": Path("kept")}),
        ({"cache_dir": Path("~/kept")}, {"cache_dir": Path.home() / "kept"}),
        ({"placement": Path("where.json")}, {"placement": Path("where.json")}),
        ({"tensor_split": [3, 2]}, {"tensor_split": "3,2"}),
        ({"n_cpu_moe": torch.tensor(4)}, {"n_cpu_moe": 4}),
        ({"stream_from": np.int64(64), "handoff": "auto"}, {"stream_from": 64}),
        ({"pinned_limit": np.float32(0.5)}, {"pinned_limit": 0.5}),
        ({"ignore_config_keys": ["a"], "offline": None}, {"ignore_config_keys": ("a",)}),
        ({"max_sequences": None, "prefill_chunk": "64"}, {"prefill_chunk": 64}),
    ],
)
def test_engine_options_by_meaning(given: dict[str, Any], meant: dict[str, Any] | None) -> None:
    found = EngineConfig(**given)
    assert meant is None or found == EngineConfig(**meant)
    assert found.threads is None or type(found.threads) is int


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_new_tokens": True}, ["max_new_tokens is True", "whole number"]),
        ({"max_new_tokens": 7.5}, ["max_new_tokens is 7.5", "whole number"]),
        ({"max_new_tokens": np.bool_(True)}, ["max_new_tokens", "whole number"]),
        ({"temperature": "warm"}, ["temperature is 'warm'", "a number"]),
        ({"temperature": "nan"}, ["temperature is nan"]),
        ({"temperature": torch.ones(2)}, ["temperature is tensor", "a number"]),
        ({"temperature": 1j}, ["temperature is 1j"]),
        ({"top_p": float("inf")}, ["top_p is inf"]),
        ({"top_p": [0.5]}, ["top_p is [0.5]"]),
        ({"seed": 2**64}, ["seed", "64 bits"]),
        ({"seed": -(2**63) - 1}, ["seed", "64 bits"]),
        ({"seed": "x" * 5000}, ["seed is 'xxx", "whole number"]),
        ({"stop": {"a": 1}}, ["stop is {'a': 1}", "text"]),
        ({"stop": b"end"}, ["stop is b'end'", "text"]),
        ({"stop": ["a", 5]}, ["stop is 5", "text"]),
        ({"stop_token_ids": [True]}, ["stop_token_ids is True"]),
        ({"stop_token_ids": "5,6"}, ["stop_token_ids is '5,6'"]),
        ({"ignore_eos": 2}, ["ignore_eos is 2", "true or false"]),
        ({"ignore_eos": "maybe"}, ["ignore_eos is 'maybe'"]),
        ({"max_tokens": 5}, ["'max_tokens'", "did you mean max_new_tokens?"]),
        ({"tempreature": 5}, ["'tempreature'", "did you mean temperature?"]),
        ({"stop_strings": "x"}, ["'stop_strings'", "did you mean stop?"]),
        ({"x" * 5000: 1}, ["there is no option"]),
    ],
)
def test_what_means_nothing_is_refused(given: dict[str, Any], said: list[str]) -> None:
    with refused(OptionError, *said):
        SamplingParams(**given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"threads": True}, ["threads is True"]),
        ({"threads": [2]}, ["threads is [2]"]),
        ({"kernels": 5}, ["kernels is 5", "text"]),
        ({"device": 0}, ["device is 0", "text"]),
        ({"cache_dir": 5}, ["cache_dir is 5", "a path"]),
        ({"progress": 5}, ["progress is 5", "a function"]),
        ({"compiling": 5}, ["compiling is 5", "a function"]),
        ({"cache_dir": "~no-such-user/x"}, ["cache_dir is '~no-such-user/x'"]),
        ({"n_ctx": 5}, ["'n_ctx'", "did you mean max_context?"]),
        ({"max_contex": 5}, ["did you mean max_context?"]),
    ],
)
def test_engine_options_that_mean_nothing(given: dict[str, Any], said: list[str]) -> None:
    with refused(OptionError, *said):
        LLM("nowhere", **given)


def test_values_are_given_by_name() -> None:
    with refused(OptionError, "SamplingParams", "by name", "0.7"):
        SamplingParams(0.7)  # type: ignore[misc]
    with refused(OptionError, "no option 'temp'", "temperature"):
        dataclasses.replace(SamplingParams(), temp=0.5)  # type: ignore[call-arg]


def test_a_message_stays_short_whatever_the_value() -> None:
    for given in ({"seed": "x" * 9000}, {"stop": [5] * 9000}, {"y" * 9000: 1}, {"top_k": -(10**4000)}):
        with pytest.raises(OptionError) as caught:
            SamplingParams(**given)
        assert len(str(caught.value)) <= 300


# ---- prompts


@pytest.fixture(scope="module")
def llm(checkpoints: Checkpoints) -> Iterator[LLM]:
    with LLM(checkpoints("qwen3_moe"), kernels="reference") as loaded:  # a path object
        yield loaded


FEW = SamplingParams(max_new_tokens=3, ignore_eos=True)


@pytest.mark.parametrize(
    "ids",
    [
        (5, 6, 7), range(5, 8), np.array([5, 6, 7]), np.array([5, 6, 7], dtype=np.uint8), torch.tensor([5, 6, 7]),
        [np.int64(5), np.int32(6), 7], [torch.tensor(5), torch.tensor(6), torch.tensor(7)], iter([5, 6, 7]),
        [5.0, 6, 7],
    ],
)  # fmt: skip
def test_ids_of_any_kind_are_a_prompt(ids: Any, llm: LLM) -> None:
    (found,) = llm.generate(ids, FEW)
    assert found.token_ids == llm.generate([[5, 6, 7]], FEW)[0].token_ids
    assert found.prompt_tokens == 3


def test_several_prompts_of_any_kind(llm: LLM) -> None:
    expected = [one.token_ids for one in llm.generate([[5, 6], [7, 8]], FEW)]
    for prompts in (np.array([[5, 6], [7, 8]]), torch.tensor([[5, 6], [7, 8]]), (range(5, 7), torch.tensor([7, 8]))):
        assert [one.token_ids for one in llm.generate(prompts, FEW)] == expected
    assert [chunk.token_id for chunk in llm.stream(np.array([5, 6]), FEW)] == expected[0]
    assert torch.equal(llm.logits(torch.tensor([5, 6])), llm.logits([5, 6]))


def test_parameters_as_a_dict(llm: LLM) -> None:
    as_dict = {"max_new_tokens": 3, "ignore_eos": True}
    expected = [one.token_ids for one in llm.generate([[5], [6]], FEW)]
    assert [one.token_ids for one in llm.generate([[5], [6]], as_dict)] == expected
    assert [one.token_ids for one in llm.generate([[5], [6]], [as_dict, FEW])] == expected
    assert len(llm.generate([[5], [6]], (FEW, None))[1].token_ids) > 3
    with refused(OptionError, "'max_tokens'", "max_new_tokens"):
        llm.generate([[5]], {"max_tokens": 3})
    with refused(OptionError, "sampling parameters are 0.7", "dict"):
        llm.stream([5], 0.7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (None, ["a prompt is None", "list of token ids"]),
        (5, ["a prompt is 5"]),
        (b"text", ["a prompt is b'text'"]),
        ({"prompt": "text"}, ["a prompt is {'prompt'"]),
        ([[5, "6"]], ["'6'", "no whole number"]),
        ([[True]], ["token id True"]),
        ([5.5], ["token id 5.5"]),
        ([[5, None]], ["token id None"]),
        (torch.tensor([[[5]]]), ["[5]"]),
        (np.array([2**40]), [str(2**40), "vocabulary"]),
    ],
)
def test_what_is_no_prompt(prompt: Any, said: list[str], llm: LLM) -> None:
    with refused(OptionError, *said):
        llm.generate(prompt, FEW)


@pytest.mark.parametrize("model", [None, 5, ["demo"]])
def test_what_is_no_model(model: Any) -> None:
    with refused(OptionError, "a model is", "'demo'"):
        LLM(model)


def test_a_model_by_its_path_in_bytes(checkpoints: Checkpoints, llm: LLM) -> None:
    with LLM(os.fsencode(checkpoints("qwen3_moe")), kernels="reference") as other:
        assert other.spec == llm.spec


# ---- what 0 and -1 mean to others


def test_no_probability_at_all_is_greedy() -> None:
    ops, logits = load("reference"), torch.tensor([[0.0, 5.0, 5.0, 1.0]])
    drawn = make_sequence(0, [1], SamplingParams(temperature=1.0, top_p=0, seed=3))
    assert {sample(logits, [drawn], ops)[0] for _ in range(20)} == {1}
    any_of_all = [make_sequence(0, [1], SamplingParams(temperature=9.0, top_k=k, seed=3)) for k in (-1, 0)]
    first, second = ([sample(logits, [one], ops)[0] for _ in range(20)] for one in any_of_all)
    assert first == second
    assert len({*first}) > 1
