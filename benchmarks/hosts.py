"""Two hosts behind shaped links: a layer and a token, predicted beside measured, and bytes on the wire.

    python benchmarks/hosts.py [--split-by layers] [--tokens 48] [--wire f32] [--rounds 3] [--json FILE]

Each host is a process in a network namespace of its own; the coordinator's line has a round trip and a rate, which all
hosts share (`hosts_network.py`). For each link a coordinator starts anew, so that links are measured as in any run.
Then, with experts on hosts,

    layer    of 3, 8 and 32 tokens, sizes that were not among those that the start measured: the bandwidth model's
             seconds (`engine/bandwidth_model/network/hops.py`) beside the median of many
    token    a decode pass: the run's own prediction, if this machine was measured (headrace measure), and
             time of the run without a shaped link + layers * round trip + bytes / rate

and with whole layers there, whole passes beside the run's own prediction: tokens of one and of 4 sequences, and
prompts, whole and in as many parts as the run chooses. Parts are for machines with cores of their own: here they
share them, so that parts save less than predicted.

Run it in a quiet hour: hosts, coordinator and line share the cores of this machine, and at high load what they wait
for is a core.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import hosts_network
import result_file
import torch
from hosts_network import FarHosts, Network

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "hosts"))

from host_processes import coordinator, experts_of
from thread_hosts import layers_of

from headrace import LLM, SamplingParams
from headrace.engine.bench.passport import passport
from headrace.engine.bench.random_weights import RandomSampler
from headrace.engine.hosts.joining import layer_costs
from headrace.engine.ledger.passes import NET, Pass
from headrace.kernels.context import Context

HOSTS = 2
PROMPT = "In the beginning"
TEXT = "And it came to pass, when the children of Israel saw it, they said one to another, What is it? "
SIZES, ROUNDS = (3, 8, 32), 40  # tokens of layers, and how many of each
# Of a batch, one each: prompts that differ in a number alone choose fewer different experts, and take a tenth less.
BATCH = ("In the beginning", "And it came to pass", "Behold, the children of Israel", "The lord said unto")
PROMPTS, CONTEXT = 8, 512  # one after the other


class Link(NamedTuple):
    """round_trip: seconds; rate: bits a second; None: as fast as this machine."""

    name: str
    round_trip: float
    rate: float | None


LINKS = (
    Link("unshaped", 0.0, None), Link("100 us, 25 Gbit/s", 100e-6, 25e9), Link("100 us, 10 Gbit/s", 100e-6, 10e9),
    Link("100 us, 1 Gbit/s", 100e-6, 1e9), Link("1 ms, 10 Gbit/s", 1e-3, 10e9), Link("1 ms, 1 Gbit/s", 1e-3, 1e9),
)  # fmt: skip


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


def of_passes(llm: LLM, tokens: int) -> list[dict[str, Any]]:
    """Whole passes by what they are: median seconds, and those that the run predicted."""
    params, rows = SamplingParams(max_new_tokens=tokens, ignore_eos=True), list[dict[str, Any]]()
    for count in (1, len(BATCH)):
        with llm.ledger.recording() as passes:
            llm.generate(list(BATCH[:count]), params)
        rows.append(_row(f"tokens of {count}", [one for one in passes if one.phase == "decode"][2:]))
    net = layers_of(llm)
    route = net.network.route
    assert route is not None, "machines that were not measured"
    for name, most in (("whole", 1), ("in parts", route.most_parts)):
        net.network.route = replace(route, most_parts=most)
        with llm.ledger.recording() as passes:
            for number in range(PROMPTS):
                llm.loop.scheduler.forget()  # what prompts have in common is computed anew
                llm.generate([f"{number}: {TEXT * 4}"], SamplingParams(max_new_tokens=1))
        longest = max(one.tokens for one in passes)
        rows.append(_row(f"prompt of {longest}, {name}", [one for one in passes if one.tokens == longest][1:]))
    return rows


def _row(what: str, passes: list[Pass]) -> dict[str, Any]:
    predicted = [one.predicted_s for one in passes if one.predicted_s is not None]
    return {
        "pass": what, "s": statistics.median(one.measured_s for one in passes), "passes": len(passes),
        "predicted_s": statistics.median(predicted) if predicted else None,
        "net_bytes": statistics.mean(one.total(NET) for one in passes),
    }  # fmt: skip


def by_experts(llm: LLM, link: Link, plain: float | None, tokens: int) -> dict[str, Any]:
    """plain: seconds of a token without a shaped link, None: this is that run."""
    of_tokens(llm, tokens)
    found, layers, costs = of_tokens(llm, tokens), sum(llm.spec.is_moe), experts_of(llm).network.costs
    sent = 0.0 if link.rate is None else 8 * found["net_bytes"] / link.rate
    found["predicted_s"] = (plain or found["s"]) + layers * link.round_trip + sent
    found["costs"] = [] if costs is None else [(tokens, seconds.mid) for tokens, seconds in costs.points]
    links = [one for one in experts_of(llm).members.links if one is not None]
    return found | {"layers": of_layers(llm), "figures": [f"{one.name} {one.figures}" for one in links]}


def by_layers(llm: LLM, tokens: int) -> dict[str, Any]:
    net = layers_of(llm)
    links = [one for one in net.holders.links if one is not None]
    route = net.network.route
    assert route is not None, "machines that were not measured"
    of_passes(llm, tokens)
    found = {"figures": [f"{one.name} {one.figures}" for one in links], "stops": list(route.shown())}
    return found | {"passes": of_passes(llm, tokens)}


def show(found: dict[str, Any]) -> None:
    """A line for the link as it was measured first, and for each layer, token or pass."""
    print(f"{found['link']}: {'; '.join(found['figures'])}")
    if "passes" in found:
        print(f"    a token: {', '.join(found['stops'])}")
        each = [(row["pass"], row["s"], row["predicted_s"]) for row in found["passes"]]
    else:
        print(f"    besides: {', '.join(f'{1e6 * s:.0f} us of {tokens:.0f} tokens' for tokens, s in found['costs'])}")
        each = [(f"layer, {row['tokens']} tokens", row["s"], row["predicted_s"]) for row in found["layers"]]
        each += [(f"token, {found['net_bytes']:.0f} B", found["s"], found["predicted_s"])]
        each += [("token, by the run", found["s"], found["run_predicted_s"])]
    for what, measured, predicted in each:
        off = "" if predicted is None else f", {1e3 * predicted:8.3f} predicted ({measured / predicted - 1:+.0%})"
        print(f"    {what:20} {1e3 * measured:8.3f} ms{off}", flush=True)


def of_rounds(found: list[Any]) -> Any:
    """Medians of numbers of the same place; of all else the first."""
    first = found[0]
    if isinstance(first, dict):
        return {name: of_rounds([one[name] for one in found]) for name in first}
    if isinstance(first, list | tuple):
        return [of_rounds(list(each)) for each in zip(*found, strict=True)]
    return statistics.median(found) if isinstance(first, int | float) else first


def measure(asked: argparse.Namespace, hosts: FarHosts, network: Network) -> list[dict[str, Any]]:
    """Of every link, one after the other, as in each of the rounds."""
    options: dict[str, Any] = {
        "threads": asked.threads, "max_context": CONTEXT, "wire": asked.wire, "no_measure": False,
        # Tokens as those that the start draws: the next one of a text often chooses experts that caches still have.
        "sampler": RandomSampler(),
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    for link in LINKS:
        network.shape(link.round_trip, link.rate)
        with coordinator(hosts, split_by=asked.split_by, **options) as llm:
            if asked.split_by == "layers":
                found = by_layers(llm, asked.tokens)
            else:
                found = by_experts(llm, link, rows[0]["s"] if rows else None, asked.tokens)
                found["tokens_s"] = 1 / found["s"]
        rows.append({"link": link.name, **found})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--wire", default="f32")
    parser.add_argument("--threads", type=int, default=1, help="of the coordinator; hosts have one each")
    parser.add_argument("--rounds", type=int, default=3, help="through all links; figures are medians of rounds")
    parser.add_argument("--split-by", choices=["experts", "layers"], default="experts")
    result_file.add_option(parser, "hosts")
    asked = parser.parse_args()
    hosts_network.enter()
    network = Network(HOSTS, is_shaped=True)
    hosts = FarHosts(asked.model, network)
    try:
        rounds = [measure(asked, hosts, network) for _ in range(asked.rounds)]
    finally:
        hosts.close()
        network.close()
    rows = of_rounds(rounds)
    for row in rows:
        show(row)
    print(f"load {os.getloadavg()[0]:.1f}")
    if asked.json:
        given = {
            "model": asked.model,
            "wire": asked.wire,
            "hosts": HOSTS,
            "rounds": asked.rounds,
            "split_by": asked.split_by,
            "links": rows,
        }
        load = round(os.getloadavg()[0], 1)
        result_file.write(asked.json, "hosts", {"passport": passport(Context()), "load": load, **given})


if __name__ == "__main__":
    main()
