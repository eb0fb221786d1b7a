"""What MODEL of a plan means: a directory, a GGUF file, a config.json, a name on the hub, or one of the catalogue.

Gives the architecture, and the tensors where there are headers to read. From the hub come the config and headers, by
ranged requests, never a weight. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError, HubError
from .architecture import catalogue
from .architecture.architecture import refuse_dense
from .architecture.by_name.text_part import text_part
from .architecture.readers import Described, read
from .families.config_reader import ConfigReader
from .families.quantisation import with_file_beside
from .files import gguf_set, weight_files
from .files.gguf_header import Header
from .files.headers import Stored
from .gguf.model import describe
from .hub.local import CONVERTED, DEMO, DEMO_DIRECTORY, in_folder, model_or_gguf
from .quants import of_config as by_config
from .quants.quant import Quant


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model that can be planned. `tensors` None: there are no headers, so bytes are computed; `notes`: what a reader
    of the plan should know. gguf: the metadata of a GGUF model; place: the folder with the files of another, as far as
    they are here; conversion: what headrace.json says, of what `headrace convert` wrote."""

    name: str
    config: dict[str, Any]
    described: Described
    tensors: Sequence[Stored] | None = None
    notes: tuple[str, ...] = ()
    gguf: Mapping[str, Any] | None = None
    place: Path | None = None
    conversion: Mapping[str, Any] | None = None

    def native(self) -> Quant:
        """The encodings that its weights have. Raises ConfigError where the config does not say them."""
        if self.conversion is None:
            return by_config.native(self.config, self.name)
        return by_config.of_conversion(self.conversion, self.name, self.described.architecture.tied_head)


@dataclass(frozen=True, kw_only=True)
class _Look:
    """How to look for a model: where on the hub, and what will do."""

    revision: str | None
    offline: bool
    cache_dir: Path | None
    dense: bool
    with_text: bool


def find(
    model: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    cache_dir: Path | None = None,
    dense: bool = False,
    with_text: bool = False,
) -> Source:
    """The model of that name; raises ConfigError, CheckpointError or HubError.

    dense: one without experts will do. with_text: of a model on the hub the tokenizer files are fetched too."""
    look = _Look(revision=revision, offline=offline, cache_dir=cache_dir, dense=dense, with_text=with_text)
    source = _find(model, look)
    if not dense:
        refuse_dense(source.described.architecture, source.name)
    return source


def _find(model: str, look: _Look) -> Source:
    path, quant = (DEMO_DIRECTORY, "") if model == DEMO else in_folder(model)
    if path is not None:
        return _of_path(path, quant, look)
    if "/" not in model or model.startswith(("./", "../", "/", "~")) or model.endswith((".json",)):
        return _of_catalogue(model)
    try:
        return _of_hub(model, look)
    except HubError as error:
        try:
            known = catalogue.find(model)
        except KeyError:
            raise error from None
        note = f"{model} could not be read from the hub ({error}); sizes are those of {known.name} in the catalogue"
        return _of_entry(known, (note,))


def _of_path(path: Path, quant: str, look: _Look) -> Source:
    if path.is_dir():
        return _of_directory(path, quant, look)
    if gguf_set.is_gguf(path):
        return of_gguf(gguf_set.of_path(path), str(path))
    if path.suffix == ".json":
        return of_config(ConfigReader.open(path).values, str(path), str(path), dense=look.dense)
    raise ConfigError(f"{path} is neither a directory nor a .gguf nor a config.json: give one of these")


def of_config(
    config: dict[str, Any],
    source: str,
    name: str,
    tensors: Sequence[Stored] | None = None,
    notes: tuple[str, ...] = (),
    place: Path | None = None,
    dense: bool = False,
) -> Source:
    """A model by its config, and by its headers where they were read. dense: it may be without experts."""
    described = read(config, source, dense)
    notes += described.notes
    return Source(
        name=name, config=text_part(config)[0], described=described, tensors=tensors, notes=notes, place=place
    )


def of_gguf(header: Header, source: str, notes: tuple[str, ...] = ()) -> Source:
    """A model by a GGUF header, with the tensors of all its parts."""
    config, described, more = describe(header, source)
    return Source(
        name=source, config=config, described=described, tensors=header.tensors, notes=notes + more,
        gguf=header.metadata,
    )  # fmt: skip


def _of_directory(path: Path, quant: str, look: _Look) -> Source:
    inner = model_or_gguf(path, quant)
    if inner.is_file():
        return of_gguf(gguf_set.of_path(inner), str(inner))
    notes = (f"the model is in {inner}",) if inner != path else ()
    config = with_file_beside(ConfigReader.open(inner / "config.json").values, inner)
    tensors = weight_files.headers_of(inner) or None
    source = of_config(config, str(inner / "config.json"), str(inner), tensors, notes, inner, look.dense)
    if not (inner / CONVERTED).is_file():
        return source
    conversion = ConfigReader.open(inner / CONVERTED).values
    note = f"headrace convert wrote it, from {conversion.get('source')}"
    return replace(source, tensors=None, conversion=conversion, notes=(*source.notes, note))


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


def _of_hub(model: str, look: _Look) -> Source:
    from .hub import remote_headers

    found = remote_headers.fetch(
        model, revision=look.revision, offline=look.offline, cache_dir=look.cache_dir, with_text=look.with_text
    )
    if found.gguf is not None:
        return of_gguf(found.gguf, found.file, found.notes)
    return of_config(
        found.config, f"{model}/config.json", model, found.tensors or None, found.notes, found.place, look.dense
    )
