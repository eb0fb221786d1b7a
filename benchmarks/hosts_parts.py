"""Passes in parts through whole layers on several hosts: how much sooner a prompt, and a token of several sequences, is
through where all machines are at work at the same time; measured beside predicted.

    python benchmarks/hosts_parts.py [--hosts 3] [--layer-ms 0.5] [--token-ms 0.05] [--json FILE]

All hosts are processes of this machine, and share its cores. So each is made a machine that takes --layer-ms for a
layer's weights and --token-ms for each of its tokens: what it computes is stretched to that, by sleeping. Hosts that
sleep do not disturb each other, so that parts overlap as on machines of their own. What it shows is the engine, and
whether the number of parts that it chooses is a good one, not what any machine computes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import hosts_network
import result_file
from hosts_network import FarHosts, Network

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "hosts"))

from host_processes import coordinator
from thread_hosts import layers_of

from headrace import LLM, SamplingParams
from headrace.engine.bench.passport import passport
from headrace.engine.hosts.layers.held import HeldLayers
from headrace.engine.hosts.messages.passes import Done, Task
from headrace.engine.ledger.passes import NET, Pass
from headrace.kernels.context import Context

LAYER, TOKEN = "HEADRACE_BENCH_LAYER_S", "HEADRACE_BENCH_TOKEN_S"
ROUND_TRIP, WIRE = 100e-6, 10e9  # seconds, bits a second
TEXT = "And it came to pass, when the children of Israel saw it, they said one to another, What is it? "
TIMES, SEQUENCES = 8, 16
OPTIONS: dict[str, Any] = {
    "split_by": "layers", "placement": "hosts", "no_measure": False, "threads": 1, "max_context": 512,
    "host_timeout": 10.0,
}  # fmt: skip


def be_a_host() -> None:
    """`headrace host` that takes its time."""
    from headrace.cli import main as command_line

    layer_s, token_s, run = float(os.environ[LAYER]), float(os.environ[TOKEN]), HeldLayers.run

    def slowed(self: HeldLayers, task: Task) -> Done:
        end = time.perf_counter() + (task.last - task.first) * (layer_s + token_s * len(task.x_TX))
        done = run(self, task)
        time.sleep(max(0.0, end - time.perf_counter()))
        return done

    HeldLayers.run = slowed  # type: ignore[method-assign]
    command_line()


class SlowHosts(FarHosts):
    """Hosts that run this file."""

    def command(self, name: str, words: list[str]) -> list[str]:
        return super().command(name, [words[0], str(Path(__file__).resolve()), *words[3:]])


def prompts(llm: LLM) -> list[Pass]:
    with llm.ledger.recording() as passes:
        for number in range(TIMES):
            llm.loop.scheduler.forget()  # what prompts have in common is computed anew
            llm.generate([f"{number}: {TEXT * 8}"], SamplingParams(max_new_tokens=1))
    longest = max(one.tokens for one in passes)
    return [one for one in passes if one.tokens == longest]


def tokens(llm: LLM) -> list[Pass]:
    with llm.ledger.recording() as passes:
        llm.generate([f"{number}:" for number in range(SEQUENCES)], SamplingParams(max_new_tokens=16, ignore_eos=True))
    return [one for one in passes if one.phase == "decode" and len(one.sequences) == SEQUENCES]


def measured(llm: LLM) -> list[dict[str, Any]]:
    """Of each kind of pass seconds whole and in parts, and what the layers were predicted to take."""
    from headrace.engine.bandwidth_model.network.stops import Work

    net, rows = layers_of(llm), []
    route = net.network.route
    assert route is not None, "machines that were not measured"
    for what, some in (("prompt", prompts), ("tokens", tokens)):
        for most in (1, route.most_parts):
            net.network.route = now = replace(route, most_parts=most)
            found = some(llm)[1:]
            last = found[-1]
            work = Work(tokens=last.tokens, is_prompt=last.tokens > len(last.sequences), context=last.context)
            parts = now.parts(work)
            times = [one.times.busy.get(NET, 0.0) for one in found if one.times is not None]
            rows.append({
                "pass": f"{what}, {last.tokens} tokens", "parts": parts, "s": statistics.median(times),
                "pass_s": statistics.median(one.measured_s for one in found), "predicted_s": now.seconds(work, parts),
            })  # fmt: skip
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        off = row["s"] / row["predicted_s"] - 1
        print(f"{row['pass']}, {row['parts']} parts: layers {1e3 * row['s']:.1f} ms, "
              f"{1e3 * row['predicted_s']:.1f} predicted ({off:+.0%}); the pass {1e3 * row['pass_s']:.1f}")  # fmt: skip
    for whole, parted in zip(rows[::2], rows[1::2], strict=True):
        print(f"{whole['pass']}: {whole['s'] / parted['s']:.2f} times as fast in parts, "
              f"{whole['predicted_s'] / parted['predicted_s']:.2f} predicted")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=3)
    parser.add_argument("--layer-ms", type=float, default=0.5)
    parser.add_argument("--token-ms", type=float, default=0.05)
    result_file.add_option(parser, "hosts-parts")
    asked = parser.parse_args()
    hosts_network.enter()
    os.environ[LAYER], os.environ[TOKEN] = str(asked.layer_ms / 1e3), str(asked.token_ms / 1e3)
    network = Network(asked.hosts, is_shaped=True)
    network.shape(ROUND_TRIP, WIRE)
    hosts = SlowHosts("demo", network)
    try:
        with coordinator(hosts, **OPTIONS) as llm:
            rows = measured(llm)
    finally:
        hosts.close()
        network.close()
    show(rows)
    load = round(os.getloadavg()[0], 1)
    print(f"load {load}")
    if asked.json:
        given = {"hosts": asked.hosts, "layer_ms": asked.layer_ms, "token_ms": asked.token_ms, "rows": rows}
        result_file.write(asked.json, "hosts-parts", {"passport": passport(Context()), "load": load, **given})


if __name__ == "__main__":
    if LAYER in os.environ and sys.argv[1:2] == ["host"]:
        be_a_host()
    else:
        main()
