"""A host that is lost takes the cache of its layers with it: others load the layers, every sequence is computed anew,
and goes on with the same tokens; or an error names the host."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from thread_hosts import ThreadHosts, layered, layers_of

from headrace import LLM, SamplingParams
from headrace.engine.hosts.layers import how_many, net_layers
from headrace.engine.hosts.layers.net_layers import NetLayers
from headrace.errors import DeviceError

Checkpoints = Callable[[str], Path]
PROMPTS = [[(i + 5 * n) % 150 + 3 for i in range(20 + 9 * n)] for n in range(3)]
GREEDY = SamplingParams(max_new_tokens=30, ignore_eos=True)
OPTIONS: dict[str, Any] = {"dtype": "float32", "prefill_chunk": 16, "placement": "hosts", "host_timeout": 1.0}


@pytest.fixture(scope="module", params=["qwen3_next", "deepseek_v3"])
def model(request: pytest.FixtureRequest, checkpoints: Checkpoints) -> Path:
    return checkpoints(request.param)


@pytest.fixture(scope="module")
def expected(model: Path) -> list[list[int]]:
    options = {**OPTIONS, "placement": "cpu"}
    del options["host_timeout"]
    with LLM(model, max_context=128, no_measure=True, **options) as llm:
        return [r.token_ids for r in llm.generate(PROMPTS, GREEDY)]


@pytest.fixture
def hosts(model: Path) -> Iterator[ThreadHosts]:
    found = ThreadHosts(model, 2)
    yield found
    found.close()


def at_pass(monkeypatch: pytest.MonkeyPatch, llm: LLM, number: int, action: Callable[[], object]) -> None:
    """Does something when so many passes have come to the hosts from now on."""
    layers, count = layers_of(llm), [0]
    whole = NetLayers.run

    def run(self: NetLayers, *arguments: Any) -> Any:
        count[0] += self is layers
        if count[0] == number and self is layers:
            action()
        return whole(self, *arguments)

    monkeypatch.setattr(NetLayers, "run", run)


def said(llm: LLM) -> list[list[int]]:
    return [r.token_ids for r in llm.generate(PROMPTS, GREEDY)]


def test_lost_in_prompts_and_in_decode(
    hosts: ThreadHosts, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one takes its layers, the one that comes back gets them again; then the last one is lost, and the
    coordinator loads them all. Passes go in parts."""
    monkeypatch.setattr(how_many, "LEAST", 4)
    with layered(hosts, **OPTIONS) as llm:
        home = list(layers_of(llm).holders.route)
        for number, name in ((2, "h1"), (12, "h2")):
            at_pass(monkeypatch, llm, number, lambda name=name: hosts.end(name))
            assert said(llm) == expected
            holders = layers_of(llm).holders
            (node,) = {node for node, _ in holders.route}
            assert holders.names[node] != name
            hosts.start(name)
            came_back(llm)
            assert said(llm) == expected
            assert holders.route == home
        for name in ("h1", "h2"):
            hosts.end(name)
        assert said(llm) == expected
        assert layers_of(llm).holders.route == [(0, (0, len(llm.spec.layers)))]
        assert layers_of(llm).holders.losses == 4
        assert layers_of(llm).holders.returns == 2


def test_one_that_waited_comes_back_in_the_middle(
    hosts: ThreadHosts, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that is never idle gets its host again: what runs is computed anew then, too."""
    with layered(hosts, **OPTIONS) as llm:
        holders = layers_of(llm).holders
        home = list(holders.route)
        hosts.end("h1")
        assert said(llm) == expected

        def again() -> None:
            hosts.start("h1")
            came_back(llm)

        at_pass(monkeypatch, llm, 5, again)
        assert said(llm) == expected
        assert holders.returns == 0  # it waits for a moment when nothing runs
        hosts.end("h1")
        monkeypatch.setattr(net_layers, "PATIENCE", 0.0)
        at_pass(monkeypatch, llm, 5, again)
        assert said(llm) == expected
        assert (holders.returns, holders.route) == (2, home)  # the one that had left, and the one that is there


def came_back(llm: LLM) -> None:
    end = time.monotonic() + 30
    while layers_of(llm).parts.gathering.arrivals.empty():
        assert time.monotonic() < end, "no host came back"
        time.sleep(0.02)


def test_silence_and_nobody_with_room(
    hosts: ThreadHosts, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that says nothing is lost after the time-out. Without room for its layers requests end with an error that
    names it, until one comes back."""
    with layered(hosts, **OPTIONS) as llm:
        holders = layers_of(llm).holders
        holders.free[0] = 0
        quiet = hosts.hosts["h1"]
        released = threading.Event()

        def hush() -> None:
            quiet.lock.acquire()  # whatever it sends waits for this
            threading.Thread(target=lambda: released.wait(30) and quiet.lock.release(), daemon=True).start()

        for node in (1, 2):
            holders.free[node] = holders.layers.bytes(holders.now[node])
        at_pass(monkeypatch, llm, 5, hush)
        start = time.monotonic()
        for _ in range(2):
            with pytest.raises(
                DeviceError, match=r"host h1 was lost \(no word for 1 s\), and nobody has room for layer"
            ):
                said(llm)
        assert time.monotonic() - start < 10
        released.set()
        came_back(llm)
        assert said(llm) == expected


def test_logits_of_a_text(hosts: ThreadHosts, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They begin anew."""
    with LLM(model, device="cpu", dtype="float32", prefill_chunk=16, max_context=128, no_measure=True) as llm:
        logits = llm.logits(PROMPTS[2])
    with layered(hosts, **OPTIONS) as llm:
        at_pass(monkeypatch, llm, 3, lambda: hosts.end("h2"))
        assert bool((llm.logits(PROMPTS[2]) == logits).all())
