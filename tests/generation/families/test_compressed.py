"""DeepSeek-V4: attention to a window and to compressed entries, experts that a table of tokens chooses, streams that
are weighed behind the last layer. However a pass is cut, computed and shared, the logits are those of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tiny
import torch
from family_runs import GREEDY, Checkpoints, Oracle, check_fused, check_greedy, check_taken_over, load, prompt

from headrace import LLM
from headrace.engine.ledger.windows import PAGE
from headrace.engine.model.kv_cache import Compressed
from headrace.engine.planning.options import Options
from headrace.engine.planning.plan import make
from headrace.errors import CheckpointError, ConfigError, OptionError
from headrace.kernels import reference
from headrace.kernels.compressed.entries import Entries
from headrace.kernels.compressed.twins import nothing, rotate_pairs_
from headrace.kernels.decoder_layer import Places
from headrace.kernels.packed import Matrix
from headrace.loaders import model_source
from headrace.loaders.families import spec_of
from headrace.loaders.families.config_reader import ConfigReader
from headrace.loaders.spec import CompressedSpec
from headrace.loaders.weights import converted
from headrace.loaders.weights.chosen_formats import LoadOptions
from headrace.loaders.weights.imagined import imagine

VARIANTS = ("deepseek_v4", "deepseek_v4-yarn")
SPARSE, HEAVY = "compressed_sparse_attention", "heavily_compressed_attention"


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_tokens_over_48_steps(variant: str, checkpoints: Checkpoints, oracle: Oracle) -> None:
    """A beginning is taken over with its window, its entries, and what is known of the entry that is not whole."""
    check_taken_over(variant, checkpoints, oracle)


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_alone_and_in_a_batch(variant: str, kernels: str, checkpoints: Checkpoints, oracle: Oracle) -> None:
    check_greedy(variant, kernels, checkpoints, oracle)


@pytest.mark.parametrize("variant", VARIANTS)
def test_layer_by_layer_is_all_at_once(variant: str, checkpoints: Checkpoints) -> None:
    check_fused(checkpoints(variant))


@pytest.mark.parametrize("chunk", [200, 48, 7, 1])
@pytest.mark.parametrize("variant", VARIANTS)
def test_long_prompts(variant: str, chunk: int, checkpoints: Checkpoints, oracle: Oracle) -> None:
    """Of many windows, with more entries than the indexer chooses."""
    with load(checkpoints(variant), prefill_chunk=chunk) as llm:
        found = llm.logits(prompt(200))
    assert (found - tiny.oracle_logits(oracle(variant), prompt(200))).abs().max() < 1e-4


def test_every_token_counts(checkpoints: Checkpoints) -> None:
    """A token far behind every window is seen by way of entries, and one token decides on its experts."""
    ids = prompt(120)
    with load(checkpoints("deepseek_v4")) as llm:
        said = llm.logits(ids)[-1]
        other = llm.logits([ids[0], ids[1] + 1, *ids[2:]])[-1]
    assert (said - other).abs().max() > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_tables_say_which_experts_a_token_has(variant: str, checkpoints: Checkpoints) -> None:
    path = checkpoints(variant)
    table = safetensors.torch.load_file(path / "model.safetensors")["layers.0.ffn.gate.tid2eid"]
    found: list[torch.Tensor] = []
    with load(path) as llm:

        def choose(layer: int, choice: Any) -> Any:
            found.extend([choice[0]] if layer == 0 else [])
            return choice

        llm.parts.decoder.choose = choose
        llm.logits(prompt(30))
    assert torch.equal(torch.cat(found).long(), table[prompt(30)])


def test_a_table_of_experts_that_are_not_there(checkpoints: Checkpoints, tmp_path: Path) -> None:
    source = checkpoints("deepseek_v4")
    tensors = safetensors.torch.load_file(source / "model.safetensors")
    tensors["layers.0.ffn.gate.tid2eid"][5, 1] = 10
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    with pytest.raises(CheckpointError, match="a table of experts by token has numbers from 0 to 10, of 10 experts"):
        load(tmp_path)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("sequences", [1, 3])
def test_the_plan_has_the_bytes_of_the_engine(
    variant: str, sequences: int, tmp_path: Path, checkpoints: Checkpoints
) -> None:
    """Of keys in windows, of entries and of those that are not whole."""
    source = checkpoints(variant)
    values = json.loads((source / "config.json").read_text()) | {"max_position_embeddings": 4096}
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "model.safetensors").symlink_to(source / "model.safetensors")
    options = {"max_context": 2048, "max_sequences": sequences, "prefill_chunk": 512}
    with load(tmp_path, kv_format="bf16", **options) as llm:
        budget, cache = llm.parts.kv_budget, llm.parts.decoder.cache
        layers = [layer for layer in cache.layers if isinstance(layer, Compressed)]
        tensors = [one for layer in layers for one in (layer.rows, layer.entries, layer.index)]
        assert budget.kv_bytes == sum(one.nbytes for one in tensors if isinstance(one, torch.Tensor))
        state = sum(part.nbytes for part in cache.state_parts(0))
        assert state == 4 * llm.spec.state_elements
    plan = make(model_source.find(str(tmp_path)), None, Options(kv_format="bf16", context=2048, batch=sequences))
    assert sum(plan.demand.cache) == budget.kv_bytes + sequences * state


def test_the_ledger_counts_what_is_read(checkpoints: Checkpoints) -> None:
    """By hand, of a decode step behind 99 tokens: keys of windows, entries, keys of the indexer, states."""
    with load(checkpoints("deepseek_v4"), kv_format="bf16") as llm:
        moved = llm.parts.decoder.cache.sizes.moved([(1, 100)], True)
        states = 2 * 4 * llm.spec.state_elements
    windows = 4 * (13 + 1) * 28
    sparse = 2 * (6 * 28 + 25 * 20 + (28 + 20))  # the 100th token makes the 25th entry whole
    heavy = 12 * 28
    assert moved == 2 * (windows + sparse + heavy) + states


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"compress_rates": {SPARSE: 4, HEAVY: 12}}, "compress_rates is 12, supported is divisors and multiples of 32"),
        ({"compress_rates": {SPARSE: 0, HEAVY: 8}}, "compress_rates is .*, supported is whole numbers above 0"),
        ({"layer_types": ["full_attention"] * 4}, "layer_types is .*, supported is a list of 4 times sliding"),
        ({"layer_types": None, "compress_ratios": [0, 4, 64, 4]}, "compress_ratios is 64, supported is a list of 0, 4"),
        ({"mlp_layer_types": ["moe"] * 3}, "mlp_layer_types is .*, supported is a list of 4 times hash_moe or moe"),
        ({"o_groups": 3}, "o_groups is 3, supported is a divisor of num_attention_heads = 4"),
        ({"index_head_dim": 10}, "index_head_dim is 10, supported is at least the 12 dims that are turned"),
        ({"num_key_value_heads": 2}, "num_key_value_heads is 2, supported is 1"),
        ({"scoring_func": "sigmoid"}, 'scoring_func is "sigmoid", supported is "sqrtsoftplus"'),
        ({"norm_topk_prob": False}, "norm_topk_prob is false, supported is true"),
        ({"rope_parameters": 7}, "rope_parameters is 7, supported is an object or null"),
    ],
)
def test_what_nobody_computes_is_refused(changes: dict[str, Any], said: str, checkpoints: Checkpoints) -> None:
    values = json.loads((checkpoints("deepseek_v4") / "config.json").read_text()) | changes
    with pytest.raises(ConfigError, match=said):
        spec_of(ConfigReader(values, "config.json"))


def test_a_released_config_says_the_same(checkpoints: Checkpoints) -> None:
    """Ratios in place of kinds, how many layers have tables, ropes side by side."""
    values = json.loads((checkpoints("deepseek_v4-yarn") / "config.json").read_text())
    values["compress_rates"] = {SPARSE: 4, HEAVY: 128}
    wanted = spec_of(ConfigReader(values, "config.json"))[1]
    ropes = values.pop("rope_parameters")
    named = {SPARSE: 4, HEAVY: 128}
    released = {
        **{name: value for name, value in values.items() if name not in ("layer_types", "mlp_layer_types")},
        "compress_ratios": [*(named.get(kind, 0) for kind in values["layer_types"]), 0], "num_hash_layers": 2,
        "rope_theta": ropes["main"]["rope_theta"], "compress_rope_theta": ropes["compress"]["rope_theta"],
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    }  # fmt: skip
    del released["compress_rates"]
    assert spec_of(ConfigReader(released, "config.json"))[1] == wanted
    kinds = [(one.rate, one.indexer is not None) for one in wanted.mixers if isinstance(one, CompressedSpec)]
    assert kinds == [(128, False), (4, True), (0, False)]


def test_a_cache_in_q8_0_is_refused(checkpoints: Checkpoints) -> None:
    with pytest.raises(OptionError, match="kv_format q8_0 is not there for models with an indexer"):
        load(checkpoints("deepseek_v4"), kv_format="q8_0")


def test_a_gpu_is_refused_by_name(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="the GPU kernels need Triton", exc_type=ImportError)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(OptionError, match=r"attention to compressed entries, experts that a table of tokens chooses"):
        LLM(str(checkpoints("deepseek_v4")), kernels="reference", dtype="float32", device="simulated:gpu")


def test_what_plays_a_gpu_is_refused_by_name(checkpoints: Checkpoints) -> None:
    """What goes by tokens has none there, whoever computes."""
    with pytest.raises(OptionError, match=r"lack experts that a table of tokens chooses; run it with --device cpu"):
        load(checkpoints("deepseek_v4"), device="simulated")


def test_converted_it_says_the_same(checkpoints: Checkpoints, tmp_path: Path) -> None:
    with load(checkpoints("deepseek_v4")) as llm:
        wanted = llm.logits(prompt(40))
        converted.save(checkpoints("deepseek_v4"), tmp_path / "to", llm.parts.weights, llm.parts.checkpoint.formats)
    with load(tmp_path / "to") as llm:
        assert torch.equal(llm.logits(prompt(40)), wanted)


def test_pages_and_states_are_kept_on_a_disk(checkpoints: Checkpoints, tmp_path: Path) -> None:
    ids = prompt(3 * PAGE + 5, 4)
    with load(checkpoints("deepseek_v4"), kv_disk=tmp_path) as llm:
        wanted = llm.generate([ids], GREEDY)[0].token_ids
        assert llm.loop.disk is not None
        llm.loop.disk.writer.flush()
    with load(checkpoints("deepseek_v4"), kv_disk=tmp_path) as llm:
        again = llm.generate([ids], GREEDY)[0]
        assert again.token_ids == wanted
        assert again.reused_tokens == 3 * PAGE


def test_random_weights_have_tables_of_experts(checkpoints: Checkpoints) -> None:
    found = imagine(json.loads((checkpoints("deepseek_v4") / "config.json").read_text()), LoadOptions())
    assert [layer.ffn.by_token for layer in found.spec.layers if layer.ffn] == [True, False, False, False]


def entries(rate: int, series: int, slots: int = 1) -> Entries:
    """With weights of any kind, for tokens of 6 numbers and entries of 8."""
    g = torch.Generator().manual_seed(rate + series)
    angles = torch.outer(torch.arange(256), torch.tensor([1.0, 0.1]))
    made, weighed = (torch.randn(series * 8, 6, generator=g) for _ in range(2))
    return Entries(
        made=Matrix.plain(made), weighed=Matrix.plain(weighed), places_nC=torch.randn(rate, series * 8, generator=g),
        norm_e=torch.rand(8, generator=g) + 0.5, eps=1e-6, cos_Pr=angles.cos(), sin_Pr=angles.sin(),
        rows_P1Be=torch.zeros(8, 1, max(1, PAGE // rate), 8), state_LS3e=nothing((slots, series, 3, 8)), page=PAGE,
    )  # fmt: skip


def kept(it: Entries, x_TD: torch.Tensor, cuts: list[int]) -> torch.Tensor:
    """The entries of tokens that come in so many passes."""
    table, start = torch.tensor([5, 2, 7, 0, 1, 3], dtype=torch.int32), 0
    for end in (*cuts, len(x_TD)):
        at = torch.arange(start, end)
        slots = table[at // PAGE].long() * PAGE + at % PAGE
        sizes = torch.tensor([0, end - start], dtype=torch.int32), torch.tensor([end], dtype=torch.int32)
        states = torch.zeros(1, dtype=torch.int32)
        places = Places(
            positions_T=at.int(), slots_T=slots, tables_SM=table.view(1, -1), starts_S1=sizes[0], contexts_S=sizes[1],
            states_S=states,
        )  # fmt: skip
        it.keep(reference, x_TD[start:end], places)
        start = end
    return it.of(torch.arange(len(x_TD) // it.rate), table)


@pytest.mark.parametrize("series", [1, 2])
@pytest.mark.parametrize("rate", [4, 32, 64])
def test_entries_by_hand(rate: int, series: int) -> None:
    """A softmax over the tokens of a block, and with two series over those of the block before."""
    it, x = entries(rate, series), torch.randn(150, 6, generator=torch.Generator().manual_seed(1))
    made, logs = (x @ one.data.view(torch.float32).T for one in (it.made, it.weighed))
    wanted = []
    for first in range(0, 150 - rate + 1, rate):
        own = slice(first, first + rate)
        pairs = [(made[own, -8:], (logs[own] + it.places_nC)[:, -8:])]
        if series == 2 and first:
            before = slice(first - rate, first)
            pairs.append((made[before, :8], (logs[before] + it.places_nC)[:, :8]))
        values, weights = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        row = reference.rmsnorm((weights.softmax(0) * values).sum(0, keepdim=True), it.norm_e, 1e-6)
        rotate_pairs_(row.unsqueeze(1), it.cos_Pr, it.sin_Pr, torch.tensor([first]))
        wanted.append(row)
    assert (kept(it, x, []) - torch.cat(wanted)).abs().max() < 1e-5


@pytest.mark.parametrize("series", [1, 2])
@pytest.mark.parametrize("rate", [4, 64])
def test_entries_are_the_same_however_tokens_come(rate: int, series: int) -> None:
    """But for what projections round."""
    x = torch.randn(150, 6, generator=torch.Generator().manual_seed(2))
    wanted = kept(entries(rate, series), x, [])
    for cuts in ([1, 2, 3, 5, 8, 13, 60, 64, 65, 149], [128], [3]):
        assert torch.allclose(kept(entries(rate, series), x, cuts), wanted, rtol=1e-6, atol=1e-6)


def test_turns_of_pairs_go_back() -> None:
    x = torch.randn(5, 3, 10, generator=torch.Generator().manual_seed(3))
    angles, at = torch.outer(torch.arange(20), torch.tensor([1.0, 0.3, 0.1])), torch.tensor([3, 0, 19, 7, 7])
    turned = x.clone()
    rotate_pairs_(turned, angles.cos(), angles.sin(), at)
    assert torch.equal(turned[..., :4], x[..., :4])
    wanted = torch.view_as_complex(x[..., 4:].reshape(5, 3, 3, 2)) * torch.exp(1j * angles[at]).unsqueeze(1)
    assert torch.allclose(turned[..., 4:], torch.view_as_real(wanted).flatten(2), atol=1e-6)
    rotate_pairs_(turned, angles.cos(), angles.sin(), at, back=True)
    assert torch.allclose(turned, x, atol=1e-6)
