"""What the layer takes of memory and what passes read more, where it can lie, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mtp_gguf
import pytest
import safetensors.torch
import thread_hosts
import torch
from host_processes import Hosts, coordinator
from mtp_models import layer_tensors
from mtp_runs import OPTIONS, always, opened, prompt
from refusals import refused

from headrace import LLM, CheckpointError, ConfigError, OptionError, SamplingParams
from headrace.engine.bandwidth_model import reconcile
from headrace.engine.bandwidth_model.profile import Profile
from headrace.engine.ledger.passes import CPU_DRAM
from headrace.engine.memory.required import MTP
from headrace.engine.placement.placement import Tier
from headrace.engine.speculation.lookup import PromptLookup
from headrace.engine.speculation.mtp.drafter import MtpDrafter
from headrace.engine.terminal.generate_report import placement_rows
from headrace.kernels.blocks import cache_rows
from headrace.loaders.families import FAMILIES
from headrace.loaders.weights import converted

With, Checkpoints = Callable[..., Path], Callable[[str], Path]
HOW = SamplingParams(max_new_tokens=40, ignore_eos=True)
TEXT = prompt(45)


@pytest.mark.parametrize("variant", ["qwen3_moe", "qwen3_next", "deepseek_v32"])
@pytest.mark.parametrize("formats", [{}, {"expert_format": "bf16", "dense_format": "f16"}], ids=["f32", "packed"])
def test_a_plan_has_every_byte(variant: str, formats: dict[str, str], with_mtp: With) -> None:
    asked = {**OPTIONS, "dtype": "auto", **formats}
    with LLM(str(with_mtp(variant)), **asked, speculate="off") as llm:
        without = llm.parts.memory_plan.memory[Tier.CPU].needed
        assert MTP not in without
    with LLM(str(with_mtp(variant)), **asked, speculate="mtp") as llm:
        parts, needed = llm.parts, llm.parts.memory_plan.memory[Tier.CPU].needed
        assert parts.mtp is not None
        assert parts.weights.mtp is not None
        stored = {name: one for name, one in parts.weights.named().items() if name.startswith("mtp.")}
        assert needed[MTP] == sum(one.nbytes for one in stored.values()) == parts.weights.mtp.nbytes > 0
        held = sum(needed[name] for name in ("common weights", "embedding", "experts", MTP))
        assert held == parts.weights.nbytes == parts.checkpoint.weight_bytes
        pages = [one for cache in (parts.decoder.cache, parts.mtp.decoder.cache) for one in cache.layers]
        parts_of = ("k", "v", "index", "rows", "keys")
        rows = [getattr(one, name) for one in pages for name in parts_of if hasattr(one, name)]
        assert parts.kv_budget.kv_bytes == sum(cache_rows.memory(one).nbytes for one in rows)
        waiting = needed["buffers of a pass"] - without["buffers of a pass"]
        assert waiting == 4 * 80 * OPTIONS["max_sequences"] * llm.spec.hidden
        assert [row[0] for row in placement_rows(llm)].count("MTP layer") == 1
        drafter = always(llm)
        llm.generate([prompt(90), prompt(63)], HOW)
        assert {one.data_ptr() for one in stored.values()} <= {one.data_ptr() for one in parts.weights.named().values()}
        assert drafter.layer.decoder.weights.head is parts.weights.head


def test_no_more_states_wait_than_are_planned(with_mtp: With) -> None:
    most = 0
    with opened(with_mtp("qwen3_moe"), prefill_chunk=50) as llm:
        drafter = always(llm, 8)
        for chunk in llm.stream(prompt(110), SamplingParams(max_new_tokens=60, ignore_eos=True)):
            most = max(most, *(one.waits for one in drafter.known.values()), 0) if chunk else most
    assert 0 < most <= 80


def test_a_pass_counts_what_all_tokens_read(with_mtp: With) -> None:
    """All tokens of a prompt go through the last experts; the head is read where logits are wanted, as without."""
    found: dict[str, Any] = {}
    for speculate in ("off", "mtp"):
        with LLM(str(with_mtp("qwen3_moe")), **OPTIONS, speculate=speculate, prefill_chunk=32) as llm:
            with llm.ledger.recording() as passes:
                llm.generate([TEXT], SamplingParams(max_new_tokens=1))
            sizes = llm.parts.decoder.sizes
            found[speculate] = [one.bytes[CPU_DRAM] for one in passes]
    (first, last), (first_all, last_all) = found["off"], found["mtp"]
    assert "head" not in first
    assert "head" not in first_all
    assert first_all["dense"] - first["dense"] == sizes.tail
    assert first_all["kv"] > first["kv"]
    assert last_all["head"] == last["head"] > 0
    assert (last_all["dense"], last_all["kv"]) == (last["dense"], last["kv"])
    assert all(more["experts"] > less["experts"] for more, less in zip(found["mtp"], found["off"], strict=True))


@pytest.mark.parametrize(
    "where",
    [
        {"placement": "cpu"},
        {"placement": "disk", "expert_cache": "50%"},
        {"kv_format": "bf16"},
        {"device": "simulated", "cpu_moe": True, "handoff": "eager"},
        {"device": "simulated", "n_cpu_moe": 2, "handoff": "eager"},
        {"device": "simulated", "placement": "gpu", "handoff": "eager"},
        {"device": "simulated", "policy": "lru", "expert_cache": "40%", "handoff": "eager"},
        {"device": "simulated", "policy": "lru", "handoff": "eager"},
        {"device": "simulated", "placement": "disk", "expert_cache": "50%", "handoff": "eager"},
    ],
    ids=str,
)
def test_text_is_the_same_wherever_experts_lie(where: dict[str, Any], with_mtp: With) -> None:
    with LLM(str(with_mtp("qwen3_moe")), **OPTIONS, **where, speculate="off") as llm:
        plain = [one.token_ids for one in llm.generate([TEXT, TEXT[5:]], HOW)]
    with opened(with_mtp("qwen3_moe"), **where) as llm:
        always(llm)
        with llm.ledger.recording() as passes:
            assert [one.token_ids for one in llm.generate([TEXT, TEXT[5:]], HOW)] == plain
        assert sum(one.drafted for one in passes) > 50


@pytest.mark.parametrize("variant", ["qwen3_moe", "qwen3_next", "deepseek_v3"])
def test_guesses_beside_a_gpu_are_those_of_the_cpu(variant: str, with_mtp: With) -> None:
    """The layer has its cache, and the embedding's rows come from RAM."""
    said: list[list[list[int]]] = []
    for where in ({}, {"device": "simulated", "cpu_moe": True, "handoff": "eager"}):
        with opened(with_mtp(variant), **where) as llm:
            drafter, found = always(llm), list[list[int]]()
            made = drafter.draft_all

            def draft_all(asked: Any, made: Any = made, found: Any = found) -> Any:
                drafts = made(asked)
                found += [one.tokens for one in drafts if one is not None]
                return drafts

            drafter.draft_all = draft_all  # type: ignore[method-assign]
            llm.generate([TEXT], HOW)
            said.append(found)
    assert said[0] == said[1]
    assert sum(map(len, said[0])) > 50


def test_beside_a_gpu_a_plan_has_every_byte(with_mtp: With) -> None:
    where = {"device": "simulated", "cpu_moe": True, "handoff": "eager"}
    with LLM(str(with_mtp("qwen3_moe")), **OPTIONS, **where, speculate="off") as llm:
        without = llm.parts.memory_plan.memory
    with opened(with_mtp("qwen3_moe"), **where) as llm:
        plan, weights = llm.parts.memory_plan, llm.parts.weights.mtp
        assert weights is not None
        assert plan.memory[Tier.GPU0].needed[MTP] == weights.nbytes
        waiting = 4 * 80 * OPTIONS["max_sequences"] * llm.spec.hidden
        buffers = "buffers of a pass"
        assert plan.memory[Tier.GPU0].needed[buffers] - without[Tier.GPU0].needed[buffers] == waiting
        assert plan.memory[Tier.CPU].needed == without[Tier.CPU].needed


def test_a_packed_layer_drafts_as_well(with_mtp: With) -> None:
    formats = {"expert_format": "q8_0", "dense_format": "q8_0"}
    with LLM(str(with_mtp("qwen3_moe")), **{**OPTIONS, "dtype": "auto"}, **formats, speculate="mtp") as llm:
        always(llm)
        assert llm.parts.weights.mtp is not None
        assert llm.parts.weights.mtp.project.format.name == "q8_0"
        found = llm.generate([TEXT], HOW)[0].token_ids
    with LLM(str(with_mtp("qwen3_moe")), **{**OPTIONS, "dtype": "auto"}, **formats, speculate="off") as llm:
        assert llm.generate([TEXT], HOW)[0].token_ids == found


def test_a_converted_model_takes_a_file(checkpoints: Checkpoints, with_mtp: With, tmp_path: Path) -> None:
    with LLM(str(checkpoints("qwen3_moe")), **OPTIONS, speculate="off") as llm:
        parts = llm.parts
        converted.save(parts.checkpoint.directory, tmp_path / "new", parts.weights, parts.checkpoint.formats)
        plain = llm.generate([TEXT], HOW)[0].token_ids
    shutil.copy(with_mtp("qwen3_moe", "beside it") / "mtp.safetensors", tmp_path / "new")
    with opened(tmp_path / "new") as llm:
        always(llm)
        assert llm.parts.checkpoint.is_converted
        assert llm.generate([TEXT], HOW)[0].token_ids == plain
        converted.save(tmp_path / "new", tmp_path / "newer", llm.parts.weights, llm.parts.checkpoint.formats)
    with LLM(str(tmp_path / "newer"), **OPTIONS, speculate="off") as llm:
        assert llm.generate([TEXT], HOW)[0].token_ids == plain


def test_it_is_left_out_where_nobody_asks(with_mtp: With) -> None:
    for speculate in ("off", "lookup", "auto"):  # nothing was measured here
        with LLM(str(with_mtp("deepseek_v3")), **OPTIONS, speculate=speculate) as llm:
            assert llm.parts.mtp is None
            assert llm.parts.weights.mtp is None
            assert not llm.parts.decoder.goes_on
            assert any("multi-token prediction" in note for note in llm.notes)


def test_by_itself_it_is_loaded_where_seconds_are_known(
    profile: Profile, with_mtp: With, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {name: value for name, value in OPTIONS.items() if name != "no_measure"}
    with LLM(str(with_mtp("qwen3_moe")), **asked) as llm:
        assert llm.parts.mtp is None  # the CPU's caches hold the model
    monkeypatch.setattr(reconcile, "IN_CACHES", 0)
    with LLM(str(with_mtp("qwen3_moe")), **asked) as llm:
        assert llm.loop.drafts is not None
        speculation = llm.loop.drafts.speculation
        assert isinstance(speculation.drafter, PromptLookup)
        assert isinstance(speculation.behind, MtpDrafter)
        assert speculation.must_pay
        assert not any("multi-token prediction" in note for note in llm.notes)
        text = llm.generate([TEXT], HOW)[0].token_ids
    with LLM(str(with_mtp("qwen3_moe")), **asked, trace=tmp_path / "trace") as llm:
        assert llm.parts.mtp is None
        assert llm.generate([TEXT], HOW)[0].token_ids == text


def test_a_layer_that_cannot_be_used_is_left_out_by_itself(profile: Profile, with_mtp: With, tmp_path: Path) -> None:
    shutil.copytree(with_mtp("qwen3_moe"), tmp_path / "m")
    own = safetensors.torch.load_file(tmp_path / "m" / "model.safetensors")
    del own["mtp.layers.0.self_attn.k_proj.weight"]
    safetensors.torch.save_file(own, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    asked = {name: value for name, value in OPTIONS.items() if name != "no_measure"}
    with LLM(str(tmp_path / "m"), **asked) as llm:
        assert llm.parts.mtp is None
        assert any("its layer for multi-token prediction is left out" in note for note in llm.notes)
    with refused(CheckpointError, "lacks 1 of the", "as 'self_attn.k_proj.weight'", "speculate 'mtp'"):
        opened(tmp_path / "m")


def test_what_cannot_be_is_refused(checkpoints: Checkpoints, with_mtp: With, tmp_path: Path) -> None:
    plain, file = checkpoints("qwen3_moe"), with_mtp("qwen3_moe", "beside it") / "mtp.safetensors"
    with refused(
        OptionError, "has no layer for multi-token prediction", "there is no mtp.safetensors beside it", "FILE"
    ):
        opened(plain)
    with refused(OptionError, "model.safetensors holds none"):
        opened(plain, mtp=plain / "model.safetensors")
    with refused(OptionError, "which is no file: give the one that holds the layer"):
        opened(plain, mtp=tmp_path / "none.safetensors")
    (tmp_path / "m.bin").write_bytes(b"x")
    with refused(OptionError, "give its layer as .safetensors, too"):
        opened(plain, mtp=tmp_path / "m.bin")
    (tmp_path / "m.safetensors").write_bytes(b"x" * 100)
    with refused(CheckpointError, "the layer for multi-token prediction cannot be read"):
        opened(plain, mtp=tmp_path / "m.safetensors")
    with refused(CheckpointError, "lacks 4 of the 41 tensors", "'mlp.shared_expert.gate_proj.weight'"):
        opened(checkpoints("qwen3_next"), mtp=file)
    stored = safetensors.torch.load_file(file)
    cut = stored | {"mtp.fc.weight": stored["mtp.fc.weight"][:, :64].clone()}
    safetensors.torch.save_file(cut, tmp_path / "cut.safetensors", {"format": "pt"})
    with refused(CheckpointError, "'mtp.fc.weight'", "has shape [64, 64]", "[64, 128]: it belongs to another model"):
        opened(plain, mtp=tmp_path / "cut.safetensors")
    with refused(OptionError, "speculate is 'lookup'", "leave mtp out"):
        LLM(str(plain), **OPTIONS, speculate="lookup", mtp=file)
    with refused(ConfigError, "layers for multi-token prediction are not run for gemma4"):
        opened(checkpoints("gemma4_text"), mtp=file)


def test_gguf_that_cannot_be_is_refused(checkpoints: Checkpoints, with_mtp: With, tmp_path: Path) -> None:
    path, apart, variant = tmp_path / "m.gguf", tmp_path / "mtp.gguf", "deepseek_v3"
    mtp_gguf.write(variant, checkpoints(variant), layer_tensors(variant, checkpoints(variant)), path, apart)
    with refused(OptionError, "has no layer for multi-token prediction"):
        opened(path)
    with refused(OptionError, "the model is a GGUF file: give its layer as GGUF, too"):
        opened(path, mtp=with_mtp("qwen3_moe", "beside it") / "mtp.safetensors")
    with refused(OptionError, "which is no file"):
        opened(path, mtp=tmp_path / "none.gguf")
    with refused(OptionError, "m.gguf holds none"):
        opened(path, mtp=path)


def test_experts_on_hosts(with_mtp: With) -> None:
    """The layer lies here, whole; hosts have the model's experts alone, and know of no such layer."""
    with LLM(str(with_mtp("qwen3_moe")), **OPTIONS, speculate="off") as llm:
        plain = [one.token_ids for one in llm.generate([TEXT, TEXT[5:]], HOW)]
    hosts = Hosts(with_mtp("qwen3_moe", "beside it"), 1)
    try:
        with coordinator(hosts, **OPTIONS, speculate="mtp") as llm:
            always(llm)
            with llm.ledger.recording() as passes:
                assert [one.token_ids for one in llm.generate([TEXT, TEXT[5:]], HOW)] == plain
            assert sum(one.drafted for one in passes) > 50
            assert llm.parts.mtp is not None
    finally:
        hosts.close()


def test_layers_on_hosts_go_without(profile: Profile, with_mtp: With, monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself the layer is loaded on no machine; what asks for it is refused."""
    monkeypatch.setattr(reconcile, "IN_CACHES", 0)
    asked = {name: value for name, value in OPTIONS.items() if name != "no_measure"}
    with LLM(str(with_mtp("qwen3_moe")), **asked, speculate="off") as llm:
        plain = [one.token_ids for one in llm.generate([TEXT, TEXT[5:]], HOW)]
    hosts = thread_hosts.ThreadHosts(with_mtp("qwen3_moe"), 1)
    try:
        with thread_hosts.layered(hosts, **asked, no_measure=False, placement="hosts") as llm:
            assert llm.parts.mtp is None
            assert [one.token_ids for one in llm.generate([TEXT, TEXT[5:]], HOW)] == plain
        held = hosts.hosts["h1"].layers
        assert held is not None
        assert all(one.weights.mtp is None or one.weights.mtp.norm.is_meta for one in held.segments.values())
    finally:
        hosts.close()
    with refused(OptionError, "speculate 'mtp' does not go with whole layers"):
        LLM(str(with_mtp("qwen3_moe")), **asked, speculate="mtp", hosts=1, split_by="layers")


# By family the names of tensors of its releases' layers, as far as they are known.
OTHERS = {
    "nemotron_h": "mtp.layers.0.eh_proj.weight",
    "deepseek_v4": "mtp.0.e_proj.weight",
    "minimax_m3_vl_text": "mtp.layers.0.eh_proj.weight",
}  # fmt: skip


@pytest.mark.parametrize("variant", OTHERS)
def test_layers_that_are_not_run_are_refused_by_name(variant: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    """And are left out where they are not asked for."""
    path = tmp_path / "model"
    shutil.copytree(checkpoints(variant), path)
    own = safetensors.torch.load_file(path / "model.safetensors")
    prefix = "language_model." if all(name.startswith("language_model.") for name in own) else ""
    hidden = 64
    own |= {prefix + OTHERS[variant]: torch.zeros(hidden, 2 * hidden)}
    safetensors.torch.save_file(own, path / "model.safetensors", {"format": "pt"})
    options = {**OPTIONS, "max_context": 64}
    with LLM(str(path), **options, speculate="off") as llm:
        family = llm.spec.family
        assert FAMILIES[family].mtp_gap
    with refused(ConfigError, f"layers for multi-token prediction of {family} are not run: ", "speculate 'lookup'"):
        LLM(str(path), **options, speculate="mtp")
