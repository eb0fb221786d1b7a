"""Who is let in, and what is refused: tokens, versions, models, addresses, lengths, options that do not go with
hosts."""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from host_processes import coordinator, free_port
from refusals import refused
from thread_hosts import ThreadHosts

from headrace import LLM, EngineConfig
from headrace.engine.bench.random_weights import random_llm
from headrace.engine.hosts.expert_host import ExpertHost
from headrace.engine.hosts.joining import address, link_rate, meeting
from headrace.engine.hosts.joining.gathering import Gathering
from headrace.engine.hosts.messages import frames, greeting, rows
from headrace.engine.hosts.messages.frames import HEADER, MAGIC, Broken, Kind, Refused
from headrace.engine.hosts.messages.terms import Terms
from headrace.engine.hosts.sharing import Node, deal, without
from headrace.engine.terminal.hosts.host_command import open_model
from headrace.errors import DeviceError, MemoryNeeded, OptionError
from headrace.loaders import model_source

TERMS = Terms(
    options=dict.fromkeys(("expert_format", "dense_format", "dtype", "experts_per_token", "kernels"))
    | {"ignore_config_keys": [], "ignore_tensors": []},
    computing={}, wire=rows.F32, limit=1 << 20,
)  # fmt: skip


@pytest.fixture
def door() -> Iterator[Gathering]:
    found = Gathering(meeting.Meeting("127.0.0.1", 0), b"a secret", TERMS, "the hash")
    yield found
    found.close()


@contextlib.contextmanager
def background(action: Callable[..., Any], *arguments: Any) -> Iterator[None]:
    """Does something in another thread meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(action, *arguments)
        yield
        found.result(10)


def joined(door: Gathering) -> socket.socket:
    found = meeting.join("127.0.0.1", door.meeting.port)
    assert found is not None
    found.settimeout(10)
    return found


def test_one_with_the_token_and_the_model_comes_in(door: Gathering) -> None:
    with joined(door) as sock:
        terms = Terms.read(greeting.answer(sock, b"a secret", "h1"))
        assert terms.limit == TERMS.limit
        said = {"fingerprint": "the hash", "free": 10, "rate": 2.0, "experts": {"1": 3.0, "4": 1.5}}
        frames.send_json(sock, Kind.MODEL, said)
        with background(link_rate.receive, sock, Kind.SHARE):
            (one,) = door.first(1, 10)
            door.give(one, [[]])
        figures = one.figures
        assert (one.name, one.free, one.rate, figures.expert_bytes_s) == ("h1", 10, 2.0, 3.0)
        assert 0 < figures.link.round_trip < 1
        assert figures.link.bytes_s > 1e6
        hop = figures.hop("h1", ["bf16"])
        assert hop.device.slowdown is not None
        assert [hop.device.slowdown("bf16", n, True) for n in (1, 4, 8)] == [1, 2, 4]


def test_a_wrong_token_is_refused_on_both_sides(door: Gathering) -> None:
    with joined(door) as sock, refused(Refused, "the token differs", "--host-token"):
        greeting.answer(sock, b"another", "h1")
    with refused(DeviceError, "0 of 1 hosts joined", "the token differs"):
        door.first(1, 0.5)


def test_another_model_is_refused(door: Gathering) -> None:
    with joined(door) as sock:
        greeting.answer(sock, b"a secret", "h1")
        frames.send_json(sock, Kind.MODEL, {"fingerprint": "other", "free": 10, "rate": 2.0})
        with refused(Refused, "h1 has another model", "the same files"):
            frames.receive(sock, Kind.SHARE)


def test_a_start_says_who_has_come(door: Gathering, caplog: pytest.LogCaptureFixture) -> None:
    """One of two hosts; the other is still waited for."""
    with caplog.at_level(logging.WARNING, "headrace"), joined(door) as sock, ThreadPoolExecutor(1) as pool:
        greeting.answer(sock, b"a secret", "h1")
        frames.send_json(sock, Kind.MODEL, {"fingerprint": "the hash", "free": 10, "rate": 2.0})
        pool.submit(link_rate.receive, sock, Kind.SHARE)
        with refused(DeviceError, "1 of 2 hosts joined"):
            door.first(2, 3.0)
        sock.shutdown(socket.SHUT_RDWR)
    assert "host h1 is here, 1 more to come" in caplog.text


def test_a_host_says_that_it_waits() -> None:
    """Once, however often it tries; and nothing where a coordinator is there."""
    said: list[str] = []
    port, tries = free_port(), iter([True, True, True, False])
    assert meeting.join("127.0.0.1", port, lambda: next(tries), said.append) is None
    assert said == ["Connection refused"]
    host = ExpertHost("h1", ("127.0.0.1", port), b"", lambda terms: pytest.fail("opened"), said.append)
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(host.run)
        deadline = time.monotonic() + 20
        while len(said) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        host.stop()
        ended.result(20)
    assert said[1] == f"no coordinator at 127.0.0.1:{port} yet (Connection refused); waiting for one"


def test_another_version_is_named(door: Gathering) -> None:
    with joined(door) as sock:
        frames.receive(sock, Kind.CHALLENGE)
        sock.sendall(HEADER.pack(MAGIC, 9, Kind.HELLO, 0, 0, 2) + b"{}")
        with pytest.raises((Broken, OSError)):
            frames.receive(sock, Kind.TERMS)
    with refused(DeviceError, "version 9 of the hosts' protocol, this headrace 1"):
        door.first(1, 0.5)


def test_a_host_that_has_another_model_ends_with_a_word(checkpoints: Any) -> None:
    """As a command that ends with an error does: what it raises is said, and its status is 1."""
    port = free_port()
    opened = functools.partial(open_model, str(checkpoints("mixtral")), EngineConfig(threads=1))
    host = ExpertHost("h1", ("127.0.0.1", port), b"", opened, lambda text: None)
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(host.run)
        with refused(DeviceError, "0 of 1 hosts joined", "another model, or other files"):
            LLM("demo", hosts=1, listen=f"127.0.0.1:{port}", host_wait=10, no_measure=True)
        with refused(Refused, "h1 has another model", "the same files"):
            ended.result(20)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (HEADER.pack(b"GET ", 1, 1, 0, 0, 2), "something else listens there"),
        (HEADER.pack(MAGIC, 2, 1, 0, 0, 2), "version 2"),
        (HEADER.pack(MAGIC, 1, 99, 0, 0, 2), "kind 99"),
        (HEADER.pack(MAGIC, 1, Kind.HELLO, 0, 0, 1 << 20), "with 1048576 bytes"),
        (HEADER.pack(MAGIC, 1, Kind.WORK, 0, 0, 101), "with 101 bytes"),
    ],
)
def test_lengths_are_checked_before_memory_is_taken(data: bytes, said: str) -> None:
    with refused(Broken, said):
        frames.read_head(data, limit=100)


def test_requests_that_do_not_fit() -> None:
    work = rows.Work(1, torch.rand(3, 8), torch.tensor([0, 2]), torch.tensor([4, 1]), None)
    body = bytearray(b"".join(rows.work_parts(work, rows.F32, 7))[HEADER.size :])
    found = rows.read_work(body, rows.F32, [5, 5], hidden=8)
    assert torch.equal(found.x_TD, work.x_TD)
    assert (found.at_N.tolist(), found.ids_N.tolist(), found.weights_N) == ([0, 2], [4, 1], None)
    for bad, options in ((body, {"experts": [5]}), (body, {"experts": [5, 4]}), (body[:-1], {}), (body, {"hidden": 9})):
        with pytest.raises(Broken):
            rows.read_work(bytearray(bad), rows.F32, **{"experts": [5, 5], "hidden": 8, **options})
    answer = bytearray(b"".join(rows.answer_parts(work.x_TD, 4, rows.F32, 7))[HEADER.size :])
    assert torch.equal(rows.read_answer(answer, rows.F32, 8)[1], work.x_TD)
    with pytest.raises(Broken):
        rows.read_answer(answer[:-4], rows.F32, 8)


@pytest.mark.parametrize(("wire", "error"), [(rows.F32, 0.0), (rows.BF16, 2**-8), (rows.INT8, 0.5 / 127)])
@pytest.mark.parametrize("hidden", [32, 40, 100])
def test_rows_there_and_back(wire: rows.WireFormat, error: float, hidden: int) -> None:
    x_ND = torch.randn(5, hidden, generator=torch.Generator().manual_seed(1))
    x_ND[2] = 0
    data = wire.encode(x_ND)
    assert data.shape == (5, wire.row(hidden))
    most = x_ND.abs().amax(1, keepdim=True) * error
    assert bool(((wire.decode(data, hidden) - x_ND).abs() <= most + 1e-12).all())


def test_addresses() -> None:
    assert address.parse("10.0.0.1", "--listen") == ("10.0.0.1", address.PORT)
    assert address.parse("[::1]:5000", "--listen") == ("::1", 5000)
    address.check("10.0.0.1", "--listen", False)
    address.check("8.8.8.8", "--listen", True)
    with refused(OptionError, "8.8.8.8, a public address", "--i-know"):
        address.check("8.8.8.8", "--listen", False)
    for every in ("0.0.0.0", "::"):
        with refused(OptionError, "every network of this machine", "name one address"):
            address.check(every, "--listen", True)
    for odd in ("10.0.0.1:x", ":4", "10.0.0.1:99999"):
        with refused(OptionError, "give an address and a port"):
            address.parse(odd, "--listen")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"placement": "hosts"}, "say on how many (--hosts 2)"),
        ({"hosts": 2, "placement": "disk"}, "both say where experts lie"),
        ({"hosts": 2, "cpu_moe": True}, "both say where experts lie"),
        ({"hosts": 2, "policy": "lru"}, "policy rules a cache on this machine"),
        ({"hosts": 2, "device": "cuda", "split_by": "layers"}, "every GPU: leave out device 'cuda', or split_by"),
        ({"hosts": 0}, "hosts is 0"),
        ({"hosts": 2, "wire": "fp4"}, "choose one of f32, bf16, int8"),
        ({"hosts": 2, "host_timeout": 0.1}, "host_timeout is 0.1"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], said: str) -> None:
    with refused(OptionError, said):
        EngineConfig(**options)


def test_what_is_refused_before_anybody_is_waited_for() -> None:
    port = free_port()
    with refused(OptionError, "random weights have none"):
        random_llm(model_source.find("demo").config, hosts=1, listen=f"127.0.0.1:{port}")
    with contextlib.closing(socket.create_server(("127.0.0.1", port))), refused(OptionError, "nobody can listen"):
        LLM("demo", hosts=1, listen=f"127.0.0.1:{port}", no_measure=True)


def test_dealing() -> None:
    nodes = [Node("c", 1000, 0.0), Node("a", 1000, 1.0), Node("b", 1000, 3.0)]
    owners = deal([8, 4], [10, 10], nodes)
    assert [[row.count(n) for n in range(3)] for row in owners] == [[0, 2, 6], [0, 1, 3]]
    few = deal([8, 4], [10, 10], [Node("c", 0, 0.0), Node("a", 1000, 1.0), Node("b", 70, 3.0)])
    assert sum(row.count(2) for row in few) <= 7
    with refused(MemoryNeeded, "room for less (a 50.00 MB)", "--hosts"):
        deal([8], [10_000_000], [Node("c", 99_000_000, 0.0), Node("a", 50_000_000, 1.0)])
    left = without(owners, 2, [nodes[1]], [1])
    assert [[row.count(n) for n in range(3)] for row in left] == [[0, 8, 0], [0, 4, 0]]


@pytest.mark.parametrize("split", ["experts", "layers"])
def test_who_waits_is_told_how_many_are_here(split: str, two: ThreadHosts) -> None:
    told: list[tuple[int, int]] = []
    with coordinator(two, split_by=split, joining=lambda *numbers: told.append(numbers)):
        assert told == [(0, 2), (1, 2), (2, 2)]
