"""From passes to a trace: what each token chose in each layer, taken when a pass is booked.

A pass costs the references, and copies where its memory will be written again; all else is done by the writer's thread.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import OptionError
from ...kernels.passes.tally import Tally
from ...loaders.spec import ModelSpec, MoeSpec
from ...loaders.weights.model_weights import Formats, ModelWeights
from ..experts.backend import Chosen
from ..ledger import in_formats
from ..ledger.pass_bytes import Span
from .layout import Columns, Header, pack_choices
from .writer import Writer

MOST_EXPERTS = 1 << 15  # a bit of the two bytes is left for the weight
SAMPLE = 4096  # bytes of each router that a model is known by


def make_header(name: str, spec: ModelSpec, formats: Formats, weights: ModelWeights) -> Header:
    """What a trace of a model says of it. Raises OptionError for one of too many experts, or of none."""
    return _header(name, spec, formats, digest(spec, weights))


def made_up_header(name: str, spec: ModelSpec, formats: Formats, kind: str) -> Header:
    """The same of a trace that nobody recorded; kind: of `synthetic.py`."""
    return _header(f"{name}, made up: {kind}", spec, formats, "")


def _header(name: str, spec: ModelSpec, formats: Formats, digest: str) -> Header:
    kinds = [layer.ffn for layer in spec.layers if isinstance(layer.ffn, MoeSpec)]
    most = max((one.experts for one in kinds), default=0)
    if not 0 < most < MOST_EXPERTS:
        raise OptionError(f"a trace holds layers of 1 to {MOST_EXPERTS - 1} experts; this model has {most}")
    layers, sizes = [i for i, is_moe in enumerate(spec.is_moe) if is_moe], in_formats.of_model(spec, formats).layers
    return Header(
        model=name,
        family=spec.family,
        digest=digest,
        formats={"experts": formats.experts.name, "dense": formats.dense.name},
        layers=layers,
        expert_bytes=[int(sizes[layer].expert.total) for layer in layers],
        experts=most,
        top_k=max(one.top_k for one in kinds),
        most_weight=max(one.scale for one in kinds),
        version=version("headrace"),
    )


def digest(spec: ModelSpec, weights: ModelWeights) -> str:
    """By which a model's routing is known again: its shape, and the beginning of every router. SHA-256, in hex."""
    found = hashlib.sha256(repr(spec).encode())
    for layer in weights.layers:
        if layer.router is not None:
            found.update(layer.router.data.flatten()[:SAMPLE].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


class Given(NamedTuple):
    """Choices of some of a model's layers, by its numbers; `at` is their place in ids and weights, int32 and float32
    [any, tokens, top_k]."""

    layers: list[int]
    at: list[int]
    ids: Tensor
    weights: Tensor


class Step(NamedTuple):
    """A pass, as `Recorder.take` was given it."""

    number: int
    sequences: Sequence[int]
    spans: Sequence[Span]
    decoding: int
    rows: Tensor
    given: list[Given]

    @property
    def tokens(self) -> int:
        return sum(new for new, _ in self.spans)


class Recorder:
    """Gives passes to a writer."""

    def __init__(self, path: Path, header: Header) -> None:
        self.header = header
        self.writer: Writer[Step] = Writer(path, header, self._columns)

    def take(
        self,
        index: int,
        sequences: Sequence[int],
        spans: Sequence[Span],
        decoding: int,
        rows: Tensor,
        choices: Tally | Sequence[Chosen],
    ) -> None:
        """A pass: its number; its sequences, and of each the new tokens and those in its cache afterwards; the tokens
        that were generated come first. rows: the tokens that went through the last layer. choices: in memory that is
        kept (a tally), or copied here."""
        tokens = sum(new for new, _ in spans)
        given = self._kept(choices, tokens, len(rows)) if isinstance(choices, Tally) else _copied(choices)
        size = sum(one.ids.nbytes + one.weights.nbytes for one in given)
        self.writer.put(Step(index, sequences, spans, decoding, rows, given), tokens, size)

    def _kept(self, tally: Tally, tokens: int, last: int) -> list[Given]:
        """What a call of all layers said; through the last layer went `last` tokens."""
        ids, weights = tally.ids_LTK, tally.weights_LTK
        assert ids is not None, "a tally without choices"
        assert weights is not None, "a tally without weights"
        at = self.header.layers
        if last == tokens or at[-1] != len(ids) - 1:
            return [Given(at, at, ids, weights)]
        return [Given(at[:-1], at[:-1], ids, weights), Given(at[-1:], at[-1:], ids[:, :last], weights[:, :last])]

    def close(self) -> None:
        """Ends the file. Raises OptionError where it has not all of the run."""
        self.writer.close()

    # ---- in the writer's thread

    def _columns(self, steps: list[Step]) -> Columns:
        """Passes as the file has them: together, since numpy takes as long for one token as for a hundred."""
        counts = [step.tokens for step in steps]
        spans = [span for step in steps for span in step.spans]
        runs = [n for step, T in zip(steps, counts, strict=True) for n in (step.decoding, T - step.decoding)]
        found = [self._choices(step, T) for step, T in zip(steps, counts, strict=True)]
        ids, weights = (np.concatenate(some, axis=1) for some in zip(*found, strict=True))
        return Columns(
            np.repeat(np.array([step.number for step in steps], np.uint32), counts),
            np.repeat(np.array([s for step in steps for s in step.sequences], np.uint32), [new for new, _ in spans]),
            np.concatenate([np.arange(end - new, end, dtype=np.uint32) for new, end in spans]),
            np.repeat(np.array([1, 0] * len(steps), np.uint8), runs),
            pack_choices(self.header, ids, weights),
        )

    def _choices(self, step: Step, tokens: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Of all layers with experts: ids, `none` where a token did not go through, and weights [layers, tokens, K]."""
        first, header = step.given[0] if step.given else None, self.header
        if first is not None and first.layers == header.layers and first.ids.shape[1] == tokens:
            ids, weights = first.ids.numpy(), first.weights.numpy()
            return (ids, weights) if len(ids) == len(first.at) else (ids[first.at], weights[first.at])
        ids = np.full((len(header.layers), tokens, header.top_k), header.none, np.int32)
        weights = np.zeros(ids.shape, np.float32)
        for one in step.given:
            self._place(ids, one, one.ids, step.rows)
            self._place(weights, one, one.weights, step.rows)
        return ids, weights

    def _place(self, to: NDArray[Any], given: Given, values: Tensor, rows: Tensor) -> None:
        """Values of some layers to where the file has them."""
        at, some = [self.header.layers.index(layer) for layer in given.layers], values.numpy()[given.at]
        if some.shape[1] == to.shape[1]:
            to[at] = some
        else:
            to[np.ix_(at, rows.tolist())] = some


def _copied(chosen: Sequence[Chosen]) -> list[Given]:
    """Copies of what layers chose, in memory of the host; the last one may have fewer tokens."""
    found = []
    for _, of in groupby(chosen, lambda one: len(one.ids_TK)):
        some = list(of)
        weights = [one.weights_TK for one in some if one.weights_TK is not None]
        assert len(weights) == len(some), "choices without weights"
        ids_LTK, weights_LTK = torch.stack([one.ids_TK for one in some]), torch.stack(weights).cpu()
        found.append(Given([one.layer for one in some], list(range(len(some))), ids_LTK, weights_LTK))
    return found
