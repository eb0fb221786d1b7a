"""More experts a token, fewer experts: what transformers says with that number, and refused where it cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from transformers import PreTrainedModel

from headrace import LLM, EngineConfig, OptionError, SamplingParams
from headrace.engine.bench.random_weights import random_llm
from headrace.engine.core.fingerprint import fingerprint
from headrace.engine.core.weight_source import CheckpointFiles
from headrace.engine.terminal.bench import bench_report
from headrace.engine.traces import reader
from headrace.kernels.cpu.mailbox import mailbox_bytes
from headrace.loaders.families import experts_per_token as used
from headrace.loaders.families import spec_of
from headrace.loaders.families.config_reader import ConfigReader

Run = Callable[..., tuple[int, str, str]]
Checkpoints = Callable[[str], Path]
Oracle = Callable[[str], PreTrainedModel]
# Softmax before the choice, with and without a sum of 1; softmax over the chosen; sigmoid and a bias; groups, of which
# the best one or the two best count; a shared expert.
FAMILIES = [
    "qwen3_moe", "qwen2_moe", "mixtral", "olmoe", "granitemoe", "gpt_oss", "deepseek_v2-groups", "deepseek_v3",
    "qwen3_next",
]  # fmt: skip


def prompt(length: int) -> list[int]:
    return torch.randint(3, 160, (length,), generator=torch.Generator().manual_seed(7)).tolist()


def trained(directory: Path) -> int:
    return spec_of(ConfigReader.open(directory / "config.json"))[1].moe.top_k


def most(directory: Path) -> int:
    return used.most_experts(spec_of(ConfigReader.open(directory / "config.json"))[1].moe)


def retrained(model: PreTrainedModel, count: int, tmp_path: Path) -> PreTrainedModel:
    """transformers' model of the same weights, loaded with another number of experts a token in its config."""
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    name = "num_experts_per_tok"
    assert name in config
    file.write_text(json.dumps({**config, name: count}))
    found = type(model).from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    found.set_experts_implementation("eager")
    return found.eval()


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
@pytest.mark.parametrize("variant", FAMILIES)
def test_logits_are_those_of_transformers_with_that_number(
    variant: str, kernels: str, checkpoints: Checkpoints, oracle: Oracle, tmp_path: Path
) -> None:
    directory, ids = checkpoints(variant), prompt(40)
    as_trained = tiny.oracle_logits(oracle(variant), ids)
    for count in sorted({1, most(directory)} - {trained(directory)}):
        llm = LLM(directory, kernels=kernels, dtype="float32", experts_per_token=count)
        wanted = tiny.oracle_logits(retrained(oracle(variant), count, tmp_path / str(count)), ids)
        assert (wanted - as_trained).abs().max() > 0.05, "the number must matter"
        assert (llm.logits(ids) - wanted).abs().max() < 2e-4, count


def test_text_bytes_and_notes_are_those_of_the_number(checkpoints: Checkpoints) -> None:
    params, read, own = SamplingParams(max_new_tokens=6, ignore_eos=True), {}, trained(checkpoints("qwen3_moe"))
    for count in (1, 2, 4):
        llm = LLM(checkpoints("qwen3_moe"), experts_per_token=count)
        llm.generate([prompt(3)], params)
        read[count] = llm.ledger.summary("decode").bytes_per_token()["cpu_dram"]["experts"]
        note = f"a token uses {count} experts of a layer, the model was trained with {own}"
        assert (note in llm.notes) == (count != own)
    assert read[4] == 2 * read[2] == 4 * read[1]


def test_the_trained_number_changes_nothing(checkpoints: Checkpoints) -> None:
    directory = checkpoints("qwen3_moe")
    plain, said = (LLM(directory, experts_per_token=count) for count in (None, trained(directory)))
    assert plain.spec == said.spec
    assert plain.notes == said.notes
    assert fingerprint(plain.parts) == fingerprint(said.parts)


def test_keys_on_disk_are_those_of_one_number_alone(checkpoints: Checkpoints) -> None:
    one, other = (LLM(checkpoints("qwen3_moe"), experts_per_token=count) for count in (1, 2))
    assert fingerprint(one.parts) != fingerprint(other.parts)


def test_a_trace_has_as_many_choices(checkpoints: Checkpoints, tmp_path: Path) -> None:
    file = tmp_path / "run.trace"
    with LLM(checkpoints("qwen3_moe"), experts_per_token=1, trace=file) as llm:
        llm.generate([prompt(5)], SamplingParams(max_new_tokens=4, ignore_eos=True))
    found = reader.read(file)
    assert found.header.top_k == 1
    assert found.ids.shape[2] == 1


def test_beside_a_simulated_gpu_text_is_the_same(checkpoints: Checkpoints) -> None:
    where = {"device": "simulated", "n_cpu_moe": 1}
    params = SamplingParams(max_new_tokens=8, ignore_eos=True)
    texts = [
        LLM(checkpoints("qwen3_moe"), dtype="float32", experts_per_token=4, **more).generate([prompt(9)], params)
        for more in ({}, where)
    ]
    assert texts[0][0].token_ids == texts[1][0].token_ids


def test_a_mailbox_is_as_large_as_the_number_needs() -> None:
    assert mailbox_bytes(2, 64, 64, [1, 8]) > mailbox_bytes(2, 4, 64, [1, 8])


def test_random_weights_and_gguf_files_take_it_too(checkpoints: Checkpoints, tmp_path: Path) -> None:
    config = json.loads((checkpoints("qwen3_moe") / "config.json").read_text())
    assert random_llm(config, experts_per_token=1, max_context=64).spec.moe.top_k == 1
    tiny_gguf = pytest.importorskip("tiny_gguf")
    tiny_gguf.write_gguf(tmp_path / "model.gguf")
    options = EngineConfig(experts_per_token=3)
    assert CheckpointFiles(str(tmp_path / "model.gguf")).open(options, {}, False).spec.moe.top_k == 3


@pytest.mark.parametrize("count", [0, -3, 1.5, "many", True])
def test_what_is_no_number_of_experts_is_refused_at_once(count: object) -> None:
    with pytest.raises(OptionError, match="experts_per_token is"):
        EngineConfig(experts_per_token=count)  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", ["qwen3_moe", "deepseek_v2-groups", "mixtral"])
def test_too_many_are_refused_before_memory_is_taken(
    variant: str, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CheckpointFiles, "load", lambda *_: pytest.fail("weights were loaded"))
    directory = checkpoints(variant)
    limit = most(directory)
    said = f"is {limit + 1}; a token of .* uses {trained(directory)} as trained: give a whole number from 1 to {limit}"
    with pytest.raises(OptionError, match=said):
        LLM(directory, experts_per_token=limit + 1)


def test_the_most_is_twice_the_trained_number_as_far_as_a_token_may_choose(checkpoints: Checkpoints) -> None:
    moe = spec_of(ConfigReader.open(checkpoints("deepseek_v3") / "config.json"))[1].moe
    assert (moe.experts, moe.top_k, moe.groups, moe.top_groups) == (16, 4, 4, 2)
    assert used.most_experts(moe) == 8  # two groups of four
    assert used.most_experts(replace(moe, top_k=2)) == 4
    assert used.most_experts(replace(moe, top_k=7)) == 8
    assert used.most_experts(replace(moe, groups=1, top_groups=1, top_k=9)) == 16


def test_a_plan_predicts_with_it(run: Run) -> None:
    found = {
        count: json.loads(run("plan", "Qwen3-30B-A3B", "--hardware", "epyc-9005-8ch", "--json", *more)[1])
        for count, more in ((8, []), (4, ["--experts-per-token", 4]), (16, ["--experts-per-token", 16]))
    }
    read = {count: one["bytes_per_token"]["cpu_dram"]["experts"] for count, one in found.items()}
    assert read[16] == 2 * read[8] == 4 * read[4]
    speed = {count: one["decode_tok_s"] for count, one in found.items()}
    assert speed[4] > speed[8] > speed[16]
    status, _, err = run("plan", "Qwen3-30B-A3B", "--experts-per-token", 17)
    assert status == 1
    assert (
        "experts_per_token is 17; a token of Qwen3-30B-A3B uses 8 as trained: give a whole number from 1 to 16" in err
    )


def test_results_of_another_number_are_not_compared() -> None:
    old = {"model": "m", "layers": 1, "formats": {}, "passport": {}, "rows": [], "experts_per_token": 4}
    with pytest.raises(OptionError, match="experts_per_token 4, now 8"):
        bench_report.compare(old, {**old, "experts_per_token": 8})
