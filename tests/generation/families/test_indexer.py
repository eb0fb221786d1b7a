"""Models that choose the keys which latent attention sees: DeepSeek-V3.2 and GLM-5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from family_runs import Checkpoints, prompt

from headrace import LLM, SamplingParams
from headrace.engine.ledger.pass_bytes import CacheSizes, Indexed
from headrace.engine.model.kv_cache import PAGE, Latents
from headrace.errors import ConfigError, OptionError
from headrace.kernels.mixers import LatentBlock
from headrace.loaders.families import spec_of
from headrace.loaders.families.config_reader import ConfigReader
from headrace.loaders.spec import LatentSpec

FEW = SamplingParams(max_new_tokens=8, ignore_eos=True)
TOP = 24  # of the small models


def load(path: Path, **options: object) -> LLM:
    return LLM(str(path), kernels="cpu", dtype="float32", max_context=160, **options)


def config_of(path: Path, **changes: Any) -> dict[str, Any]:
    return {**ConfigReader.open(path / "config.json").values, **changes}


def indexers(values: dict[str, Any]) -> list[bool]:
    """Which layers have one of their own."""
    spec = spec_of(ConfigReader(values, "config.json"))[1]
    return [isinstance(one, LatentSpec) and one.indexer is not None and one.indexer.own for one in spec.mixers]


@pytest.mark.parametrize("variant", ["deepseek_v32", "glm_moe_dsa"])
def test_nothing_is_left_out_of_a_short_context(variant: str, checkpoints: Checkpoints) -> None:
    """Up to the keys that may be seen a model says what it would without an indexer, to the bit; then no longer. In a
    pass that goes on behind them, their own tokens see all there is too, by other sums."""
    ids = prompt(40)
    with load(checkpoints(variant)) as llm:
        found = llm.logits(ids[:TOP]), llm.logits(ids)
        for layer in llm.parts.decoder.stack.layers:
            assert isinstance(layer.block, LatentBlock)
            object.__setattr__(layer.block, "top", None)
        llm.parts.decoder.stack.native.clear()
        for layer in llm.parts.decoder.stack.layers:
            layer.block.native.clear()
        seen = llm.logits(ids[:TOP]), llm.logits(ids)
    assert torch.equal(found[0], seen[0])
    assert (found[1][:TOP] - seen[1][:TOP]).abs().max() < 1e-4
    assert (found[1][TOP:] - seen[1][TOP:]).abs().amax(dim=1).min() > 1e-3


@pytest.mark.parametrize("variant", ["deepseek_v32", "glm_moe_dsa"])
def test_pages_that_are_taken_over_have_the_indexers_keys(variant: str, checkpoints: Checkpoints) -> None:
    ids, more = prompt(70, 1), prompt(9, 2)
    with load(checkpoints(variant)) as llm:
        llm.generate([ids], FEW)
        again = llm.generate([[*ids[:64], *more]], FEW)[0]
        assert llm.ledger.passes[-len(again.token_ids)].tokens == len(more), "pages were taken over"
        cache = llm.parts.decoder.cache
        assert sum(part.nbytes for part in cache.page_parts(0)) == cache.sizes.token * PAGE
    with load(checkpoints(variant)) as llm:
        assert llm.generate([[*ids[:64], *more]], FEW)[0].token_ids == again.token_ids


def test_pages_come_back_from_a_disk_with_them(checkpoints: Checkpoints, tmp_path: Path) -> None:
    ids = [*prompt(70, 1)]
    with load(checkpoints("glm_moe_dsa"), kv_disk=tmp_path / "kv") as llm:
        wanted = llm.generate([ids], FEW)[0].token_ids
    with load(checkpoints("glm_moe_dsa"), kv_disk=tmp_path / "kv") as llm:
        found = llm.generate([ids], FEW)[0]
        assert found.token_ids == wanted
        assert llm.ledger.passes[-len(wanted)].tokens == 70 - 64


def test_layers_that_share_a_choice_keep_no_keys_for_it(checkpoints: Checkpoints) -> None:
    with load(checkpoints("glm_moe_dsa")) as llm:
        widths = [layer.keys.shape[3] for layer in llm.parts.decoder.cache.layers if isinstance(layer, Latents)]
        assert widths == [12, 0, 12, 0, 0]


def test_which_layers_choose(checkpoints: Checkpoints) -> None:
    """A list, or a pattern, or every so many behind the first ones."""
    values = config_of(checkpoints("glm_moe_dsa"))
    assert indexers(values) == [True, False, True, False, False]
    values["indexer_types"] = None
    assert indexers(values | {"index_topk_pattern": "FSSFF"}) == [True, False, False, True, True]
    assert indexers(values | {"index_topk_freq": 3, "index_skip_topk_offset": 1}) == [True, False, False, True, False]
    assert indexers(values | {"index_topk_freq": 2}) == [True, True, False, True, False]
    assert indexers(values) == [True] * 5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"indexer_types": ["shared"] + ["full"] * 4}, "full first"),
        ({"indexer_types": ["full"] * 4}, "indexer_types is .*, supported is a list of 5 times full or shared"),
        ({"q_lora_rank": None}, "q_lora_rank is null"),
        ({"index_head_dim": 6}, "index_head_dim is 6, supported is at least the 8 dims that are rotated"),
        ({"indexer_rope_interleave": False}, "indexer_rope_interleave is false, supported is true or null"),
        (
            {"layer_types": ["full_attention"] * 5},
            "layer_types is .*, supported is a list of 5 times indexed_attention",
        ),
    ],
)
def test_impossible_indexers_are_refused(changes: dict[str, Any], said: str, checkpoints: Checkpoints) -> None:
    with pytest.raises(ConfigError, match=said):
        indexers(config_of(checkpoints("glm_moe_dsa"), **changes))


def test_what_is_read_of_a_cache_with_an_indexer() -> None:
    """A latent of 10 bytes and a key of 3, of which 8 are seen: a short context as a whole and no key of the indexer;
    of a long one all those, and as many latents as the new tokens may choose."""
    cache = CacheSizes(
        layers=((13, (None, None)), (10, (None, None))), state=0, indexed={0: Indexed(10, 3, 8), 1: Indexed(10, 0, 8)}
    )
    assert cache.moved([(1, 8)], logits=True) == 23 + 2 * 80
    assert cache.moved([(1, 30)], logits=True) == 23 + 2 * 80 + 3 * 30
    assert cache.moved([(2, 30), (1, 5)], logits=False) == 3 * 23 + 10 * (16 + 5) + 3 * 30
    assert cache.moved([(9, 30)], logits=False) == 9 * 23 + 10 * 30 + 3 * 30


def test_a_gpu_is_refused_by_name(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="the GPU kernels need Triton", exc_type=ImportError)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(OptionError, match="its kernels lack the indexer that chooses keys; run it with --device cpu"):
        LLM(str(checkpoints("glm_moe_dsa")), kernels="reference", dtype="float32", device="simulated:gpu")
