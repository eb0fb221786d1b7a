"""First pieces of a layer that are copied before its choices are known: the same bits, no buffer overwritten too early,
bytes that nobody chose by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import placements
import pytest
import torch
from expected_bytes import PassShape, placed_bytes
from late_streams import Log, a_gpu
from placements import break_a_pass, placed, recorded
from slow_stream import SlowStream, layer_of
from torch import Tensor

from headrace import LLM, SamplingParams
from headrace.engine.core.build import without_blocking_copies
from headrace.engine.devices import streams
from headrace.engine.devices.streams import HostStream
from headrace.engine.experts.offload_plan import PREFETCH_SHARE, OffloadPlan, next_in_ram
from headrace.engine.experts.streaming import (
    Piece,
    Ring,
    Run,
    by_number,
    chosen_numbers,
    cut,
    prefetch_experts,
)
from headrace.engine.experts.tiered import TieredExperts
from headrace.engine.model.kv_cache import pages_for
from headrace.engine.placement.placement import Placement, Tier
from headrace.kernels import reference
from headrace.kernels.packed import ExpertBank
from headrace.kernels.passes.tally import Choice

Checkpoints = Callable[[str], Path]
EXPERTS, TOKENS, TOP_K, PIECE = 11, 7, 4, 3


# ---- pieces


def test_pieces_worked_out_by_hand() -> None:
    """Eight experts, buffers of three; 0, 1, 4, 7 are chosen."""
    chosen = [0, 1, 4, 7]
    assert by_number(chosen, 3, 8) == [
        Piece(0, 3, (Run(0, 0, 2),)), Piece(3, 3, (Run(1, 4, 1),)), Piece(6, 2, (Run(1, 7, 1),)),
    ]  # fmt: skip
    assert by_number([4], 3, 8) == [Piece(3, 3, (Run(1, 4, 1),))], "a piece that nobody chose is none"
    assert cut(3, 8) == [Piece(0, 3, (Run(0, 0, 3),)), Piece(3, 3, (Run(0, 3, 3),)), Piece(6, 2, (Run(0, 6, 2),))]
    assert [prefetch_experts(3, n) for n in (2, 5, 6, 40)] == [2, 5, 6, 6]


def test_what_is_guessed() -> None:
    offload = OffloadPlan(stream_from=1, piece=4)
    assert offload.prefetch_share == PREFETCH_SHARE == 0.95
    assert [offload.prefetches(n, 20) for n in (18, 19, 20)] == [False, True, True]
    assert not offload.prefetches(0, 0)
    assert not offload.without_prefetch("so").prefetches(20, 20)
    assert offload.without_prefetch("so").notes == ("no expert is copied before it was chosen: so",)
    cpu, gpu = (Tier.CPU, Tier.CPU), (Tier.GPU0, Tier.GPU0)
    of = Placement(name="", main=Tier.GPU0, experts=(cpu, gpu, (), cpu, (Tier.GPU0, Tier.CPU), cpu))
    assert [next_in_ram(of, layer) for layer in range(6)] == [3, 3, 3, 4, None, None], "the last is for few rows"


# ---- the ring


Layer = tuple[ExpertBank, Tensor, Tensor, Tensor]


def layers() -> list[Layer]:
    """Layers of which all experts are chosen, all but those of the first buffer, but the second, but both, and few."""
    bank, x, _, weights = layer_of(EXPERTS, TOKENS, TOP_K)
    kinds = [range(11), range(3, 11), [0, 1, 2, *range(6, 11)], range(6, 11), [1, 4, 5, 10]]
    found = []
    for number, kind in enumerate(kinds):
        other = dataclasses.replace(bank, data=bank.data.roll(number, 0).contiguous())
        choices = torch.tensor(list(kind), dtype=torch.int32)
        order = torch.arange(TOKENS * TOP_K).view(TOKENS, TOP_K) % len(choices)
        found.append((other, x, choices[order], weights))
    return found


def run_through(ring: Ring, work: list[Layer], prefetched: Callable[[int], bool]) -> list[Tensor]:
    """The sum of every layer; of those that `prefetched` says, the first copies come before."""
    sums = [torch.zeros_like(x) for _, x, _, _ in work]
    for index, (bank, x, ids, weights) in enumerate(work):
        numbers = chosen_numbers(ids, EXPERTS)
        ring.add(sums[index], x, ids, weights, bank, by_number(numbers, ring.piece, EXPERTS))
        if index + 1 < len(work) and prefetched(index + 1):
            ring.fetch(work[index + 1][0])
            assert ring.fetched(work[index + 1][0]) == 2 * PIECE
    for stream in (ring.side, ring.main):
        if isinstance(stream, SlowStream):
            stream.end()
    return sums


def ring_of(main: Any, side: Any) -> Ring:
    bank = layer_of(EXPERTS, TOKENS, TOP_K)[0]
    return Ring(bank.layout, PIECE, reference, torch.device("cpu"), main, side)  # type: ignore[arg-type]


WHEN: dict[str, Callable[[int], bool]] = {
    "always": lambda index: True,
    "at times": lambda index: index % 3 != 0,
    "never": lambda index: False,
}


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize(("copies_s", "computes_s"), [(0.0, 0.004), (0.004, 0.0), (0.003, 0.003)])
def test_the_same_bits_with_and_without_however_late_the_lanes_are(
    copies_s: float, computes_s: float, when: str
) -> None:
    work = layers() * 2
    wanted = run_through(ring_of(HostStream(), HostStream()), work, WHEN["never"])
    for (bank, x, ids, weights), y in zip(work, wanted, strict=True):
        whole = reference.experts(x, ids, weights, bank)
        assert (y - whole).abs().max() <= 1e-5 * whole.abs().max()
    for seed in range(3):
        ring = ring_of(SlowStream(seed, computes_s), SlowStream(seed + 100, copies_s))
        assert all(map(torch.equal, run_through(ring, work, WHEN[when]), wanted))


@pytest.mark.parametrize("deaf", ["main", "side"])
def test_without_waiting_the_sums_are_wrong(deaf: str) -> None:
    """That the test above can fail."""
    main = SlowStream(1, 0.003 if deaf == "side" else 0.0, heeds=deaf != "main")
    side = SlowStream(2, 0.003 if deaf == "main" else 0.0, heeds=deaf != "side")
    wanted = run_through(ring_of(HostStream(), HostStream()), layers(), WHEN["never"])
    assert not all(map(torch.equal, run_through(ring_of(main, side), layers(), WHEN["always"]), wanted))


def test_what_was_copied_for_another_bank_is_not_used() -> None:
    """And its buffers are filled again."""
    work, ring = layers(), ring_of(HostStream(), HostStream())
    ring.fetch(work[0][0])
    assert torch.equal(
        run_through(ring, work[1:2], WHEN["never"])[0],
        run_through(ring_of(HostStream(), HostStream()), work[1:2], WHEN["never"])[0],
    )
    ring.fetch(work[0][0])
    ring.forget()
    assert ring.fetched(work[0][0]) == 0


def test_the_order_on_cuda_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three pieces, then the next layer of three: its first copy waits for compute 1 alone and is there under compute
    2; its second for compute 2."""
    log = Log(monkeypatch)
    bank, x, ids, weights = layer_of(5, 3, 4)
    other = dataclasses.replace(bank, data=bank.data.clone())
    main, side = streams.of(a_gpu())
    ring = Ring(bank.layout, 2, reference, torch.device("cpu"), main, side)  # type: ignore[arg-type]
    everything = by_number(range(5), 2, 5)
    ring.add(torch.zeros_like(x), x, ids, weights, bank, everything)
    first = len(log.lines)
    assert log.lines[-2:] == ["main works", "main sets 7"]
    ring.fetch(other)
    assert log.lines[first:] == [
        "side waits for 6", "side works", "side sets 8",
        "side waits for 7", "side works", "side sets 9",
    ]  # fmt: skip
    first, y = len(log.lines), torch.zeros_like(x)
    ring.add(y, x, ids, weights, other, everything)
    assert log.lines[first:] == [
        "main waits for 8", "main works", "main sets 10",
        "side waits for 10", "side works", "side sets 11",
        "main waits for 9", "main works", "main sets 12",
        "main waits for 11", "main works", "main sets 13",
    ]  # fmt: skip
    assert torch.allclose(y, reference.experts(x, ids, weights, bank), atol=1e-5)


# ---- the model


def ids_of(tokens: int, vocab: int) -> list[int]:
    return [(7 * n * n + 3) % vocab for n in range(tokens)]


@pytest.fixture
def fetches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The experts of every early fetch."""
    seen: list[int] = []
    inner = Ring.fetch

    def fetch(self: Ring, bank: ExpertBank) -> None:
        inner(self, bank)
        seen.append(self.fetched(bank))

    monkeypatch.setattr(Ring, "fetch", fetch)
    return seen


def never_guess(llm: LLM) -> None:
    experts = llm.parts.decoder.experts
    assert isinstance(experts, TieredExperts)
    experts.offload = dataclasses.replace(experts.offload, prefetch_share=None)


@pytest.mark.parametrize("name", ["cpu-moe", "half", "split", "file"])
def test_the_same_bits_of_a_model_with_and_without(name: str, fetches: list[int], tmp_path: Path) -> None:
    """Logits of all rows, outside of passes; then passes of requests, chunk by chunk."""
    options = {**placed(placements.PLACEMENTS[name], tmp_path), "stream_from": 4, "prefill_chunk": 48}
    prefetched, plain = (LLM("demo", device="simulated", max_context=160, **options) for _ in range(2))
    never_guess(plain)
    ids = ids_of(120, prefetched.spec.vocab)
    found = prefetched.logits(ids)
    assert len(fetches) >= 1, "nothing was guessed"
    count = len(fetches)
    assert torch.equal(found, plain.logits(ids))
    assert len(fetches) == count
    params = SamplingParams(max_new_tokens=4, ignore_eos=True)
    results = [llm.generate([ids[:100], ids[30:70]], params) for llm in (prefetched, plain)]
    assert len(fetches) > count
    assert [r.token_ids for r in results[0]] == [r.token_ids for r in results[1]]
    for one, other in zip(prefetched.ledger.passes, plain.ledger.passes, strict=True):
        mine = {channel: dict(groups) for channel, groups in one.bytes.items()}
        mine["h2d"].pop("unchosen", None)
        assert mine == other.bytes, "the account of what was chosen is the same"


EXPERT = 3 * 64 * 256 * 2  # bytes of one of the demo model's


def force(llm: LLM, chosen: list[list[int]]) -> None:
    """By layer the experts that are chosen, in turns by the tokens, with equal weights."""

    def choose(index: int, choice: Choice) -> Choice:
        T, K = choice[0].shape
        among = torch.tensor(chosen[index], dtype=torch.int32)
        ids = among[(torch.arange(T * K) % len(among)).view(T, K)]
        return ids, torch.full((T, K), 1.0 / K)

    llm.parts.decoder.choose = choose


ALL = list(range(16))
#     layer 0  1                     2                 3    4                     5    6
CHOSEN = [ALL, [0, 1, 2, 9, 10, 11], [3, 4, 5, 6, 12], ALL, [8, 9, 12, 15], ALL, ALL]


def test_bytes_that_nobody_chose_worked_out_by_hand(fetches: list[int]) -> None:
    """Seven layers of 16 experts in RAM, buffers of 4. After layers 0 and 3, which choose all, the next one's first 8
    are copied: of layer 1 five of them are chosen for nothing, of layer 4 all 8. After layer 5 none: the last layer is
    for one row."""
    llm = LLM("demo", device="simulated", max_context=64, cpu_moe=True, stream_from=8)
    force(llm, CHOSEN)
    params = SamplingParams(max_new_tokens=1, ignore_eos=True)
    first = llm.generate([ids_of(20, llm.spec.vocab)], params)[0].ledger[0]
    assert fetches == [8, 8]
    streamed = [16, 6, 5, 16, 4, 16]
    assert first.bytes["h2d"]["unchosen"] == ((8 - 3) + 8) * EXPERT
    hidden = 256 * 4
    assert first.bytes["h2d"]["experts"] == sum(streamed) * EXPERT + hidden
    assert first.bytes["gpu_hbm"]["experts"] == sum(streamed) * EXPERT
    assert first.bytes["cpu_dram"]["experts"] == 4 * EXPERT, "the last layer's row"


@pytest.mark.parametrize("name", ["cpu-moe", "half", "file"])
def test_counted_bytes_equal_the_prediction(name: str, fetches: list[int], tmp_path: Path) -> None:
    options = placed(placements.PLACEMENTS[name], tmp_path)
    for chosen in (None, CHOSEN, [ALL] * 7):
        llm = LLM("demo", device="simulated", max_context=128, prefill_chunk=24, stream_from=6, **options)
        if chosen is not None:
            force(llm, chosen)
        forced = llm.parts.decoder.choose
        seen, shapes = recorded(llm)
        noted = llm.parts.decoder.choose
        assert noted is not None
        if forced is not None:
            llm.parts.decoder.choose = lambda layer, choice, a=forced, b=noted: b(layer, a(layer, choice))  # type: ignore[misc]
        prompts = [ids_of(60, llm.spec.vocab), [4, 5], ids_of(30, llm.spec.vocab)]
        before = len(fetches)
        llm.generate(prompts, SamplingParams(max_new_tokens=3, ignore_eos=True))
        assert len(fetches) > before
        longest = [pages_for(len(p) + 2) for p in prompts]
        for done in llm.ledger.passes:
            contexts, rows = shapes[done.index]
            pages = max(longest[s] for s in done.sequences)
            shape = PassShape(tokens=done.tokens, contexts=contexts, rows=rows, pages=pages)
            each = [seen[done.index].get(layer, []) for layer in range(len(llm.spec.layers))]
            formats, decided = llm.parts.checkpoint.formats, llm.parts.memory_plan.offload
            assert done.bytes == placed_bytes(
                llm.spec, formats, llm.parts.kv_format, llm.parts.placement, shape, each, decided
            )
        unchosen = sum(p.bytes["h2d"].get("unchosen", 0) for p in llm.ledger.passes)
        assert (unchosen > 0) == (chosen is CHOSEN) or chosen is None


def test_a_pass_that_broke_leaves_no_early_copy_to_the_next(fetches: list[int]) -> None:
    """After layer 0 of a pass that ends there, layer 1's first pieces lie ready; the next pass books all it copies."""
    llm = LLM("demo", device="simulated", max_context=64, cpu_moe=True, stream_from=8)
    force(llm, [ALL, [0, 1, 2, 3], *CHOSEN[2:]])
    prompt, params = [ids_of(20, llm.spec.vocab)], SamplingParams(max_new_tokens=1, ignore_eos=True)
    right = llm.generate(prompt, params)[0].ledger[0].bytes
    break_a_pass(llm, prompt, params)
    count = len(fetches)
    force(llm, [[0, 1, 2, 3], [0, 1, 2, 3], *CHOSEN[2:]])
    read = llm.generate(prompt, params)[0].ledger[0].bytes
    assert len(fetches) == count + 1, "after layer 3"
    assert read["h2d"]["unchosen"] == 8 * EXPERT
    assert right["h2d"]["unchosen"] == (4 + 8) * EXPERT


def test_memory_that_is_not_pinned_is_not_copied_early() -> None:
    """On a GPU a copy of it holds up the thread that launches; the start-up table says so."""

    class Half:
        is_whole = False

    llm = LLM("demo", device="simulated", max_context=64, cpu_moe=True, stream_from=8)
    assert llm.parts.memory_plan.offload.prefetch_share == PREFETCH_SHARE
    half: Any = Half()
    offload = without_blocking_copies(llm.parts.memory_plan.offload, False, half)
    assert offload.prefetch_share == PREFETCH_SHARE, "RAM in a GPU's part copies as fast either way"
    offload = without_blocking_copies(offload, True, half)
    assert offload.prefetch_share is None
    assert "no expert is copied before it was chosen: experts in RAM are not all pinned" in offload.notes[-1]
