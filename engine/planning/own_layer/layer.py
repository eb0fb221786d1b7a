"""The layer for multi-token prediction of a model that is not loaded: whether there is one, what it is, and its bytes.

It is like the last layer of the decoder that attends to everything and has experts, with a matrix that joins its two
inputs and three norms, which count as parts of it here; embedding and head are the model's. Bytes come from headers
where there are some, and are to the byte what the engine allocates (`loaders/weights/mtp/find.py`). Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ....errors import CheckpointError, OptionError
from ....loaders.architecture.architecture import Architecture, Layer, matrix, vector
from ....loaders.architecture.tensor_names import MTP_PART, PREDICTION, place
from ....loaders.families import named
from ....loaders.families.quantisation import Quantisation
from ....loaders.files import gguf_set
from ....loaders.files.headers import Stored, of_file
from ....loaders.model_source import Source
from ....loaders.quants.quant import Quant
from .. import of_headers as headers
from .. import storage as storing
from ..storage import Storage
from . import draft_rows

BESIDE = "mtp.safetensors"  # beside a model's own files
KEYS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers")  # of configs
JOINED = "attn_joined"  # a name of the matrix that counts as one of attention
JOINS = re.compile(r"^(?:nextn\.)?eh_proj\.|^fc\.|^linear_proj\.")
NORMS = re.compile(
    r"^(?:nextn\.)?(?:enorm|hnorm|shared_head[._]norm|final_layernorm)\.|^pre_fc_norm_\w+\.|^norm\.|^(?:emb|hidden)_norm\."
)
COPIES = re.compile(r"^(?:nextn\.)?(?:embed_tokens|shared_head[._](?:head|output))\.")
WITHIN = "transformer."  # in front of some names of Step's
LAST_NORM = "model.norm.weight"
BEHIND = re.compile(r"(.*?\b(?:layers|blk)\.)(\d{1,9})\.(.*)")
UNDER_MTP = re.compile(r"(?:.*\.)?mtp\.(?:layers\.0\.)?((?!layers\.).*)")


@dataclass(frozen=True, kw_only=True)
class OwnLayer:
    """`model`: the layer alone, with the model's embedding and head. storage: of the same, without what it shares."""

    model: Architecture
    storage: Storage

    @property
    def held(self) -> Architecture:
        """The same as its keys are held: all of them, whatever is seen."""
        layer = self.model.layers[0]
        assert layer.mixer is not None, "a layer that attends to nothing"
        caches = tuple(replace(cache, window=None) for cache in layer.mixer.caches)
        return replace(self.model, layers=(replace(layer, mixer=replace(layer.mixer, caches=caches)),))

    def among(self, rows: int) -> OwnLayer:
        """The same as it guesses among the first so many tokens, and the last ones."""
        read = draft_rows.read_rows(rows, self.model.vocab)
        head = self.storage.head_in.times(read / self.model.vocab)
        storage = replace(self.storage, outside_in=head, head_in=head)
        return OwnLayer(model=replace(self.model, vocab=read), storage=storage)

    @property
    def weights(self) -> int:
        """Bytes in memory beside the model's."""
        return self.storage.common + self.storage.routed - self.storage.head


def find(
    source: Source,
    quant: Quant,
    is_native: bool,
    how: Quantisation | None,
    *,
    must: bool,
    file: Path | None = None,
) -> OwnLayer | None:
    """The layer of a model; None: its files have none. quant: of the model where headers do not say; how: its weights
    are quantised. must: raises OptionError where there is none, or none that runs; without headers it is then taken to
    be there. file: that holds it."""
    model = source.described.architecture
    layer, stored = layer_of(model), _stored(source) if file is None else _of_given(file, source)
    says_so = bool(stored) if source.tensors is not None else must or any(source.config.get(key) for key in KEYS)
    if layer is None or not says_so:
        if must:
            what = "has no layer for multi-token prediction" if layer else "can have no such layer here"
            there = f"; {file} holds none" if layer and file else ""
            raise OptionError(f"--speculate is mtp, and {source.name} {what}{there}: give auto, lookup or off")
        return None
    joined = (matrix(model.hidden, 2 * model.hidden, name="nextn.eh_proj"), *(vector(model.hidden),) * 3)
    whole = replace(layer, parts=(*layer.parts, *joined))
    alone = replace(model, layers=(whole,), extra=(), lookup=())
    if not is_native or source.tensors is None:
        return OwnLayer(model=alone, storage=_of_layer(storing.computed(alone, quant)))
    tensors = [one for one in source.tensors if place(one.name, len(model.layers))[1] != PREDICTION]
    longer = replace(model, layers=(*model.layers, whole))
    try:
        found = headers.of_headers(longer, [*tensors, *stored], source.name, how)
    except CheckpointError:
        if must:
            raise
        return None
    return OwnLayer(model=alone, storage=_of_layer(found))


def layer_of(model: Architecture) -> Layer | None:
    """What such a layer is like; None: none is known of models like this."""
    family = named(model.family)
    if family is not None and family.mtp_gap:
        return None
    if family is not None and family.mtp_dense:
        return _with_an_mlp(model, family.mtp_windowed)
    able = [layer for layer in model.layers if _is_alike(layer)]
    most = max((len(layer.mixer.caches) for layer in able if layer.mixer), default=0)  # with an indexer of its own
    return next((layer for layer in reversed(able) if layer.mixer and len(layer.mixer.caches) == most), None)


def _with_an_mlp(model: Architecture, is_windowed: bool) -> Layer | None:
    """The attention of a layer, over a window or not, and the MLP of one without experts."""
    mixers = [one.mixer for one in model.layers if one.mixer]
    mixer = next((one for one in mixers if any(cache.window for cache in one.caches) == is_windowed), None)
    dense = next((one for one in model.layers if one.experts is None), None)
    if mixer is None or dense is None or dense.mixer is None:
        return None
    others = dense.parts[len(dense.mixer.parts) :]
    return Layer(mixer=mixer, parts=(*mixer.parts, *others), experts=None)


def _is_alike(layer: Layer) -> bool:
    mixer = layer.mixer
    if mixer is None or layer.experts is None or mixer.state or not mixer.caches:
        return False
    return all(cache.window is None and cache.every == 1 for cache in mixer.caches)


def _of_layer(found: Storage) -> Storage:
    """The bytes of the last layer with the model's head, and rows of its embedding."""
    return replace(found, layers=found.layers[-1:], outside_in=found.head_in, held=0, groups={}, left_out={})


def _stored(source: Source) -> list[Stored]:
    """Headers of the first such layer, of the model's files or of the file beside them, by names of the layer behind
    the last that say their group; none where nothing joins two inputs."""
    number, beside = len(source.described.architecture.layers), source.place and source.place / BESIDE
    found = [*_renamed(source.tensors or (), number)]
    if any(MTP_PART.fullmatch(one.name) for one in source.tensors or ()):  # with the model's own norm behind it
        last = (one for one in source.tensors or () if one.name.endswith(LAST_NORM))
        found += [replace(one, name=f"model.layers.{number}.norm_last.weight") for one in last]
    if not any(JOINED in one.name for one in found) and beside is not None and beside.is_file():
        found = [*_renamed(of_file(beside).tensors, number)]
    return found if any(JOINED in one.name for one in found) else []


def _of_given(file: Path, source: Source) -> list[Stored]:
    """The same of a file of its own, which is of the model's kind; a block of GGUF may have any number there."""
    if not file.is_file():
        raise OptionError(f"--mtp is {file}, which is no file: give the one that holds the layer")
    if source.tensors is None:
        raise OptionError(f"--mtp is {file}, and {source.name} has no headers to set it beside: give the model's files")
    number, is_gguf = len(source.described.architecture.layers), gguf_set.is_gguf(file)
    if is_gguf != (source.gguf is not None):
        kind = "safetensors" if source.gguf is None else "GGUF"
        raise OptionError(f"--mtp is {file}, and {source.name} is of {kind}: give its layer as {kind}, too")
    tensors = gguf_set.of_path(file).tensors if is_gguf else of_file(file).tensors
    blocks = (match[2] for one in tensors if (match := BEHIND.match(one.name)) and JOINS.search(match[3]))
    found = [*_renamed(tensors, number, int(next(blocks, number)) if is_gguf else number)]
    return found if any(JOINED in one.name for one in found) else []


def _renamed(tensors: Iterable[Stored], number: int, start: int | None = None) -> Iterator[Stored]:
    """start: its number in the file, where that is another."""
    there = number if start is None else start
    for norms, tensor in enumerate(tensors):
        match = BEHIND.match(tensor.name)
        prefix, name = (match[1], match[3]) if match and int(match[2]) == there else ("model.layers.", "")
        if not name and (under := UNDER_MTP.match(tensor.name)):
            name = under[1]
        elif not name and (part := MTP_PART.fullmatch(tensor.name)):
            name = part[2] if part[1] == "block" else f"{part[1]}.{part[2]}"
        name = name.removeprefix(WITHIN)
        if not name or COPIES.search(name):
            continue
        if JOINS.search(name):
            name = f"{JOINED}.{name.rpartition('.')[2]}"
        elif NORMS.search(name):
            name = f"norm_{norms}.weight"
        yield replace(tensor, name=f"{prefix}{number}.{name}")
