"""What machines of one run say to each other, as a target of `tools/fuzz.py`: the first byte chooses what reads it."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any, cast

import torch

from headrace.engine.hosts.joining.figures import Figures
from headrace.engine.hosts.joining.link_rate import LinkRate
from headrace.engine.hosts.messages import frames, greeting, passes, rows
from headrace.engine.hosts.messages.frames import HEADER, Kind
from headrace.engine.hosts.messages.rows import WIRES, Work
from headrace.engine.hosts.messages.terms import Terms
from headrace.kernels.decoder_layer import Piece, Places

HIDDEN, EXPERTS, SHAPES = 6, (4, 0, 8), ((2, 3), (2, 0))
WIRE = WIRES["f32"]
SECRET = b"secret"


class Line:
    """A connection from which these bytes come, and to which everything can be said."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def recv_into(self, into: memoryview) -> int:
        part = self.data[: len(into)]
        into[: len(part)], self.data = part, self.data[len(part) :]
        return len(part)

    def sendall(self, data: bytes) -> None:
        assert data


def line(data: bytes) -> socket.socket:
    return cast(socket.socket, Line(data))


def facts(data: bytes) -> None:
    """What a host says of itself, and a coordinator of the model."""
    said = frames.as_json(data)
    for name in ("free", "bytes"):
        frames.whole(said, name)
    str(Figures.read(said, LinkRate(1e-4, 1e9)))
    Terms.read(said)


READERS: tuple[Callable[[bytes], object], ...] = (
    lambda data: frames.receive(line(data), *Kind, limit=1 << 20),
    lambda data: rows.read_work(bytearray(data), WIRE, EXPERTS, HIDDEN),
    lambda data: rows.read_answer(bytearray(data), WIRES["int8"], HIDDEN),
    lambda data: passes.read_task(bytearray(data), WIRE, HIDDEN),
    lambda data: passes.read_answer(bytearray(data), WIRES["bf16"], HIDDEN, SHAPES, 2),
    lambda data: greeting.challenge(line(data), SECRET),
    lambda data: greeting.answer(line(data), SECRET, "a host"),
    facts,
)


def run(data: bytes) -> None:
    READERS[data[0] % len(READERS) if data else 0](data[1:])


def seeds() -> list[bytes]:
    """One or two of each reader; of proofs only such as are refused."""
    numbers = torch.arange(2 * HIDDEN, dtype=torch.float32).view(2, HIDDEN)
    some = torch.tensor([0, 1], dtype=torch.int32)
    weighted = Work(2, numbers, some, some, torch.ones(2))
    states = torch.tensor([1], dtype=torch.int32)
    places = Places(
        positions_T=some, slots_T=some.long(), tables_SM=some.view(1, 2), starts_S1=torch.tensor([0, 2]).int(),
        contexts_S=torch.tensor([2]).int(), states_S=states, windows=(),
        pieces=(Piece(first=0, last=2, states_S=states, starts_S1=torch.tensor([0, 2]).int(),
                      contexts_S=torch.tensor([2]).int(), slot=1, keep=None),),
    )  # fmt: skip
    task = passes.Task(0, 2, numbers, places, torch.tensor([1]), [(0, 1)])
    done = passes.Done(numbers, [1, 1], [torch.zeros(2, 3, dtype=torch.int32), None])
    facts_of: dict[str, Any] = {
        "free": 1, "bytes": 2, "rate": 1e9, "experts": {"1": 1e9}, "wire": "f32", "limit": 1 << 20, "computing": {},
        "options": dict.fromkeys(("expert_format", "dense_format", "dtype", "experts_per_token", "kernels"), "auto")
        | {"ignore_config_keys": [], "ignore_tensors": []},
    }  # fmt: skip
    hello = json.dumps({"version": 1, "name": "a", "nonce": "b", "proof": "c"}).encode()
    called = frames.head(Kind.CHALLENGE, len(hello)) + hello + frames.head(Kind.TERMS, len(hello)) + hello
    bodies = [
        _frame(rows.work_parts(weighted, WIRE, 1)),
        _frame(rows.work_parts(weighted, WIRE, 1))[HEADER.size :],
        _frame(rows.answer_parts(numbers, 0, WIRES["int8"], 1))[HEADER.size :],
        _frame(passes.task_parts(task, WIRE, 1))[HEADER.size :],
        _frame(passes.answer_parts(done, WIRES["bf16"], 1))[HEADER.size :],
        frames.head(Kind.HELLO, len(hello)) + hello,
        called,
        json.dumps(facts_of).encode(),
    ]
    return [bytes([number]) + body for number, body in enumerate(bodies)]


def _frame(parts: list[memoryview]) -> bytes:
    return b"".join(map(bytes, parts))
