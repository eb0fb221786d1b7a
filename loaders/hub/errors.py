"""What goes wrong between us and a hub, said to the user: the library's errors become HubError.

Each message names the model and the place, and ends with what to do next. The causes that are told apart: the hub
refuses, the connection fails, the disk fails, and an answer that no hub gives.
Of the transfer this file knows only which errors may pass; of the cache, nothing: whether a complete copy is there, it
asks the caller.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ...errors import HubError
from .download import TRANSIENT, folder_of, may_pass, status_of


@contextmanager
def explained(
    model: str, revision: str | None, endpoint: str, cache: Path, has_copy: Callable[[], bool]
) -> Iterator[None]:
    """Turn the library's errors into HubError; `has_copy` tells whether the cache has the whole model already."""
    try:
        yield
    except HfHubHTTPError as error:
        raise HubError(_explain_refusal(error, model, revision, endpoint)) from error
    except TRANSIENT as error:
        raise HubError(_explain_network(error, model, endpoint, cache, has_copy)) from error
    except OSError as error:
        raise HubError(_explain_disk(error, model, cache, has_copy)) from error
    except (ValueError, TypeError, KeyError) as error:
        raise HubError(
            f"{endpoint} answered about {model} as no hub does ({type(error).__name__}: {error}): "
            "a proxy or a login page may be in between; check the network and HF_ENDPOINT"
        ) from error


def _explain_refusal(error: HfHubHTTPError, model: str, revision: str | None, endpoint: str) -> str:
    log_in = "log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, GatedRepoError):
        return f"{model} is gated: open {endpoint}/{model} in a browser, accept its terms, then {log_in}"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{endpoint} has no model {model!r}, or it is private or gated and you may not see it: check the spelling "
            f"(there is no directory of that name either), or {log_in}"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{model} has no revision {revision!r}: see {endpoint}/{model}/tree/main for its branches and tags"
    if status_of(error) in (401, 403):
        return (
            f"{endpoint} refused access to {model} (HTTP {status_of(error)}): is HF_TOKEN still valid? If not, {log_in}"
        )
    if may_pass(error):
        return (
            f"{endpoint} cannot serve {model} now (HTTP {status_of(error)}): "
            "run again later; what was fetched stays, and the rest follows"
        )
    return f"{endpoint} refused a file of {model}: {' '.join(str(error).split())}; try again, or another revision"


def _explain_network(error: Exception, model: str, endpoint: str, cache: Path, has_copy: Callable[[], bool]) -> str:
    cause = f"{type(error).__name__}: {error}".rstrip(": ")
    blobs = folder_of(model, cache) / "blobs"
    if has_copy():
        remedy = "a complete copy is in the cache, run with --offline to use that"
    elif blobs.is_dir() and any(blobs.iterdir()):
        remedy = "what was fetched stays, run again when the network is back to go on from there"
    else:
        remedy = "check the network, or copy the model's directory from another machine and give its path"
    return f"the connection to {endpoint} failed, also when tried again, while fetching {model} ({cause}): {remedy}"


def _explain_disk(error: OSError, model: str, cache: Path, has_copy: Callable[[], bool]) -> str:
    if has_copy():
        reason = error.strerror or error
        return (
            f"{cache} has another state of {model} than the hub, and cannot be written ({reason}): run with --offline"
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {cache} is full while fetching {model}: make room, then run again to go on from there"
    return f"{model} cannot be stored in {cache} ({error}): make it writable, or set HF_HOME to another place"
