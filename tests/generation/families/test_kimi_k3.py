"""Kimi-K3 against its twin in plain torch: however a pass is cut and computed, the same logits and tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import twin_kimi_k3
from family_runs import GREEDY, check_fused, load, prompt
from twin_kimi_k3 import CONFIG, FREE, Twin

from headrace import LLM
from headrace.errors import ConfigError, OptionError
from headrace.loaders.families import spec_of
from headrace.loaders.families.config_reader import ConfigReader

Built = tuple[Path, Twin]


@pytest.fixture(scope="module", params=[CONFIG, FREE], ids=["bound", "free"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    path = tmp_path_factory.mktemp("kimi_k3")
    return path, twin_kimi_k3.build(path, request.param)


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
def test_logits_are_the_twins(built: Built, kernels: str) -> None:
    """A prompt in chunks, and token by token."""
    path, twin = built
    ids = prompt(70)
    wanted = tiny.oracle_logits(twin, ids)
    assert wanted.abs().max() > 1, "logits near zero would hide mistakes"
    for chunk in (32, 1):
        with load(path, kernels=kernels, prefill_chunk=chunk) as llm:
            assert (llm.logits(ids) - wanted).abs().max() < 1e-4


def test_greedy_tokens_over_48_steps(built: Built) -> None:
    """The twin's, alone and in a batch; a beginning of 64 is taken over."""
    path, twin = built
    prompts = [prompt(90, 1), prompt(9, 2)]
    with load(path, prefill_chunk=16) as llm:
        together = [one.token_ids for one in llm.generate(prompts, GREEDY)]
        again = [llm.generate([one], GREEDY)[0] for one in prompts]
        assert [one.token_ids for one in again] == together
        assert again[0].reused_tokens == 64
    for one, said in zip(prompts, together, strict=True):
        assert said == tiny.oracle_greedy(twin, one, said)


def test_all_layers_at_once_are_their_ops(built: Built) -> None:
    check_fused(built[0])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_act": "silu"}, "hidden_act is .silu., supported is .situ."),
        ({"attn_res_block_size": 0}, "attn_res_block_size is 0, supported is a whole number"),
        ({"mla_use_nope": False}, "mla_use_nope is false"),
        ({"activation_situ_beta": 0}, "activation_situ_beta is 0, supported is a number above 0"),
        (
            {"linear_attn_config": {**CONFIG["linear_attn_config"], "gate_lower_bound": 2}},
            "linear_attn_config.gate_lower_bound is 2, supported is a number below 0, or null",
        ),
    ],
)
def test_what_nobody_computes_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        spec_of(ConfigReader({**json.loads(json.dumps(CONFIG)), **changes}, "config.json"))


def test_a_gpu_is_refused_by_name(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="the GPU kernels need Triton", exc_type=ImportError)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(OptionError, match="experts on a narrower latent"):
        LLM(str(built[0]), kernels="reference", dtype="float32", device="simulated:gpu")


def test_states_begin_with_a_layer(built: Built) -> None:
    """Each part weighs what is kept until then: with states that no layer shares, another answer."""
    path, twin = built
    ids = prompt(20)
    other = Twin({**twin.c, "attn_res_block_size": 1}, twin.w)
    with load(path, kernels="reference") as llm:
        apart = (llm.logits(ids) - tiny.oracle_logits(other, ids)).abs().max()
    assert apart > 1e-2
    assert torch.isfinite(apart)


def test_the_same_bits_however_a_prompt_comes(built: Built) -> None:
    """In chunks of any size, on any number of threads."""
    found = []
    for chunk, threads in ((512, 1), (37, 3), (1, 2)):
        with load(built[0], prefill_chunk=chunk, threads=threads, deterministic=True) as llm:
            found.append(llm.logits(prompt(110)))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
