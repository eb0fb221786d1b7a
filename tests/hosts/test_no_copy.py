"""Hosts without a copy of the model: weights come from the coordinator, straight into their place, and are held against
their hash."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from thread_hosts import ThreadHosts, layered, layers_of

from headrace import LLM, SamplingParams
from headrace.engine.hosts.files import served
from headrace.engine.hosts.files.fetched import FetchedModel
from headrace.engine.hosts.files.served import ServedFiles
from headrace.engine.hosts.messages import frames

Checkpoints = Callable[[str], Path]
PROMPTS = ["In the beginning", "And it came to pass, when the children"]
GREEDY = SamplingParams(max_new_tokens=10, ignore_eos=True)


@pytest.fixture(scope="module")
def hosts() -> Iterator[ThreadHosts]:
    found = ThreadHosts("demo", 2, has_copy=False)
    yield found
    found.close()


def said(llm: LLM) -> list[list[int]]:
    return [r.token_ids for r in llm.generate(PROMPTS, GREEDY)]


@pytest.mark.parametrize("options", [{}, {"expert_format": "q8_0", "dense_format": "q8_0"}], ids=["as stored", "q8_0"])
@pytest.mark.parametrize("split", ["experts", "layers"])
def test_same_text(split: str, options: dict[str, Any], hosts: ThreadHosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each gets its own weights and no more, and those of a lost one when they are wanted."""
    with LLM("demo", device="cpu", max_context=128, no_measure=True, **options) as llm:
        expected = said(llm)
    sent, whole, kept = [0], ServedFiles._send, FetchedModel.__init__

    def send(self: ServedFiles, sock: Any, asked: bytes, opened: dict[int, int]) -> None:
        sent[0] += served.ASK.unpack(asked)[2]
        whole(self, sock, asked, opened)

    def keep(self: FetchedModel, *given: Any) -> None:
        kept(self, *given)
        for file in self.place.iterdir():  # headers alone take room on a host's disk
            assert 512 * file.stat().st_blocks < 200_000

    monkeypatch.setattr(ServedFiles, "_send", send)
    monkeypatch.setattr(FetchedModel, "__init__", keep)
    with layered(hosts, split_by=split, placement="hosts", **options) as llm:
        assert said(llm) == expected
        size = sum(file.stat().st_size for file in llm.parts.checkpoint.directory.glob("*.safetensors"))
        assert 0 < sent[0] < size + (1 << 20)
        before = sent[0]
        hosts.end("h2")
        assert said(llm) == expected
        assert sent[0] > before
        if split == "layers":
            assert layers_of(llm).holders.losses == 1
    hosts.start("h2")


def test_other_families(checkpoints: Checkpoints) -> None:
    model = checkpoints("deepseek_v3")
    with LLM(model, device="cpu", max_context=128, no_measure=True) as llm:
        expected = llm.generate([[5, 11, 3, 70]], GREEDY)[0].token_ids
    hosts = ThreadHosts(model, 1, has_copy=False)
    try:
        with layered(hosts, placement="hosts") as llm:
            assert llm.generate([[5, 11, 3, 70]], GREEDY)[0].token_ids == expected
    finally:
        hosts.close()


def test_a_byte_that_changed_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is seen, and read again with the next connection."""
    plain, count = frames.send, [0]

    def send(sock: Any, kind: frames.Kind, body: bytes = b"") -> None:
        count[0] += kind is frames.Kind.BYTES
        if kind is frames.Kind.BYTES and count[0] == 1:
            body = body[:-1] + bytes([body[-1] ^ 1])
        plain(sock, kind, body)

    monkeypatch.setattr(frames, "send", send)
    hosts = ThreadHosts("demo", 1, has_copy=False)
    try:
        with layered(hosts, placement="hosts") as llm:
            assert len(said(llm)) == 2
    finally:
        hosts.close()
    assert any("did not come as they were sent" in line for line in hosts.said)
