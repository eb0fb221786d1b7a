"""Ctrl-C and SIGTERM while it computes and while it serves: it ends, soon, and without a traceback."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

ENDED = {signal.SIGINT: (0, 130), signal.SIGTERM: (0, -signal.SIGTERM, 128 + signal.SIGTERM)}
PATIENCE = 120  # seconds, on a machine that others use too


@contextmanager
def running(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "headrace", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL) as found:
        try:
            yield found
        finally:
            found.kill()


def ends_well(process: subprocess.Popen[bytes], sent: signal.Signals) -> None:
    process.send_signal(sent)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode in ENDED[sent], said.decode()[-2000:]
    assert b"Traceback" not in said, said.decode()[-2000:]


@pytest.mark.parametrize("sent", list(ENDED))
def test_a_text_that_is_interrupted(sent: signal.Signals) -> None:
    with running("generate", "demo", "In the beginning", "-n", "900", "--ignore-eos", "--no-measure") as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        ends_well(process, sent)


@pytest.mark.parametrize("sent", list(ENDED))
def test_a_server_that_is_stopped_while_it_answers(sent: signal.Signals) -> None:
    with running("serve", "demo", "--port", "0", "--no-measure") as process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, b"")
        port = next(int(found[1]) for line in lines if (found := re.search(rb"at http://127\.0\.0\.1:(\d+)", line)))
        body = b'{"prompt": "In the beginning", "max_tokens": 900, "ignore_eos": true, "stream": true}'
        head = b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
            client.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
            assert client.recv(64).startswith(b"HTTP/1.1 200")
            ends_well(process, sent)
