"""Kills, stops, restarts and slows hosts at random times, pulls their cables, and counts what came of it.

    python benchmarks/hosts_faults.py --times 50 --save faults.json [--split-by layers] [--kinds kill,cut]

Two hosts of the demo model run as processes of this machine, each behind a cable of its own (`hosts_network.py`). Each
time something happens to one of them while a batch of prompts is under way, in its prefill or in its decode:

    kill      SIGKILL; it is started again afterwards
    stop      SIGSTOP
    slow      SIGSTOP for half the time-out
    cut       the cable is pulled: both sides hear nothing more of the other
    link      the cable carries 1 Mbit/s for half the time-out
    restart   SIGKILL, and it is started again at once, while prompts go on without a pause until it has come back

Counted are texts that differ from those of one machine, errors, and hangs: batches that took more than the time-out
and 3 s longer than the slower one of two that nothing happened to, right before and right after. What was stopped or
pulled is put right afterwards; the next time begins when the host is back.

Where matrix tiles round otherwise than dot products (bf16 with AMX or AVX512-BF16), text depends on how many tokens a
pass has, with hosts or without: there all machines use the instruction set below, AVX2, which has no tiles.
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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import hosts_network
from hosts_network import FarHosts, Network

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "hosts"))

from host_processes import coordinator, experts_of, later
from thread_hosts import layers_of

from headrace import LLM, SamplingParams
from headrace.kernels.context import Context
from headrace.kernels.isa import available_isas

TEXT = "And it came to pass, when the children of Israel saw it, they said one to another, What is it? "
PROMPTS = ["In the beginning", TEXT * 12, "Behold,", TEXT * 9]
GREEDY = SamplingParams(max_new_tokens=48, ignore_eos=True)
KINDS, PHASES = ("kill", "stop", "slow", "cut", "link", "restart"), ("prefill", "decode")
TIMEOUT, SLACK, SLOW_LINK = 2.0, 3.0, 1e6  # seconds, seconds, bits a second
CONTEXT, AT_ONCE = 1024, 4  # tokens; batches one over the other, where nothing is to be idle


class Run(NamedTuple):
    """What happens. usual: seconds of a batch, and of its prompts; expected: its tokens."""

    hosts: FarHosts
    llm: LLM
    usual: float
    prompts: float
    expected: list[list[int]]

    def anew(self, seconds: tuple[float, float]) -> Run:
        """The same with what a batch takes now."""
        return self._replace(usual=seconds[0], prompts=seconds[1])

    @property
    def members(self) -> Any:
        """Who counts losses and returns."""
        by_experts = self.llm.config.split_by == "experts"
        return experts_of(self.llm).members if by_experts else layers_of(self.llm).holders

    def when(self, phase: str, draw: random.Random) -> float:
        """Seconds of a batch, in the middle of a phase."""
        first, last = (0.0, self.prompts) if phase == "prefill" else (self.prompts, self.usual)
        return first + draw.random() * (last - first)

    @property
    def phase(self) -> str:
        """Where the batch is now."""
        running = list(self.llm.loop.scheduler.running)
        return "prefill" if any(one.computed < one.prompt_tokens for one in running) else "decode"


def said(llm: LLM, is_anew: bool = True) -> list[list[int]]:
    """Tokens of all prompts as a batch; is_anew: nothing of them is known from before."""
    if is_anew:
        llm.loop.scheduler.forget()
    return [result.token_ids for result in llm.generate(PROMPTS, GREEDY)]


def act(run: Run, name: str, kind: str, seen: list[str]) -> None:
    hosts, half = run.hosts, TIMEOUT / 2
    seen.append(run.phase)
    if kind in ("kill", "restart"):
        hosts.signal(name, signal.SIGKILL)
    elif kind in ("stop", "slow"):
        hosts.signal(name, signal.SIGSTOP)
    elif kind == "cut":
        hosts.cable(name, False)
    else:
        hosts.choke(name, SLOW_LINK)
    if kind == "restart":
        hosts.restart(name)
    if kind == "slow":
        threading.Timer(half, hosts.signal, (name, signal.SIGCONT)).start()
    if kind == "link":
        threading.Timer(half, hosts.choke, (name, None)).start()


def put_right(run: Run, name: str, kind: str) -> None:
    """What was done is undone, as far as it is not yet."""
    if kind == "kill":
        run.hosts.restart(name)
    elif kind == "cut":
        run.hosts.cable(name, True)
    elif kind in ("stop", "slow"):
        run.hosts.signal(name, signal.SIGCONT)


def back(run: Run, returns: int) -> None:
    """Until the host is there again."""
    end = time.monotonic() + 60
    while run.members.returns < returns and time.monotonic() < end:
        run.llm.generate(["And"], SamplingParams(max_new_tokens=2))
        time.sleep(0.1)


@contextmanager
def counted_returns(run: Run, found: list[bool]) -> Iterator[None]:
    """Of each return whether sequences were running."""
    members = run.members
    came = members.came

    def noted(*arguments: Any) -> None:
        found.append(bool(run.llm.loop.scheduler.running))
        came(*arguments)

    members.came = noted
    try:
        yield
    finally:
        del members.came


def without_a_pause(run: Run, returns: int, seconds: list[float]) -> list[list[list[int]]]:
    """Batches one over the other, until a host is back. seconds: gets what each took above so many at once."""
    end = time.monotonic() + 60

    def one(number: int) -> list[list[list[int]]]:
        found = []
        time.sleep(number * run.usual / AT_ONCE)
        while run.members.returns < returns and time.monotonic() < end:
            start = time.monotonic()
            found.append(said(run.llm, is_anew=False))
            seconds.append(time.monotonic() - start - (AT_ONCE - 1) * run.usual)
        return found

    with ThreadPoolExecutor(AT_ONCE) as all_of_them:
        return [texts for found in all_of_them.map(one, range(AT_ONCE)) for texts in found]


def once(run: Run, kind: str, draw: random.Random) -> dict[str, Any]:
    name, phase = draw.choice(["h1", "h2"]), draw.choice(PHASES)
    losses, returns = run.members.losses, run.members.returns
    error, texts, seconds, seen, mid_run = "", [], [], list[str](), list[bool]()
    run = run.anew(before := timed(run.llm))
    at = run.when(phase, draw)
    with later(at, act, run, name, kind, seen), counted_returns(run, mid_run):
        if kind == "restart":
            texts += without_a_pause(run, returns + 1, seconds)
        for _ in range(0 if kind == "restart" else 2):  # once more, for what came behind the last token of the first
            start = time.monotonic()
            try:
                texts.append(said(run.llm))
            except Exception as raised:
                error = str(raised)
            seconds.append(time.monotonic() - start)
    if kind in ("slow", "link"):
        time.sleep(TIMEOUT)
    put_right(run, name, kind)
    lost = run.members.losses - losses
    if lost:
        back(run, returns + 1)
    late = max(seconds) - max(before[0], timed(run.llm)[0])
    return {
        "host": name, "kind": kind, "phase": seen[0], "at_s": round(at, 3), "late_s": round(late, 3),
        "lost": lost, "returns": run.members.returns - returns, "back_mid_run": any(mid_run), "batches": len(texts),
        "error": error, "same": all(one == run.expected for one in texts), "hang": late > TIMEOUT + SLACK,
    }  # fmt: skip


def timed(llm: LLM) -> tuple[float, float]:
    """Seconds of a batch, and until all of its prompts are read."""
    with llm.ledger.recording() as passes:
        start = time.monotonic()
        said(llm)
        took = time.monotonic() - start
    return took, sum(one.measured_s for one in passes if one.phase != "decode")


def sums(found: list[dict[str, Any]], run: Run) -> dict[str, Any]:
    both = [(kind, phase) for kind in KINDS for phase in PHASES]
    return {
        "times": len(found), "usual_s": round(run.usual, 3), "prompts_s": round(run.prompts, 3),
        "load": round(os.getloadavg()[0], 1),
        "by_kind": {f"{kind}, {phase}": sum((one["kind"], one["phase"]) == (kind, phase) for one in found)
                    for kind, phase in both},
        "batches": sum(one["batches"] for one in found),
        "wrong_text": sum(not one["same"] for one in found), "hangs": sum(one["hang"] for one in found),
        "errors": sum(bool(one["error"]) for one in found), "losses": sum(one["lost"] for one in found),
        "returns": sum(one["returns"] for one in found), "back_mid_run": sum(one["back_mid_run"] for one in found),
        "latest_s": {kind: max((one["late_s"] for one in found if one["kind"] == kind), default=0.0) for kind in KINDS},
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--split-by", choices=["experts", "layers"], default="experts")
    asked = parser.parse_args()
    kinds = asked.kinds.split(",")
    if not set(kinds) <= set(KINDS):
        parser.error(f"--kinds is {asked.kinds!r}: give some of {','.join(KINDS)}")
    if Context().tile_tokens and "avx2" in available_isas():
        os.environ["HEADRACE_ISA"] = "avx2"  # of the process that takes this one's place, and of its hosts
    hosts_network.enter()
    with LLM("demo", device="cpu", max_context=CONTEXT, no_measure=True) as llm:
        expected = said(llm)
    draw, found, network = random.Random(asked.seed), [], Network(2)
    hosts = FarHosts("demo", network)
    options = {"split_by": asked.split_by, "placement": "hosts", "max_context": CONTEXT, "prefill_chunk": 32}
    try:
        with coordinator(hosts, host_timeout=TIMEOUT, **options) as llm:
            said(llm)  # what the first one does besides
            run = Run(hosts, llm, *timed(llm), expected)
            for number in range(asked.times):
                found.append(once(run, kinds[number % len(kinds)], draw))
                print(number + 1, json.dumps(found[-1]), flush=True)
            total = sums(found, run)
    finally:
        hosts.close()
        network.close()
    print(json.dumps(total))
    if asked.save is not None:
        asked.save.write_text(json.dumps({"sums": total, "runs": found}, indent=1) + "\n")
    return int(bool(total["wrong_text"] or total["hangs"] or total["errors"]))


if __name__ == "__main__":
    sys.exit(main())
