"""Whether this machine runs a model, and with which kernels; else why not, by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ....errors import CheckpointError
from ....kernels import FORMATS
from ....kernels.context import ISA
from ....kernels.isa import available_isas
from ....loaders.architecture.tensor_names import LEFT_OUT
from ....loaders.files import gguf_set, headers, weight_files
from ....loaders.files.headers import Stored
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
    if not objections and (problem := problem_of_files(source)):
        objections.append(problem)
    return Here(
        objections=tuple(objections),
        formats=known,
        isa=ISA,
        isas=available_isas(),
        gpus=unknown_gpus(),
        free=free_memory(),
    )


def problem_of_files(source: Source) -> str:
    """Why the files of a model that lies here cannot be loaded: one is missing or cut off; "" if all are whole, or if
    it is a config alone."""
    path = Path(source.name)
    if source.gguf is not None and path.is_file():
        parts = gguf_set.files_of(path).items()
        return _cut_off((part, header.data, header.tensors) for part, header in parts)
    if source.place != path:
        return ""
    ranks, problems = weight_files.find(path)
    if source.tensors is None and problems:
        return str(problems[0].error)
    try:
        found = [(path / name, headers.of_file(path / name)) for one in ranks[:1] for name in one[0].files]
    except CheckpointError as error:
        return str(error)
    return _cut_off((file, header.nbytes, header.tensors) for file, header in found)


def _cut_off(files: Iterable[tuple[Path, int, Sequence[Stored]]]) -> str:
    """Which file ends before its tensors do. files: path, where the first tensor begins, tensors."""
    for path, data, tensors in files:
        size, end = path.stat().st_size, data + max((t.start + t.nbytes for t in tensors), default=0)
        if size < end:
            return f"{path} is truncated: it has {size} bytes, its last tensor ends at {end}; download it again"
    return ""
