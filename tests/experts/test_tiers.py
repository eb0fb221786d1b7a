"""Experts on several tiers, without a GPU: a tier in RAM plays its part. Same tokens, bytes by hand, errors by name."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from expected_bytes import PassShape, placed_bytes
from placements import PLACEMENTS, break_a_pass, force, placed, recorded
from terminal import folded

from headrace import LLM, MemoryNeeded, OptionError, SamplingParams
from headrace.engine.bandwidth_model.profile import Profile
from headrace.engine.experts.tiered import TieredExperts
from headrace.engine.model.kv_cache import pages_for
from headrace.engine.placement.placement import Tier
from headrace.engine.terminal import generate_report
from headrace.loaders.weights import converted
from headrace.loaders.weights.model_weights import TierBanks

Checkpoints = Callable[[str], Path]
Run = Callable[..., tuple[int, str, str]]
PROMPTS = ["In the beginning", "And it came to pass, when the children", "Behold,"]
GREEDY = SamplingParams(max_new_tokens=24, ignore_eos=True)


@pytest.fixture(scope="module")
def cpu_only() -> dict[str, list[list[int]]]:
    """What the demo model says in RAM alone: to each prompt alone, and to all as a batch."""
    llm = LLM("demo", max_context=128)
    return {"alone": [r.token_ids for p in PROMPTS for r in llm.generate(p, GREEDY)],
            "batch": [r.token_ids for r in llm.generate(PROMPTS, GREEDY)]}  # fmt: skip


@pytest.mark.parametrize("chunk", [3, 512])
@pytest.mark.parametrize("name", PLACEMENTS)
def test_every_placement_says_the_same(
    name: str, chunk: int, cpu_only: dict[str, list[list[int]]], tmp_path: Path
) -> None:
    options = placed(PLACEMENTS[name], tmp_path)
    llm = LLM("demo", device="simulated", max_context=128, prefill_chunk=chunk, **options)
    assert isinstance(llm.parts.decoder.experts, TieredExperts)
    assert [r.token_ids for p in PROMPTS for r in llm.generate(p, GREEDY)] == cpu_only["alone"]
    assert [r.token_ids for r in llm.generate(PROMPTS, GREEDY)] == cpu_only["batch"]


@pytest.mark.parametrize(
    "variant", ["qwen3_moe", "qwen2_moe", "mixtral", "olmoe", "granitemoe", "gemma4_text", "llama4_text"]
)
def test_every_family_with_split_layers(variant: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Shared experts, dense layers, few experts: logits as in RAM but for the order of sums, and the same bits
    twice."""
    rules = [{"layers": "all", "experts": [0, 3], "tier": "cpu"}, {"layers": "all", "experts": 1, "tier": "gpu1"}]
    (tmp_path / "p.json").write_text(json.dumps({"version": 1, "default": "gpu0", "rules": rules}))
    options: dict[str, Any] = {"kernels": "reference", "dtype": "float32", "prefill_chunk": 8}
    ids = list(range(3, 30))
    plain = LLM(str(checkpoints(variant)), **options).logits(ids)
    split = LLM(str(checkpoints(variant)), device="simulated", placement=tmp_path / "p.json", **options)
    found = split.logits(ids)
    assert (found - plain).abs().max() <= 1e-5 * plain.abs().max()
    assert torch.equal(split.logits(ids), found)


def test_one_copy_of_every_expert(tmp_path: Path) -> None:
    llm = LLM("demo", device="simulated", max_context=64, **placed(PLACEMENTS["file"], tmp_path))
    whole = LLM("demo", max_context=64)
    assert llm.parts.weights.nbytes == whole.parts.weights.nbytes
    for layer, (split, bank) in enumerate(zip(llm.parts.weights.layers, whole.parts.weights.layers, strict=True)):
        assert isinstance(split.experts, TierBanks)
        for expert in range(bank.experts.experts if bank.experts else 0):
            tier, number = split.experts.owners[expert]
            assert tier == llm.parts.placement.experts[layer][expert].value
            assert torch.equal(split.experts.banks[tier].data[number], bank.experts.data[expert])  # type: ignore[union-attr]


def test_a_converted_model_is_split_while_it_is_read(tmp_path: Path) -> None:
    whole = LLM("demo", max_context=64, expert_format="q8_0")
    converted.save(
        whole.parts.checkpoint.directory, tmp_path / "q8", whole.parts.weights, whole.parts.checkpoint.formats
    )
    llm = LLM(str(tmp_path / "q8"), device="simulated", max_context=64, **placed(PLACEMENTS["file"], tmp_path))
    assert llm.generate(PROMPTS[0], GREEDY)[0].token_ids == whole.generate(PROMPTS[0], GREEDY)[0].token_ids


def test_the_cpus_part_runs_beside_the_devices() -> None:
    """The worker is inside its op while the decoder is between submit and collect."""
    llm = LLM("demo", device="simulated", max_context=64, n_cpu_moe=3)
    seen, entered, released = [], threading.Event(), threading.Event()
    cpu, dense = llm.parts.devices[Tier.CPU].ops.experts, llm.parts.decoder.experts.collect

    def slow(*args: Any) -> torch.Tensor:
        entered.set()
        assert released.wait(10)
        seen.append(threading.current_thread().name)
        return cpu(*args)

    def collect(job: Any) -> torch.Tensor:
        if Tier.CPU in llm.parts.placement.tiers_of(job.chosen.layer):
            assert entered.wait(10), "the worker has not begun"
            assert not llm.parts.decoder.experts.running.done()  # type: ignore[attr-defined]
            entered.clear()
        released.set()
        found = dense(job)
        released.clear()
        return found

    ops = type("Ops", (), {"experts": staticmethod(slow)})
    llm.parts.decoder.experts.devices = {**llm.parts.devices, Tier.CPU: replace_ops(llm, ops)}  # type: ignore[attr-defined]
    llm.parts.decoder.experts.collect = collect  # type: ignore[method-assign]
    llm.generate([[5, 6]], SamplingParams(max_new_tokens=2, ignore_eos=True))
    assert len(seen) >= 3
    assert all(name.startswith("headrace-experts") for name in seen)


def replace_ops(llm: LLM, ops: Any) -> Any:
    import dataclasses

    return dataclasses.replace(llm.parts.devices[Tier.CPU], ops=ops)


def test_an_error_in_the_worker_is_raised_and_the_next_pass_is_right() -> None:
    llm = LLM("demo", device="simulated", max_context=64, cpu_moe=True)
    right = llm.generate(PROMPTS[0], GREEDY)[0].token_ids
    local = llm.parts.decoder.experts.local[0][Tier.CPU]  # type: ignore[attr-defined]
    local += 1000
    with pytest.raises(IndexError, match="expert id 10"):
        llm.generate(PROMPTS[0], GREEDY)
    local -= 1000
    assert llm.generate(PROMPTS[0], GREEDY)[0].token_ids == right


# ---- the account


def by_hand(tmp_path: Path, checkpoints: Checkpoints) -> tuple[LLM, dict[str, int]]:
    """qwen3_moe: hidden 64, layers 0 and 2 with 8 experts 32 wide, layer 1 dense 96 wide, top 3, 4 + 4 heads of 24,
    160 tokens. In layer 0 expert 0 lies in RAM, 3 on the second GPU, the others on the first; layer 2 on the first."""
    rules = [{"layers": 0, "experts": 0, "tier": "cpu"}, {"layers": 0, "experts": 3, "tier": "gpu1"}]
    (tmp_path / "p.json").write_text(json.dumps({"version": 1, "default": "gpu0", "rules": rules}))
    llm = LLM(str(checkpoints("qwen3_moe")), device="simulated", placement=tmp_path / "p.json", dtype="bfloat16")
    attention = (96 + 2 * 48) * 128 + 64 * 96 * 2 + 2 * 24 * 4  # qkv, o, two norms of a head
    norms, routers = 2 * 64 * 4, 2 * 8 * 64 * 4
    dense_mlp = 2 * 96 * 128 + 64 * 96 * 2
    return llm, {
        "expert": 3 * 32 * 64 * 2,
        "dense": 3 * (attention + norms) + dense_mlp + routers + 64 * 4,
        "row": 64 * 2,
        "head": 160 * 128,
        "token": 3 * 2 * 48 * 2,
    }


def test_bytes_of_a_decode_step_worked_out_by_hand(tmp_path: Path, checkpoints: Checkpoints) -> None:
    llm, of = by_hand(tmp_path, checkpoints)
    force(llm, [[0, 3, 7], [1, 2, 4]])
    result = llm.generate([[5, 6, 7, 8]], SamplingParams(max_new_tokens=4, ignore_eos=True))[0]
    step = [p for p in result.ledger if p.phase == "decode"][-1]
    assert step.context == 7
    hidden, routing = 64 * 4, 3 * (4 + 4)
    assert step.bytes == {
        "gpu_hbm": {"experts": 4 * of["expert"], "dense": of["dense"], "kv": 8 * of["token"], "head": of["head"]},
        "gpu1_hbm": {"experts": of["expert"]},
        "cpu_dram": {"experts": of["expert"], "dense": of["row"]},
        # x, ids and weights of layer 0; of layer 2 the ids alone; the largest logit and its place
        "d2h": {"experts": hidden, "routing": routing + 3 * 4, "samples": 4 + 8},
        # the CPU's part; x from the embedding in RAM, position, slot, starts, context, a page, the row of the logits
        "h2d": {"experts": hidden, "inputs": hidden + 4 + 8 + 2 * 4 + 4 + 4 + 8},
        "d2d": {"experts": 2 * hidden, "routing": routing},
    }


def test_what_the_cpu_does_not_compute_does_not_go_up(tmp_path: Path, checkpoints: Checkpoints) -> None:
    """No expert of the CPU was chosen: its part is not read and not sent; what went down went down."""
    llm, of = by_hand(tmp_path, checkpoints)
    force(llm, [[1, 2, 4], [1, 2, 4]])
    result = llm.generate([[5, 6]], SamplingParams(max_new_tokens=2, ignore_eos=True))[0]
    step = result.ledger[-1]
    assert step.bytes["cpu_dram"] == {"dense": of["row"]}
    assert step.bytes["d2h"]["experts"] == 64 * 4
    assert set(step.bytes["h2d"]) == {"inputs"}
    assert "gpu1_hbm" not in step.bytes
    assert step.bytes["d2d"]["experts"] == 2 * 64 * 4, "the second GPU is asked before the choices are known here"


@pytest.mark.parametrize("name", PLACEMENTS)
def test_counted_bytes_equal_the_prediction(name: str, tmp_path: Path) -> None:
    """Every pass of a batch with its own routing and chunks, drawn tokens included, on every memory and link."""
    options = placed(PLACEMENTS[name], tmp_path)
    llm = LLM("demo", device="simulated", max_context=128, prefill_chunk=16, **options)
    seen, shapes = recorded(llm)
    prompts = [list(range(3, 43)), [4, 5], [7], list(range(50, 90))]
    params = [SamplingParams(max_new_tokens=6, ignore_eos=True, temperature=t, seed=1) for t in (0, 0.7, 0)]
    llm.generate(prompts[:3], params)
    llm.generate(prompts[3:], params[0])
    longest = [pages_for(len(p) + 6) for p in prompts]
    assert any(not rows for _, rows in shapes.values()), "a chunk in the middle of a prompt needs no logits"
    for done in llm.ledger.passes:
        contexts, rows = shapes[done.index]
        took = done.sequences
        drawn = sum(s == 1 and c >= len(prompts[1]) for s, c in zip(took, contexts, strict=True))
        shape = PassShape(
            tokens=done.tokens, contexts=contexts, rows=rows, drawn=drawn, pages=max(longest[s] for s in took)
        )
        chosen = [seen[done.index].get(layer, []) for layer in range(len(llm.spec.layers))]
        wanted = placed_bytes(
            llm.spec, llm.parts.checkpoint.formats, llm.parts.kv_format, llm.parts.placement, shape, chosen
        )
        assert done.bytes == wanted


def test_a_pass_that_broke_leaves_nothing_in_the_account() -> None:
    llm = LLM("demo", device="simulated", max_context=64, n_cpu_moe=3)
    prompt, params = [[5, 6, 7]], SamplingParams(max_new_tokens=2, ignore_eos=True)
    right = llm.generate(prompt, params)[0].ledger[-1].bytes
    break_a_pass(llm, prompt, params)
    assert llm.generate(prompt, params)[0].ledger[-1].bytes == right


# ---- memory, options, commands


def test_auto_takes_as_many_layers_as_the_limit_allows() -> None:
    """The next layer would not have fitted, and what lies there is within the limit."""
    whole = LLM("demo", device="simulated", max_context=128, placement="gpu")
    for limit in (0.008, 0.01, 0.014):
        llm = LLM("demo", device="simulated", max_context=128, vram_limit=limit, prefill_chunk=8)
        taken = llm.parts.memory_plan.memory[Tier.GPU0].total
        layer = whole.parts.weights.layers[0].experts
        assert layer is not None
        assert 0 < sum(Tier.CPU in row for row in llm.parts.placement.experts) < 7, llm.parts.placement.name
        assert taken <= limit * 1e9 < taken + layer.nbytes
    assert whole.parts.placement.name == "gpu"


def test_auto_keeps_cache_for_further_sequences_within_a_tenth() -> None:
    wide = LLM("demo", device="simulated", max_context=64, max_sequences=3)
    assert wide.parts.kv_budget.pages == 3 * pages_for(64)
    narrow = LLM("demo", device="simulated", max_context=64, vram_limit=0.01, prefill_chunk=8)
    page = narrow.parts.kv_budget.kv_bytes // narrow.parts.kv_budget.pages
    assert narrow.parts.kv_budget.pages == max(pages_for(64), int(0.001 * 1e9) // page)


def test_memory_that_is_not_there() -> None:
    with pytest.raises(MemoryNeeded, match=r"placement gpu: gpu0 \(simulated\) would hold .*experts .*20\.00 MB can"):
        LLM("demo", device="simulated", max_context=128, vram_limit=0.02, placement="gpu")
    with pytest.raises(MemoryNeeded, match=r"gpu0 \(simulated\) would hold .*lower --max-context"):
        LLM("demo", device="simulated", max_context=128, vram_limit=0.001)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda"}, "sees no GPU here: install a CUDA build"),
        ({"cpu_moe": True}, "cpu_moe needs a GPU, but torch .* leave the option out"),
        ({"placement": "gpu"}, "placement 'gpu' needs a GPU, but torch"),
        ({"policy": "lru"}, "policy 'lru' needs a GPU, but torch"),
        ({"placement": "no.json"}, "cannot read the placement no.json"),
        ({"device": "cuda:3"}, "device is 'cuda:3', but torch"),
        ({"device": "simulated", "n_cpu_moe": 8}, "n_cpu_moe is 8, this model has 7 layers"),
        ({"device": "simulated", "max_context": 10**6}, "max_context is 1000000, this model allows"),
        ({"device": "simulated", "placement": "no.json"}, "cannot read the placement no.json"),
    ],
)
def test_what_is_not_there(options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(OptionError, match=message):
        LLM("demo", **options)


def test_two_gpus_are_wanted_and_one_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(OptionError, match="tensor_split needs cuda:0 and cuda:1, torch sees 1"):
        LLM("demo", device="cuda", tensor_split="1,1")
    with pytest.raises(OptionError, match="cuda:0 to cuda:0"):
        LLM("demo", device="cuda:1")


def test_the_start_up_table_says_what_lies_where(tmp_path: Path) -> None:
    llm = LLM("demo", device="simulated", max_context=128, **placed(PLACEMENTS["file"], tmp_path))
    rows = {row[0]: row for row in generate_report.placement_rows(llm)}
    banks = [layer.experts for layer in llm.parts.weights.layers]
    held = {tier: sum(b.banks[tier].nbytes for b in banks if tier in b.banks) for tier in ("gpu0", "gpu1", "cpu")}  # type: ignore[union-attr,operator]
    counts = {tier: sum(row.count(Tier(tier)) for row in llm.parts.placement.experts) for tier in held}
    shown = [row for row in generate_report.placement_rows(llm) if "experts" in row[0]]
    assert [row[1] for row in shown] == ["gpu0", "gpu1", "RAM pageable"]
    assert [int(row[0].split()[0]) for row in shown] == list(counts.values())
    assert rows["hand-off"][1] == "RAM pageable"
    assert rows["KV, 128 tokens"][1] == "gpu0"
    title = str(generate_report.startup_table(llm).title)
    assert "placement even.json" in title
    assert "gpu1: simulated" in title


def test_commands(run: Run, profile: Profile, tmp_path: Path) -> None:
    where = ["--device", "simulated", "--n-cpu-moe", "2"]
    status, out, err = run("generate", "demo", "In the", "-n", "4", "--json", *where)
    assert status == 0, err
    found = json.loads(out)
    assert set(found["bytes_per_token"]) == {"gpu_hbm", "cpu_dram", "h2d", "d2h"}
    assert found["predicted_tok_s"] is None
    status, _, err = run("generate", "demo", "In the", "-n", "4", *where)
    assert status == 0
    text = folded(err)
    assert "placement n-cpu-moe=2" in text
    assert "gpu_hbm experts" in text
    assert "no prediction: a simulated GPU has no bandwidths of its own" in text
    (file := tmp_path / "text.txt").write_text("In the beginning God created the heaven and the earth. " * 4)
    values = [run("perplexity", "demo", file, "--json", *more)[1] for more in ([], where)]
    one, two = (json.loads(value)["value"] for value in values)
    assert one == pytest.approx(two, rel=1e-3)
    result = tmp_path / "r.json"
    tests = ["-p", "8", "-n", "4", "-r", "1", "--json", result]
    status, out, err = run("bench", "demo", "--device", "simulated", "--placement", "cpu,n-cpu-moe=2,gpu", *tests)
    assert status == 0, err
    rows = json.loads(result.read_text())["rows"]
    assert [row["placement"] for row in rows] == ["cpu"] * 2 + ["n-cpu-moe=2"] * 2 + ["gpu"] * 2
    assert "cpu_dram" not in rows[-1]["bytes_per_token"]
    status, _, err = run("generate", "demo", "x", "--device", "cpu", "--cpu-moe")
    assert status == 1
    assert "device is 'cpu'" in err


@pytest.mark.usefixtures("whole_model")
def test_a_tier_of_triton_kernels_in_the_interpreter(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """End to end: everything but the CPU's experts by the Triton kernels."""
    ids, params = [5, 6, 7, 8, 9], SamplingParams(max_new_tokens=3, ignore_eos=True)
    options: dict[str, Any] = dict(dtype="float32", kernels="reference", max_context=32, prefill_chunk=3)
    model = str(checkpoints("qwen2_moe"))
    plain, split = LLM(model, **options), LLM(model, device="simulated:gpu", n_cpu_moe=2, **options)
    one, two = plain.logits(ids), split.logits(ids)
    assert (one - two).abs().max() < 1e-4 * one.abs().max()
    said, told = (llm.generate([ids], params)[0].token_ids for llm in (plain, split))
    assert said == told
    assert (split.parts.main.backend, split.parts.placement.name) == ("gpu", "n-cpu-moe=2")
    assert sorted(split.ledger.passes[-1].bytes) == ["cpu_dram", "d2h", "gpu_hbm", "h2d"]


def test_the_interpreter_must_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(OptionError, match="set TRITON_INTERPRET=1"):
        LLM("demo", device="simulated:gpu")
