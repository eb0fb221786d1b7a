"""A GGUF header as something that can be planned; files of other kinds are called what they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...errors import CheckpointError, ConfigError
from ..architecture.readers import Described
from ..files.gguf_header import Header, is_unknown
from .of_tensors import read
from .runnable import ARCHS, config, family_of

# What else is stored as GGUF: by the file's own type, or by the arch that it names.
KINDS = {
    "adapter": "a LoRA adapter", "mmproj": "a vision projector (mmproj)", "imatrix": "an importance matrix",
    "controlvector": "a control vector", "clip": "a vision projector (mmproj)", "vocab": "a vocabulary",
}  # fmt: skip


def describe(header: Header, source: str) -> tuple[dict[str, Any], Described, tuple[str, ...]]:
    """Config, description and notes of a GGUF model. Raises CheckpointError for metadata that make no model,
    ConfigError for a file of another kind."""
    metadata = header.metadata
    _refuse_other_kinds(header, source)
    arch = str(metadata["general.architecture"])
    family = family_of(metadata, arch)
    try:
        model = read(metadata, header.tensors, family)
        values = config(metadata, header.tensors, model) if model.moe_layers else {}
    except CheckpointError as error:
        raise CheckpointError(f"{source} has metadata that make no model: {error}") from error
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"{source} has metadata that make no model ({error}): download it again") from error
    objections = () if arch in ARCHS else (f"the engine does not run {arch} yet: it runs {', '.join(ARCHS)}",)
    if not model.moe_layers:
        model = replace(model, family=arch)
        objections = (f"{arch} is dense here: the engine runs mixture-of-experts models",)
    notes = ("sizes are read from the GGUF header", *_unknown_types(header))
    return values, Described(architecture=model, objections=objections, notes=()), notes


def _refuse_other_kinds(header: Header, source: str) -> None:
    metadata = header.metadata
    kind = KINDS.get(str(metadata.get("general.type"))) or KINDS.get(str(metadata.get("general.architecture")))
    if kind is None and any(key.startswith("imatrix.") for key in metadata):
        kind = KINDS["imatrix"]
    if kind is None and header.metadata and not header.tensors:
        kind = KINDS["vocab"] if any(key.startswith("tokenizer.") for key in metadata) else None
    if kind is not None:
        of = metadata.get("general.base_model.0.name") or metadata.get("general.name")
        named = f" for {str(of)[:60]}" if isinstance(of, str) and of else ""
        raise ConfigError(f"{source} is {kind}{named}, no model: give the model's own file")
    if not isinstance(metadata.get("general.architecture"), str):
        raise CheckpointError(f"{source} has no general.architecture: it is no model that can be planned")


def _unknown_types(header: Header) -> tuple[str, ...]:
    """A note on types that have no name here."""
    found = sorted({tensor.dtype for tensor in header.tensors if is_unknown(tensor.dtype)})
    if not found:
        return ()
    return (f"{', '.join(found)} of GGUF is not known: bytes are counted from where the next tensor begins",)
