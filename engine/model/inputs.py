"""Where everything but the routed experts lies, as the decoder sees it: puts a pass's inputs there by one copy
(`staging.py`), and says what crosses.

In RAM there is nothing to do. Beside a GPU the embedding, of which a token reads one row, stays in RAM as long as
experts do; its rows go up instead of the token ids.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ...kernels.packed import Matrix
from ...loaders.spec import ModelSpec
from ..config import EngineConfig
from ..devices.device import Device
from ..ledger.pass_bytes import HEAD, INPUTS, SAMPLES, CacheSizes, DenseSizes, common_bytes
from ..ledger.passes import D2H, H2D, Bytes, add_bytes
from ..ledger.timers import Timers
from .batch import Inputs
from .kv_cache import pages_for
from .staging import Shape, StagingBuffer


@dataclass(frozen=True, kw_only=True)
class DeviceInputs:
    """`device` holds the common weights and the cache, `table` the embedding. upload: the way to the device, None where
    that is RAM."""

    device: Device
    table: Device
    timers: Timers
    staging: StagingBuffer | None = None

    def take(self, inputs: Inputs) -> Inputs:
        """The inputs of a pass on the device, but for token ids whose rows were looked up in RAM."""
        if self.device.is_host:
            return inputs
        assert self.staging is not None, "a device without a way to it"
        self.timers.span(None)
        taken = self.staging.take(inputs)
        self.timers.span(H2D)
        return taken

    def look_up(self, table: Matrix, inputs: Inputs, scale: float) -> Inputs:
        """The inputs with their rows of the embedding, if it lies in RAM and the device is another."""
        if self.table is self.device:
            return inputs
        with self.timers.on_cpu():
            return replace(inputs, x_TD=self.table.ops.embed(table, inputs.ids_T, scale))

    def embed(self, table: Matrix, inputs: Inputs, scale: float) -> Tensor:
        """Embedding rows of inputs that are on the device: float32 [T, D]."""
        if inputs.x_TD is not None:
            return inputs.x_TD
        return self.table.ops.embed(table, inputs.ids_T, scale)

    def bytes_of(self, inputs: Inputs, sizes: DenseSizes, cache: CacheSizes, *, goes_on: bool = False) -> Bytes:
        """What a pass reads besides routed experts, and what goes up for it: inputs as `look_up` gives them. goes_on:
        all tokens go to the end, also where nobody wants logits."""
        read = common_bytes(
            sizes,
            cache,
            spans=inputs.spans,
            logits=len(inputs.rows) > 0 or goes_on,
            main=self.device.tier.channel,
            table=self.table.tier.channel,
        )
        if len(inputs.rows) == 0:
            read[self.device.tier.channel].pop(HEAD, None)
        add_bytes(read, self._sent(inputs))
        return read

    def _sent(self, inputs: Inputs) -> Bytes:
        if self.device.is_host:
            return {}
        first = inputs.ids_T if inputs.x_TD is None else inputs.x_TD
        pieces = [tensor for piece in inputs.places.pieces for tensor in piece.tensors]
        windows = [tensor for one in inputs.places.windows for tensor in one]
        sent = (first, inputs.rows, *vars(inputs.places).values(), *windows, *pieces)
        return {H2D: {INPUTS: sum(tensor.nbytes for tensor in sent if isinstance(tensor, Tensor))}}

    def sample_bytes(self, greedy: int, drawn: int, vocab: int) -> Bytes:
        """What sampling takes down: the largest logit and its place of every sequence, and all logits of those whose
        token is drawn."""
        return {} if self.device.is_host else {D2H: {SAMPLES: 12 * (greedy + drawn) + 4 * vocab * drawn}}


def largest_pass(tokens: int, sequences: int, context: int, hidden: int, has_states: bool, windows: int = 0) -> Shape:
    """What an upload must hold: passes of up to so many tokens and sequences, the longest of `context` tokens, with
    logits of all rows; hidden, has_states and windows: as in `Shape`. A sequence's tokens are cut once at most."""
    return Shape(
        tokens=tokens, sequences=sequences, pages=pages_for(context), rows=tokens, hidden=hidden, has_states=has_states,
        cuts=2 * sequences if has_states else 0, windows=windows,
    )  # fmt: skip


def make_device_inputs(
    device: Device,
    table: Device,
    timers: Timers,
    config: EngineConfig,
    spec: ModelSpec,
    context: int,
    windows: int = 0,
) -> DeviceInputs:
    """Home on a device, with a way there where it is not the host; `context`: tokens of the longest sequence; windows:
    as in `Shape`."""
    staging = None
    if not device.is_host:
        tokens, hidden = max(config.prefill_chunk, config.max_sequences), 0 if table is device else spec.hidden
        largest = largest_pass(tokens, config.max_sequences, context, hidden, spec.state_elements > 0, windows)
        staging = StagingBuffer(device.place, largest)
    return DeviceInputs(device=device, table=table, timers=timers, staging=staging)
