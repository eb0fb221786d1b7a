"""What a name on the hub says: a repository, and perhaps which of its models; and which files of a repository it means.

    org/name                  the model of a repository
    org/name:Q4_K_M           its GGUF model of a quantisation, as ollama and llama.cpp name it
    org/name/folder/m.gguf    a GGUF file, or any part of one in several

In front may stand what others write there: hf.co/, huggingface.co/, https://, and in an address blob/main/.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch

from huggingface_hub.errors import HFValidationError

# The library exports this name without the marks that mypy asks for.
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from ...errors import HubError, listed
from ..files import gguf_models
from ..files.gguf_models import GgufModel
from ..files.gguf_set import SUFFIX
from ..files.headers import INDEX
from ..files.weight_files import INDICES, ranked, several
from .local import CONFIG, CONVERTED

SITE = re.compile(r"(?:https?://)?(?:www\.)?(?:hf\.co|huggingface\.co)/")
VIEW = re.compile(r"/(?:blob|resolve|tree)/main(?=/|$)")


@dataclass(frozen=True, kw_only=True)
class HubName:
    """A repository; file: a GGUF file in it; quant: a quantisation. Both are "" where none is named."""

    repo: str
    file: str = ""
    quant: str = ""

    @property
    def is_of_gguf(self) -> bool:
        """Whether only a GGUF model can be meant."""
        return bool(self.file or self.quant)

    def __str__(self) -> str:
        return f"{self.repo}/{self.file}" if self.file else f"{self.repo}:{self.quant}" if self.quant else self.repo


def parse(model: str) -> HubName:
    """What a name says; raises HubError if it is none."""
    name = VIEW.sub("", SITE.sub("", model.strip(), count=1).partition("?")[0]).rstrip("/")
    org, _, rest = name.partition("/")
    own, _, file = rest.partition("/")
    repo, _, quant = (f"{org}/{own}" if rest else org).partition(":")
    if (file and not file.lower().endswith(SUFFIX)) or (file and quant):
        raise HubError(
            f"{model!r} is no directory here and no name on the hub: give org/name, a quantisation in it "
            "(org/name:Q4_K_M), or a file (org/name/file.gguf)"
        )
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise HubError(
            f"{model!r} is neither a directory here nor a name on the hub (org/name): {error}; check the spelling"
        ) from error
    return HubName(repo=repo, file=file, quant=quant)


def select(
    name: HubName, sizes: Mapping[str, int], read_index: Callable[[str], set[str]], where: str = ""
) -> GgufModel | set[str]:
    """What a name means among files (to their bytes): a GGUF model, or files of safetensors with their index, no files
    where there are none. `where`: for messages, behind the name. Safetensors come first where no GGUF is named.

    Raises HubError where what is named is not there or could be several, CheckpointError for several sets of weights.
    """
    models = gguf_models.models(sizes)
    if not name.is_of_gguf and CONFIG in sizes:
        found = weight_files({*sizes}, read_index)
        if found and (found <= {*sizes} or not models):  # the index of the original lies beside some conversions
            return found
    if name.file:
        return _file(name, sizes, models, where)
    if not models and not name.quant:
        return set()
    if not models:
        raise HubError(f"{name.repo}{where} has no GGUF model, so none of {name.quant[:30]!r}: give {name.repo}")
    return gguf_models.choose(
        models, name.quant, f"{name.repo}{where}", lambda model, label: str(_named(name.repo, model, label))
    )


def _named(repo: str, model: GgufModel, label: str) -> HubName:
    return HubName(repo=repo, file=label) if label == model.name else HubName(repo=repo, quant=label)


def _file(name: HubName, sizes: Mapping[str, int], models: list[GgufModel], where: str) -> GgufModel:
    """The GGUF file that is named, with its other parts."""
    if name.file not in sizes:
        there = listed([model.name for model in models]) or "none"
        raise HubError(f"{name.repo}{where} has no file {name.file}; its GGUF models: {there}")
    files = gguf_models.parts(name.file)
    one = GgufModel(name=files[0], files=files, nbytes=0, quant=gguf_models.quant_of(name.file))
    return replace(one, nbytes=sum(sizes.get(file, 0) for file in files))


def weight_files(names: set[str], read_index: Callable[[str], set[str]]) -> set[str]:
    """The files that hold the weights, the index included: our own layout first, then the likeliest of what is there.

    Where no set is whole it is what an index names. Raises CheckpointError where several are equally likely."""
    converted = {name for name in names if fnmatch(name, "headrace*.safetensors")}
    if CONVERTED in names and converted:
        return converted
    asked: set[str] = set()
    for index in sorted((n for n in names if fnmatch(n, INDICES)), key=lambda n: (n != INDEX, n)):
        found = {index} | read_index(index)
        if found <= names:
            return found
        asked = asked or found
    likely = next((rank for rank in ranked(names, {}) if not rank[0].is_all), [])
    if len(likely) > 1:
        raise several("the repo", likely)
    return {*likely[0].files} if likely else asked
