"""The config and the headers of a model on the hub: a few megabytes of a checkpoint of hundreds of gigabytes.

Headers come by ranged requests, several files at once; of a server that ignores the range, reading stops after what was
asked for. The config and the index of shards are small and go into the usual cache, as for a download.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache

# The library exports these names without the marks that mypy asks for.
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    get_session,
    hf_raise_for_status,
)

from ...errors import CheckpointError, HubError
from ..families.config_reader import ConfigReader
from ..files import gguf_header, gguf_set, headers
from ..files.headers import Stored
from ..files.weight_files import SUFFIX, headers_of
from .download import Repo, fetch_all, folder_of, persist
from .errors import explained
from .local import CONFIG
from .locate import check_name, look_up, shards_of, weight_files

WORKERS = 8
UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the hub says about a model: its config, and the tensors of its files; or the header of a GGUF."""

    config: dict[str, Any] = field(default_factory=dict)
    tensors: Sequence[Stored] = ()
    gguf: gguf_header.Header | None = None
    notes: tuple[str, ...] = ()


def fetch(model: str, *, revision: str | None = None, offline: bool = False, cache_dir: Path | None = None) -> Found:
    """Config and headers of "org/name", or of a GGUF file "org/name/file.gguf". Raises HubError."""
    org, _, rest = model.partition("/")
    name, _, file = rest.partition("/")
    model = f"{org}/{name}"
    if file and not file.endswith(".gguf"):
        raise HubError(f"{model}/{file} is no model: give org/name, or org/name/file.gguf")
    check_name(model)
    cache = Path(constants.HF_HUB_CACHE) if cache_dir is None else cache_dir
    if offline or constants.HF_HUB_OFFLINE:
        return _from_cache(model, revision, cache)
    endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    has_copy = partial(folder_of(model, cache).exists)
    with explained(model, revision, endpoint, cache, has_copy):
        repo = look_up(model, revision, endpoint, cache)
        return _read_gguf(repo, file) if file else _read(repo)


def _from_cache(model: str, revision: str | None, cache: Path) -> Found:
    config = try_to_load_from_cache(model, CONFIG, cache_dir=cache, revision=revision)
    if not isinstance(config, str):
        raise HubError(
            f"{model} is not in the cache {cache}: run once without --offline, or give a name of the catalogue"
        )
    found = headers_of(Path(config).parent)
    note = "from the cache" if found else "from the cache, which has the config alone: bytes are computed from it"
    return Found(config=ConfigReader.open(Path(config)).values, tensors=found, notes=(note,))


def _read(repo: Repo) -> Found:
    """What the hub has; by way of a folder that is thrown away where the cache cannot be written."""
    try:
        return _read_through(repo)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
    with tempfile.TemporaryDirectory() as place:
        return _read_through(replace(repo, cache=Path(place)))


def _read_through(repo: Repo) -> Found:
    if CONFIG not in repo.sizes:
        files = sorted(name for name in repo.sizes if name.endswith(".gguf"))
        if files:
            raise HubError(
                f"{repo.model} has no {CONFIG} but {len(files)} GGUF files: name one, as in {repo.model}/{files[0]}"
            )
        raise HubError(f"{repo.model} has no {CONFIG}, so it is not a model in the layout of transformers")
    fetch_all(repo, [CONFIG], 0, show_progress=False)
    config = ConfigReader.open(repo.snapshot / CONFIG).values
    wanted = weight_files(repo.sizes.keys(), partial(_index, repo))
    names = sorted(name for name in wanted if name.endswith(SUFFIX))
    notes = () if names else ("the repo has no safetensors: bytes are computed from its config",)
    with ThreadPoolExecutor(WORKERS) as pool:
        found = [tensor for tensors in pool.map(partial(_header, repo), names) for tensor in tensors]
    return Found(config=config, tensors=found, notes=notes)


def _index(repo: Repo, index: str) -> set[str]:
    fetch_all(repo, [index], 0, show_progress=False)
    return shards_of(repo.snapshot / index, repo.model)


def _header(repo: Repo, name: str) -> tuple[Stored, ...]:
    """The tensors of one safetensors file."""
    try:
        return headers.read(partial(_range, repo, name), f"{name} of {repo.model}", "try another revision").tensors
    except CheckpointError as error:
        raise HubError(str(error)) from error


def _read_gguf(repo: Repo, name: str) -> Found:
    if name not in repo.sizes:
        there = ", ".join(sorted(n for n in repo.sizes if n.endswith(".gguf"))[:5]) or "none"
        raise HubError(f"{repo.model} has no file {name}; its GGUF files: {there}")
    folder, _, file = name.rpartition("/")
    inside = [n.rpartition("/") for n in repo.sizes if n.lower().endswith(gguf_set.SUFFIX)]
    beside = [last for there, _, last in inside if there == folder]

    def header(part: str) -> gguf_header.Header:
        path = f"{folder}/{part}".lstrip("/")
        return gguf_header.read(partial(_range, repo, path), f"{path} of {repo.model}", repo.sizes[path])

    with ThreadPoolExecutor(WORKERS) as pool:
        found = gguf_set.whole(file, beside, lambda names: list(pool.map(header, names)), f"{name} of {repo.model}")
    return Found(gguf=found)


def _range(repo: Repo, name: str, start: int, length: int) -> bytes:
    """Bytes [start, start + length) of a file, fewer at its end."""
    return persist(lambda: _range_once(repo, name, start, length))


def _range_once(repo: Repo, name: str, start: int, length: int) -> bytes:
    url = hf_hub_url(repo.model, name, revision=repo.commit, endpoint=repo.endpoint)
    asked = {**build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={start}-{start + length - 1}"}
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=asked, timeout=timeout) as response:
        if response.status_code == 416:  # the file ends before
            return b""
        hf_raise_for_status(response)
        skip = 0 if response.status_code == 206 else start
        data = b""
        for chunk in response.iter_bytes():
            data += chunk
            if len(data) >= skip + length:
                break
    return data[skip : skip + length]
