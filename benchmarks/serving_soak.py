"""Whether a server that runs for long keeps anything: many requests of every kind to `headrace serve`, several at once,
while its memory, threads, open files, pages and slots are read. The model is the first layer of the demo's, so that
most of the time goes to what serves it.

Answers whole and streamed of all four APIs, long and short prompts, calls and JSON by a grammar, several answers at
once, requests that are wrong, and clients that leave: before the first token, in the middle, without reading.

    start, during, end   what the process has; the first fifth of the requests is warm-up and fills every page once
    slopes               of looks at rest behind the warm-up, by least squares, in units for 100,000 requests, with the
                         standard error: "rss_mb: 0.31 +- 0.40" says that nothing is known to grow; then the same of
                         the second half of the requests, when caches are full that fill for long
    status 1             something grew: at rest there are more threads or files, pages or slots are held, or memory
                         grew behind the warm-up by more than `--most-growth` MB; or a request failed
    asleep               seconds in which this process did not run, stopped or on a busy machine; no request's 120 s

Clients keep their connections. --tiny: nineteen of twenty requests ask for one token behind three words, so that many
fit into a short time.

python benchmarks/serving_soak.py [--requests 100000] [--minutes 25] [--clients 8] [--tiny] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import result_file
from safetensors.torch import load_file, save_file

import headrace
from headrace.engine.bench import passport
from headrace.kernels.context import Context

WARM_UP, TINY = 0.2, 0.95  # of the requests
TICK_S, TIMEOUT_S = 0.25, 120.0
# Calls as Hermes and Qwen3 write them, so that a grammar can make the model call.
TEMPLATE = """{%- if tools %}<tools>
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}</tools>
{% endif %}{%- for message in messages %}{{ message.content }}
{% for call in message.tool_calls or [] %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{% endfor %}{%- endfor %}"""
TOOL = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {"far": {"type": "boolean"}},
                                                "required": ["far"], "additionalProperties": False}},
}  # fmt: skip
CHAT, TEXT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=25.0, help="after which no more are sent")
    parser.add_argument("--tiny", action="store_true", help="nineteen of twenty requests ask for one token")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--samples", type=int, default=20, help="looks at rest; as many besides while it is busy")
    parser.add_argument("--most-growth", type=float, default=8.0, help="of memory, MB behind the warm-up")
    result_file.add_option(parser, "serving-soak")
    args = parser.parse_args(arguments)
    with serving() as (process, port):
        found = asyncio.run(Soak(process, port, args).run())
    found["slopes"], found["second_half"] = slopes(found["samples"]), slopes(found["samples"], 0.5)
    problems = [*failed(found["answers"]), *grown(found["samples"], args.most_growth)]
    show(found, problems)
    result_file.write(
        args.json, "serving-soak", {"passport": passport.passport(Context()), **found, "problems": problems}
    )
    return 1 if problems else 0


@contextmanager
def serving() -> Iterator[tuple[psutil.Process, int]]:
    """The server's process, and its port."""
    with tempfile.TemporaryDirectory() as place:
        template = Path(place, "template.jinja")
        template.write_text(TEMPLATE)
        command = [sys.executable, "-u", "-m", "headrace", "serve", str(one_layer(Path(place, "model")))]
        command += ["--port", "0", "--no-measure", "--threads", "1", "--chat-template", str(template)]
        with (
            Path(place, "log").open("wb") as log,
            subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as server,
        ):
            try:
                yield psutil.Process(server.pid), port_in(Path(place, "log"), server)
            finally:
                server.terminate()


def one_layer(place: Path) -> Path:
    """The demo model without its other layers."""
    demo = Path(headrace.__file__).parent / "demo" / "model"
    place.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (place / name).write_bytes((demo / name).read_bytes())
    (place / "config.json").write_text(
        json.dumps({**json.loads((demo / "config.json").read_text()), "num_hidden_layers": 1})
    )
    weights = load_file(demo / "model.safetensors")
    kept = {name: one for name, one in weights.items() if ".layers." not in name or ".layers.0." in name}
    save_file(kept, place / "model.safetensors", {"format": "pt"})
    return place


def port_in(log: Path, server: subprocess.Popen[bytes]) -> int:
    """The port that a server says it listens at."""
    end = time.monotonic() + 120
    while time.monotonic() < end and server.poll() is None:
        if "http://127.0.0.1:" in (text := log.read_text()):
            return int(text.partition("http://127.0.0.1:")[2].split()[0].rstrip("/"))
        time.sleep(0.1)
    raise SystemExit(f"the server did not start: {log.read_text()[-2000:]}")


class Soak:
    """Sends requests, and looks at the server now and then."""

    def __init__(self, process: psutil.Process, port: int, args: argparse.Namespace) -> None:
        self.process, self.port, self.clients, self.samples_wanted = process, port, args.clients, args.samples
        self.share = max(1, args.requests // (args.samples * args.clients))  # of a client, between two looks
        self.end, self.done, self.is_tiny = time.monotonic() + args.minutes * 60, 0, args.tiny
        self.open: dict[int, Connection] = {}
        self.answers: Counter[str] = Counter()
        self.samples: list[dict[str, Any]] = []
        self.started = time.monotonic()
        self.awake = self.asleep = 0.0  # seconds in which this process ran, and did not

    async def run(self) -> dict[str, Any]:
        """All requests. Clients wait while the server is looked at: at rest it should have what it had before."""
        clock = asyncio.ensure_future(self._count_time())
        await asyncio.gather(*(self._turn(i, random.Random(i), 2) for i in range(self.clients)))
        for part in range(self.samples_wanted + 1):
            await self._at_rest()
            self.samples.append(await self._look())
            if part == self.samples_wanted or time.monotonic() > self.end:
                break
            busy = asyncio.ensure_future(self._look_while_busy())
            turns = (self._turn(i, random.Random(f"{part} {i}"), self.share) for i in range(self.clients))
            await asyncio.gather(*turns)
            await busy
        clock.cancel()
        seconds = time.monotonic() - self.started
        return {
            "requests": self.done, "seconds": round(seconds, 1), "asleep": round(self.asleep, 1),
            "per_second": round(self.done / seconds, 1),
            "answers": dict(sorted(self.answers.items())), "samples": self.samples,
        }  # fmt: skip

    async def _turn(self, client: int, luck: random.Random, count: int) -> None:
        """One client's requests, one after the other."""
        connection = self.open.setdefault(client, Connection(self.port))
        for _ in range(count):
            if time.monotonic() > self.end:
                return
            is_tiny = self.is_tiny and luck.random() < TINY
            kind = "tiny" if is_tiny else luck.choices(list(KINDS), [weight for weight, _ in KINDS.values()])[0]
            path, body, read = tiny(luck) if is_tiny else KINDS[kind][1](luck)
            try:
                status = await self._in_time(connection.ask(path, body, read))
            except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
                status = type(error).__name__
            self.answers[f"{kind} {status}"] += 1
            self.done += 1

    async def _count_time(self) -> None:
        """A tick that comes late says that nobody ran, or nobody here: a server that was stopped too is not slow."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            late = max(0.0, now - last - 4 * TICK_S)
            self.awake, self.asleep, last = self.awake + now - last - late, self.asleep + late, now

    async def _in_time(self, work: Coroutine[Any, Any, int | str]) -> int | str:
        """A status that comes within TIMEOUT_S of time awake; raises TimeoutError."""
        task, end = asyncio.ensure_future(work), self.awake + TIMEOUT_S
        while not (await asyncio.wait({task}, timeout=5.0))[0]:
            if self.awake > end:
                task.cancel()
                await asyncio.wait({task})
                raise asyncio.TimeoutError
        return task.result()

    async def _at_rest(self) -> None:
        """Waits until nothing runs; the answer to what clients left ends within a pass, and nobody is connected."""
        for connection in self.open.values():
            connection.close()
        for _ in range(500):
            if not json.loads(await get(self.port, "/slots")):
                return
            await asyncio.sleep(0.02)

    async def _look_while_busy(self) -> None:
        await asyncio.sleep(0.05)
        self.samples.append({**await self._look(), "busy": True})

    async def _look(self) -> dict[str, Any]:
        """What the server's process has."""
        slots = len(json.loads(await get(self.port, "/slots")))
        lines = (await get(self.port, "/metrics")).decode().splitlines()
        metrics = {name: float(value) for name, _, value in (one.rpartition(" ") for one in lines) if name[0] != "#"}
        return {
            "requests": self.done, "seconds": round(time.monotonic() - self.started, 1),
            "rss_mb": round(self.process.memory_info().rss / 1e6, 2),
            "threads": self.process.num_threads(), "files": self.process.num_fds(), "slots": slots,
            "running": int(metrics["headrace_num_requests_running"]),
            "pages_held": round(metrics["headrace_kv_cache_usage_perc"], 4),
            "pages_idle": int(metrics["headrace_kv_cache_pages_idle"]),
        }  # fmt: skip


def words(luck: random.Random, count: int) -> str:
    return " ".join(luck.choices(("house", "river", "in", "the", "was", "never", "and", "light"), k=count))


def chat(luck: random.Random, length: int, **more: Any) -> tuple[str, dict[str, Any], str]:
    """A chat. The last of the three: how much of its answer the client reads."""
    return CHAT, {"messages": [{"role": "user", "content": words(luck, length)}], "max_tokens": 3, **more}, "all"


def left(luck: random.Random) -> tuple[str, dict[str, Any], str]:
    """A long answer whose client leaves."""
    path = luck.choice((CHAT, TEXT, RESPONSES, MESSAGES))
    text = words(luck, 5)
    body = {"messages": [{"role": "user", "content": text}], "prompt": text, "input": text, "max_tokens": 400}
    read = luck.choice(("none", "soon", "head", "some"))
    more = {"max_output_tokens": 400, "ignore_eos": True, "stream": read in ("head", "some") or luck.random() < 0.5}
    return path, {**body, **more}, read


def wrong(luck: random.Random) -> tuple[str, dict[str, Any], str]:
    """A request that is refused."""
    more = luck.choice(({"temperature": -1}, {"messages": []}, {"n": 99}, {"guided_regex": "("}, {"stop": 7}))
    return CHAT, {"messages": [{"role": "user", "content": "x"}], "stream": luck.random() < 0.5, **more}, "all"


def missing(luck: random.Random) -> tuple[str, dict[str, Any], str]:
    return f"/v1/{words(luck, 1)}", {}, "all"


KINDS: dict[str, tuple[float, Any]] = {
    "whole": (20, lambda luck: chat(luck, 6)),
    "streamed": (25, lambda luck: chat(luck, 6, stream=True, stream_options={"include_usage": True})),
    "again": (8, lambda luck: chat(random.Random(luck.randrange(8)), 120, stream=True)),
    "long": (4, lambda luck: chat(luck, luck.randrange(100, 600))),
    "too long": (1, lambda luck: chat(luck, 3000)),
    "several": (3, lambda luck: chat(luck, 6, n=3, temperature=1.0, logprobs=True, top_logprobs=3)),
    "call": (3, lambda luck: chat(luck, 6, tools=[TOOL], tool_choice="required", max_tokens=40)),
    "form": (2, lambda luck: chat(luck, 6, json_schema={"enum": [words(luck, 2), words(luck, 1)]}, max_tokens=60)),
    "text": (6, lambda luck: (TEXT, {"prompt": words(luck, 6), "max_tokens": 3, "stream": luck.random() < 0.5}, "all")),
    "response": (5, lambda luck: (RESPONSES, {"input": words(luck, 6), "max_output_tokens": 3, "stream": True}, "all")),
    "message": (5, lambda luck: (MESSAGES, {**chat(luck, 6)[1], "stream": luck.random() < 0.7}, "all")),
    "left": (8, left),
    "wrong": (6, wrong),
    "missing": (2, missing),
    "tokens": (2, lambda luck: ("/tokenize", {"content": words(luck, 20)}, "all")),
}


def tiny(luck: random.Random) -> tuple[str, dict[str, Any], str]:
    """Text of three words, for one token."""
    return TEXT, {"prompt": words(luck, 3), "max_tokens": 1, "stream": luck.random() < 0.5}, "all"


class Connection:
    """Of one client; it is opened when something is asked, and kept as long as answers are read to their ends."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.ends: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def close(self) -> None:
        if self.ends is not None:
            self.ends[1].close()
        self.ends = None

    async def ask(self, path: str, body: dict[str, Any], read: str) -> int | str:
        """The status of an answer. read: "all" of it, "some" of it, its "head", or "none", and then leave; "soon":
        leave when it has begun to be made."""
        data, is_whole = json.dumps(body).encode(), False
        if self.ends is None:
            self.ends = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self.ends
        try:
            writer.write(
                b"POST %s HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\n\r\n%s" % (path.encode(), len(data), data)
            )
            await writer.drain()
            if read in ("none", "soon"):
                await asyncio.sleep(0.01 if read == "soon" else 0)
                return "left"
            head = await reader.readuntil(b"\r\n\r\n")
            if read == "all":
                is_whole = await read_whole(reader, head.lower())
            elif read == "some":
                await reader.read(300)
            return int(head.split(b" ", 2)[1])
        finally:
            if not is_whole:
                self.close()


async def read_whole(reader: asyncio.StreamReader, head: bytes) -> bool:
    """Reads the body behind a head, in lower case; whether more may be asked on this connection."""
    if b"transfer-encoding: chunked" in head:
        while size := int(await reader.readline(), 16):
            await reader.readexactly(size + 2)
        await reader.readline()
    elif b"content-length: " in head:
        await reader.readexactly(int(head.split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0]))
    else:
        await reader.read(-1)
        return False
    return b"connection: close" not in head


async def get(port: int, path: str) -> bytes:
    """The body of an answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
    found = (await reader.read(-1)).partition(b"\r\n\r\n")[2]
    writer.close()
    return found


def failed(answers: dict[str, int]) -> list[str]:
    """Requests without an answer, in words."""
    return [f"{name}: {count}" for name, count in answers.items() if name.endswith("Error")]


def slopes(samples: list[dict[str, Any]], behind: float = WARM_UP) -> dict[str, list[float]]:
    """Of what the process has at rest behind a share of the requests: growth for 100,000 requests, and its
    standard error; empty where there are fewer than three looks."""
    rest = [one for one in samples if not one.get("busy")]
    rest = [one for one in rest if one["requests"] >= behind * rest[-1]["requests"]]
    found = {}
    for name in ("rss_mb", "threads", "files", "slots", "pages_held", "pages_idle") if len(rest) > 2 else ():
        x, y = [one["requests"] / 1e5 for one in rest], [float(one[name]) for one in rest]
        line = statistics.linear_regression(x, y)
        spread = sum((a - statistics.fmean(x)) ** 2 for a in x)
        off = sum((b - line.intercept - line.slope * a) ** 2 for a, b in zip(x, y, strict=True))
        found[name] = [round(line.slope, 3), round((off / (len(x) - 2) / spread) ** 0.5, 3)]
    return found


def grown(samples: list[dict[str, Any]], most_mb: float) -> list[str]:
    """What grew, in words."""
    rest = [one for one in samples if not one.get("busy")]
    last, warm = rest[-1], next(one for one in rest if one["requests"] >= WARM_UP * rest[-1]["requests"])
    found = [
        f"{name}: {warm[name]} at rest, {last[name]} at the end"
        for name in ("threads", "files")
        if last[name] > warm[name]
    ]
    found += [f"{name}: {last[name]} at the end" for name in ("slots", "running", "pages_held") if last[name]]
    more = last["rss_mb"] - warm["rss_mb"]
    return found + ([f"memory: {more:.2f} MB more behind the warm-up"] if more > most_mb else [])


def show(found: dict[str, Any], problems: list[str]) -> None:
    """Prints what was seen."""
    names = ("requests", "rss_mb", "threads", "files", "slots", "running", "pages_held", "pages_idle")
    print(" ".join(f"{name:>10}" for name in names))
    for one in found["samples"]:
        print(" ".join(f"{one[name]:>10}" for name in names), "" if one.get("busy") else "at rest")
    print(f"{found['requests']} requests in {found['seconds']} s, {found['per_second']} a second")
    print(", ".join(f"{name}: {count}" for name, count in found["answers"].items()))
    for name, (slope, error) in found["slopes"].items():
        print(f"{name}: {slope} +- {error} for 100,000 requests")
    for name, (slope, error) in found["second_half"].items():
        print(f"second half, {name}: {slope} +- {error} for 100,000 requests")
    print("\n".join(problems) or "nothing grew")


if __name__ == "__main__":
    sys.exit(main())
