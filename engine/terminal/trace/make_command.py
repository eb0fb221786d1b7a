"""`headrace trace make`: a trace that nobody recorded, in the shape of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ....errors import OptionError
from ....loaders.weights import imagined
from ...config import EngineConfig
from ...core.weight_source import load_options
from ...traces import recorder, synthetic
from ...traces.layout import Columns, Header, pack_choices
from ...traces.writer import Writer
from ..generate_command import say


def run(model: str, to: Path, *, kind: str, tokens: int, seed: int, config: dict[str, Any]) -> int:
    """Writes a trace of one sequence of generated tokens. Raises OptionError for a model without experts."""
    if tokens < 1:
        raise OptionError(f"--tokens is {tokens}: give a whole number above 0")
    found = imagined.imagine(model, load_options(EngineConfig(**config)))
    header = recorder.made_up_header(model, found.spec, found.formats, kind)
    writer: Writer[Columns] = Writer(to, header, joined, most_waiting=1 << 62)
    try:
        _write(writer, header, kind, tokens, seed)
    finally:
        writer.close()
    say(f"wrote {to}: {tokens} made-up tokens ({kind}); headrace trace replay {to}")
    return 0


def _write(writer: Writer[Columns], header: Header, kind: str, tokens: int, seed: int) -> None:
    done = 0
    drawn = synthetic.draw(
        kind, layers=len(header.layers), experts=header.experts, top_k=header.top_k, tokens=tokens, seed=seed
    )
    for ids_TLK in drawn:
        count = len(ids_TLK)
        numbers = np.arange(done, done + count, dtype=np.uint32)
        ids_LTK = ids_TLK.swapaxes(0, 1)
        weights = np.full(ids_LTK.shape, header.most_weight / header.top_k, np.float32)
        choices = pack_choices(header, ids_LTK, weights)
        one = Columns(numbers, np.zeros(count, np.uint32), numbers, np.ones(count, np.uint8), choices)
        writer.put(one, count, choices.nbytes)
        done += count


def joined(parts: list[Columns]) -> Columns:
    """Several as one."""
    passes, sequences, positions, generated = (np.concatenate([one[i] for one in parts]) for i in range(4))
    choices = np.concatenate([one.choices for one in parts], axis=1)
    return Columns(passes, sequences, positions, generated, choices)
