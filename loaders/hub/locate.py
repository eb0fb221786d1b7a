"""Where a model's files are: the packaged demo, a directory, a GGUF file, or the Hugging Face hub through its usual
cache.

From the hub come only the files that the engine reads, never a second copy of the weights in another format. The
library (huggingface_hub) does the naming, the cache's layout and the login; download.py brings the bytes, and
errors.py says what went wrong. Nothing is taken from the cache in silence when the network is missing: that is
what `offline` is for.
This file does not know what is inside of the files, except for the list of shards in a safetensors index.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from collections.abc import Collection
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, constants

from ...errors import HubError
from .. import regular
from ..architecture import catalogue
from ..families.quantisation import BESIDE
from ..files import recognise
from ..files.gguf_models import GgufModel
from ..files.gguf_set import is_gguf
from ..files.headers import INDEX
from . import names
from .download import Repo, fetch_all, folder_of, library_bars, persist
from .errors import explained
from .local import CONFIG, CONVERTED, DEMO, DEMO_DIRECTORY, first_part, in_folder, model_or_gguf
from .names import HubName

log = logging.getLogger("headrace")

# Everything besides the weights that is read from a model's directory, where the repo has it.
SIDE_FILES = frozenset(
    {
        CONFIG,
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        *BESIDE,
        CONVERTED,
    }
)
# Not readable here, but small, and what a conversion to tokenizer.json starts from; fetched only when that is missing.
OLDER_TOKENIZERS = frozenset({"tokenizer.model", "vocab.json", "merges.txt"})


def locate(
    model: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    cache_dir: Path | None = None,
    show_progress: bool = True,
) -> Path:
    """The directory with the files of `model`, or its GGUF file, of several parts the first; `model`: "demo", a path,
    or a name on the hub (`names.py`), which is fetched if need be.

    `revision` is a branch, tag or commit on the hub; `offline` takes only what is in the cache already.
    Raises HubError if the model cannot be found or fetched; what was fetched until then stays for the next run.
    """
    directory = _demo() if model == DEMO else _local(model)
    if directory is not None:
        if revision is not None:
            raise HubError(
                f"revision {revision!r} was asked for, but {model!r} is a local model: only the hub has them"
            )
        return directory
    name = names.parse(model)
    cache = Path(constants.HF_HUB_CACHE) if cache_dir is None else cache_dir
    if offline or constants.HF_HUB_OFFLINE:
        return from_cache(name, revision, cache)
    endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    has_copy = partial(_has_copy, name, revision, cache)
    with explained(name.repo, revision, endpoint, cache, has_copy), library_bars(show_progress):
        return _download(look_up(name.repo, revision, endpoint, cache), name, show_progress)


# Local models


def _demo() -> Path:
    if not (DEMO_DIRECTORY / CONFIG).is_file():
        raise HubError(
            f"the demo model is not at {DEMO_DIRECTORY}: install headrace again, or train it with demo/train.py"
        )
    return DEMO_DIRECTORY


def _local(model: str) -> Path | None:
    """The directory or GGUF file called `model`; None if it can only be a name on the hub."""
    path, quant = in_folder(model)
    if path is None:
        if not model or model.startswith(("./", "../", "/", "~")) or "\\" in model:
            kind = "file" if is_gguf(Path(model)) else "directory"
            raise HubError(f"there is no {kind} {model!r}: check the path, or give a name on the hub (org/name)")
        if "/" not in model and (is_gguf(Path(model)) or _alias(model)):
            meant = f"did you mean {_alias(model)}?" if _alias(model) else "check the spelling"
            raise HubError(f"{model!r} is no directory, no file and no name on the hub (org/name): {meant}")
        return None
    if path.is_file() and is_gguf(path):
        return first_part(path)
    if not path.is_dir():
        raise HubError(
            f"{model!r} is a file: give the directory that holds it together with {CONFIG} and the tokenizer files"
        )
    inner = model_or_gguf(path, quant)
    if inner.is_file() or recognise.is_named(inner / CONFIG):
        return inner
    raise HubError(
        f"the directory {model!r} has no {CONFIG}: "
        + (recognise.what_folder(path) or "give the directory that has it")
        + "; if you mean a model on the hub with that name, run from another directory"
    )


def _alias(model: str) -> str:
    """The checkpoint on the hub that a model of the catalogue stands for; "" where there is none."""
    try:
        return next((one for one in catalogue.aliases(model.partition(":")[0]) if "/" in one), "")
    except KeyError:
        return ""


# What of a repo is needed


def side_files(there: Collection[str]) -> frozenset[str]:
    """The files besides weights that are read of a model, of those that there are."""
    wanted = SIDE_FILES if "tokenizer.json" in there else SIDE_FILES | OLDER_TOKENIZERS
    return wanted.intersection(there)


def shards_of(index: Path, model: str) -> set[str]:
    """The shards that an index names. Raises HubError if the file is not an index."""
    try:
        return set(json.loads(regular.text(index))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise HubError(
            f"{index.name} of {model} is not an index of shards ({type(error).__name__}: {error}); "
            "try another revision, or tell the owner of the model"
        ) from error


def _refuse_other_formats(model: str, there: Collection[str]) -> None:
    """Raise HubError for a repo without safetensors and GGUF models, saying what it has instead."""
    if CONFIG not in there:
        raise HubError(
            f"{model} has no {CONFIG} and no GGUF model, so it is not a model in the layout of transformers; check the "
            "name"
        )
    if any(name.endswith((".bin", ".pth", ".pt")) for name in there):
        what, remedy = (
            "PyTorch pickles (.bin, .pth)",
            "convert them with transformers (save_pretrained writes safetensors) and give that directory",
        )
    elif some := sorted(name for name in there if name.endswith(".safetensors")):
        what, remedy = f"a part of its shards ({_listed(some)} there)", "try another revision, or tell the owner"
    else:
        what, remedy = f"no weights at all ({len(there)} other files)", "check the name and the revision"
    raise HubError(f"{model} has neither model.safetensors nor {INDEX}; it has {what}: {remedy}")


# Models in the cache


def from_cache(name: HubName, revision: str | None, cache: Path) -> Path:
    """The directory or GGUF file of a model in the cache; raises HubError if it is not there as a whole."""
    snapshot = snapshot_of(name.repo, revision, cache)
    there = sizes_in(snapshot) if snapshot is not None else {}
    if snapshot is None or not there:
        at = "" if revision is None else f" at revision {revision!r}"
        raise HubError(
            f"{name.repo}{at} is not in the cache {cache}: run once without --offline, or copy its directory here"
        )
    found = names.select(name, there, lambda index: shards_of(snapshot / index, name.repo), " in the cache")
    if isinstance(found, GgufModel):
        wanted, path = {*found.files}, snapshot / found.name
    else:
        wanted, path = {CONFIG, *(found or {"model.safetensors"})}, snapshot
    if missing := sorted(wanted - {*there}):
        raise HubError(
            f"{name.repo} is not complete in the cache {cache}: {_listed(missing)} missing; "
            "run once without --offline to fetch the rest"
        )
    return path


def snapshot_of(repo: str, revision: str | None, cache: Path) -> Path | None:
    """Where the cache has the files of a repository at a branch, tag or commit; None if it has none."""
    folder = folder_of(repo, cache)
    try:
        commit = (folder / "refs" / (revision or constants.DEFAULT_REVISION)).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        commit = revision or ""
    snapshot = folder / "snapshots" / commit
    return snapshot if commit and snapshot.is_dir() else None


def sizes_in(directory: Path) -> dict[str, int]:
    """The files below a directory, links to nothing left out, with their bytes."""
    found = ((path, path.stat()) for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): about.st_size for path, about in found}


def _has_copy(name: HubName, revision: str | None, cache: Path) -> bool:
    try:
        from_cache(name, revision, cache)
    except HubError:
        return False
    return True


def _listed(files: list[str]) -> str:
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return ", ".join(files[:3]) + more + (" is" if len(files) == 1 else " are")


# Models on the hub


def look_up(model: str, revision: str | None, endpoint: str, cache: Path) -> Repo:
    """Ask the hub for the commit, and for names and sizes of its files."""
    api = HfApi(endpoint=endpoint)
    info = persist(
        lambda: api.model_info(
            model, revision=revision, files_metadata=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
        ),
        # The first word with the hub: who has no network should learn it soon.
        attempts=2,
    )
    if not info.sha:
        raise ValueError("the answer names no commit")
    siblings = info.siblings or []
    return Repo(
        model=model,
        revision=revision or constants.DEFAULT_REVISION,
        commit=info.sha,
        endpoint=endpoint,
        cache=cache,
        sizes={sibling.rfilename: sibling.size or 0 for sibling in siblings},
        etags={
            sibling.rfilename: (sibling.lfs.sha256 if sibling.lfs else sibling.blob_id) or "" for sibling in siblings
        },
    )


def _download(repo: Repo, name: HubName, show_progress: bool) -> Path:
    """Fetch what is needed and not here yet."""
    there = repo.sizes.keys()
    found = names.select(name, repo.sizes, partial(_fetch_index, repo))
    if not found:
        _refuse_other_formats(repo.model, there)
    weights = {*found.files} if isinstance(found, GgufModel) else found
    if lost := sorted(weights - there):
        where = "a part of" if isinstance(found, GgufModel) else "the index of"
        raise HubError(
            f"{where} {repo.model} names files that the repo does not have: {_listed(lost)} missing; "
            "try another revision, or tell the owner of the model"
        )
    wanted = sorted(weights if isinstance(found, GgufModel) else side_files(there) | weights)
    here = sum(map(repo.bytes_here, wanted))
    _check_space(repo, sum(repo.sizes[file] for file in wanted) - here)
    fetch_all(repo, wanted, here, show_progress)
    _write_ref(repo)
    return repo.snapshot / found.name if isinstance(found, GgufModel) else repo.snapshot


def _fetch_index(repo: Repo, index: str) -> set[str]:
    _check_space(repo, repo.sizes[index] - repo.bytes_here(index))
    fetch_all(repo, [index], 0, show_progress=False)
    return shards_of(repo.snapshot / index, repo.model)


def _check_space(repo: Repo, needed: int) -> None:
    """Raise HubError before the first byte of a download that cannot end well."""
    place = next(path for path in (repo.cache, *repo.cache.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise HubError(
            f"{repo.model} needs {needed / 1e9:.3f} GB more on disk, and {place} has {free / 1e9:.3f} GB free: "
            "make room, or put the cache on another disk with HF_HOME"
        )


def _write_ref(repo: Repo) -> None:
    """Note which commit the branch is at, so that `offline` finds it; last, so that it never finds half a model. A
    cache that cannot be written and has the model is no reason to stop."""
    ref = repo.folder / "refs" / repo.revision
    if repo.revision == repo.commit or (ref.is_file() and ref.read_text().strip() == repo.commit):
        return
    fresh = ref.with_name(f"{ref.name}.{os.getpid()}-{threading.get_ident()}.new")
    try:
        ref.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(repo.commit)
        fresh.replace(ref)
    except OSError as error:
        log.warning(
            "%s is complete in %s, but that %s is at %s could not be noted there (%s): --offline needs --revision %s",
            repo.model, repo.cache, repo.revision, repo.commit[:12], error.strerror, repo.commit,
        )  # fmt: skip
