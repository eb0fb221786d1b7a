"""A cache of keys and values in q8_0: the same text on all ways to it, its bytes, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from family_runs import prompt

from headrace import LLM, OptionError, SamplingParams
from headrace.engine.bandwidth_model.flop_counts import intensity
from headrace.engine.bench.quality.perplexity import change, score
from headrace.engine.core.fingerprint import fingerprint
from headrace.engine.ledger.pass_bytes import KV
from headrace.engine.model.kv_cache import PAGE
from headrace.engine.planning.layouts import Demand
from headrace.engine.planning.options import Options
from headrace.engine.planning.plan import make
from headrace.kernels.formats import KV_BF16, KV_FORMATS, KV_Q8_0
from headrace.loaders import model_source

FEW = SamplingParams(max_new_tokens=6, ignore_eos=True)
# Heads of 32, latents of 56 + 8; a layer in four, and one of three, with such.
MADE = "deepseek_v2-wide"
WIDE: dict[str, dict[str, Any]] = {
    "mixtral-llama3": {},
    "qwen3_next": {},
    MADE: {**tiny.VARIANTS["deepseek_v2"], "kv_lora_rank": 56},
}
# Windows and keys that serve as values, whose rows have two sizes; chunks; values narrower than keys, scaled.
MIXED: dict[str, dict[str, Any]] = {
    "gemma4_text-wide": {**tiny.VARIANTS["gemma4_text"], "head_dim": 32, "global_head_dim": 64},
    "llama4_text-interleaved": {},
    "mimo_v2_flash-wide": {**tiny.VARIANTS["mimo_v2_flash"], "head_dim": 96, "v_head_dim": 32},
}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints whose cached rows are whole blocks."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, config in (WIDE | MIXED).items():
            patch.setitem(tiny.VARIANTS, name, config or tiny.VARIANTS[name])
            found[name] = tmp_path_factory.mktemp("wide") / name
            tiny.build(name, found[name])
    return found


def load(path: Path, **options: Any) -> LLM:
    chosen = {"dtype": "float32", "kv_format": "q8_0", "max_context": 256, "no_measure": True, **options}
    return LLM(str(path), **chosen)


def logits(path: Path, ids: list[int], **options: Any) -> torch.Tensor:
    with load(path, **options) as llm:
        return llm.logits(ids)


@pytest.mark.parametrize("name", WIDE | MIXED)
def test_kernels_agree_with_the_plain_ones(name: str, wide: dict[str, Path]) -> None:
    """Whole and in chunks, where keys and values of latents are made as bf16 or not; and what is rounded to q8_0 is
    seen, and is little. A number that falls to another code moves logits by some of that."""
    ids = prompt(75, 1)
    plain = logits(wide[name], ids, kernels="reference", prefill_chunk=16)
    exact = logits(wide[name], ids, kernels="reference", kv_format="f32")
    moved, size = (plain - exact).abs().mean(), exact.abs().mean()
    most = 0.2 if name in MIXED else 0.05  # scores of normed heads are sharp, and little changes them
    assert 1e-4 * size < moved < most * size
    for chunk in (1, 16, 128):
        found = logits(wide[name], ids, kernels="cpu", prefill_chunk=chunk)
        assert (found - plain).abs().mean() < 0.5 * moved, f"chunks of {chunk}"


@pytest.mark.parametrize("name", WIDE | MIXED)
def test_a_batch_and_a_prompt_that_is_found_again_give_the_same(name: str, wide: dict[str, Path]) -> None:
    ids, others = prompt(2 * PAGE + 7, 2), prompt(40, 3)
    with load(wide[name], max_sequences=4) as llm:
        first, other = (llm.generate([one], FEW)[0].token_ids for one in (ids, others))
        again = llm.generate([ids], FEW)[0]
        assert again.token_ids == first or name == MADE, "whose keys and values are bf16 in a whole prompt alone"
        first = again.token_ids
        assert [one.token_ids for one in llm.generate([others, ids, others[:5]], FEW)[:2]] == [other, first]


@pytest.mark.parametrize("name", WIDE)
def test_pages_come_back_from_a_disk(name: str, wide: dict[str, Path], tmp_path: Path) -> None:
    """A page takes its bytes, and one of another format is not found."""
    ids = prompt(3 * PAGE + 5, 4)
    with load(wide[name], kv_disk=tmp_path) as llm:
        _, first = (llm.generate([ids], FEW)[0].token_ids for _ in range(2))
        prints = [fingerprint(llm.parts)]
        cache = llm.parts.decoder.cache
        assert sum(part.nbytes for part in cache.page_parts(0)) == cache.sizes.token * PAGE
        assert llm.loop.disk is not None
        llm.loop.disk.writer.flush()
    with load(wide[name], kv_disk=tmp_path) as llm:
        assert llm.generate([ids], FEW)[0].token_ids == first
        assert llm.loop.disk is not None
        assert llm.loop.disk.restored >= 1
    with load(wide[name], kv_disk=tmp_path, kv_format="bf16") as llm:
        prints.append(fingerprint(llm.parts))
        llm.generate([ids], FEW)
        assert llm.loop.disk is not None
        assert llm.loop.disk.restored == 0
    assert prints[0] != prints[1]


@pytest.mark.parametrize("name", WIDE)
def test_the_ledger_has_34_bytes_for_64(name: str, wide: dict[str, Path]) -> None:
    """But for recurrent states, which stay float32; and the plan has the ledger's bytes."""
    counted, states = {}, 0
    for format in ("bf16", "q8_0"):
        with load(wide[name], kv_format=format) as llm:
            with llm.ledger.recording() as passes:
                llm.generate([prompt(40, 5)], FEW)
            states = 2 * llm.parts.decoder.cache.sizes.state * len(passes)
            counted[format] = sum(one.bytes["cpu_dram"][KV] for one in passes) - states
            page, pages = PAGE * llm.parts.decoder.cache.sizes.token, llm.parts.kv_budget.pages
            assert llm.parts.kv_budget.kv_bytes == page * pages
            source = model_source.find(str(wide[name]))
            plan = make(source, None, Options(kv_format=format, context=PAGE, prompt=1))
            assert sum(plan.demand.cache) == page + 4 * llm.spec.state_elements
            assert isinstance(plan.demand, Demand)
    assert counted["q8_0"] * 64 == counted["bf16"] * 34
    assert states or name != "qwen3_next"


def test_arithmetic_is_that_of_bf16(wide: dict[str, Path]) -> None:
    """Half the bytes, so twice the FLOPs for each."""
    layer = model_source.find(str(wide["mixtral-llama3"])).described.architecture.layers[0]
    assert layer.mixer is not None
    assert intensity(layer.mixer, 7, 90, KV_Q8_0) * 34 == pytest.approx(intensity(layer.mixer, 7, 90, KV_BF16) * 64)


def test_a_gpu_that_is_played_has_the_same_cache(wide: dict[str, Path]) -> None:
    ids = prompt(50, 6)
    for name in WIDE:
        alone, placed = (
            logits(wide[name], ids, kernels="reference", prefill_chunk=16, **options)
            for options in ({}, {"device": "simulated", "placement": "gpu"})
        )
        assert (placed - alone).abs().max() < 1e-3 * alone.abs().max()


def test_heads_that_are_no_whole_blocks_are_refused(checkpoints: Any) -> None:
    path = str(checkpoints("qwen3_moe"))
    for attempt in (
        lambda: LLM(path, kv_format="q8_0", no_measure=True),
        lambda: make(model_source.find(path), None, Options(kv_format="q8_0", context=64)),
    ):
        with pytest.raises(OptionError, match=r"each 32 numbers of a head .* heads of 24 .*: give kv_format bf16, or"):
            attempt()


def test_values_that_are_no_whole_blocks_are_refused(tmp_path: Path) -> None:
    """Whatever keys are."""
    tiny.build("mimo_v2_flash", tmp_path / "m", head_dim=96, v_head_dim=20)
    with pytest.raises(OptionError, match=r"kv_format q8_0 stores each 32 numbers .* heads of 20 in its cache"):
        LLM(str(tmp_path / "m"), kv_format="q8_0", no_measure=True)


def test_models_with_an_indexer_are_refused(checkpoints: Any) -> None:
    path = str(checkpoints("deepseek_v32"))
    for attempt in (
        lambda: LLM(path, kv_format="q8_0", no_measure=True),
        lambda: make(model_source.find(path), None, Options(kv_format="q8_0", context=64)),
    ):
        with pytest.raises(OptionError, match=r"q8_0 is not there for models with an indexer.*: give kv_format bf16"):
            attempt()


@pytest.mark.parametrize("format", ["q4_0", "", "Q8", "native"])
def test_formats_that_there_are_not_are_refused(format: str) -> None:
    with pytest.raises(OptionError, match=r"kv_format is .*; choose one of auto, f32, bf16, q8_0"):
        LLM("demo", kv_format=format)
    with pytest.raises(OptionError, match=r"--kv-format is .*; choose one of f32, bf16, q8_0"):
        Options(kv_format=format)


def test_auto_is_what_weights_are() -> None:
    for options, name in (({}, "bf16"), ({"dtype": "float32"}, "f32"), ({"kv_format": "f32"}, "f32")):
        with LLM("demo", max_context=64, no_measure=True, **options) as llm:
            assert llm.parts.kv_format is KV_FORMATS[name]


def test_perplexity_stays_within_half_a_percent() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    scores = []
    for format in ("bf16", "q8_0"):
        with LLM("demo", kv_format=format, max_context=256, no_measure=True) as llm:
            scores.append(score(llm, llm.encode(text)[:1024], 256))
    changed, _ = change(scores[1], scores[0])
    assert 0 < abs(changed) < 0.005
