"""Numbers that no machine of ours sends, from a coordinator that has the token, and from a host: refused with one
line."""

from __future__ import annotations

import functools
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from refusals import refused

from headrace import EngineConfig
from headrace.engine.hosts.expert_host import ExpertHost
from headrace.engine.hosts.files import fetched
from headrace.engine.hosts.joining.figures import Figures
from headrace.engine.hosts.joining.link_rate import LinkRate
from headrace.engine.hosts.messages import frames, greeting, rows
from headrace.engine.hosts.messages.frames import Broken, Kind
from headrace.engine.hosts.messages.terms import Terms
from headrace.engine.model.segment import Room
from headrace.engine.terminal.hosts.host_command import open_model

OPTIONS = {"expert_format": "native", "dense_format": "native", "dtype": "auto", "experts_per_token": None}
TERMS = Terms(
    options={**OPTIONS, "kernels": "auto", "ignore_config_keys": [], "ignore_tensors": []},
    computing={}, wire=rows.F32, limit=1 << 20,
)  # fmt: skip
ROOM = {"pages": 8, "format": "f32", "slots": 2, "windows": [], "context": 64}
SECRET = b"a secret"
ODD = ["Infinity", "-Infinity", "NaN", "1e999", "1" + "0" * 30, "9" * 5000]


@pytest.mark.parametrize("number", ODD)
def test_numbers_that_are_none_are_refused_where_they_are_read(number: str) -> None:
    with refused(Broken, "no number of 64 bits"):
        frames.as_json(f'{{"layers": [[0, {number}]]}}'.encode())
    assert frames.as_json(b'{"a": 9223372036854775807, "b": -1.5e300}') == {"a": (1 << 63) - 1, "b": -1.5e300}


@pytest.mark.parametrize("odd", [1 << 62, 1e300, -1, 1.5, "8", None, True, [], {}])
@pytest.mark.parametrize("key", ["pages", "slots", "context", "format", "windows"])
def test_room_of_a_cache(key: str, odd: Any) -> None:
    if key == "windows" and odd in ([], {}):
        return  # none
    with pytest.raises((KeyError, TypeError, ValueError)):
        Room.read({**ROOM, key: odd})
    assert Room.read(ROOM).as_json() == ROOM


@pytest.fixture(scope="module")
def host() -> ExpertHost:
    opened = functools.partial(open_model, "demo", EngineConfig(threads=1, max_context=64))
    return ExpertHost("h1", ("127.0.0.1", 1), SECRET, opened, lambda text: None)


def serve(host: ExpertHost, sock: socket.socket) -> None:
    """As `ExpertHost.run` does with a connection."""
    with sock:
        host._serve(sock)


def talk(host: ExpertHost, terms: Any, *more: tuple[Kind, bytes]) -> None:
    """One connection, over which a coordinator that has the token says this; raises what ends it at the host."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        here = socket.create_connection(door.getsockname())
        there, _ = door.accept()
    with here, ThreadPoolExecutor(1) as pool:
        ended = pool.submit(serve, host, there)
        here.settimeout(60)
        _, proof = greeting.challenge(here, SECRET)
        frames.send(here, Kind.TERMS, json.dumps({**terms, "proof": proof}).encode())
        try:
            for kind, body in more:
                frames.receive(here, Kind.MODEL, Kind.READY, Kind.HELD)
                frames.send(here, kind, body)
            frames.receive(here, Kind.READY, Kind.HELD)
        except (Broken, OSError):
            pass
        here.close()
        ended.result(60)


@pytest.mark.parametrize(
    "share",
    [
        {}, {"experts": None}, {"experts": 7}, {"experts": [[0, 1.0]]}, {"experts": [[0, "1"]]}, {"experts": [[-1]]},
        {"experts": [[1 << 40]]}, {"layers": [[0, 1e300]], "room": ROOM, "work": 0}, {"layers": [], "room": ROOM},
        {"layers": [[0]], "room": ROOM, "work": 0}, {"layers": [], "room": {**ROOM, "pages": 1 << 62}, "work": 0},
        {"layers": [], "room": ROOM, "work": -1}, {"layers": [], "room": None, "work": 0},
        {"layers": [[0, 1]], "room": {**ROOM, "windows": [[0, False, 4]]}, "work": 0},
    ],
    ids=lambda share: json.dumps(share)[:60],
)  # fmt: skip
def test_shares(share: dict[str, Any], host: ExpertHost) -> None:
    with pytest.raises(Broken, match="the same headrace"):
        talk(host, TERMS.as_json(), (Kind.SHARE, json.dumps(share).encode()))


def test_infinity_in_a_share_and_in_layers_to_hold(host: ExpertHost) -> None:
    with refused(Broken, "no number of 64 bits"):
        talk(host, TERMS.as_json(), (Kind.SHARE, b'{"layers": [[0, Infinity]], "work": 0}'))
    share = {"layers": [[0, 1]], "room": ROOM, "work": 0}
    said = [(Kind.SHARE, json.dumps(share).encode()), (Kind.HOLD, b'{"layers": [[0, Infinity]]}')]
    with refused(Broken, "closed the connection"):  # it said why, and went on
        talk(host, TERMS.as_json(), *said)


@pytest.mark.parametrize(
    ("part", "odd"),
    [
        ("options", {**TERMS.options, "experts_per_token": 1.5}), ("options", {**TERMS.options, "dtype": []}),
        ("options", {**TERMS.options, "ignore_tensors": 1}), ("options", {}), ("options", None), ("limit", -1),
        ("computing", {"isa": "avx2", "activations": "int8", "tiles_from": {"q4_0": 0}}),
        ("computing", {"isa": "avx2", "activations": "int8", "tiles_from": {"q4_0": 1 << 40}}),
        ("computing", {"isa": "avx2", "activations": "int8", "tiles_from": {"no format": 4}}),
        ("computing", {"isa": "avx2", "activations": "int3", "tiles_from": {}}), ("computing", {"isa": ["avx2"]}),
        ("computing", {"isa": "avx2", "activations": "int8", "attention": "int8", "tiles_from": {}}),
        ("computing", 3), ("wire", "fp4"), ("wire", []),
    ],
    ids=str,
)  # fmt: skip
def test_terms(part: str, odd: Any, host: ExpertHost) -> None:
    with pytest.raises(Broken, match="the same headrace"):
        talk(host, {**TERMS.as_json(), part: odd})


@pytest.mark.parametrize("odd", [{"rate": "inf"}, {"rate": -1}, {"rate": True}, {"experts": {"1": 1e300}}])
def test_rates_of_a_host(odd: dict[str, Any]) -> None:
    with refused(Broken, "a host's rates are no numbers"):
        Figures.read({"rate": 1e9, "experts": {"1": 1e9}, **odd}, LinkRate(1e-4, 1e9))


@pytest.mark.parametrize(
    "odd",
    [
        {"files": [["a", 1e300, 0]]}, {"files": [["a", 10, 11]]}, {"files": [["../a", 10, 1]]},
        {"files": [["..", 1, 1]]},
        {"files": [["a", 10]]}, {"files": None}, {"model": ".."}, {"model": "/etc/passwd"}, {"fingerprint": 1},
        {"files": [["a\0", 10, 1]]}, {"files": [[1, 10, 1]]},
    ],
    ids=str,
)  # fmt: skip
def test_files_that_are_none(odd: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"files": [["a", 10, 0]], "model": "", "fingerprint": "f", "is_plain": True, **odd}
    monkeypatch.setattr(fetched.FetchedModel, "_connect", lambda model: (socket.socket(), said))
    with refused(Broken, "install the same headrace"):
        fetched.FetchedModel(("127.0.0.1", 1), SECRET, "h1")
