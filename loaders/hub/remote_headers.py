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

from huggingface_hub import constants, hf_hub_url

# The library exports these names without the marks that mypy asks for.
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    get_session,
    hf_raise_for_status,
)

from ...errors import CheckpointError, HubError
from ..families.config_reader import ConfigReader
from ..files import gguf_header, gguf_models, gguf_set, headers
from ..files.gguf_models import GgufModel
from ..files.headers import Stored
from ..files.weight_files import SUFFIX, headers_of
from . import names
from .download import Repo, fetch_all, folder_of, persist
from .errors import explained
from .local import CONFIG
from .locate import from_cache, look_up, shards_of, side_files, sizes_in, snapshot_of
from .names import HubName

WORKERS = 8
UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the hub says about a model: its config and the tensors of its files, or a GGUF header and its name.
    place: the folder of the cache that keeps what was fetched whole."""

    config: dict[str, Any] = field(default_factory=dict)
    tensors: Sequence[Stored] = ()
    gguf: gguf_header.Header | None = None
    file: str = ""
    place: Path | None = None
    notes: tuple[str, ...] = ()


def fetch(
    model: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    cache_dir: Path | None = None,
    with_text: bool = False,
) -> Found:
    """Config and headers of a name on the hub (`names.py`), or the header of its GGUF model. with_text: the tokenizer
    files too, where the cache can keep them. Raises HubError."""
    name = names.parse(model)
    cache = Path(constants.HF_HUB_CACHE) if cache_dir is None else cache_dir
    if offline or constants.HF_HUB_OFFLINE:
        return _from_cache(name, revision, cache)
    endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    has_copy = partial(folder_of(name.repo, cache).exists)
    with explained(name.repo, revision, endpoint, cache, has_copy):
        return _read(look_up(name.repo, revision, endpoint, cache), name, with_text)


def _from_cache(name: HubName, revision: str | None, cache: Path) -> Found:
    snapshot = snapshot_of(name.repo, revision, cache)
    there = {} if snapshot is None else sizes_in(snapshot)
    if snapshot is None or name.is_of_gguf or CONFIG not in there or gguf_models.models(there):
        try:
            path = from_cache(name, revision, cache)
        except HubError as error:
            raise HubError(f"{error}; or give a name of the catalogue") from error
        if path.is_file():
            file = str(path.relative_to(snapshot or path))
            return Found(gguf=gguf_set.of_path(path), file=f"{name.repo}/{file}", notes=("from the cache",))
    assert snapshot is not None, "from_cache has found it"
    found = headers_of(snapshot)
    note = "from the cache" if found else "from the cache, which has the config alone: bytes are computed from it"
    config = ConfigReader.open(snapshot / CONFIG).values
    return Found(config=config, tensors=found, notes=(note,), place=snapshot)


def _read(repo: Repo, name: HubName, with_text: bool) -> Found:
    """What the hub has; by way of a folder that is thrown away where the cache cannot be written."""
    try:
        return _read_through(repo, name, with_text)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
    with tempfile.TemporaryDirectory() as place:
        return replace(_read_through(replace(repo, cache=Path(place)), name, False), place=None)


def _read_through(repo: Repo, name: HubName, with_text: bool) -> Found:
    wanted = names.select(name, repo.sizes, partial(_index, repo))
    if isinstance(wanted, GgufModel):
        return _read_gguf(repo, wanted)
    if CONFIG not in repo.sizes:
        raise HubError(
            f"{repo.model} has no {CONFIG} and no GGUF model, so it is not a model in the layout of transformers"
        )
    fetch_all(repo, sorted(side_files(repo.sizes)) if with_text else [CONFIG], 0, show_progress=False)
    config = ConfigReader.open(repo.snapshot / CONFIG).values
    files = sorted(file for file in wanted if file.endswith(SUFFIX))
    notes = () if files else ("the repo has no safetensors: bytes are computed from its config",)
    with ThreadPoolExecutor(WORKERS) as pool:
        found = [tensor for tensors in pool.map(partial(_header, repo), files) for tensor in tensors]
    return Found(config=config, tensors=found, notes=notes, place=repo.snapshot)


def _index(repo: Repo, index: str) -> set[str]:
    fetch_all(repo, [index], 0, show_progress=False)
    return shards_of(repo.snapshot / index, repo.model)


def _header(repo: Repo, name: str) -> tuple[Stored, ...]:
    """The tensors of one safetensors file."""
    try:
        source, size = f"{name} of {repo.model}", repo.sizes[name]
        return headers.read(partial(_range, repo, name), source, "try another revision", size).tensors
    except CheckpointError as error:
        raise HubError(str(error)) from error


def _read_gguf(repo: Repo, model: GgufModel) -> Found:
    folder, _, file = model.name.rpartition("/")
    inside = [n.rpartition("/") for n in repo.sizes if n.lower().endswith(gguf_set.SUFFIX)]
    beside = [last for there, _, last in inside if there == folder]

    def header(part: str) -> gguf_header.Header:
        path = f"{folder}/{part}".lstrip("/")
        if path not in repo.sizes:
            raise HubError(f"{repo.model} has no file {path}, the first part of the model: try another revision")
        return gguf_header.read(partial(_range, repo, path), f"{path} of {repo.model}", repo.sizes[path])

    source = f"{model.name} of {repo.model}"
    with ThreadPoolExecutor(WORKERS) as pool:
        found = gguf_set.whole(file, beside, lambda parts: list(pool.map(header, parts)), source)
    return Found(gguf=found, file=f"{repo.model}/{model.name}")


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
