"""Mistral-Large-4: what positions do to queries and turns is learned, and some layers turn nothing. MiniMax-M3: an
indexer chooses blocks of keys. GLM-5.3-Flash: an indexer chooses runs of keys, and there are several residual streams.
Qwen3.8-Flash-Next: gated residual streams, an indexer that chooses runs of keys, tables of runs of tokens. However a
pass is cut, computed and shared, the logits are those of transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tiny
import torch
from family_runs import GREEDY, Checkpoints, Oracle, check_fused, check_taken_over, load, prompt

from headrace import LLM
from headrace.engine.memory.kv_budget import work_bytes
from headrace.errors import CheckpointError, ConfigError, OptionError
from headrace.kernels import reference
from headrace.kernels.residual.streams import closed, opened
from headrace.kernels.residual.twins import balanced
from headrace.loaders.choosers import BlockIndexerSpec
from headrace.loaders.families import spec_of
from headrace.loaders.families.config_reader import ConfigReader
from headrace.loaders.files import safetensors as files
from headrace.loaders.files.entry import Entry
from headrace.loaders.spec import AttentionSpec
from headrace.loaders.weights import converted
from headrace.loaders.weights.chosen_formats import LoadOptions
from headrace.loaders.weights.imagined import imagine
from headrace.loaders.weights.tables.row_table import RowTable, names

VARIANTS = (
    "mistral_large4",
    "mistral_large4-shared",
    "minimax_m3_vl_text",
    "minimax_m3_vl_text-one",
    "glm5_next",
    "glm5_next-free",
    "qwen4_exp_text",
    "qwen4_exp_text-one",
)


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_tokens_over_48_steps(variant: str, checkpoints: Checkpoints, oracle: Oracle) -> None:
    check_taken_over(variant, checkpoints, oracle)


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_layers_at_once_are_their_ops(variant: str, checkpoints: Checkpoints) -> None:
    check_fused(checkpoints(variant))


@pytest.mark.parametrize(
    ("variant", "changes", "said"),
    [
        ("mistral_large4", {"kv_source_layers": [0, 0, 2, 3, 4]}, "kv_source_layers is .*, supported is the list of 0"),
        ("mistral_large4", {"no_rope_layers": [1, 0]}, "no_rope_layers is .*, supported is a list of 5 times 1"),
        ("minimax_m3_vl_text", {"index_n_heads": 3}, "index_n_heads is 3, supported is the 2 heads of keys"),
        ("minimax_m3_vl_text", {"index_block_size": 20}, "index_block_size is 20, supported is a multiple of 32"),
        ("minimax_m3_vl_text", {"index_local_blocks": 3}, "index_local_blocks is 3, supported is at most"),
        ("minimax_m3_vl_text", {"index_head_dim": 10}, "index_head_dim is 10, supported is at least the 12 dims"),
        ("minimax_m3_vl_text", {"sparse_attention_config": {"x": 1}}, "sparse_attention_config is .*, supported is an"),
        ("glm5_next", {"index_kpool": 5}, "index_kpool is 5, supported is a divisor of index_topk = 24"),
        ("glm5_next", {"index_kpool_always_select_tail": False}, "index_kpool_always_select_tail is false"),
        (
            "glm5_next",
            {"indexer_types": ["full"] * 3 + ["shared"] * 2},
            "indexer_types is .shared., supported is full",
        ),
        ("glm5_next", {"linear_lower_bound": 1.0}, "linear_lower_bound is 1.0, supported is a number below 0"),
        ("qwen4_exp_text", {"indexer_compress_ratio": 5}, "indexer_compress_ratio is 5, supported is a divisor of"),
        ("qwen4_exp_text", {"indexer_head_dim": 14}, "indexer_head_dim is 14, supported is at least the 16 dims"),
        ("qwen4_exp_text", {"ple_layer_ids": [9]}, "ple_layer_ids is .*, supported is a list of numbers from 1 to 4"),
        ("qwen4_exp_text", {"ple_embed_dim": 50}, "ple_embed_dim is 50, supported is a multiple of the heads"),
        ("qwen4_exp_text", {"eos_token_id": None}, "eos_token_id is null, supported is a token, behind which"),
        ("qwen4_exp_text", {"output_gate_type": "tanh"}, "output_gate_type is .tanh., supported is silu or sigmoid"),
        ("glm5_next", {"layer_types": ["linear_attention"] * 4}, "layer_types is .*, supported is a list of 5 times"),
    ],
)
def test_what_nobody_computes_is_refused(
    variant: str, changes: dict[str, Any], said: str, checkpoints: Checkpoints
) -> None:
    values = json.loads((checkpoints(variant) / "config.json").read_text()) | changes
    with pytest.raises(ConfigError, match=said):
        spec_of(ConfigReader(values, "config.json"))


def refused(path: Path) -> str:
    """What is said to a run on a GPU."""
    with pytest.raises(OptionError) as error:
        LLM(str(path), kernels="reference", dtype="float32", device="simulated:gpu")
    return str(error.value)


def test_a_gpu_is_refused_by_name(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="the GPU kernels need Triton", exc_type=ImportError)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "queries scaled by learned logarithms of positions" in refused(checkpoints("mistral_large4"))
    assert "the indexer that chooses blocks of keys" in refused(checkpoints("minimax_m3_vl_text"))
    assert "several residual streams" in refused(checkpoints("glm5_next"))
    assert "tables of runs of tokens" in refused(checkpoints("qwen4_exp_text"))


def test_what_plays_a_gpu_is_refused_by_name(checkpoints: Checkpoints) -> None:
    """Where tokens would be needed there; others of these families run."""
    with pytest.raises(OptionError, match=r"lack tables of runs of tokens; run it with --device cpu"):
        load(checkpoints("qwen4_exp_text"), device="simulated")
    load(checkpoints("mistral_large4"), device="simulated").close()


def test_scores_of_blocks_are_planned(checkpoints: Checkpoints) -> None:
    """Of every token for each head of keys and block of the longest context, in one call of the kernel."""
    values = json.loads((checkpoints("minimax_m3_vl_text") / "config.json").read_text())
    spec = spec_of(ConfigReader(values, "config.json"))[1]
    it = next(one.blocks for one in spec.mixers if isinstance(one, AttentionSpec) and one.blocks)
    assert isinstance(it, BlockIndexerSpec)
    short, long = (work_bytes(replace(spec, context=size * it.size), 64, 1) for size in (10, 1010))
    assert long - short == 4 * 64 * it.heads * 1000


def test_a_context_of_few_blocks_is_seen_as_a_whole(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Up to 64 tokens layers without an indexer say the same, and then no longer."""
    source, values = checkpoints("minimax_m3_vl_text"), {}
    values = json.loads((source / "config.json").read_text()) | {"index_topk_blocks": 8}
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "model.safetensors").symlink_to(source / "model.safetensors")
    ids = prompt(140)
    with load(source) as llm, load(tmp_path) as whole:
        apart = (llm.logits(ids) - whole.logits(ids)).abs().amax(1)
    assert apart[:64].max() < 1e-4
    assert apart[100:].max() > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_long_prompts(variant: str, checkpoints: Checkpoints, oracle: Oracle) -> None:
    """Of which few keys are seen."""
    with load(checkpoints(variant), prefill_chunk=48) as llm:
        found = llm.logits(prompt(200))
    apart = (found - tiny.oracle_logits(oracle(variant), prompt(200))).abs().max()
    assert apart < (2e-4 if variant.startswith(("glm5", "qwen4")) else 1e-4)


def test_what_mixes_streams_is_balanced() -> None:
    """Rows and columns have a sum of 1 in the end, and as many rounds as there are count."""
    x_1mm = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    for dim in (1, 2):
        assert (balanced(x_1mm, 20, 1e-6).sum(dim) - 1).abs().max() < 1e-4
    assert (balanced(x_1mm, 1, 1e-6).sum(1) - 1).abs().max() < 1e-4 < (balanced(x_1mm, 1, 1e-6).sum(2) - 1).abs().max()


def test_one_stream_that_is_passed_on_whole_is_a_residual_sum() -> None:
    """What was made is added, and comes out of the mean."""
    x_TD, update_TD = torch.randn(3, 5), torch.randn(3, 5)
    assert torch.equal(closed(reference, opened(x_TD, 4), update_TD, 4), x_TD)
    rows_TX = opened(x_TD, 2)
    rows_TX[:, -2:] = torch.tensor([0.5, 1.5])
    assert torch.allclose(closed(reference, rows_TX, update_TD, 2), x_TD + update_TD)


def test_rows_of_runs_of_tokens_are_those_of_a_checkpoint(checkpoints: Checkpoints) -> None:
    """What hashes are made with is worked out: transformers stores it besides."""
    path = checkpoints("qwen4_exp_text")
    spec = spec_of(ConfigReader.open(path / "config.json"))[1]
    stored = safetensors.torch.load_file(path / "model.safetensors")
    for layer in (0, 2):
        it, start = spec.layers[layer].grams, f"model.layers.{layer}.ple.ple_embedding."
        assert it is not None
        assert list(it.multipliers) == stored[start + "layer_multipliers"].tolist()
        assert list(it.primes) == stored[start + "ngram_heads_vocab_sizes"].tolist()
        parts = [stored[f"{start}ngram_embedding.shard_{i}.weight"] for i in range(4)]
        assert (it.rows, it.row) == (sum(map(len, parts)), parts[0].shape[1])
        wanted = torch.tensor([0, it.rows - 1, len(parts[0]), 5, 5])
        table = RowTable(safetensors_header(path, start))
        assert torch.equal(table.rows(wanted), torch.cat(parts)[wanted])


def safetensors_header(path: Path, start: str) -> list[Entry]:
    found = files.read_header(path / "model.safetensors")
    return [found[name] for name in names(found, f"{start}ngram_embedding.")]


def test_tables_are_read_from_their_file(checkpoints: Checkpoints) -> None:
    """Of each token and table 4 rows of 12 float32 numbers, which the ledger books on the disk."""
    with load(checkpoints("qwen4_exp_text")) as llm:
        llm.generate([prompt(20)], GREEDY)
        passes = llm.ledger.passes
        assert [one.total("disk") for one in passes] == [2 * 4 * 12 * 4 * one.tokens for one in passes]
        assert all(isinstance(table.parts[0], np.memmap) for table in llm.parts.weights.tables.values())


@pytest.mark.parametrize("variant", ["mistral_large4", "minimax_m3_vl_text", "glm5_next"])
def test_converted_they_say_the_same(variant: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    with load(checkpoints(variant)) as llm:
        wanted = llm.logits(prompt(40))
        converted.save(checkpoints(variant), tmp_path / "to", llm.parts.weights, llm.parts.checkpoint.formats)
    with load(tmp_path / "to") as llm:
        assert torch.equal(llm.logits(prompt(40)), wanted)


def test_tables_are_not_converted_and_not_imagined(checkpoints: Checkpoints, tmp_path: Path) -> None:
    path = checkpoints("qwen4_exp_text")
    with load(path) as llm, pytest.raises(OptionError, match="tables of runs of tokens stay in their files"):
        converted.save(path, tmp_path / "to", llm.parts.weights, llm.parts.checkpoint.formats)
    with pytest.raises(ConfigError, match="has tables of runs of tokens, which stay in the files of a checkpoint"):
        imagine(json.loads((path / "config.json").read_text()), LoadOptions())


def test_a_table_of_another_size_is_refused(checkpoints: Checkpoints, tmp_path: Path) -> None:
    source = checkpoints("qwen4_exp_text")
    values = json.loads((source / "config.json").read_text()) | {"ngram_vocab_size_base": 90}
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "model.safetensors").symlink_to(source / "model.safetensors")
    with pytest.raises(CheckpointError, match="rows of the table of runs of tokens in layer 0, the config asks for"):
        load(tmp_path)
