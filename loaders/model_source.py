"""What MODEL of a plan means: a directory, a GGUF file, a config.json, a name on the hub, or one of the catalogue.

Gives the architecture, and the tensors where there are headers to read. From the hub come the config and headers, by
ranged requests, never a weight. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, HubError, listed
from .architecture import catalogue
from .architecture.by_name.text_part import text_part
from .architecture.readers import Described, read
from .families.config_reader import ConfigReader
from .families.quantisation import with_file_beside
from .files import gguf_set, weight_files
from .files.gguf_header import Header
from .files.headers import Stored
from .gguf.model import describe
from .hub.local import DEMO, DEMO_DIRECTORY, existing, model_in


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model that can be planned. `tensors` None: there are no headers, so bytes are computed; `notes`: what a reader
    of the plan should know."""

    name: str
    config: dict[str, Any]
    described: Described
    tensors: Sequence[Stored] | None = None
    notes: tuple[str, ...] = ()


def find(model: str, *, revision: str | None = None, offline: bool = False, cache_dir: Path | None = None) -> Source:
    """The model of that name; raises ConfigError, CheckpointError or HubError."""
    path = _path(model)
    if path is not None:
        return _of_path(path)
    if "/" not in model or model.startswith(("./", "../", "/", "~")) or model.endswith((".json",)):
        return _of_catalogue(model)
    try:
        return _of_hub(model, revision, offline, cache_dir)
    except HubError as error:
        try:
            known = catalogue.find(model)
        except KeyError:
            raise error from None
        note = f"{model} could not be read from the hub ({error}); sizes are those of {known.name} in the catalogue"
        return _of_entry(known, (note,))


def _path(model: str) -> Path | None:
    return DEMO_DIRECTORY if model == DEMO else existing(model)


def _of_path(path: Path) -> Source:
    if path.is_dir():
        return _of_directory(path)
    if gguf_set.is_gguf(path):
        return of_gguf(gguf_set.of_path(path), str(path))
    if path.suffix == ".json":
        return of_config(ConfigReader.open(path).values, str(path), str(path))
    raise ConfigError(f"{path} is neither a directory nor a .gguf nor a config.json: give one of these")


def of_config(
    config: dict[str, Any], source: str, name: str, tensors: Sequence[Stored] | None = None, notes: tuple[str, ...] = ()
) -> Source:
    """A model by its config, and by its headers where they were read."""
    described = read(config, source)
    notes += described.notes
    return Source(name=name, config=text_part(config)[0], described=described, tensors=tensors, notes=notes)


def of_gguf(header: Header, source: str) -> Source:
    """A model by a GGUF header, with the tensors of all its parts."""
    config, described, notes = describe(header, source)
    return Source(name=source, config=config, described=described, tensors=header.tensors, notes=notes)


def _of_directory(path: Path) -> Source:
    files = [str(p.relative_to(path)) for pattern in ("*.gguf", "*/*.gguf") for p in path.glob(pattern)]
    models = gguf_set.models(files)
    if not models or (path / "config.json").is_file():
        inner = model_in(path)
        notes = (f"the model is in {inner}",) if inner != path else ()
        config = with_file_beside(ConfigReader.open(inner / "config.json").values, inner)
        tensors = weight_files.headers_of(inner) or None
        return of_config(config, str(inner / "config.json"), str(inner), tensors, notes)
    if len(models) > 1:
        raise ConfigError(f"{path} has {len(models)} GGUF models: name one of {listed(models, 3)}")
    return of_gguf(gguf_set.of_path(path / models[0]), str(path / models[0]))


def _of_catalogue(model: str) -> Source:
    try:
        return _of_entry(catalogue.find(model), ())
    except KeyError:
        near = catalogue.nearest(model)
        hint = f"; nearest in the catalogue: {', '.join(near)}" if near else ""
        raise ConfigError(
            f"{model!r} is no directory, no file, no name on the hub (org/name) and not in the catalogue{hint}"
        ) from None


def _of_entry(entry: catalogue.Model, notes: tuple[str, ...]) -> Source:
    own = (f"from the catalogue: {entry.note}",) if entry.note else ()
    return of_config(entry.config, f"catalogue entry {entry.name}", entry.name, notes=(*notes, *own))


def _of_hub(model: str, revision: str | None, offline: bool, cache_dir: Path | None) -> Source:
    from .hub import remote_headers

    found = remote_headers.fetch(model, revision=revision, offline=offline, cache_dir=cache_dir)
    if found.gguf is not None:
        return of_gguf(found.gguf, model)
    return of_config(found.config, f"{model}/config.json", model, found.tensors or None, found.notes)
