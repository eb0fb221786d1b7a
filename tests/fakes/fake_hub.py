"""A small Hugging Face hub on 127.0.0.1: real HTTP, so that the real client library and real sockets are tested.

It serves the repos it is given as dictionaries (file name -> bytes), counts requests and bytes per file, and can be
told to misbehave. It knows of one commit per revision, no login beyond "gated", and no other kind of repo.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


def commit_of(files: Files) -> str:
    listing = sorted((name, etag_of(name, content)) for name, content in files.items())
    return hashlib.sha1(repr(listing).encode()).hexdigest()


@functools.cache
def etag_of(name: str, content: bytes) -> str:
    """Large files are known by their SHA-256, small ones by their git hash, as on the real hub."""
    if name.endswith((".safetensors", ".bin", ".gguf")):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repo:
    revisions: dict[str, Files]
    gated: bool = False
    # Sizes that the API claims, for files too large to be in a test.
    claimed: dict[str, int] = field(default_factory=dict)

    def find(self, revision: str) -> Files | None:
        for name, files in self.revisions.items():
            if revision in (name, commit_of(files)):
                return files
        return None


class FakeHub:
    """`with FakeHub() as hub:` serves `hub.repos` at `hub.endpoint`."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: Counter[str] = Counter()  # "GET model.safetensors" -> how often
        self.sent: Counter[str] = Counter()  # file name -> bytes of content
        self.ranges: list[tuple[str, str]] = []  # (file name, Range header)
        self.cuts: dict[str, tuple[int, int]] = {}  # file name -> (after how many bytes, how many times still)
        self.resets = False  # a cut is a TCP reset instead of an early end
        self.ignores_ranges = False
        self.speaks_xet = False  # says so, that is; a client that believes it finds nobody to talk to
        self.garbles: set[str] = set()  # files whose next answer to a Range request has a wrong byte
        self.status = 200  # what every request is answered with, if not 200
        self.page = b""  # what the API answers instead, if set
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, model: str, files: Files, revision: str = "main") -> Repo:
        repo = self.repos.setdefault(model, Repo({}))
        repo.revisions[revision] = files
        return repo

    def forget(self) -> None:
        """Start all counts again."""
        self.requests.clear()
        self.sent.clear()
        self.ranges.clear()

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        pass

    Handler.hub = hub
    return Handler


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.hub.status != 200:
            self.reply(self.hub.status)
        elif match := re.fullmatch(r"/api/models/(.+?)(?:/revision/(.+))?", path):
            self.count("api")
            self.describe(match[1], match[2] or "main")
        elif match := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
            self.count(match[3])
            self.resolve(match[1], match[2], match[3])
        else:
            self.reply(404)

    def count(self, name: str) -> None:
        with self.hub.lock:
            self.hub.requests[f"{self.command} {name}"] += 1

    def reply(self, status: int, code: str = "", body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), **({"X-Error-Code": code} if code else {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def find(self, model: str, revision: str) -> Files | None:
        """The files of a revision; otherwise the refusal is sent."""
        repo = self.hub.repos.get(model)
        if repo is None:
            self.reply(404, "RepoNotFound")
            return None
        files = repo.find(revision)
        if files is None:
            self.reply(404, "RevisionNotFound")
        return files

    def describe(self, model: str, revision: str) -> None:
        files = self.find(model, revision)
        if files is None:
            return
        claimed = self.hub.repos[model].claimed
        siblings = []
        for name, content in files.items():
            etag, size = etag_of(name, content), claimed.get(name, len(content))
            entry: dict[str, object] = {"rfilename": name, "size": size, "blobId": etag[:40]}
            if len(etag) == 64:
                entry["lfs"] = {"sha256": etag, "size": size, "pointerSize": 134}
            siblings.append(entry)
        about = {"id": model, "modelId": model, "sha": commit_of(files), "siblings": siblings, "private": False}
        self.reply(200, body=self.hub.page or json.dumps({**about, "tags": [], "downloads": 0}).encode())

    def resolve(self, model: str, revision: str, name: str) -> None:
        files = self.find(model, revision)
        if files is None:
            return
        if self.hub.repos[model].gated:
            self.reply(403 if "Authorization" in self.headers else 401, "GatedRepo")
        elif name not in files:
            self.reply(404, "EntryNotFound")
        else:
            self.serve(name, files[name], commit_of(files))

    def serve(self, name: str, content: bytes, commit: str) -> None:
        asked, start, etag = self.headers.get("Range"), 0, etag_of(name, content)
        if asked and not self.hub.ignores_ranges:
            self.hub.ranges.append((name, asked))
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, size = int(first), len(content)
            content = content[: int(last) + 1] if last else content
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{size}")
        else:
            self.send_response(200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        if self.hub.speaks_xet:
            self.send_header("X-Xet-Hash", etag.ljust(64, "0"))
            self.send_header("X-Xet-Refresh-Route", f"{self.hub.endpoint}/no-xet-here")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "GET":
            self.pour(name, content[start:], start)

    def pour(self, name: str, rest: bytes, start: int) -> None:
        if start and name in self.hub.garbles:
            self.hub.garbles.discard(name)
            rest = bytes([rest[0] ^ 1]) + rest[1:]
        after, times = self.hub.cuts.get(name, (0, 0))
        cut = times > 0 and after < len(rest)
        if cut:
            self.hub.cuts[name] = (after, times - 1)
            rest = rest[:after]
        self.wfile.write(rest)
        with self.hub.lock:
            self.hub.sent[name] += len(rest)
        if cut:
            self.cut_off()

    def cut_off(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        if self.hub.resets:
            # SO_LINGER with zero seconds makes close() send a reset; what is under way should arrive before.
            time.sleep(0.05)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
