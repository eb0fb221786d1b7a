"""What serving costs and keeps: a server in this process, clients in another, a random model of a real shape.

    decode    one stream through the server, with a viewer of the page, over `LLM.stream`, in turns: median of ratios
    prefix    a long prompt again: passes until its first token
    gap       the longest wait of a stream for a token while a long prompt is computed, over the limit; /health then
    clients   tokens per second of eight streams together over one's; the same for `generate` of eight prompts and one

python benchmarks/serving.py [--layers 12] [--prompt 20000] [--only PART] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import result_file

from headrace import LLM, SamplingParams
from headrace.engine.bench import passport
from headrace.engine.bench.random_weights import random_llm
from headrace.engine.generation.schedule.chunk_limit import FULL_READ
from headrace.engine.server import run
from headrace.engine.server.service import Service
from headrace.engine.server.settings import ServerSettings
from headrace.kernels.context import Context

NEW, ROUNDS, EIGHT = 64, 7, 8
STALL_MS = 1000.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen3-30B-A3B")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--format", default="q4_0")
    parser.add_argument("--prompt", type=int, default=20_000)
    parser.add_argument("--only", choices=("decode", "clients", "long_prompt"))
    result_file.add_option(parser, "serving")
    parser.add_argument(
        "--client", action="store_true", help=argparse.SUPPRESS
    )  # its jobs come by stdin, which takes any size
    args = parser.parse_args()
    if args.client:
        print(json.dumps(client(json.load(sys.stdin))))
        return
    found = measure(args)
    for name, value in found.items():
        print(f"{name:28} {value}")
    result_file.write(args.json, "serving", {"passport": passport.passport(Context()), "model": args.model, **found})


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All parts, one after the other."""
    settings = ServerSettings(port=0, parallel=EIGHT, prefill_stall_ms=STALL_MS)
    llm = random_llm(
        args.model, layers=args.layers, expert_format=args.format, dense_format="q8_0", max_sequences=EIGHT,
        max_context=args.prompt + 1024, prefill_stall_ms=STALL_MS,
    )  # fmt: skip
    served = Server(llm, settings)
    try:
        parts = {
            "decode": lambda: decode(served),
            "clients": lambda: clients(served),
            "long_prompt": lambda: long_prompt(served, args.prompt),
        }
        found: dict[str, Any] = {}
        for name, part in parts.items():
            found |= part() if args.only in (None, name) else {}
        return found
    finally:
        served.stop()


class Server:
    """A server that runs in a thread."""

    def __init__(self, llm: LLM, settings: ServerSettings) -> None:
        self.llm = llm
        listening, ready = run.listen(settings), threading.Event()
        self.server = run.Server(settings)
        self.server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        serve = self.server.run_with(lambda _: Service(llm, settings, "m"), listening, lambda _: ready.set())
        self.thread = threading.Thread(target=lambda: asyncio.run(serve), daemon=True)
        self.thread.start()
        assert ready.wait(60)
        self.url = run.address_of(listening)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(60)

    def ask(self, jobs: list[dict[str, Any]], health: bool = False, watch: bool = False) -> dict[str, Any]:
        """What a client in another process saw of requests that it sends each after its delay."""
        given = json.dumps({"url": self.url, "jobs": jobs, "health": health, "watch": watch})
        command = [sys.executable, __file__, "--client"]
        done = subprocess.run(command, input=given, stdout=subprocess.PIPE, text=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def ids(count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(1000, 100_000), k=count)


def job(prompt: list[int], new: int, delay: float = 0.0) -> dict[str, Any]:
    """A streamed completion. Likelihoods make every token an event of its own, though a model without tokenizer has no
    text."""
    body = {"prompt": prompt, "max_tokens": new, "stream": True, "ignore_eos": True, "temperature": 0, "logprobs": 0}
    return {"delay": delay, "body": body}


def rate(times: list[float]) -> float:
    """Tokens per second behind the first."""
    return (len(times) - 1) / (times[-1] - times[0])


def plain(llm: LLM, prompts: list[list[int]], new: int) -> float:
    """Tokens per second of decode passes without a server."""
    params = SamplingParams(max_new_tokens=new, ignore_eos=True)
    with llm.ledger.recording() as passes:
        llm.generate(prompts, params)
    steps = [p for p in passes if p.phase == "decode" and len(p.sequences) == len(prompts)]
    return sum(p.tokens for p in steps) / sum(p.measured_s for p in steps)


def streamed(llm: LLM, prompt: list[int], new: int) -> float:
    """Tokens per second of one stream without a server."""
    params = SamplingParams(max_new_tokens=new, ignore_eos=True, logprobs=0)  # as the clients ask for, who need events
    return rate([time.perf_counter() for _ in llm.stream(prompt, params)])


def decode(served: Server) -> dict[str, Any]:
    """One stream through the server, over one without."""
    ratios = []
    for turn in range(ROUNDS):
        own = streamed(served.llm, ids(16, turn), NEW)
        through = rate(served.ask([job(ids(16, 100 + turn), NEW)], watch=True)["times"][0])
        ratios.append(through / own)
    return {
        "decode_served_over_own": round(statistics.median(ratios), 3),
        "decode_ratios": [round(r, 3) for r in ratios],
    }


def clients(served: Server) -> dict[str, Any]:
    """Eight at once over one."""
    found, batch = [], []
    for turn in range(3):
        one = rate(served.ask([job(ids(16, 200 + turn), NEW)])["times"][0])
        many = served.ask([job(ids(16, 300 + 10 * turn + i), NEW) for i in range(EIGHT)])["times"]
        start, end = max(t[0] for t in many), min(t[-1] for t in many)
        found.append(sum(sum(start <= at <= end for at in t) for t in many) / (end - start) / one)
        prompts = [ids(16, 400 + 10 * turn + i) for i in range(EIGHT)]
        batch.append(plain(served.llm, prompts, NEW) / plain(served.llm, prompts[:1], NEW))
    return {
        "eight_clients_over_one": round(statistics.median(found), 2),
        "batch_of_eight_over_one": round(statistics.median(batch), 2),
    }


def long_prompt(served: Server, tokens: int) -> dict[str, Any]:
    """A stream beside a long prompt; then the prompt again."""
    prompt, ledger = ids(tokens, 7), served.llm.ledger
    with ledger.recording() as passes:
        seen = served.ask([job(ids(16, 8), 400), job(prompt, 2, delay=2.0)], health=True)
    text = seen["times"][0]
    gaps = [b - a for a, b in itertools.pairwise(text)]
    mixed = [p for p in passes if p.phase == "mixed"]
    full = served.llm.loop.scheduler.limit.expected.full_read()  # type: ignore[union-attr]
    limit = max(STALL_MS / 1e3, FULL_READ * (full or 0.0))
    before = ledger.count
    again = served.ask([job(prompt, 1)])
    return {
        "longest_gap_s": round(max(gaps), 3),
        "limit_s": round(limit, 3),
        "gap_over_limit": round(max(gaps) / limit, 2),
        "mixed_passes": len(mixed),
        "tokens_of_mixed_passes": round(statistics.median(p.tokens for p in mixed)) if mixed else 0,
        "first_token_of_the_prompt_s": round(seen["times"][1][0] - seen["sent"][1], 2),
        "the_same_again_s": round(again["times"][0][0] - again["sent"][0], 3),
        "the_same_again_passes": ledger.count - before,
        "health_p99_ms": round(1e3 * statistics.quantiles(seen["health"], n=100)[98], 2),
        "health_max_ms": round(1e3 * max(seen["health"]), 2),
    }


def client(given: dict[str, Any]) -> dict[str, Any]:
    """Sends requests and notes when each event came; asks for health meanwhile."""
    return asyncio.run(_client(given["url"], given["jobs"], given["health"], given["watch"]))


async def _client(url: str, jobs: list[dict[str, Any]], health: bool, watch: bool) -> dict[str, Any]:
    """With bare sockets: on a machine of few cores what a client does with each event is taken from the model."""
    port, asked = int(url.rstrip("/").rpartition(":")[2]), list[float]()

    async def one(spec: dict[str, Any]) -> tuple[float, list[float]]:
        await asyncio.sleep(spec["delay"])
        sent, times = time.perf_counter(), []
        async for line in lines(port, "POST", "/v1/completions", json.dumps(spec["body"]).encode()):
            if line.startswith(b"data: {") and b'"finish_reason":null' in line:
                times.append(time.perf_counter())
        return sent, times

    async def look() -> None:
        while True:
            start = time.perf_counter()
            async for _ in lines(port, "GET", "/health"):
                pass
            asked.append(time.perf_counter() - start)
            await asyncio.sleep(0.05)

    async def view() -> None:
        async for _ in lines(port, "GET", "/live"):
            pass

    beside = [asyncio.ensure_future(work()) for work, wanted in ((look, health), (view, watch)) if wanted]
    await asyncio.sleep(0.3 if watch else 0)
    found = await asyncio.gather(*(one(spec) for spec in jobs))
    for task in beside:
        task.cancel()
    return {"sent": [s for s, _ in found], "times": [t for _, t in found], "health": asked}


async def lines(port: int, method: str, path: str, body: bytes = b"") -> AsyncIterator[bytes]:
    """The lines of an answer, its head and the sizes of its chunks among them."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 26)
    try:
        head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        writer.write(f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        while line := await reader.readline():
            yield line
    finally:
        writer.close()


if __name__ == "__main__":
    main()
