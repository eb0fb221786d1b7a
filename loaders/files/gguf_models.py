"""Which GGUF models there are among files, in a folder or a repository, and which of them is meant.

A repository has one model in many quantisations, in files of several parts, in folders or not. People and other tools
name a quantisation by what stands in the file's name (`Q4_K_M`), or the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...errors import LONGEST, HubError, SeveralModels
from .gguf_set import PART, SUFFIX, part_names

# What lies beside models and is none.
BESIDE = re.compile(r"(?i)mmproj|imatrix|ggml-vocab|lora|adapter")
# A quantisation in a name: "UD-" marks mixes made by hand.
QUANT = re.compile(
    r"(?i)(?<![a-z0-9])((?:UD[-_])?(?:[IT]?Q\d+(?:_(?:\d+|K|XXS|XS|S|M|L|XL|XXL|NL))*|BF16|FP?16|FP?32|MXFP4(?:_MOE)?|NVFP4))"
    r"(?![a-z0-9])"
)
BY_HAND = "UD_"
NONE = "LATEST"  # how ollama says that no quantisation is named
USUAL = "Q4_K_M"
MOST = LONGEST - len("headrace: ")  # characters of a message that loses nothing on the command line


@dataclass(frozen=True, kw_only=True)
class GgufModel:
    """A model of one file or of several parts. name: the file, or the first part; nbytes: of all parts; quant: what its
    name says of quantisation, "" if nothing."""

    name: str
    files: tuple[str, ...]
    nbytes: int
    quant: str


def models(sizes: Mapping[str, int]) -> list[GgufModel]:
    """The models among files (name to bytes), small ones first. Parts that are missing count among `files`."""
    found: dict[str, GgufModel] = {}
    for name in sorted(sizes):
        if not name.lower().endswith(SUFFIX) or BESIDE.search(name.rpartition("/")[2]):
            continue
        files = parts(name)
        if files[0] not in found:
            held = sum(sizes.get(file, 0) for file in files)
            found[files[0]] = GgufModel(name=files[0], files=files, nbytes=held, quant=quant_of(name))
    return sorted(found.values(), key=lambda model: (model.nbytes, model.name))


def parts(name: str) -> tuple[str, ...]:
    """The names of all parts of the model that a file is, or is a part of."""
    match = PART.fullmatch(name)
    if match is None or not 1 <= int(match[2]) <= int(match[3]):
        return (name,)
    return tuple(part_names(match[1], int(match[3])))


def quant_of(name: str) -> str:
    """The quantisation that a file's name speaks of, or a folder's that it lies in; "" if none does."""
    for step in reversed(name.split("/")):
        if found := QUANT.findall(step):
            return str(found[-1]).upper()
    return ""


def choose(there: Sequence[GgufModel], wanted: str, source: str, named: Callable[[GgufModel, str], str]) -> GgufModel:
    """The model that is meant: the one that there is, or the one of a quantisation ("" for none).

    named(model, label): how a user names it; label: its quantisation, or its file where others have the same. Raises
    SeveralModels where more than one may be meant, HubError with what there is where none is."""
    found = there if _plain(wanted) in ("", NONE) else _of_quant(there, wanted)
    if len(found) == 1:
        return found[0]
    if not found:
        said = f"{source} has no GGUF model of {wanted[:30]!r}; there are (GB) "
        raise HubError(f"{said}{_listed(there, len(said))}")
    one = _usual(found)
    among = f" of {wanted[:30]}" if len(found) < len(there) else ""
    first = f"{source} has {len(found)} GGUF models{among} (GB): "
    last = f"; name one: headrace generate {named(one, label(one, found))}"
    choices = [(named(model, label(model, found)), model.nbytes) for model in found]
    raise SeveralModels(f"{first}{_listed(found, len(first + last))}{last}", choices)


def _of_quant(there: Sequence[GgufModel], wanted: str) -> Sequence[GgufModel]:
    """Those of a quantisation: of exactly that, then made by hand, then with that anywhere in the name."""
    key = _plain(wanted)
    readings: tuple[Callable[[GgufModel], bool], ...] = (
        lambda model: _plain(model.quant) == key,
        lambda model: _plain(model.quant).removeprefix(BY_HAND) == key,
        lambda model: re.search(rf"(?<![A-Z0-9]){re.escape(key)}(?![A-Z0-9])", _plain(model.name)) is not None,
    )
    every = ([model for model in there if fits(model)] for fits in readings)
    return next(filter(None, every), [])


def _plain(text: str) -> str:
    return text.upper().replace("-", "_").replace("FP16", "F16").replace("FP32", "F32")


def _usual(found: Sequence[GgufModel]) -> GgufModel:
    """One to name as an example: what most people take, or one of middle size."""
    return next((model for model in found if model.quant == USUAL), found[len(found) // 2])


def label(model: GgufModel, among: Iterable[GgufModel]) -> str:
    """What tells a model from others: its quantisation, or its name where others have the same."""
    alike = [one for one in among if _plain(one.quant) == _plain(model.quant)]
    return model.quant if model.quant and len(alike) == 1 else model.name


def _listed(found: Sequence[GgufModel], beside: int) -> str:
    """Labels and sizes, as many as a message has room for that has so many other characters."""
    if not found:
        return "none"
    said = []
    for model in found:
        held = model.nbytes / 1e9
        said.append(f"{label(model, found)} {held:.{1 if held >= 1 else 3}f}")
    for count in range(len(said), 0, -1):
        more = f" and {len(said) - count} more (headrace inspect lists all)" if count < len(said) else ""
        text = ", ".join(said[:count]) + more
        if len(text) + beside <= MOST:
            break
    return text
