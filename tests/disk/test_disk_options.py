"""Options of experts on a disk, what is said of them, and the RAM that they take."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cached import made, recorded
from conftest import Run
from peak import PEAK
from refusals import refused

from headrace import LLM
from headrace.engine.bandwidth_model.profile import Profile
from headrace.engine.bench.random_weights import random_llm
from headrace.engine.config import EngineConfig
from headrace.engine.experts.disk.disk_cache import DiskCache
from headrace.engine.ledger.passes import CPU_DRAM, DISK
from headrace.engine.placement.placement import Tier
from headrace.errors import MemoryNeeded, OptionError
from headrace.loaders import model_source
from headrace.loaders.weights import converted

CONFIG: dict[str, Any] = {
    **model_source.find("Qwen3-30B-A3B").config, "hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "moe_intermediate_size": 512, "intermediate_size": 512,
    "num_experts": 64, "num_experts_per_tok": 4, "vocab_size": 1000, "max_position_embeddings": 512,
}  # fmt: skip
LIMIT_GB = 0.12  # of a model with 214 MB of experts
SLACK = 25_000_000  # the interpreter's own, and what the allocator keeps
RUN = f"""
import sys
import headrace.engine.llm
from headrace import LLM
{PEAK}
before = peak()
options = dict(ram_limit={LIMIT_GB}, max_context=256, prefill_chunk=64, **eval(sys.argv[2]))
with LLM(sys.argv[1], placement="disk", **options) as llm:
    llm.generate([list(range(100)), [5, 6, 7]], {{"max_new_tokens": 24, "ignore_eos": True}})
    print(peak() - before, llm.parts.expert_cache.slots.nbytes)
"""


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose experts are twice as large as the RAM that it is to have."""
    folder = tmp_path_factory.mktemp("larger")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    with random_llm(CONFIG, expert_format="q8_0", dense_format="q8_0", max_context=64) as llm:
        assert sum(llm.parts.memory_plan.experts) > 1.7 * LIMIT_GB * 1e9
        converted.save(folder, folder / "packed", llm.parts.weights, llm.parts.checkpoint.formats)
    return folder / "packed"


@pytest.mark.parametrize("options", ["{}", "{'policy': 'next-layer'}", "{'expert_cache': 0.03}"])
def test_ram_stays_below_its_limit(options: str, larger: Path) -> None:
    run = subprocess.run([sys.executable, "-c", RUN, larger, options], capture_output=True, text=True, check=True)
    taken, cache = map(int, run.stdout.split())
    assert taken < LIMIT_GB * 1e9 + SLACK
    assert 20e6 < cache < LIMIT_GB * 1e9


def test_what_does_not_fit_says_that_it_may_stay_on_the_disk(larger: Path) -> None:
    with refused(MemoryNeeded, "leave experts in the file (--placement disk)"):
        LLM(larger, device="cpu", ram_limit=LIMIT_GB, max_context=256)
    with refused(MemoryNeeded, "placement disk: RAM would hold", "give experts less of it (--expert-cache)"):
        LLM(larger, placement="disk", expert_cache=0.2, ram_limit=LIMIT_GB, max_context=256)
    with refused(MemoryNeeded, "placement disk: RAM would hold", "lower --max-context"):
        LLM(larger, placement="disk", ram_limit=0.01, max_context=256)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (dict(device="simulated", stream_from=4), "stream_from is about experts that go to a GPU"),
        (dict(device="simulated", link_limit=4.0), "link_limit is about experts that go to a GPU"),
        (dict(device="cuda", pinned_limit="0%"), "pinned_limit is about experts that go to a GPU"),
        (dict(device="cuda", second_vram=4.0), "second_vram is about experts that go to a GPU"),
        (dict(device="cuda", tensor_split="1,1"), "tensor_split deals out over two"),
        (dict(vram_limit=1.0), "placement 'disk' leaves out every GPU: leave out vram_limit"),
        (dict(second_vram=1.0), "placement 'disk' leaves out every GPU: leave out second_vram"),
        (dict(handoff="eager"), "placement 'disk' leaves out every GPU: leave out handoff"),
        (dict(expert_cache="101%"), "expert_cache is '101%'"),
        (dict(cpu_moe=True), "cpu_moe and placement both say where experts lie"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], named: str) -> None:
    with refused(OptionError, named):
        EngineConfig(placement="disk", **options)


def test_policies_that_cannot_be(tmp_path: Path) -> None:
    with refused(OptionError, "there is no policy 'lrru'"):
        LLM("demo", placement="disk", policy="lrru")
    with refused(OptionError, "policy 'frequency' needs how often experts are chosen: give a trace"):
        LLM("demo", placement="disk", policy="frequency")
    _, of = recorded(tmp_path / "run.trace", 4)
    with refused(OptionError, "policy 'second-gpu' is about a second GPU"):
        LLM("demo", placement="disk", policy=made("second-gpu", of))
    with LLM("demo", placement="disk", policy="frequency", policy_trace=tmp_path / "run.trace") as llm:
        assert llm.parts.expert_cache is not None
        assert llm.parts.expert_cache.policy.name == "frequency"
    with refused(OptionError, "random weights have none"):
        random_llm(CONFIG, placement="disk", max_context=64)


def test_what_is_said(profile: Profile) -> None:
    """At the start how slow it will be, and of each pass what it should take."""
    with LLM("demo", placement="disk", expert_cache="25%", max_context=96) as llm:
        cache = llm.parts.expert_cache
        assert isinstance(cache, DiskCache)
        assert cache.policy.name == "lru"
        assert cache.bytes_s is not None
        said = " ".join(llm.notes)
        assert f"the disk gives {cache.bytes_s / 1e9:.2f} GB/s of experts" in said
        assert "faster: more RAM (--ram-limit)" in said
        plan = llm.parts.memory_plan
        assert plan.memory[Tier.DISK].total == sum(plan.experts)
        assert "experts" not in plan.memory[Tier.CPU].needed
        llm.generate(["In the beginning"], {"max_new_tokens": 6})
        done = llm.ledger.last
        assert done.predicted is not None
        assert done.predicted.terms[DISK] == pytest.approx(done.total(DISK) / cache.bytes_s)
        assert done.predicted.seconds >= max(done.predicted.terms[DISK], done.predicted.terms[CPU_DRAM] / 2)
    with LLM("demo", placement="disk", expert_cache="25%", max_context=96, no_measure=True) as llm:
        llm.generate(["In the beginning"], {"max_new_tokens": 6})
        assert llm.ledger.last.predicted is None  # of a disk whose rate nobody knows nothing is promised


def test_the_command(run: Run) -> None:
    plain = run("generate", "demo", "In the beginning", "-n", "8", "--json")
    found = run(
        "generate", "demo", "In the beginning", "-n", "8", "--json", "--placement", "disk", "--expert-cache", "25%"
    )
    assert found[0] == plain[0] == 0
    assert json.loads(found[1])["text"] == json.loads(plain[1])["text"]
    assert json.loads(found[1])["expert_cache"]["policy"] == "lru"
    status, _, said = run("generate", "demo", "In the beginning", "-n", "8", "--placement", "disk")
    assert status == 0
    assert "all experts fit into RAM" in said
    less = "--placement", "disk", "--expert-cache", "10%"
    status, _, said = run("generate", "demo", "In the beginning", "-n", "8", *less)
    assert status == 0
    for what in ("experts stay on the disk", "buffers for reading", "disk experts", "expert cache, policy lru"):
        assert what in " ".join(said.split()), what


def test_the_cache_on_disk_goes_with_it(tmp_path: Path, checkpoints: Callable[[str], Path]) -> None:
    """Prompts that were kept are known to a later run of the same files, and not to one of others."""
    prompt, params = list(range(3, 90)), {"max_new_tokens": 6, "ignore_eos": True}
    reused, said = [], []
    for model in ("qwen3_moe", "qwen3_moe", "mixtral"):
        with LLM(checkpoints(model), placement="disk", kv_disk=tmp_path / "kv", max_context=128) as llm:
            (found,) = llm.generate([prompt], params)
            reused.append(found.reused_tokens)
            said.append(found.token_ids)
    assert reused[0] == reused[2] == 0 < reused[1]
    assert said[0] == said[1]
