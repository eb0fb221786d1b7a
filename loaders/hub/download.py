"""The transfer of files from a hub into the cache: several at once, and again from where a connection broke.

The library (huggingface_hub) throws away what it has of a file when a transfer fails: here the part stays beside the
blob as `<etag>.incomplete`, the next attempt (or the next run) asks for the rest, and a file that was put together
from parts is checked against its hash. HF_XET_HIGH_PERFORMANCE=1 chooses the library's own transfer, faster on very
fast lines. The library still links a finished blob into its snapshot.
This file does not know which files a model needs, nor how a failure is told to the user: errors leave it as they are.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeVar

from huggingface_hub import HfFileMetadata, constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

# The library exports these names without the marks that mypy asks for.
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    are_progress_bars_disabled,
    build_hf_headers,
    disable_progress_bars,
    enable_progress_bars,
    get_session,
    hf_raise_for_status,
    tqdm,
)

ATTEMPTS = 6  # in a row without progress, then the connection counts as broken for good
BACKOFF_S = 0.5  # doubled after each attempt, up to:
BACKOFF_MAX_S = 8.0
WORKERS = 4
_CHUNK_BYTES = 1 << 20
_HTTP_MAX_BYTES = 50_000_000_000  # larger files the hub gives through Xet only
_PROGRESS_BYTES = 1 << 20  # an attempt that brought this much is followed by a fresh count

# huggingface_hub 1 speaks through httpx, version 2 through httpx2; both raise their own class of the same name.
_TRANSPORT = tuple(sys.modules[name].RequestError for name in ("httpx", "httpx2") if name in sys.modules)

_T = TypeVar("_T")


def folder_of(model: str, cache: Path) -> Path:
    """Where the library's cache keeps a model."""
    return cache / "--".join(["models", *model.split("/")])


@dataclass(frozen=True, kw_only=True)
class Repo:
    """One commit of one model on the hub, and its place in the cache."""

    model: str
    revision: str
    commit: str
    endpoint: str
    cache: Path
    sizes: dict[str, int]
    etags: dict[str, str]

    @property
    def folder(self) -> Path:
        return folder_of(self.model, self.cache)

    @property
    def snapshot(self) -> Path:
        return self.folder / "snapshots" / self.commit

    def blob(self, etag: str) -> Path:
        return self.folder / "blobs" / etag

    def bytes_here(self, name: str) -> int:
        """How much of a file needs no transfer any more."""
        if (self.snapshot / name).exists():
            return self.sizes[name]
        blob = self.blob(self.etags.get(name) or "unknown")
        for path in (blob, _partial(blob)):
            with contextlib.suppress(OSError):  # another run may give the file its last name at any time
                return min(path.stat().st_size, self.sizes[name])
        return 0


@dataclass(kw_only=True)
class _Transfer:
    """What the threads of one download share."""

    bar: tqdm
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def advance(self, count: int) -> None:
        with self.lock:
            self.bar.update(count)


class _Stopped(Exception):
    """Another thread has failed, or the user has had enough."""


class _Cut(Exception):
    """The bytes that came are not all, or not the right ones."""


# hf_xet, the native part of the library, reports a lost connection as one of the last three.
TRANSIENT = (*_TRANSPORT, _Cut, LocalEntryNotFoundError, ConnectionError, TimeoutError, RuntimeError)


# Several files at once


def fetch_all(repo: Repo, names: Iterable[str], here: int, show_progress: bool) -> None:
    """Fetch several files at once; the first failure stops the others, whose parts stay."""
    todo = [name for name in names if not (repo.snapshot / name).exists()]
    total = here + sum(repo.sizes[name] - repo.bytes_here(name) for name in todo)
    # disable=None: a bar where there is a terminal, silence in a log file.
    silent = None if show_progress and todo else True
    bar = tqdm(  # type: ignore[no-untyped-call]
        total=total, initial=here, desc=repo.model, unit="B", unit_scale=True, disable=silent
    )
    transfer = _Transfer(bar=bar)
    with bar, ThreadPoolExecutor(WORKERS) as pool:
        jobs = [pool.submit(_fetch, repo, name, transfer) for name in todo]
        try:
            for job in as_completed(jobs):
                job.result()
        except BaseException:
            transfer.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _fetch(repo: Repo, name: str, transfer: _Transfer) -> None:
    """One file, whatever number of connections it takes."""
    start = repo.bytes_here(name)
    persist(
        lambda: _fetch_once(repo, name, transfer),
        received=lambda: repo.bytes_here(name) - start,
        stop=transfer.stop,
    )


@contextmanager
def library_bars(show: bool) -> Iterator[None]:
    """The library's own bars (Xet transfers) follow the same wish; its switch is global, so it is put back."""
    if show or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


# Attempts


def persist(
    call: Callable[[], _T],
    attempts: int = ATTEMPTS,
    received: Callable[[], int] = lambda: 0,
    stop: threading.Event | None = None,
) -> _T:
    """Call again after errors that may pass; the last is raised when `attempts` in a row brought next to nothing."""
    failed, mark = 0, received()
    while True:
        try:
            return call()
        except (*TRANSIENT, HfHubHTTPError) as error:
            failed = 1 if received() - mark >= _PROGRESS_BYTES else failed + 1
            mark = received()
            if failed >= attempts or not may_pass(error):
                raise
        pause = min(BACKOFF_S * 2 ** (failed - 1), BACKOFF_MAX_S)
        if (stop or threading.Event()).wait(pause):
            raise _Stopped


def may_pass(error: Exception) -> bool:
    """Whether the same request may work in a moment: not if the hub has understood and refused it."""
    return not isinstance(error, HfHubHTTPError) or status_of(error) in (408, 429) or status_of(error) >= 500


def status_of(error: HfHubHTTPError) -> int:
    return int(error.response.status_code)


# One file, one attempt


def _fetch_once(repo: Repo, name: str, transfer: _Transfer) -> None:
    if transfer.stop.is_set():
        raise _Stopped
    url = hf_hub_url(repo.model, name, revision=repo.commit, endpoint=repo.endpoint)
    facts = get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    before = repo.bytes_here(name)
    # A hub that gives no size or no usable etag leaves nothing to resume by; the library then does it its way.
    if not _by_xet(facts) and facts.size is not None and re.fullmatch(r"[\w-][\w.-]*", facts.etag or ""):
        _fill(repo.blob(str(facts.etag)), _Source(url, facts.size, str(facts.etag)), transfer)
        before = facts.size
    # With the blob in its place this only links it into the snapshot.
    hf_hub_download(repo.model, name, revision=repo.commit, endpoint=repo.endpoint, cache_dir=repo.cache)
    transfer.advance(repo.sizes[name] - before)


@dataclass(frozen=True)
class _Source:
    url: str
    size: int
    etag: str


def _by_xet(facts: HfFileMetadata) -> bool:
    """Whether the library's Xet transfer fetches a file. It starts again from nothing after an interruption."""
    if facts.xet_file_data is None or constants.HF_HUB_DISABLE_XET or importlib.util.find_spec("hf_xet") is None:
        return False
    return constants.HF_XET_HIGH_PERFORMANCE or (facts.size or 0) > _HTTP_MAX_BYTES


def _partial(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.incomplete")


def _fill(blob: Path, source: _Source, transfer: _Transfer) -> None:
    """Put a whole file at `blob`, beginning where an earlier attempt has ended."""
    blob.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(blob)
    with partial.open("ab") as file:
        _lock(file, transfer.stop)
        if blob.exists():
            # Another process has finished it while this one waited.
            partial.unlink(missing_ok=True)
            return
        resumed = file.tell() > 0
        _receive(file, source, transfer)
        if resumed and not _is_intact(partial, source.etag):
            transfer.advance(-_emptied(file))
            raise _Cut("the parts do not add up to the file's hash")
        partial.replace(blob)


def _lock(file: BinaryIO, stop: threading.Event) -> None:
    """Keep two processes from writing one file. Where the file system has no locks, the hash finds the damage."""
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if stop.wait(BACKOFF_S):
                raise _Stopped from None
        except OSError:
            return


def _receive(file: BinaryIO, source: _Source, transfer: _Transfer) -> None:
    """Append the rest of a file. Raises _Cut if the connection ended early without an error."""
    if file.tell() > source.size:
        _emptied(file)
    if file.tell() == source.size:
        return
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if file.tell():
        headers["Range"] = f"bytes={file.tell()}-"
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", source.url, headers=headers, timeout=timeout) as response:
        hf_raise_for_status(response)
        if response.status_code != 206:
            # The whole file, although a part was asked for: some proxies do that.
            transfer.advance(-_emptied(file))
        # Pieces as they come: asked for a size, the client gathers, and loses what it gathered when the line breaks.
        for chunk in response.iter_bytes():
            if transfer.stop.is_set():
                raise _Stopped
            file.write(chunk)
            transfer.advance(len(chunk))
    # From here on others read the file by its name.
    file.flush()
    if file.tell() != source.size:
        raise _Cut(f"{file.tell()} of {source.size} bytes came")


def _emptied(file: BinaryIO) -> int:
    """Empty a file; how much was in it."""
    size = file.tell()
    file.seek(0)
    file.truncate()
    return size


def _is_intact(path: Path, etag: str) -> bool:
    """Large files have their SHA-256 as etag; for the others there is nothing to compare with."""
    if not re.fullmatch(r"[0-9a-f]{64}", etag):
        return True
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest() == etag
