"""What on this machine a model's name may mean: the packaged demo, or a path. Light, so that a plan answers at once."""

from __future__ import annotations

import re
from pathlib import Path

from .. import regular
from ..files import gguf_models
from ..files.gguf_models import GgufModel
from ..files.recognise import is_named

DEMO = "demo"
DEMO_DIRECTORY = Path(__file__).parent.parent.parent / "demo" / "model"
CONFIG = "config.json"
COMMIT = r"\w[\w.-]*"  # what a cache calls a snapshot
MOST_REF = 1000  # bytes
CONVERTED = "headrace.json"  # of what `headrace convert` wrote


def existing(model: str) -> Path | None:
    """The path called `model`, if there is one."""
    try:
        path = Path(model).expanduser()
        return path if model and path.exists() else None
    # Too long for a file name, no such user after "~", a directory that may not be searched.
    except (OSError, RuntimeError):
        return None


def model_in(directory: Path) -> Path:
    """Where the model of a directory is: there, in the snapshot that a hub's cache calls main, or in the only folder
    that has one, two levels deep at most. The directory itself where none or several have one."""
    if is_named(directory / CONFIG):
        return directory
    main = _main(directory)
    if (main / CONFIG).is_file():
        return main
    for depth in ("*", "*/*"):
        inner = [path.parent for path in directory.glob(f"{depth}/{CONFIG}")]
        weighty = [folder for folder in inner if any(folder.glob("*.safetensors"))] or inner
        if weighty:
            return weighty[0] if len(weighty) == 1 else directory
    return directory


def in_folder(model: str) -> tuple[Path | None, str]:
    """The path called `model` if there is one, and a quantisation that stands behind it: FOLDER:Q4_K_M."""
    path = existing(model)
    folder, _, quant = model.rpartition(":")
    if path is None and folder and (inner := existing(folder)) is not None and inner.is_dir():
        return inner, quant
    return path, ""


def model_or_gguf(directory: Path, quant: str = "") -> Path:
    """The model of a directory: the folder with its config.json, or its GGUF file, of several parts the first. Where
    there are both, the folder counts if it has safetensors and no quantisation is named.

    Raises HubError where several GGUF models may be meant."""
    inner = model_in(directory)
    if not quant and is_named(inner / CONFIG) and _has_safetensors(inner):
        return inner
    place, models = ggufs_in(directory)
    if not models and not quant:
        return inner
    found = gguf_models.choose(models, quant, str(directory), lambda model, label: str(place / model.name))
    return place / found.name


def ggufs_in(directory: Path) -> tuple[Path, list[GgufModel]]:
    """The GGUF models of a directory, two levels deep at most, and the folder that their names are of."""
    place = _main(directory)
    files = [path for depth in ("*", "*/*", "*/*/*") for path in place.glob(depth) if path.suffix.lower() == ".gguf"]
    sizes = {str(path.relative_to(place)): path.stat().st_size for path in files if path.is_file()}
    return place, gguf_models.models(sizes)


def first_part(path: Path) -> Path:
    """The first part of the GGUF model that a file is, or is a part of; the file itself if that is not beside it."""
    first = path.with_name(gguf_models.parts(path.name)[0])
    return first if first.exists() else path


def _has_safetensors(directory: Path) -> bool:
    return any(any(directory.glob(pattern)) for pattern in ("*.safetensors", "*/*.safetensors"))


def _main(directory: Path) -> Path:
    """The snapshot that a hub's cache calls main, if a directory is one of its; else the directory."""
    try:
        commit = regular.text(directory / "refs" / "main", most=MOST_REF).strip()
    except (OSError, ValueError):
        return directory
    return directory / "snapshots" / commit if re.fullmatch(COMMIT, commit) else directory


def is_inside(model: str, directory: Path) -> bool:
    """Whether the directory where a model was found lies inside of the one that was named."""
    named = existing(model)
    return model != DEMO and named is not None and named.is_dir() and not directory.samefile(named)
