"""`headrace serve` on two hosts: a request over HTTP, one during which a host is lost, one after that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator

import pytest
from host_processes import free_port
from thread_hosts import ThreadHosts

from headrace import LLM, SamplingParams
from headrace.engine.hosts.expert_host import ExpertHost

PROMPT = "And it came to pass, when the children of Israel"
TOKENS = 90


@pytest.fixture(scope="module")
def expected() -> str:
    with LLM("demo", device="cpu", max_context=128, no_measure=True) as llm:
        return llm.generate(PROMPT, SamplingParams(max_new_tokens=TOKENS, ignore_eos=True))[0].text


class Served:
    """A server in a process of its own, with its hosts in this one."""

    def __init__(self, hosts: ThreadHosts, *options: str) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "headrace", "serve", "demo", "--hosts", "2", "--max-context", "128"]
        command += [
            "--listen",
            f"127.0.0.1:{hosts.port}",
            "--port",
            str(self.port),
            "--no-measure",
            "--placement",
            "hosts",
            *options,
        ]
        variables = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, text=True, stderr=subprocess.PIPE, env=variables)
        self.lines: list[str] = []
        self.is_ready = threading.Event()
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        for line in self.process.stderr or ():
            self.lines.append(line)
            if "Ctrl-C stops" in line:
                self.is_ready.set()

    def stream(self) -> Iterator[str]:
        """The text of an answer, piece by piece."""
        asked = {"model": "demo", "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "stream": True}
        asked["ignore_eos"] = True
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/v1/completions", json.dumps(asked).encode())
        request.add_header("content-type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as answer:
            for line in answer:
                data = line.decode().removeprefix("data: ").strip()
                if data and data != "[DONE]" and not data.startswith(":"):
                    yield from (choice["text"] for choice in json.loads(data)["choices"])

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        self.thread.join(10)
        if self.process.stderr is not None:
            self.process.stderr.close()


@pytest.mark.parametrize("split", ["experts", "layers"])
def test_requests_before_in_and_after_a_loss(
    split: str, two: ThreadHosts, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hosts take their time, so that the loss falls into the request."""
    at_once = ExpertHost._send
    monkeypatch.setattr(ExpertHost, "_send", lambda *given: time.sleep(0.002) or at_once(*given))
    served = Served(two, "--split-by", split)
    try:
        assert served.is_ready.wait(120), served.lines
        assert "".join(served.stream()) == expected
        pieces = []
        for piece in served.stream():
            pieces.append(piece)
            if len(pieces) == 5:
                two.end("h2")
        assert "".join(pieces) == expected
        assert "".join(served.stream()) == expected
        assert any("host h2 was lost" in line for line in served.lines)
        with urllib.request.urlopen(f"http://127.0.0.1:{served.port}/health", timeout=10) as answer:
            assert answer.status == 200
    finally:
        served.close()
        two.start("h2")
