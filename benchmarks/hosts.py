"""Two hosts of experts behind shaped links: a layer and a token, predicted beside measured, and bytes on the wire.

    python benchmarks/hosts.py [--tokens 48] [--wire f32] [--json FILE]

Each host is a process of this machine that joins a relay, a process too, which hands bytes on late and no faster than a
rate, which all relays share as hosts share the coordinator's link: round trip and bandwidth, where the system has no
`tc netem`. For each link a coordinator starts anew, so
that links are measured as in any run, through the relay. Then

    layer    of 2, 8 and 32 tokens, sizes that were not among those that the start measured: the bandwidth model's
             seconds (`engine/bandwidth_model/network/hops.py`) beside the median of many
    token    a decode pass: the run's own prediction, if this machine was measured (headrace measure), and
             time of the run without a shaped link + layers * round trip + bytes / rate

Run it in a quiet hour: relays, hosts and coordinator share the cores of this machine, and at high load what they wait
for is a core.
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
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "hosts"))

from host_processes import WAIT, experts_of, free_port

from headrace import LLM, SamplingParams
from headrace.engine.bench.passport import passport
from headrace.engine.hosts.joining import layer_costs
from headrace.engine.hosts.joining.meeting import HOP
from headrace.engine.hosts.messages.frames import tune
from headrace.engine.ledger.passes import NET
from headrace.kernels.context import Context

HOSTS, ADDRESS = 2, "127.0.0.1"
PORT = int(os.environ.setdefault("HEADRACE_BENCH_PORT", str(free_port())))
PROMPT = "In the beginning"
SIZES, ROUNDS = (2, 8, 32), 40  # tokens of layers, and how many of each


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

    def __init__(self, number: int, free: tuple[Any, Any]) -> None:
        self.address, self.free = f"127.0.0.{number + 1}", free
        self.delay, self.rate = multiprocessing.Value("d", 0.0), multiprocessing.Value("d", 0.0)
        self.served = set[int]()
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
                if port == PORT:
                    hop = int(TCPStore(ADDRESS, PORT, is_master=False).get(HOP))
                    if hop not in self.served:  # of another coordinator
                        self.served.add(hop)
                        self._serve(hop)
            except OSError:
                near.close()
                continue
            for one, other, free in ((near, far, self.free[0]), (far, near, self.free[1])):
                tune(one)
                threading.Thread(target=self._hand_on, args=(one, other, free), daemon=True).start()

    def _hand_on(self, one: socket.socket, other: socket.socket, free: Any) -> None:
        """free: when the link has carried all that came so far, in this direction."""
        late: queue.Queue[tuple[float, bytes]] = queue.Queue()
        threading.Thread(target=self._deliver, args=(late, other), daemon=True).start()
        while data := one.recv(1 << 16):
            now, rate = time.perf_counter(), self.rate.value
            with free.get_lock():
                free.value = done = max(now, free.value) + (8 * len(data) / rate if rate else 0.0)
            late.put((done + self.delay.value, data))
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
def hosts(model: str, relays: list[Relay]) -> Iterator[Path]:
    """Processes that join a coordinator after the other; the file of their token."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        token = Path(folder) / "token"
        token.write_text("a secret of this benchmark")
        for number in range(1, HOSTS + 1):
            command = [sys.executable, "-m", "headrace", "host", model]
            command += ["--join", f"{relays[number - 1].address}:{PORT}", "--name", f"h{number}", "--threads", "1"]
            process = subprocess.Popen([*command, "--host-token", str(token)], stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield token


def coordinator(model: str, wire: str, token: Path) -> LLM:
    listen = {"listen": f"{ADDRESS}:{PORT}", "host_token": token, "host_wait": WAIT}
    options: dict[str, Any] = {"hosts": HOSTS, "threads": 1, "max_context": 256, "wire": wire}
    return LLM(model, **options, **listen)


def of_tokens(llm: LLM, tokens: int) -> dict[str, Any]:
    """Median seconds and bytes of a decode pass, and what the run predicted."""
    params = SamplingParams(max_new_tokens=tokens, ignore_eos=True)
    with llm.ledger.recording() as passes:
        llm.generate([PROMPT], params)
    found = [one for one in passes if one.phase == "decode"][2:]
    predicted = [one.predicted_s for one in found if one.predicted_s is not None]
    return {
        "s": statistics.median(one.measured_s for one in found),
        "run_predicted_s": statistics.median(predicted) if predicted else None,
        "net_bytes": statistics.mean(one.total(NET) for one in found),
    }


def of_layers(llm: LLM) -> list[dict[str, Any]]:
    """Layers of a few sizes, which take turns: median seconds, and those that are predicted."""
    experts, draw = experts_of(llm), torch.Generator().manual_seed(7)
    assert experts.network.costs is not None, "hosts that were not measured"
    layers = len(experts.members.home)
    found: dict[int, list[layer_costs.Sample]] = {tokens: [] for tokens in SIZES}
    for number in range(ROUNDS):
        for tokens in SIZES:
            found[tokens].append(layer_costs.sample(experts, number % layers, tokens, draw))
    rows = []
    for tokens, samples in found.items():
        late = samples[len(samples) // 5 :]
        exchange, cost = statistics.median(one.exchange_s for one in late), experts.network.costs.at(tokens)
        measured = statistics.median(one.measured_s for one in late)
        both = {"predicted_s": exchange + cost, "exchange_s": exchange, "cost_s": cost}
        rows.append({"tokens": tokens, "s": measured, **both})
    return rows


def show(link: Link, found: dict[str, Any]) -> None:
    """A line for the link as it was measured, for each size of a layer, and for a token."""
    print(f"{link.name}: {'; '.join(found['figures'])}")
    print(f"    besides: {', '.join(f'{1e6 * s:.0f} us of {tokens:.0f} tokens' for tokens, s in found['costs'])}")
    each = [(f"layer, {row['tokens']} tokens", row["s"], row["predicted_s"]) for row in found["layers"]]
    each += [(f"token, {found['net_bytes']:.0f} B", found["s"], found["predicted_s"])]
    if found["run_predicted_s"] is not None:
        each.append(("token, by the run", found["s"], found["run_predicted_s"]))
    for what, measured, predicted in each:
        off = measured / predicted - 1
        print(f"    {what:20} {1e3 * measured:8.3f} ms, {1e3 * predicted:8.3f} predicted ({off:+.0%})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--wire", default="f32")
    result_file.add_option(parser, "hosts")
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    free = multiprocessing.Value("d", 0.0), multiprocessing.Value("d", 0.0)
    relays = [Relay(number, free) for number in range(1, HOSTS + 1)]
    layers = 0
    with hosts(asked.model, relays) as token:
        for link in LINKS:
            for relay in relays:
                relay.shape(link)
            with coordinator(asked.model, asked.wire, token) as llm:
                of_tokens(llm, asked.tokens)
                found, layers = of_tokens(llm, asked.tokens), sum(llm.spec.is_moe)
                plain = rows[0]["s"] if rows else found["s"]
                sent = 0.0 if link.rate is None else 8 * found["net_bytes"] / link.rate
                found["predicted_s"] = plain + layers * link.round_trip + sent
                links = [one for one in experts_of(llm).members.links if one is not None]
                costs = experts_of(llm).network.costs
                found["costs"] = [] if costs is None else [(tokens, seconds.mid) for tokens, seconds in costs.points]
                found |= {"layers": of_layers(llm), "figures": [f"{one.name} {one.figures}" for one in links]}
            rows.append({"link": link.name, "tokens_s": 1 / found["s"], **found})
            show(link, found)
    print(f"load {os.getloadavg()[0]:.1f}")
    if asked.json:
        given = {"model": asked.model, "wire": asked.wire, "hosts": HOSTS, "layers": layers, "links": rows}
        load = round(os.getloadavg()[0], 1)
        result_file.write(asked.json, "hosts", {"passport": passport(Context()), "load": load, **given})


if __name__ == "__main__":
    main()
