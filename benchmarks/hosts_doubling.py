"""Twice as many hosts for a shape whose experts bound it: layers of Qwen3-235B-A22B with random weights behind 10
Gbit/s, measured beside predicted.

    python benchmarks/hosts_doubling.py [--rate 1.0] [--hosts 1,2,4] [--folder DIR] [--json FILE]

All hosts are processes of this machine, and share its memory. So each is made a machine of a known rate: what a host's
experts take is stretched to bytes / rate, by sleeping, while it computes them as ever. As long as all of them together
need less than this machine has (`late`, the share of calls that computing made longer than that, says whether), hosts
do not disturb each other, and a layer takes as long as on machines that read --rate GB/s. What it shows is the engine:
that hosts are asked side by side, what waiting for the slowest of them costs, and what the wire and Python add.
It does not show how fast any real machine reads. For each number of hosts

    layer    of 1 and 4 tokens: mean seconds, beside `engine/bandwidth_model/network/hops.py` for the experts chosen
    plan     what `headrace plan` expects before experts are known: the busiest host of so many
             (`engine/bandwidth_model/network/busiest.py`)
    token    a decode pass of the cut model: attention on the coordinator, experts on the hosts

and the gain over half as many hosts, measured, predicted and planned.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf_model
import hosts_network
import result_file
import torch
from hosts_network import FarHosts, Network
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "hosts"))

from host_processes import coordinator, experts_of

from headrace import LLM, SamplingParams
from headrace.engine.bandwidth_model.network import busiest
from headrace.engine.bench.passport import passport
from headrace.engine.hosts.joining import layer_costs, rate
from headrace.engine.hosts.shelf import Shelf
from headrace.engine.planning.articles import distinct_experts
from headrace.kernels.context import Context
from headrace.loaders.architecture import catalogue

SHAPE, LAYERS, VOCAB = "Qwen3-235B-A22B", 2, 4096
ROUND_TRIP, WIRE = 100e-6, 10e9  # seconds, bits a second
TOKENS, ROUNDS, WARM = (1, 4), 24, 2
RATE, LATE = "HEADRACE_BENCH_RATE", "HEADRACE_BENCH_LATE"  # bytes a second of a host; where it notes what was late


def be_a_host() -> None:
    """`headrace host` with a rate."""
    from headrace.cli import main as command_line

    limit, rows, experts = float(os.environ[RATE]), Shelf.rows, rate.experts
    calls = [0, 0]

    def slowed(self: Shelf, layer: int, x_TD: Tensor, at_N: Tensor, ids_N: Tensor, taken_N: Tensor | None) -> Tensor:
        end = time.perf_counter() + len({*ids_N.tolist()}) * self.files.layouts[layer].bytes / limit
        found = rows(self, layer, x_TD, at_N, ids_N, taken_N)
        left = end - time.perf_counter()
        calls[0], calls[1] = calls[0] + 1, calls[1] + (left <= 0)
        Path(os.environ[LATE], str(os.getpid())).write_text(f"{calls[0]} {calls[1]}")
        if left > 0:
            time.sleep(left)
        return found

    Shelf.rows = slowed  # type: ignore[method-assign]
    rate.experts = lambda *given: {tokens: min(limit, known) for tokens, known in experts(*given).items()}
    command_line()


class SlowHosts(FarHosts):
    """Hosts that read so many bytes a second. late: the folder where they note what took longer."""

    def __init__(self, model: Path, network: Network, limit: float, late: Path) -> None:
        os.environ[RATE], os.environ[LATE] = str(limit), str(late)
        super().__init__(model, network)

    def command(self, name: str, words: list[str]) -> list[str]:
        return super().command(name, [words[0], str(Path(__file__).resolve()), *words[3:]])


def made(folder: Path) -> Path:
    """The file of the cut model."""
    path = folder / f"{SHAPE}-{LAYERS}-layers.gguf"
    if not path.exists():
        config = catalogue.find(SHAPE).config
        gguf_model.write(path, {**config, "num_hidden_layers": LAYERS, "vocab_size": VOCAB}, "Q4_0")
    return path


def of_layer(llm: LLM, tokens: int) -> dict[str, float]:
    """Mean seconds of a layer whose tokens choose as they like."""
    experts, draw = experts_of(llm), torch.Generator().manual_seed(7)
    assert experts.network.costs is not None, "hosts that were not measured"
    found = [layer_costs.sample(experts, number % LAYERS, tokens, draw) for number in range(WARM + ROUNDS)][WARM:]
    predicted = statistics.mean(one.exchange_s for one in found) + experts.network.costs.at(tokens)
    return {"s": statistics.mean(one.measured_s for one in found), "predicted_s": predicted}


def planned(llm: LLM, tokens: int, hosts: int, limit: float) -> float:
    """Seconds of reading on the busiest host, for uniform routing."""
    stored = experts_of(llm).shelf.files
    chosen = distinct_experts(stored.stored.experts[0], stored.stored.top_k, tokens)
    return busiest.most(chosen, 1 / hosts, stored.stored.experts[0], hosts) * stored.layouts[0].bytes / limit


def of_hosts(model: Path, count: int, limit: float) -> dict[str, Any]:
    network = Network(count, is_shaped=True)
    network.shape(ROUND_TRIP, WIRE)
    with tempfile.TemporaryDirectory() as late:
        hosts = SlowHosts(model, network, limit, Path(late))
        try:
            options = {"placement": "hosts", "no_measure": False, "threads": 1, "host_timeout": 10.0}
            with coordinator(hosts, **options) as llm:
                found: dict[str, Any] = {"hosts": count}
                for tokens in TOKENS:
                    plan_s = planned(llm, tokens, count, limit)
                    found[f"layer of {tokens}"] = {**of_layer(llm, tokens), "planned_s": plan_s}
                with llm.ledger.recording() as passes:
                    llm.generate([[5, 7, 11]], SamplingParams(max_new_tokens=16, ignore_eos=True))
                found["token_s"] = statistics.median(one.measured_s for one in passes if one.phase == "decode")
                found["net_bytes"] = passes[-1].total("net")
        finally:
            hosts.close()
            network.close()
        calls = [[*map(int, one.read_text().split())] for one in Path(late).iterdir()]
    return found | {"late": sum(slow for _, slow in calls) / max(1, sum(all_ for all_, _ in calls))}


def show(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        print(f"{row['hosts']} hosts: a token {1e3 * row['token_s']:.1f} ms; late {row['late']:.1%}")
        for tokens in TOKENS:
            one = row[f"layer of {tokens}"]
            ms = [1e3 * one[name] for name in ("s", "predicted_s", "planned_s")]
            print(f"    layer of {tokens}: {ms[0]:8.2f} ms, {ms[1]:8.2f} predicted ({ms[0] / ms[1] - 1:+.0%}), "
                  f"{ms[2]:8.2f} by reading alone")  # fmt: skip
    for before, after in pairwise(rows):
        for tokens in TOKENS:
            name = f"layer of {tokens}"
            gains = [before[name][what] / after[name][what] for what in ("s", "predicted_s", "planned_s")]
            print(f"{before['hosts']} -> {after['hosts']} hosts, {name}: {gains[0]:.2f} times as fast, "
                  f"{gains[1]:.2f} predicted, {gains[2]:.2f} planned")  # fmt: skip
        print(f"{before['hosts']} -> {after['hosts']} hosts, a token: {before['token_s'] / after['token_s']:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=1.0, help="GB/s that a host reads")
    parser.add_argument("--hosts", default="1,2,4")
    parser.add_argument("--folder", type=Path, help="where the model is written, and stays; else it is temporary")
    result_file.add_option(parser, "hosts-doubling")
    asked = parser.parse_args()
    hosts_network.enter()
    with tempfile.TemporaryDirectory() as folder:
        model = made(asked.folder or Path(folder))
        rows = [of_hosts(model, int(count), 1e9 * asked.rate) for count in asked.hosts.split(",")]
    show(rows)
    load = round(os.getloadavg()[0], 1)
    print(f"load {load}")
    if asked.json:
        given = {"shape": SHAPE, "layers": LAYERS, "rate_gb_s": asked.rate, "rows": rows}
        result_file.write(asked.json, "hosts-doubling", {"passport": passport(Context()), "load": load, **given})


if __name__ == "__main__":
    if RATE in os.environ and sys.argv[1:2] == ["host"]:
        be_a_host()
    else:
        main()
