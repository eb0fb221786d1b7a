"""The hop to a host of experts: 16 KB there and back by a gloo pair and by a plain socket, and a whole layer.

    python benchmarks/hosts_hop.py [--rounds 400] [--json FILE]

    gloo      torch's ProcessGroupGloo of two ranks over loopback, its store a TCPStore
    socket    what headrace uses: TCP without delay, from Python
    layer     one layer of the demo model with all of its experts on one host, the experts' own time included
    own       the same layer's experts computed here

Microseconds: least and median. The other end is a process of this machine.
"""

from __future__ import annotations

import argparse
import datetime
import multiprocessing
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import result_file
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "hosts"))

from host_processes import experts_of, hosts_of

from headrace.engine.bench.passport import passport
from headrace.engine.hosts.messages.frames import receive_into, tune
from headrace.kernels.context import Context

SIZE, WARM = 16384, 50


def store(port: int, listener: socket.socket | None = None) -> Any:
    from torch.distributed import TCPStore

    if listener is None:
        return TCPStore("127.0.0.1", port, is_master=False)
    return TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


def pair(found: Any, rank: int) -> Any:
    from torch.distributed import PrefixStore, ProcessGroupGloo

    return ProcessGroupGloo(PrefixStore("pair", found), rank, 2, datetime.timedelta(seconds=60))


def other_end(port: int, rounds: int) -> None:
    found = store(port)
    group, data = pair(found, 1), torch.empty(SIZE // 4)
    for _ in range(rounds):
        group.recv([data], 0, 0).wait()
        group.send([data], 0, 0).wait()
    with socket.create_connection(("127.0.0.1", int(found.get("port")))) as sock:
        tune(sock)
        buffer = bytearray(SIZE)
        for _ in range(rounds):
            receive_into(sock, memoryview(buffer))
            sock.sendall(buffer)


def timed(step: Callable[[], None], rounds: int) -> dict[str, float]:
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    late = seconds[WARM:]
    return {"least_us": round(min(late) * 1e6, 1), "median_us": round(statistics.median(late) * 1e6, 1)}


def of_transports(rounds: int) -> dict[str, dict[str, float]]:
    listener, door = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    port = int(listener.getsockname()[1])
    found = store(port, listener)
    process = multiprocessing.get_context("spawn").Process(target=other_end, args=(port, rounds))
    process.start()
    group, data = pair(found, 0), torch.empty(SIZE // 4)

    def by_gloo() -> None:
        group.send([data], 1, 0).wait()
        group.recv([data], 1, 0).wait()

    gloo = timed(by_gloo, rounds)
    found.set("port", str(door.getsockname()[1]))
    sock, _ = door.accept()
    tune(sock)
    buffer = bytearray(SIZE)

    def by_socket() -> None:
        sock.sendall(buffer)
        receive_into(sock, memoryview(buffer))

    plain = timed(by_socket, rounds)
    process.join()
    sock.close()
    door.close()
    return {"gloo": gloo, "socket": plain}


def of_a_layer(rounds: int) -> dict[str, dict[str, float]]:
    with hosts_of("demo", 1) as (_, llm), torch.inference_mode():
        experts, moe, hidden = experts_of(llm), llm.spec.moe, llm.spec.hidden
        x_TD, weights_TK = torch.randn(1, hidden), torch.full((1, moe.top_k), 1 / moe.top_k)
        ids_TK = torch.arange(moe.top_k, dtype=torch.int32).unsqueeze(0)

        def there() -> None:
            experts.collect(experts.submit(0, x_TD, ids_TK, weights_TK))

        ids_N, at_N = ids_TK[0], torch.zeros(moe.top_k, dtype=torch.int64)

        def here() -> None:
            experts.shelf.rows(0, x_TD, at_N, ids_N, None)

        experts.shelf.adopt(0, ids_N.tolist())
        return {"layer": timed(there, rounds), "own": timed(here, rounds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=400)
    result_file.add_option(parser, "hosts-hop")
    asked = parser.parse_args()
    found: dict[str, Any] = {"load": round(os.getloadavg()[0], 1)}
    found |= {**of_transports(asked.rounds), **of_a_layer(asked.rounds)}
    for name, value in found.items():
        print(f"{name:8} {value}")
    if asked.json:
        result_file.write(asked.json, "hosts-hop", {"passport": passport(Context()), **found})


if __name__ == "__main__":
    main()
