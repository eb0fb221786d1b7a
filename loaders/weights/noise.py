"""Random weights in packed form, made in place: what a model weighs and reads, without a checkpoint.

Speed depends on shapes and bytes, not on values, but not any bytes will do: a token must go on to other tokens and to
other experts, or a run would read the same few weights from a cache. Quants are random; scales are such that weights
have mean 0 and a standard deviation near 0.046 (0.02 in plain formats); norms in front of a layer are small, so that a
token stays near its embedding. With ones the tokens of a prompt become alike from layer to layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...kernels import Format, blocks
from ...kernels.packed import ExpertBank, Matrix
from .model_weights import ModelWeights, TierBanks

Part = Tensor | Matrix | ExpertBank | TierBanks
POOL_BYTES = 32 << 20
DEVIATION = 0.045  # of weights in block formats
UNIT = 8  # every factor that is an integer
UNITS = {"half_zero": (8, 1), "e4m3_16": (0x38, 1)}  # of other kinds: the byte, and what it stands for
PLAIN_DEVIATION = 0.02
BEFORE_A_LAYER = ("attn_norm", "ffn_norm", "mlp_norm")


def norm_value(name: str) -> float:
    """The weight of a norm, by the name of its tensor."""
    return 0.001 if any(part in name for part in BEFORE_A_LAYER) else 1.0


def nibbles(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Two 4-bit quants a byte, each 1 to 15: what q4_0 stores is q - 8, so the mean is 0."""
    low, high = (rng.integers(1, 16, shape, dtype=np.uint8) for _ in range(2))
    return np.asarray(low | high << 4, dtype=np.uint8)


def half(value: float) -> NDArray[np.uint8]:
    """A float16 as bytes."""
    return np.frombuffer(np.float16(value).tobytes(), dtype=np.uint8)


def _parts(weights: ModelWeights) -> Iterator[tuple[str, Part]]:
    """Every stored part under its name, a matrix with its format."""
    yield "embed", weights.embed
    yield from weights.outside()
    if weights.head is not weights.embed:
        yield "head", weights.head
    for i, layer in enumerate(weights.layers):
        yield from ((f"layers.{i}.{name}", part) for name, part in layer.parts())
    if (mtp := weights.mtp) is not None:
        yield from ((f"mtp.{name}", part) for name, part in vars(mtp).items() if isinstance(part, Tensor | Matrix))
        yield from ((f"mtp.{name}", part) for name, part in mtp.layer.parts())


def _banks(part: Part) -> Iterable[ExpertBank]:
    return part.banks.values() if isinstance(part, TierBanks) else [part] if isinstance(part, ExpertBank) else []


class Noise:
    """Random packed rows, cut from one pool per format at a random place for each matrix."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.pools: dict[str, Tensor] = {}

    def fill(
        self,
        weights: ModelWeights,
        progress: Callable[[int, int], None] | None = None,
        filled: Callable[[Tensor], None] | None = None,
    ) -> None:
        """Fills allocated weights; `progress` is called with bytes done and bytes in all, `filled` with every bank."""
        total, done = weights.nbytes, 0
        for name, part in _parts(weights):
            self._part(part, name)
            if filled is not None:
                for bank in _banks(part):
                    filled(bank.data)
            done += part.nbytes
            if progress is not None:
                progress(done, total)
        for layer in weights.layers:
            if layer.table is not None and layer.router is not None:
                self._table(layer.table, layer.router.rows)

    def _part(self, part: Part, name: str) -> None:
        """Fills one tensor; vectors are norms, or biases of 0."""
        if isinstance(part, Tensor):
            self._vector(part, name.rpartition(".")[2])
        elif isinstance(part, Matrix):
            self._matrix(part)
        elif isinstance(part, TierBanks):  # in the order of experts, so that a placement does not change the model
            for tier, number in part.owners:
                self._expert(part.banks[tier], number)
        else:
            for number in range(part.experts):
                self._expert(part, number)

    def _vector(self, vector: Tensor, name: str) -> None:
        if name == "rate":
            vector.fill_(-1.0)
        elif name == "conv":
            vector.fill_(1.0 / vector.shape[-1])
        else:
            vector.fill_(0.0 if name.endswith(("bias", "sinks")) else norm_value(name))

    def _table(self, table: Tensor, experts: int) -> None:
        """Of each token as many experts as a row has, all different, as numbers of a run that begins anywhere."""
        first = torch.from_numpy(self.rng.integers(0, experts, (len(table), 1)))
        table.copy_((first + torch.arange(table.shape[1])) % experts)

    def _expert(self, bank: ExpertBank, number: int) -> None:
        block = [bank.matrix(number, part) for part in bank.layout.parts]
        for matrix in block:
            self._matrix(matrix)
        bank.data[number, sum(matrix.nbytes for matrix in block) :] = 0

    def _matrix(self, matrix: Matrix) -> None:
        form, flat = matrix.format, matrix.data.view(-1)
        if form.name not in self.pools:
            self.pools[form.name] = _pool(form, self.rng)
        pool = self.pools[form.name]
        start = 64 * int(self.rng.integers(len(pool) // 128))
        for at in range(0, len(flat), len(pool) // 2):
            piece = flat[at : at + len(pool) // 2]
            piece.copy_(pool[start : start + len(piece)])
        if form.is_block:
            scales = _scales(form, matrix.cols)
            matrix.data[:, : len(scales)] = scales


def _scales(form: Format, cols: int) -> Tensor:
    """The scales of every row: factors alike, such that random codes give weights of the wanted deviation, and minimums
    that take their mean away."""
    kind, runs = form.scales, form.scales.runs(cols)
    codes = torch.arange(1 << form.bits, dtype=torch.uint8).view(1, -1)
    values = blocks.values(blocks.Blocks(format=form, codes=codes))
    values = values[values.isfinite()]
    factor = DEVIATION / float(values.std())
    least = -factor * float(values.mean())
    shape, dtype = (1, kind.halves(cols)), blocks.HALVES[kind.half]
    number, unit = UNITS.get(kind.kind, (UNIT, UNIT if kind.shared else 1))
    if kind.kind == "power":
        number = round(math.log2(factor)) + 128
    units = torch.full((1, runs), number, dtype=torch.uint8) if kind.unit_bytes else None
    row = blocks.join(
        blocks.Blocks(
            format=form, codes=torch.zeros(1, cols, dtype=torch.uint8), units=units,
            halves=torch.full(shape, factor / unit).to(dtype) if kind.half_bytes else None,
            min_halves=torch.full(shape, least / unit).to(dtype) if kind.has_min else None,
            min_units=units if kind.has_min and kind.unit_bytes else None,
        )
    )  # fmt: skip
    return row[0, : form.scales_bytes(cols)]


def _pool(form: Format, rng: np.random.Generator) -> Tensor:
    """What follows the scales in a row; for plain formats the values."""
    if form.codes.offset == 8 or form.scales.kind == "half_zero":
        return torch.from_numpy(nibbles(rng, (POOL_BYTES,)))
    if form.is_block and form.bits < 8:
        return torch.from_numpy(rng.integers(0, 256, POOL_BYTES, dtype=np.uint8))
    if form.codes.are_floats:  # but for NaN, 127 of either sign
        return torch.from_numpy(
            rng.integers(0, 127, POOL_BYTES, dtype=np.uint8) | rng.choice([0, 128], POOL_BYTES).astype(np.uint8)
        )
    if form.is_block:
        return torch.from_numpy(rng.integers(-127, 128, POOL_BYTES, dtype=np.int8).view(np.uint8))
    dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[form.name]
    values = rng.normal(0, PLAIN_DEVIATION, POOL_BYTES // dtype.itemsize).astype(np.float32)
    return torch.from_numpy(values).to(dtype).view(torch.uint8)
