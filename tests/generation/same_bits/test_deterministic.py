"""--deterministic: a request's tokens and logits are the same bit for bit, whatever is beside it, however its prompt is
cut, on any number of threads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from family_runs import prompt as ids
from refusals import refused

from headrace import LLM, EngineConfig, OptionError, SamplingParams
from headrace.engine.devices import device as devices
from headrace.engine.generation.outputs import Completion
from headrace.engine.generation.schedule import scheduler
from headrace.engine.measure import tile_thresholds
from headrace.kernels import FORMATS
from headrace.kernels.context import NEVER
from headrace.kernels.mixers import LatentBlock
from headrace.loaders.weights import converted

Checkpoints = Callable[[str], Path]
LENGTHS, NEW = (70, 3, 150, 41, 1, 96, 17, 64), 26
PAGES = 6  # of the cache, where there is not room for all
# Matrices that a team shares out, a context of several pages, prompts that fill more than a tile.
WIDE: dict[str, Any] = {"hidden_size": 256, "moe_intermediate_size": 192, "intermediate_size": 320, "head_dim": 64}


PROMPTS = [ids(length, number) for number, length in enumerate(LENGTHS)]


def params(seed: int) -> SamplingParams:
    """Every second request draws. Likelihoods are made of logits, and of all of them."""
    warm = {"temperature": 0.9, "top_p": 0.95} if seed % 2 else {}
    return SamplingParams(max_new_tokens=NEW, ignore_eos=True, seed=seed, logprobs=5, **warm)


def said(done: Completion) -> tuple[list[int], list[Any]]:
    return done.token_ids, done.logprobs


def load(path: Path, **options: Any) -> LLM:
    given = {"max_context": 256, "no_measure": True, "speculate": "off", "deterministic": True, **options}
    return LLM(str(path), **given)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wide") / "model"
    tiny.build("qwen3_moe", path, **WIDE)
    return path


# ---- logits of a prompt


@pytest.mark.parametrize("variant", sorted(tiny.VARIANTS))
def test_every_family_gives_the_same_logits_by_any_chunks_and_threads(variant: str, checkpoints: Checkpoints) -> None:
    found = []
    for chunk, threads in ((512, 1), (37, 3), (1, 2)):
        with load(checkpoints(variant), dtype="float32", prefill_chunk=chunk, threads=threads) as llm:
            found.append(llm.logits(ids(110)))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.fixture(scope="module", params=sorted(FORMATS))
def packed(request: pytest.FixtureRequest, wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wide model in each format, packed once for all that load it."""
    path = tmp_path_factory.mktemp("packed") / str(request.param)
    with load(wide, expert_format=request.param, dense_format=request.param) as llm:
        converted.save(wide, path, llm.parts.weights, llm.parts.checkpoint.formats)
    return path


@pytest.mark.parametrize("activations", ["int8", "bf16"])
def test_every_format_gives_the_same_logits_by_any_chunks_and_threads(activations: str, packed: Path) -> None:
    found = []
    for chunk, threads in ((512, 1), (37, 3), (1, 2)):
        with load(packed, prefill_chunk=chunk, threads=threads, cpu_activations=activations) as llm:
            found.append(llm.logits(ids(70)))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_without_it_latents_go_by_how_a_prompt_is_cut(checkpoints: Checkpoints) -> None:
    """Keys that are made of latents are why: a test of those above that could not fail would be none."""
    found = []
    for chunk in (512, 1):
        with load(checkpoints("deepseek_v2"), dtype="float32", prefill_chunk=chunk, deterministic=False) as llm:
            found.append(llm.logits(ids(110)))
    assert not torch.equal(*found)


# ---- requests


FAMILIES = [
    "qwen3_moe", "qwen3_next", "deepseek_v3", "gpt_oss", "granitemoehybrid", "deepseek_v32", "deepseek_v4", "glm5_next",
    "qwen4_exp_text", "minimax_m3_vl_text",
]  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def alone(family: str, checkpoints: Checkpoints) -> list[tuple[list[int], list[Any]]]:
    """Each request in an engine that has seen no other, its prompt in one pass, on one thread."""
    found = []
    for number, prompt in enumerate(PROMPTS):
        with load(checkpoints(family), threads=1) as llm:
            found.append(said(llm.generate([prompt], params(number))[0]))
    return found


@pytest.mark.parametrize(("threads", "chunk"), [(1, 512), (2, 48), (3, 19)])
def test_eight_at_once_say_what_each_says_alone(
    family: str, threads: int, chunk: int, checkpoints: Checkpoints, alone: list[Any]
) -> None:
    wanted = [params(number) for number in range(len(PROMPTS))]
    with load(checkpoints(family), threads=threads, prefill_chunk=chunk) as llm:
        assert [said(one) for one in llm.generate(PROMPTS, wanted)] == alone
        again = llm.generate(PROMPTS, wanted)  # beginnings are taken over now
        assert [said(one) for one in again] == alone
        assert max(one.reused_tokens for one in again) >= 64


def test_prompts_beside_text_change_nothing(family: str, checkpoints: Checkpoints, alone: list[Any]) -> None:
    with load(checkpoints(family), threads=2, prefill_chunk=48, prefill_stall_ms=1000) as llm:
        streams: list[Any] = []
        for number, prompt in enumerate(PROMPTS):
            streams.append(llm.stream(prompt, params(number)))
            for stream in streams:
                next(stream)
        for stream in streams:
            list(stream)
        assert [said(stream.result) for stream in streams] == alone
        assert any(one.phase == "mixed" for one in streams[0].result.ledger)


def test_who_had_to_make_room_goes_on_with_the_same_bits(
    family: str, checkpoints: Checkpoints, alone: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "WINDOW", 1)
    with load(checkpoints(family), threads=2, prefill_chunk=48) as llm:
        pages = llm.loop.pages
        llm.loop.pages = llm.loop.scheduler.pages = type(pages)(PAGES)
        monkeypatch.setattr(llm.loop.scheduler, "watermark", 0)
        found = llm.generate(PROMPTS, [params(number) for number in range(len(PROMPTS))])
        assert [said(one) for one in found] == alone
        assert llm.loop.scheduler.preemptions > 0


def test_drafts_change_nothing(family: str, checkpoints: Checkpoints, alone: list[Any]) -> None:
    with load(checkpoints(family), threads=2, speculate="lookup") as llm:
        found = llm.generate(PROMPTS, [params(number) for number in range(len(PROMPTS))])
    assert [said(one) for one in found] == alone


# ---- where experts lie


@pytest.mark.parametrize(
    "options",
    [
        {"placement": "cpu"},
        {"placement": "disk", "expert_cache": "40%"},
        {"placement": "disk", "expert_cache": "70%", "policy": "lfu"},
    ],
    ids=["ram", "disk", "policy"],
)
def test_one_placement_says_the_same_alone_and_among_others(options: dict[str, Any], checkpoints: Checkpoints) -> None:
    def run(numbers: range, **more: Any) -> list[Any]:
        with load(checkpoints("qwen3_moe"), **options, **more) as llm:
            chosen = [params(number) for number in numbers]
            return [said(one) for one in llm.generate([PROMPTS[number] for number in numbers], chosen)]

    together = run(range(len(PROMPTS)), threads=2, prefill_chunk=48)
    assert [run(range(number, number + 1), threads=1)[0] for number in range(4)] == together[:4]


# ---- how it is done


def test_no_tiles_are_taken_and_none_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tile_thresholds, "use", lambda *_: pytest.fail("measured"))
    with LLM("demo", deterministic=True, max_context=128) as llm:
        assert llm.parts.context.tiles_from == dict.fromkeys(FORMATS, NEVER)
        assert llm.parts.main.ops.context is llm.parts.context  # type: ignore[attr-defined]


def test_no_keys_are_made_of_latents(checkpoints: Checkpoints) -> None:
    for wanted in (True, False):
        with load(checkpoints("deepseek_v2"), deterministic=wanted) as llm:
            blocks = [layer.block for layer in llm.parts.decoder.stack.layers]
            assert [one.may_make_keys for one in blocks if isinstance(one, LatentBlock)] == [not wanted] * len(blocks)


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"kernels": "reference"}, "kernels 'reference'"),
        ({"hosts": 2}, "hosts"),
        ({"device": "cuda"}, "GPU"),
        ({"device": "cuda:1"}, "GPU"),
        ({"device": "simulated"}, "GPU"),
        ({"device": "simulated:cpu"}, "GPU"),
        ({"cpu_moe": True}, "GPU"),
        ({"policy": "lru"}, "GPU"),
    ],
)
def test_what_is_not_promised_is_refused(options: dict[str, Any], named: str) -> None:
    with refused(OptionError, "deterministic", named):
        EngineConfig(deterministic=True, **options)


def test_a_gpu_that_is_found_is_refused(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    find = devices.find
    monkeypatch.setattr(devices, "find", lambda config, ram: find(EngineConfig(device="simulated"), ram))
    with refused(OptionError, "deterministic", "one is there", "'cpu'"):
        load(checkpoints("qwen3_moe"))
