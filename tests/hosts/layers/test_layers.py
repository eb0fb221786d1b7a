"""Whole layers on other machines give the bits of one machine; prompts share pages there, states are copied; what goes
over the wire is counted."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import twin_kimi_k3
from host_processes import GREEDY, PROMPT, said
from refusals import refused
from scripted_drafts import Script, speculate
from thread_hosts import ThreadHosts, layered, layers_of

from headrace import LLM, EngineConfig, SamplingParams
from headrace.engine.bench.random_weights import random_llm
from headrace.engine.generation.schedule import scheduler
from headrace.engine.hosts.joining import rate
from headrace.engine.hosts.joining.gathering import Candidate
from headrace.engine.hosts.layers.dealing import deal
from headrace.engine.hosts.layers.held import HeldLayers
from headrace.engine.hosts.messages import passes
from headrace.engine.hosts.messages.frames import HEADER, Broken
from headrace.engine.hosts.messages.rows import BF16, F32
from headrace.engine.hosts.sharing import Node
from headrace.engine.ledger.pass_bytes import HIDDEN, ROUTING
from headrace.engine.ledger.passes import CPU_DRAM, NET
from headrace.engine.model.kv_cache import PAGE
from headrace.engine.model.segment import Room
from headrace.errors import MemoryNeeded, OptionError
from headrace.kernels.decoder_layer import Pages, Piece, Places
from headrace.kernels.formats import KV_F32
from headrace.loaders import model_source

Checkpoints = Callable[[str], Path]
LONG = [number % 97 + 1 for number in range(3 * PAGE + 5)]


@pytest.mark.parametrize("options", [{"placement": "hosts"}, {"prefill_chunk": 3}], ids=["even", "by rate, in chunks"])
def test_two_hosts(
    options: dict[str, Any], two: ThreadHosts, one_machine: tuple[list[list[int]], torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(rate, "measure", lambda: 1e10)  # as fast as hosts, however busy this machine is
    monkeypatch.setattr(Candidate, "rate", 1e10)
    with layered(two, **options) as llm:
        assert said(llm) == one_machine[0]
        assert torch.equal(llm.logits(PROMPT), one_machine[1])
        route = layers_of(llm).holders.route
        assert (route[0][0] == 0) == ("placement" not in options)
        assert [run[0] for _, run in route] == [0, *(run[1] for _, run in route[:-1])]
        assert route[-1][1][1] == len(llm.spec.layers)
        assert int(llm.expert_counts.all_LE.sum(1).min()) > 0


@pytest.mark.parametrize("variant", ["deepseek_v3", "qwen3_next", "gpt_oss", "glm_moe_dsa", "kimi_k3"])
def test_other_families(variant: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Latents and dense layers; recurrent states, kept and copied; windows; layers that see what another one chose;
    states of the stream that some layers keep. A prompt that was seen before goes on from its pages."""
    model, options = tmp_path, {"prefill_chunk": 20, "max_context": 160}
    if variant == "kimi_k3":
        twin_kimi_k3.build(model, twin_kimi_k3.CONFIG)
    else:
        model = checkpoints(variant)

    def found(llm: LLM) -> tuple[list[list[int]], int]:
        texts = [r.token_ids for r in llm.generate([LONG, PROMPT], GREEDY)]
        again = llm.generate([[*LONG, 7, 9], LONG[:-3]], GREEDY)
        return texts + [r.token_ids for r in again], again[0].reused_tokens

    with LLM(model, device="cpu", no_measure=True, **options) as llm:
        expected, logits = found(llm), llm.logits(LONG)
    assert expected[1] > 0
    hosts = ThreadHosts(model, 2)
    try:
        with layered(hosts, placement="hosts", **options) as llm:
            assert found(llm) == expected
            assert torch.equal(llm.logits(LONG), logits)
    finally:
        hosts.close()


def test_drafts_and_preemption(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts that are refused put recurrent states back on every machine; a sequence that had to wait goes on."""
    monkeypatch.setattr(scheduler, "WINDOW", 1)
    prompts = [[(i + 3 * n) % 150 + 3 for i in range(40)] for n in range(4)]
    options: dict[str, Any] = {"dtype": "float32", "max_context": 160, "max_sequences": 4, "speculate": "off"}
    params, model = SamplingParams(max_new_tokens=60, ignore_eos=True), checkpoints("qwen3_next")
    with LLM(model, device="cpu", no_measure=True, **options) as llm:
        plain = [llm.generate([one], params)[0].token_ids for one in prompts]
    hosts = ThreadHosts(model, 2)
    try:
        with layered(hosts, placement="hosts", **options) as llm:
            speculate(llm, Script([p + said for p, said in zip(prompts, plain, strict=True)], 0.8, llm.spec.vocab))
            llm.loop.pages.free = llm.loop.pages.free[:9]  # of 16 that all of them need at once
            with llm.ledger.recording() as done:
                assert [r.token_ids for r in llm.generate(prompts, params)] == plain
            assert 0 < sum(one.accepted for one in done) < sum(one.drafted for one in done)
            assert llm.loop.scheduler.preemptions > 0
    finally:
        hosts.close()


@pytest.mark.parametrize("wire", ["f32", "bf16"])
def test_bytes_by_hand_and_the_error_of_the_wire(
    wire: str, two: ThreadHosts, one_machine: tuple[list[list[int]], torch.Tensor]
) -> None:
    with layered(two, wire=wire, placement="hosts") as llm:
        logits = llm.logits(PROMPT)
        llm.generate(["In the beginning"], SamplingParams(max_new_tokens=3, ignore_eos=True))
        done, spec = llm.ledger.last, llm.spec
        assert (done.phase, done.tokens) == ("decode", 1)
        # Two hosts, a row there and a row back each.
        assert done.bytes[NET][HIDDEN] == 4 * spec.hidden * {"f32": 4, "bf16": 2}[wire]
        # There: a position, a slot, a page, two starts, a context. Back: of each layer a count and ids.
        there = HEADER.size + passes.TASK.size + 4 * 6
        back = HEADER.size + passes.ANSWER.size
        layers = len(spec.layers) * (4 + 2 * spec.moe.top_k)
        assert done.bytes[NET][ROUTING] == 2 * (there + back) + layers
        assert set(done.bytes[CPU_DRAM]) == {"dense", "head"}
    error = float((logits - one_machine[1]).abs().max() / one_machine[1].abs().max())
    assert (error == 0) == (wire == "f32")
    assert error < {"f32": 1e-9, "bf16": 0.05}[wire]


def test_passes_that_do_not_fit(checkpoints: Checkpoints) -> None:
    places = Places(
        positions_T=torch.tensor([3, 4, 0], dtype=torch.int32), slots_T=torch.tensor([3, 4, 70]),
        tables_SM=torch.tensor([[0], [2]], dtype=torch.int32), starts_S1=torch.tensor([0, 2, 3], dtype=torch.int32),
        contexts_S=torch.tensor([5, 1], dtype=torch.int32), states_S=torch.tensor([1, 0], dtype=torch.int32),
        pieces=(
            Piece(
                first=0, last=2, states_S=torch.tensor([1], dtype=torch.int32), slot=1, keep=None,
                starts_S1=torch.tensor([0, 2], dtype=torch.int32), contexts_S=torch.tensor([5], dtype=torch.int32),
            ),
        ),
        windows=(Pages(torch.tensor([1, 2, 3]), torch.tensor([[4], [5]], dtype=torch.int32)),),
    )  # fmt: skip
    for rows_R in (None, torch.tensor([1, 2]), torch.tensor([], dtype=torch.int64)):
        task = passes.Task(2, 5, torch.rand(3, 8), places, rows_R, [(4, 1)], True, True)
        body = bytearray(b"".join(passes.task_parts(task, F32, 7))[HEADER.size :])
        assert len(body) + HEADER.size == passes.places_bytes(task) + 3 * 8 * 4
        found = passes.read_task(body, F32, 8)
        assert (found.first, found.last, found.copies, found.by_row, found.chosen) == (2, 5, [(4, 1)], True, True)
        assert torch.equal(found.x_TX, task.x_TX)
        for name in ("positions_T", "slots_T", "tables_SM", "starts_S1", "contexts_S", "states_S"):
            assert torch.equal(getattr(found.places, name), getattr(places, name)), name
        assert all(map(torch.equal, found.places.windows[0], places.windows[0]))
        assert (found.places.pieces[0].keep, found.places.pieces[0].contexts_S.tolist()) == (None, [5])
        assert found.rows_R is None if rows_R is None else torch.equal(found.rows_R, rows_R)
        for bad in (body[:-4], body[:20], body + b"1234"):
            with pytest.raises(Broken):
                passes.read_task(bytearray(bad), F32, 8)
    done = passes.Done(torch.rand(2, 8), [3, 0], [torch.tensor([[1, 2], [3, 1]], dtype=torch.int32), None])
    body = bytearray(b"".join(passes.answer_parts(done, BF16, 7))[HEADER.size :])
    shapes = [(2, 2), (0, 0)]
    assert len(body) + HEADER.size == passes.answer_bytes(shapes) + 2 * 8 * 2
    found_done = passes.read_answer(body, BF16, 8, shapes, 2)
    assert (found_done.distinct, found_done.ids[1]) == ([3, 0], None)
    assert torch.equal(found_done.ids[0], done.ids[0])
    with pytest.raises(Broken):
        passes.read_answer(body, BF16, 8, shapes, 3)


def piece(state: int, slot: int) -> Piece:
    """The only token of a pass, with these slots."""
    one = torch.tensor([0, 1], dtype=torch.int32)
    states_S = torch.tensor([state], dtype=torch.int32)
    return Piece(first=0, last=1, states_S=states_S, starts_S1=one, contexts_S=one[1:], slot=slot, keep=None)


def test_a_pass_without_pages_is_refused() -> None:
    counts = passes.TASK.pack(1 << 16 | 3, 1, 1, 0, 0, 0, 0, 0, 0)
    body = counts + torch.tensor([0, 0, 0, 1, 0], dtype=torch.int32).numpy().tobytes() + bytes(F32.row(8))
    with refused(Broken, "the lengths in a pass do not fit"):
        passes.read_task(bytearray(body), F32, 8)


def test_what_a_node_holds_and_gives_up() -> None:
    """Layers that are given up leave memory; passes and shares that name what is not there are refused."""
    with LLM("demo", device="cpu", max_context=64, no_measure=True) as llm:
        checkpoint, ops = llm.parts.checkpoint, llm.parts.ops
    held = HeldLayers(checkpoint, ops, Room(4, KV_F32, 1, (), 64), 1 << 30)
    held.hold([(1, 3), (5, 7)])
    assert held.nbytes == sum(held.sizes[i] for i in (1, 2, 5, 6))
    places = Places(
        positions_T=torch.tensor([0], dtype=torch.int32), slots_T=torch.tensor([0]),
        tables_SM=torch.tensor([[0]], dtype=torch.int32), starts_S1=torch.tensor([0, 1], dtype=torch.int32),
        contexts_S=torch.tensor([1], dtype=torch.int32),
    )  # fmt: skip
    task = passes.Task(1, 3, torch.rand(1, 256), places, None)
    held.check(task)
    held.check(task._replace(places=replace(places, pieces=(piece(0, 0),))))
    assert held.run(task).x_RX.shape == (1, 256)
    for bad in (
        {"slots_T": torch.tensor([4 * PAGE])}, {"tables_SM": torch.tensor([[4]])}, {"contexts_S": torch.tensor([99])},
        {"starts_S1": torch.tensor([0, 2])}, {"positions_T": torch.tensor([64])}, {"states_S": torch.tensor([1])},
        {"windows": (Pages(torch.tensor([0]), torch.tensor([[0]])),)}, {"pieces": (piece(5, 0),)},
        {"pieces": (piece(0, 5),)},
    ):  # fmt: skip
        with refused(Broken, "pages or slots that are not there"):
            held.check(task._replace(places=replace(places, **bad)))
    with refused(Broken, "layer 3 is asked for"):
        held.run(task._replace(last=4))
    for runs in ([(6, 8)], [(3, 3)]):
        with refused(Broken, "layers that the model does not have"):
            held.hold(runs)
    held.free = 100
    with refused(MemoryNeeded, "layers and their cache take"):
        held.hold([(0, 7)])
    weights = weakref.ref(held.segments[1, 3].weights.layers[0].experts.data)
    held.hold([])
    gc.collect()  # what was raised above knows it, too
    assert weights() is None


@pytest.mark.parametrize(
    ("options", "said_"),
    [
        ({}, "say on how many (--hosts 2)"),
        ({"hosts": 2, "placement": "p.json"}, "split_by deals out layers"),
        ({"hosts": 2, "kv_disk": "/tmp/x"}, "kv_disk does not go with whole layers"),
        ({"hosts": 2, "trace": "t"}, "trace does not go with whole layers"),
        ({"hosts": 2, "replicate": "trace:a,10%"}, "replicate does not go with whole layers"),
        ({"hosts": 2, "speculate": "mtp"}, "speculate 'mtp' does not go with whole layers"),
        ({"hosts": 2, "mtp": "layer.safetensors"}, "mtp does not go with whole layers"),
        ({"hosts": 2, "deterministic": True}, "deterministic is not promised beside hosts"),
        ({"hosts": 2, "device": "cuda"}, "every GPU: leave out device 'cuda', or split_by"),
        ({"hosts": 2, "policy": "lru"}, "policy rules a cache on this machine"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], said_: str) -> None:
    with refused(OptionError, said_):
        EngineConfig(split_by="layers", **options)


def test_what_is_refused_before_anybody_is_waited_for(checkpoints: Checkpoints) -> None:
    with refused(OptionError, "random weights have none"):
        random_llm(model_source.find("demo").config, hosts=1, split_by="layers")
    with refused(OptionError, "tables of runs of tokens"):
        LLM(checkpoints("qwen4_exp_text"), hosts=1, split_by="layers", no_measure=True)
    with refused(OptionError, "tables that choose experts by token"):
        LLM(checkpoints("deepseek_v4"), hosts=1, split_by="layers", no_measure=True)


def test_dealing() -> None:
    units, sizes = [(i, i + 1) for i in range(8)], [10] * 8
    nodes = [Node("c", 1000, 1.0), Node("a", 1000, 1.0), Node("b", 1000, 2.0)]
    assert deal(units, sizes, nodes) == [[(0, 2)], [(2, 4)], [(4, 8)]]
    assert deal(units, sizes, [Node("c", 1000, 0.0), *nodes[1:]])[0] == []
    assert deal(units, sizes, [Node("c", 0, 9.0), Node("a", 30, 1.0), Node("b", 50, 1.0)]) == [[], [(0, 3)], [(3, 8)]]
    assert deal([(0, 3), (3, 8)], sizes, nodes[1:]) == [[(0, 3)], [(3, 8)]]
    with refused(MemoryNeeded, "the layers take 80.00 MB", "a 30.00 MB, b 40.00 MB", "--max-context"):
        deal(units, [10**7] * 8, [Node("c", 0, 1.0), Node("a", 3 * 10**7, 1.0), Node("b", 4 * 10**7, 1.0)])
