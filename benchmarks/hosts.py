"""Two hosts of experts behind shaped links: speed, bytes on the wire, measured and predicted time of a token.

    python benchmarks/hosts.py [--tokens 48] [--json FILE]

Each host is a process of this machine that joins a relay, a process too, which hands bytes on late and no faster than a
rate: a link's round trip and bandwidth, where the system has no `tc netem`. A token is predicted from the same run with
a relay that does neither:

    s = unshaped s + layers * round trip + bytes of a host / rate

because a layer waits for its hosts side by side, and has to be over before the next one asks.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import queue
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import result_file

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "hosts"))

from host_processes import WAIT, free_port

from headrace import LLM, SamplingParams
from headrace.engine.bench.passport import passport
from headrace.engine.hosts.joining.meeting import HOP
from headrace.engine.hosts.messages.frames import tune
from headrace.engine.ledger.passes import NET
from headrace.kernels.context import Context

HOSTS, ADDRESS = 2, "127.0.0.1"
PORT = int(os.environ.setdefault("HEADRACE_BENCH_PORT", str(free_port())))
PROMPT = "In the beginning"


class Link(NamedTuple):
    """round_trip: seconds; rate: bits a second; None: as fast as this machine."""

    name: str
    round_trip: float
    rate: float | None


LINKS = (
    Link("unshaped", 0.0, None), Link("100 us, 25 Gbit/s", 100e-6, 25e9), Link("100 us, 10 Gbit/s", 100e-6, 10e9),
    Link("100 us, 1 Gbit/s", 100e-6, 1e9), Link("1 ms, 10 Gbit/s", 1e-3, 10e9), Link("1 ms, 1 Gbit/s", 1e-3, 1e9),
)  # fmt: skip


class Relay:
    """A process that hosts join in the coordinator's place: it hands bytes on late, and no faster than a rate."""

    def __init__(self, number: int) -> None:
        self.address = f"127.0.0.{number + 1}"
        self.delay, self.rate = multiprocessing.Value("d", 0.0), multiprocessing.Value("d", 0.0)
        self.process = multiprocessing.Process(target=self._run, daemon=True)
        self.process.start()

    def shape(self, link: Link) -> None:
        """Half of the round trip and the rate in each direction."""
        self.delay.value, self.rate.value = link.round_trip / 2, link.rate or 0.0

    def _run(self) -> None:
        self._serve(PORT)
        threading.Event().wait()

    def _serve(self, port: int) -> None:
        listener = socket.create_server((self.address, port))
        threading.Thread(target=self._accept, args=(listener, port), daemon=True).start()

    def _accept(self, listener: socket.socket, port: int) -> None:
        from torch.distributed import TCPStore

        while True:
            near, _ = listener.accept()
            try:
                far = socket.create_connection((ADDRESS, port))
                if port == PORT and not self._knows_hop:
                    self._knows_hop = True
                    self._serve(int(TCPStore(ADDRESS, PORT, is_master=False).get(HOP)))
            except OSError:
                near.close()
                continue
            for one, other in ((near, far), (far, near)):
                tune(one)
                threading.Thread(target=self._hand_on, args=(one, other), daemon=True).start()

    _knows_hop = False

    def _hand_on(self, one: socket.socket, other: socket.socket) -> None:
        late: queue.Queue[tuple[float, bytes]] = queue.Queue()
        threading.Thread(target=self._deliver, args=(late, other), daemon=True).start()
        free = 0.0
        while data := one.recv(1 << 16):
            now, rate = time.perf_counter(), self.rate.value
            free = max(now, free) + (8 * len(data) / rate if rate else 0.0)
            late.put((free + self.delay.value, data))
        late.put((0.0, b""))

    def _deliver(self, late: queue.Queue[tuple[float, bytes]], to: socket.socket) -> None:
        while (taken := late.get())[1]:
            while (left := taken[0] - time.perf_counter()) > 0:
                if left > 3e-4:
                    time.sleep(left - 2e-4)
            to.sendall(taken[1])
        with contextlib.suppress(OSError):
            to.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def running(model: str, wire: str, relays: list[Relay]) -> Iterator[LLM]:
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        token = Path(folder) / "token"
        token.write_text("a secret of this benchmark")
        for number in range(1, HOSTS + 1):
            command = [sys.executable, "-m", "headrace", "host", model]
            command += ["--join", f"{relays[number - 1].address}:{PORT}", "--name", f"h{number}", "--threads", "1"]
            process = subprocess.Popen([*command, "--host-token", str(token)], stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
        listen = {"listen": f"{ADDRESS}:{PORT}", "host_token": token, "host_wait": WAIT}
        options: dict[str, Any] = {"hosts": HOSTS, "threads": 1, "max_context": 256, "no_measure": True, "wire": wire}
        yield stack.enter_context(LLM(model, **options, **listen))


def measure(llm: LLM, tokens: int) -> dict[str, float]:
    """Median seconds and bytes of a decode pass."""
    params = SamplingParams(max_new_tokens=tokens, ignore_eos=True)
    with llm.ledger.recording() as passes:
        llm.generate([PROMPT], params)
    found = [one for one in passes if one.phase == "decode"][2:]
    seconds = statistics.median(one.measured_s for one in found)
    return {"s": seconds, "net_bytes": statistics.mean(one.total(NET) for one in found)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--wire", default="f32")
    result_file.add_option(parser, "hosts")
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    relays = [Relay(number) for number in range(1, HOSTS + 1)]
    with running(asked.model, asked.wire, relays) as llm:
        measure(llm, asked.tokens)
        layers = sum(llm.spec.is_moe)
        for link in LINKS:
            for relay in relays:
                relay.shape(link)
            found = measure(llm, asked.tokens)
            plain = rows[0]["s"] if rows else found["s"]
            sent = 0.0 if link.rate is None else 8 * found["net_bytes"] / HOSTS / link.rate
            predicted = plain + layers * link.round_trip + sent
            rows.append({"link": link.name, **found, "tokens_s": 1 / found["s"], "predicted_s": predicted})
            off = found["s"] / predicted - 1
            print(f"{link.name:20} {found['net_bytes']:9.0f} B a token  {1e3 * found['s']:7.2f} ms, "
                  f"{1e3 * predicted:7.2f} predicted ({off:+.0%})")  # fmt: skip
    print(f"load {os.getloadavg()[0]:.1f}")
    if asked.json:
        given = {"model": asked.model, "wire": asked.wire, "hosts": HOSTS, "layers": layers, "links": rows}
        load = round(os.getloadavg()[0], 1)
        result_file.write(asked.json, "hosts", {"passport": passport(Context()), "load": load, **given})


if __name__ == "__main__":
    main()
