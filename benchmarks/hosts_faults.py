"""Kills, stops, restarts and slows hosts of experts at random times, again and again, and counts what came of it.

    python benchmarks/hosts_faults.py --times 50 --save faults.json [--split-by layers]

Two hosts of the demo model run as processes of this machine. Each time one of them gets SIGKILL, SIGSTOP, or SIGSTOP
for half the time-out (a slow host), while a batch of prompts is under way: in its prefill or in its decode, as the draw
says. Counted are texts that differ from those of one machine, passes that took longer than the time-out and 3 s, and
errors; of whole layers, whose lost passes are no passes, texts that took 14 s longer than usual. A host that was
killed is started again, one that was stopped goes on; the next time begins when it is back.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "hosts"))

from host_processes import Hosts, experts_of, hosts_of, later
from thread_hosts import layers_of

from headrace import LLM, SamplingParams

TEXT = "And it came to pass, when the children of Israel saw it, they said one to another, What is it? "
PROMPTS = ["In the beginning", TEXT * 3, "Behold,"]
GREEDY = SamplingParams(max_new_tokens=48, ignore_eos=True)
KINDS = ("kill", "stop", "slow")
TIMEOUT, SLACK = 2.0, {"experts": 3.0, "layers": 12.0}  # layers are loaded anew, and prompts computed again


def members_of(llm: LLM) -> Any:
    """Who counts losses and returns."""
    return experts_of(llm).members if llm.config.split_by == "experts" else layers_of(llm).holders


def run(llm: LLM) -> tuple[list[list[int]], float]:
    """Tokens of all prompts as a batch, and seconds of the longest pass."""
    with llm.ledger.recording() as passes:
        found = [result.token_ids for result in llm.generate(PROMPTS, GREEDY)]
    return found, max(one.measured_s for one in passes)


def act(hosts: Hosts, name: str, kind: str) -> None:
    hosts.signal(name, signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
    if kind == "slow":
        threading.Timer(TIMEOUT / 2, hosts.signal, (name, signal.SIGCONT)).start()


def back(hosts: Hosts, name: str, kind: str, llm: LLM, returns: int) -> None:
    """Until the host is there again."""
    if kind == "kill":
        hosts.restart(name)
    elif kind == "stop":
        hosts.signal(name, signal.SIGCONT)
    while members_of(llm).returns < returns:
        llm.generate(["And"], SamplingParams(max_new_tokens=2))
        time.sleep(0.1)


def once(hosts: Hosts, llm: LLM, draw: random.Random, usual: float, expected: list[list[int]]) -> dict[str, Any]:
    name, kind, at = draw.choice(["h1", "h2"]), draw.choice(KINDS), draw.random() * usual
    losses, returns = members_of(llm).losses, members_of(llm).returns
    error, found, seconds = "", expected, 0.0
    start = time.monotonic()
    with later(at, act, hosts, name, kind):
        try:
            found, seconds = run(llm)
            again, more = run(llm)  # what came behind the last token of the first
            found, seconds = (found if found != expected else again), max(seconds, more)
            if llm.config.split_by == "layers":
                seconds = max(0.0, time.monotonic() - start - 2 * usual)
        except Exception as raised:
            error, seconds = str(raised), time.monotonic() - start
    if kind == "slow":
        time.sleep(TIMEOUT)
        run(llm)
    lost = members_of(llm).losses - losses
    if lost:
        back(hosts, name, "stop" if kind == "slow" else kind, llm, returns + 1)
    return {
        "host": name, "kind": kind, "at_s": round(at, 3), "longest_pass_s": round(seconds, 3), "lost": lost,
        "error": error, "same": found == expected, "hang": seconds > TIMEOUT + SLACK[llm.config.split_by],
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--split-by", choices=["experts", "layers"], default="experts")
    asked = parser.parse_args()
    with LLM("demo", device="cpu", max_context=512, no_measure=True) as llm:
        expected = run(llm)[0]
    draw, found = random.Random(asked.seed), []
    options = {"split_by": asked.split_by, "placement": "hosts", "max_context": 512, "prefill_chunk": 32}
    with hosts_of("demo", 2, host_timeout=TIMEOUT, **options) as (hosts, llm):
        run(llm)
        start = time.monotonic()
        run(llm)
        usual = time.monotonic() - start
        for number in range(asked.times):
            found.append(once(hosts, llm, draw, usual, expected))
            print(number + 1, json.dumps(found[-1]), flush=True)
    sums = {
        "times": len(found), "usual_s": round(usual, 3), "load": os.getloadavg()[0],
        "by_kind": {kind: sum(one["kind"] == kind for one in found) for kind in KINDS},
        "wrong_text": sum(not one["same"] for one in found), "hangs": sum(one["hang"] for one in found),
        "errors": sum(bool(one["error"]) for one in found), "losses": sum(one["lost"] for one in found),
        "longest_pass_s": max(one["longest_pass_s"] for one in found),
    }  # fmt: skip
    print(json.dumps(sums))
    if asked.save is not None:
        asked.save.write_text(json.dumps({"sums": sums, "runs": found}, indent=1) + "\n")
    return int(bool(sums["wrong_text"] or sums["hangs"] or sums["errors"]))


if __name__ == "__main__":
    sys.exit(main())
