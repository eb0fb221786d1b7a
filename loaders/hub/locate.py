"""Where a model's files are: the packaged demo, a directory, or the Hugging Face hub through its usual cache.

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
from collections.abc import Callable, Collection
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

# The library exports this name without the marks that mypy asks for.
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from ...errors import HubError
from ..families.quantisation import BESIDE
from ..files import recognise
from ..files.gguf_set import is_gguf
from ..files.weight_files import INDICES, ranked, several
from .download import Repo, fetch_all, library_bars, persist
from .errors import explained
from .local import CONFIG, DEMO, DEMO_DIRECTORY, existing, model_in

log = logging.getLogger("headrace")
INDEX = "model.safetensors.index.json"
CONVERTED = "headrace.json"

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
    """The directory with the files of `model`: "demo", a directory, or a name on the hub, fetched if need be.

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
    check_name(model)
    cache = Path(constants.HF_HUB_CACHE) if cache_dir is None else cache_dir
    if offline or constants.HF_HUB_OFFLINE:
        return _from_cache(model, revision, cache)
    endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    has_copy = partial(_has_copy, model, revision, cache)
    with explained(model, revision, endpoint, cache, has_copy), library_bars(show_progress):
        return _download(look_up(model, revision, endpoint, cache), show_progress)


# Local models


def _demo() -> Path:
    if not (DEMO_DIRECTORY / CONFIG).is_file():
        raise HubError(
            f"the demo model is not at {DEMO_DIRECTORY}: install headrace again, or train it with demo/train.py"
        )
    return DEMO_DIRECTORY


def _local(model: str) -> Path | None:
    """The directory called `model`; None if it can only be a name on the hub."""
    path = existing(model)
    if path is None:
        if not model or model.startswith(("./", "../", "/", "~")) or "\\" in model:
            raise HubError(f"there is no directory {model!r}: check the path, or give a name on the hub (org/name)")
        return None
    if is_gguf(path):
        return path
    if not path.is_dir():
        raise HubError(
            f"{model!r} is a file: give the directory that holds it together with {CONFIG} and the tokenizer files"
        )
    inner = model_in(path)
    if recognise.is_named(inner / CONFIG):
        return inner
    raise HubError(
        f"the directory {model!r} has no {CONFIG}: "
        + (recognise.what_folder(path) or "give the directory that has it")
        + "; if you mean a model on the hub with that name, run from another directory"
    )


def check_name(model: str) -> None:
    try:
        validate_repo_id(model)
    except HFValidationError as error:
        raise HubError(
            f"{model!r} is neither a directory here nor a name on the hub (org/name): {error}; check the spelling"
        ) from error


# What of a repo is needed


def _side_files(names: Collection[str]) -> frozenset[str]:
    wanted = SIDE_FILES if "tokenizer.json" in names else SIDE_FILES | OLDER_TOKENIZERS
    return wanted.intersection(names)


def weight_files(names: Collection[str], read_index: Callable[[str], set[str]]) -> set[str]:
    """The files that hold the weights, the index included: our own layout first, then the likeliest of what is there.

    Where no set is whole it is what an index names. Raises CheckpointError where several are equally likely."""
    converted = {name for name in names if fnmatch(name, "headrace*.safetensors")}
    if CONVERTED in names and converted:
        return converted
    asked: set[str] = set()
    for index in sorted((n for n in names if fnmatch(n, INDICES)), key=lambda n: (n != INDEX, n)):
        found = {index} | read_index(index)
        if found <= {*names}:
            return found
        asked = asked or found
    likely = next((rank for rank in ranked(names, {}) if not rank[0].is_all), [])
    if len(likely) > 1:
        raise several("the repo", likely)
    return {*likely[0].files} if likely else asked


def shards_of(index: Path, model: str) -> set[str]:
    """The shards that an index names. Raises HubError if the file is not an index."""
    try:
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HubError(
            f"{index.name} of {model} is not an index of shards ({type(error).__name__}: {error}); "
            "try another revision, or tell the owner of the model"
        ) from error


def _refuse_other_formats(model: str, names: Collection[str]) -> None:
    """Raise HubError for a repo without safetensors, saying what it has instead."""
    if any(name.endswith(".gguf") for name in names):
        there, remedy = "GGUF files", "take the repo that it was made from (usually named on its page)"
    elif any(name.endswith((".bin", ".pth", ".pt")) for name in names):
        there, remedy = (
            "PyTorch pickles (.bin, .pth)",
            "convert them with transformers (save_pretrained writes safetensors) and give that directory",
        )
    elif some := sorted(name for name in names if name.endswith(".safetensors")):
        there, remedy = f"a part of its shards ({_listed(some)} there)", "try another revision, or tell the owner"
    else:
        there, remedy = f"no weights at all ({len(names)} other files)", "check the name and the revision"
    raise HubError(f"{model} has neither model.safetensors nor {INDEX}; it has {there}: {remedy}")


# Models in the cache


def _from_cache(model: str, revision: str | None, cache: Path) -> Path:
    config = try_to_load_from_cache(model, CONFIG, cache_dir=cache, revision=revision)
    if not isinstance(config, str):
        at = "" if revision is None else f" at revision {revision!r}"
        raise HubError(
            f"{model}{at} is not in the cache {cache}: run once without --offline, or copy its directory here"
        )
    directory = Path(config).parent
    if missing := _missing(directory, model):
        raise HubError(
            f"{model} is not complete in the cache {cache}: {_listed(missing)} missing; "
            "run once without --offline to fetch the rest"
        )
    return directory


def _has_copy(model: str, revision: str | None, cache: Path) -> bool:
    try:
        _from_cache(model, revision, cache)
    except HubError:
        return False
    return True


def _missing(directory: Path, model: str) -> list[str]:
    """Weight files that a directory should have and has not."""
    present = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.exists()}
    wanted = weight_files(present, lambda index: shards_of(directory / index, model))
    return sorted(wanted - present) if wanted else ["model.safetensors"]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more + (" is" if len(names) == 1 else " are")


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


def _download(repo: Repo, show_progress: bool) -> Path:
    """Fetch what is needed and not here yet."""
    names = repo.sizes.keys()
    if CONFIG not in names:
        raise HubError(
            f"{repo.model} has no {CONFIG}, so it is not a model in the layout of transformers; check the name"
        )
    weights = weight_files(names, partial(_fetch_index, repo))
    if not weights:
        _refuse_other_formats(repo.model, names)
    if lost := sorted(weights - names):
        raise HubError(
            f"the index of {repo.model} names files that the repo does not have: {_listed(lost)} missing; "
            "try another revision, or tell the owner of the model"
        )
    wanted = sorted(_side_files(names) | weights)
    here = sum(map(repo.bytes_here, wanted))
    _check_space(repo, sum(repo.sizes[name] for name in wanted) - here)
    fetch_all(repo, wanted, here, show_progress)
    _write_ref(repo)
    return repo.snapshot


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
