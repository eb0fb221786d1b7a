"""Whether this machine runs a model, and with which kernels; else why not, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ....kernels import FORMATS
from ....kernels.context import ISA
from ....kernels.isa import available_isas
from ....loaders.architecture.tensor_names import LEFT_OUT
from ....loaders.gguf.runnable import READABLE
from ....loaders.memory import free_memory
from ....loaders.model_source import Source
from ...bandwidth_model.machine_file import unknown_gpus
from .stored import Run

# What plain tensors of safetensors are packed as, by the file's name for their type.
PACKED_AS = {"f64": "f32"}


@dataclass(frozen=True, kw_only=True)
class Here:
    """objections: why the engine does not run it, none if it does; formats: those of its weights that kernels compute
    with; isa: of the CPU's kernels, of `isas`; gpus: NVIDIA's, in this machine; free: bytes of memory."""

    objections: tuple[str, ...]
    formats: tuple[str, ...]
    isa: str
    isas: tuple[str, ...]
    gpus: int
    free: int


def of_source(source: Source, runs: Sequence[Run]) -> Here:
    """What runs a model whose tensors are stored like that."""
    stored = dict.fromkeys(kind for run in runs if run.group not in LEFT_OUT for kind in run.format.split("/"))
    of_files = FORMATS.keys() | PACKED_AS.keys() if source.gguf is None else [kind.lower() for kind in READABLE]
    known = tuple(kind for kind in stored if kind in of_files)
    objections = list(source.described.objections)
    if source.gguf is not None and (missing := [kind for kind in stored if kind not in known]):
        objections.append(f"no kernels for {', '.join(missing)}; there are those for {', '.join(of_files)}")
    return Here(
        objections=tuple(objections),
        formats=known,
        isa=ISA,
        isas=available_isas(),
        gpus=unknown_gpus(),
        free=free_memory(),
    )
