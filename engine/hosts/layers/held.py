"""The layers that one node has in RAM, with their caches: a host's, or the coordinator's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext

import torch

from ....errors import MemoryNeeded
from ....kernels import Ops
from ....kernels.passes.tally import Tally
from ....loaders.files.safetensors import ReadInto
from ....loaders.spec import MoeSpec
from ....loaders.weights.checkpoint import Checkpoint, load_weights
from ....loaders.weights.model_weights import Held, ModelWeights, allocate
from ...devices.host import advise_huge
from ...ledger.pass_bytes import Span
from ...ledger.passes import Bytes, add_bytes
from ...ledger.windows import PAGE, pages_for
from ...model.segment import Room, Run, Segment, runs, sizes
from ...speculation.row_kernels import row_kernels
from ...units import size
from ..messages.frames import Broken
from ..messages.passes import Done, Task


class HeldLayers:
    """room: of the caches; free: bytes that layers and their caches may take; read: how bytes come from files, None:
    as ever."""

    def __init__(self, checkpoint: Checkpoint, ops: Ops, room: Room, free: int, read: ReadInto | None = None) -> None:
        self.read_files = read
        self.checkpoint, self.spec, self.ops, self.room, self.free = checkpoint, checkpoint.spec, ops, room, free
        self.sizes = sizes(self.spec, allocate(self.spec, checkpoint.formats, "meta"), room)
        self.segments: dict[Run, Segment] = {}

    @property
    def nbytes(self) -> int:
        """Of layers and their caches."""
        return sum(one.nbytes for one in self.segments.values())

    def put(self, run: Run, weights: ModelWeights) -> None:
        """Takes layers that are loaded already."""
        self.segments[run] = Segment(self.spec, weights, self.ops, self.room, run)

    def hold(self, wanted: Iterable[Run]) -> None:
        """Loads those of these runs that are not here, and gives up all others. Raises MemoryNeeded before any is
        loaded, CheckpointError, Broken for layers that the model cannot be cut at."""
        asked, firsts = list(wanted), {first for first, _ in runs(self.spec)} | {len(self.spec.layers)}
        if any(not (first < last and {first, last} <= firsts) for first, last in asked):
            raise Broken("the share names layers that the model does not have: install the same headrace everywhere")
        need = sum(sum(self.sizes[first:last]) for first, last in asked)
        if need > self.free:
            raise MemoryNeeded(f"layers and their cache take {size(need)}, {size(self.free)} of RAM can be taken here")
        self.segments = {run: one for run, one in self.segments.items() if run in asked}
        for run in asked:
            if run not in self.segments:
                held = Held(*run, outside=False)
                with torch.inference_mode(False):  # a pass may be under way; states are copied outside of any
                    self.put(run, self._load(held))

    def _load(self, held: Held) -> ModelWeights:
        return load_weights(self.checkpoint, self.ops, prepare=_advise, held=held, read=self.read_files)

    def copy_state(self, slot: int, to: int) -> None:
        """Copies the recurrent state of a slot into another one, in all layers."""
        for segment in self.segments.values():
            segment.cache.copy_state(slot, to)

    def chain(self, first: int, last: int) -> list[Segment]:
        """The segments that layers [first, last) are. Raises Broken where some are not here."""
        found: list[Segment] = []
        while first < last:
            one = next((it for it in self.segments.values() if it.first == first and it.last <= last), None)
            if one is None:
                raise Broken(f"layer {first} is asked for, which this host does not hold: the connection is closed")
            found.append(one)
            first = one.last
        return found

    @torch.inference_mode()
    def run(self, task: Task) -> Done:
        """A pass through layers, the copies of states before it. Raises Broken."""
        chain, places = self.chain(task.first, task.last), task.places
        for copy in task.copies:
            self.copy_state(*copy)
        x_TX, done = task.x_TX, Done(task.x_TX, [], [])
        with row_kernels(self.ops) if task.by_row else nullcontext():
            for segment in chain:
                tally = self._tally(segment, len(x_TX)) if task.chosen else None
                x_TX, distinct_L = segment.run(x_TX, places, task.rows_R, tally)
                done.distinct.extend(distinct_L.tolist())
                if tally is not None:
                    done.ids.extend(_chosen(segment, tally, len(task.x_TX), len(x_TX)))
        return done._replace(x_RX=x_TX)

    def _tally(self, segment: Segment, tokens: int) -> Tally:
        layers, K = len(segment.spec.layers), _choices(segment)
        counts = torch.zeros(2, layers, self.spec.moe.experts, dtype=torch.int64)
        return Tally(counts_2LE=counts, ids_LTK=torch.zeros(layers, tokens, K, dtype=torch.int32))

    def check(self, task: Task) -> None:
        """Raises Broken for numbers of pages and slots that no cache here has."""
        room, places, slots = self.room, task.places, [slot for copy in task.copies for slot in copy]
        pools = [room.pages, *(pages for _, pages in room.windows)]
        pages = [(places.slots_T, places.tables_SM), *places.windows]
        contexts, positions = places.contexts_S, places.positions_T
        fits = len(pools) == len(pages)
        fits = fits and 0 <= int(contexts.min()) <= int(contexts.max()) <= places.tables_SM.shape[1] * PAGE
        fits = fits and 0 <= int(positions.min()) <= int(positions.max()) < pages_for(room.context) * PAGE
        for count, (slots_T, tables_SM) in zip(pools, pages, strict=False):
            fits = fits and 0 <= int(slots_T.min()) <= int(slots_T.max()) < count * PAGE
            fits = fits and 0 <= int(tables_SM.min()) <= int(tables_SM.max()) < count
        slots += [] if places.states_S is None else places.states_S.tolist()
        slots += [slot for one in places.pieces for slot in (*one.states_S.tolist(), one.slot, one.keep or 0)]
        starts = places.starts_S1.tolist()
        fits = fits and starts[0] == 0 and starts == sorted(starts) and starts[-1] == len(places.positions_T)
        if not fits or any(not 0 <= slot < room.slots for slot in slots):
            raise Broken("a pass names pages or slots that are not there: the connection is closed")

    def read(self, task: Task, spans: Sequence[Span], distinct: Sequence[int]) -> Bytes:
        """Bytes that a pass read of these layers and their caches."""
        found: Bytes = {}
        logits = task.rows_R is None or len(task.rows_R) > 0
        for segment in self.chain(task.first, task.last):
            first = segment.first - task.first
            add_bytes(found, segment.read(spans, logits, distinct[first : first + len(segment.dense)]))
        return found


def _advise(weights: ModelWeights) -> None:
    """Asks for huge pages under what is here."""
    advise_huge(weights)


def _choices(segment: Segment) -> int:
    """Most experts of a token in a layer of a segment."""
    return max((layer.ffn.top_k for layer in segment.spec.layers if isinstance(layer.ffn, MoeSpec)), default=0)


def _chosen(segment: Segment, tally: Tally, tokens: int, rows: int) -> list[torch.Tensor | None]:
    """Of each layer the choices of the tokens that went through its experts."""
    found: list[torch.Tensor | None] = []
    assert tally.ids_LTK is not None
    for i, layer in enumerate(segment.spec.layers):
        count = rows if segment.is_end and i == len(segment.spec.layers) - 1 else tokens
        found.append(tally.ids_LTK[i, :count, : layer.ffn.top_k] if isinstance(layer.ffn, MoeSpec) else None)
    return found
