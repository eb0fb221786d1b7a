"""What `headrace inspect` shows: tables for a person, one JSON object for a script. Computes nothing of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from ....errors import listed, short, visible
from ....loaders.architecture.architecture import GROUPS, Architecture
from ....loaders.architecture.context import NO_LIMIT
from ...planning.inspection.facts import Facts
from ...planning.inspection.here import Here
from ...planning.inspection.stored import spans
from ...planning.inspection.text import Text
from ...units import count, size
from ..plan.plan_report import parameters
from ..tables import new_table

MOST_NAMES = 4  # of tensors in a row
MOST_SAMPLE = 600  # characters of a rendered chat


def tables(facts: Facts) -> Iterable[Table | str]:
    """Everything there is to say, in the order in which it is read."""
    model = facts.model
    yield (
        f"{facts.source.name}: {model.family}, {len(model.layers)} layers, {count(model.total_parameters)} parameters, "
        f"{count(model.active_parameters)} active per token"
    )
    yield from facts.source.notes
    yield shape_table(facts)
    yield formats_table(facts)
    yield bytes_table(facts)
    yield from _text(facts.text)
    yield from _here(facts)


def choices_table(model: str, choices: Sequence[tuple[str, int]]) -> Table:
    """The models that a name may mean, small ones first."""
    shown = new_table(f"{model} has {len(choices)} GGUF models: name one", "model", "bytes")
    for name, nbytes in choices:
        shown.add_row(name, size(nbytes))
    return shown


def _rows(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    """What there is to know by name, one a line."""
    shown = new_table(title, "what")
    shown.add_column("value")
    for what, value in rows:
        shown.add_row(what, visible(value))
    return shown


def shape_table(facts: Facts) -> Table:
    model = facts.model
    heads = ", ".join(f"{value} {key.replace('_', ' ')}" for key, value in facts.heads.items())
    rows = [
        ("layers", _layers(model)),
        ("hidden size", str(model.hidden)),
        ("attention", ", ".join(filter(None, (_mixers(model), heads)))),
        *(("experts", text) for text in _experts(model)),
        ("vocabulary", f"{model.vocab} rows{', head and embedding are one' if model.tied_head else ''}"),
        ("context", "not limited" if model.context >= NO_LIMIT else f"{model.context} tokens"),
        ("KV cache", _cache(facts)),
    ]
    return _rows("shape", rows)


def _layers(model: Architecture) -> str:
    routed = model.moe_layers
    kinds = {"dense": [i for i in range(len(model.layers)) if i not in {*routed}], "routed": routed}
    return ", ".join(f"{len(where)} {kind} ({spans(where)})" for kind, where in kinds.items() if where)


def _mixers(model: Architecture) -> str:
    """Kinds of attention, and in how many layers each."""
    kinds = Counter(layer.mixer.kind for layer in model.layers if layer.mixer)
    return ", ".join(f"{kind}{f' in {number} layers' if len(kinds) > 1 else ''}" for kind, number in kinds.items())


def _experts(model: Architecture) -> list[str]:
    """What the routed experts are; a line for each kind of layer."""
    kinds = Counter(
        (e.count, e.top_k, e.width, e.matrices) for layer in model.layers if (e := layer.experts) is not None
    )
    return [
        f"{number} a layer, a token takes {top_k}, {width} wide, {matrices} matrices each"
        + (f" (in {layers} layers)" if len(kinds) > 1 else "")
        for (number, top_k, width, matrices), layers in kinds.items()
    ]


def _cache(facts: Facts) -> str:
    parts = [f"{size(facts.cache_bytes)} a token"] if facts.cache_bytes else []
    parts += [f"{size(facts.window_bytes)} in windows of a sequence"] if facts.window_bytes else []
    cached = [f"{', '.join(parts)}, in 16 bits"] if parts else []
    state = [f"{size(facts.state_bytes)} of state of a sequence, in float32"] if facts.state_bytes else []
    return "; ".join([*cached, *state]) or "none"


def formats_table(facts: Facts) -> Table:
    read = facts.source.tensors is not None
    shown = new_table(f"formats, {'of its files' if read else 'by its config'}", "group")
    for column in ("format", "layers", "tensors"):
        shown.add_column(column)
    for run in facts.runs:
        shown.add_row(run.group, run.format, run.layers or "-", visible(listed(run.tensors, MOST_NAMES)))
    return shown


def bytes_table(facts: Facts) -> Table:
    shown = new_table("bytes", "group", "parameters", "bytes")
    numbers = parameters(facts.model)
    for group in GROUPS:
        if group in facts.storage.groups:
            shown.add_row(group, count(numbers.get(group, 0)), size(facts.storage.groups[group]))
    shown.add_row("all", count(sum(numbers.values())), size(facts.storage.total))
    for what, held in facts.storage.left_out.items():
        shown.add_row(f"left out: {what}", "", size(held))
    shown.add_row("read for a token", count(facts.model.active_parameters), size(facts.active_bytes))
    return shown


def _text(text: Text | str) -> Iterable[Table | str]:
    if isinstance(text, str):
        yield f"no tokenizer: {visible(text)}"
        return
    named = f" ({', '.join(text.named)})" if text.named else ""
    ends = ", ".join(f"{spelled} ({id})" for id, spelled in text.ends)
    parts = ", ".join(f"{role.removesuffix('_token')} {spelled}" for role, spelled in text.special.items())
    rows = [
        ("tokenizer", f"{text.kind}{named}, from {text.source}"),
        ("vocabulary", f"{text.vocabulary} tokens, {text.special_count} of them special"),
        ("splits text by", ", ".join(text.splits) or "nothing"),
        ("special", parts or "none has a part to play"),
        ("ends an answer", ends or "nothing: an answer ends at its longest"),
        ("chat templates", ", ".join(text.templates) or "none"),
        ("a chat becomes", short(text.sample, MOST_SAMPLE) if text.sample is not None else f"nothing: {text.refusal}"),
    ]
    yield _rows("text", rows)
    yield from map(visible, text.notes)


def _here(facts: Facts) -> Iterable[str]:
    here = facts.here
    if here.objections:
        for objection in here.objections:
            yield short(visible(f"does not run here: {objection}"))
        return
    yield f"runs here: {_kernels(here)}, for {', '.join(here.formats)}"
    if here.gpus:
        yield f"{here.gpus} NVIDIA GPUs in this machine: --device cuda uses them"
    if facts.storage.total > here.free:
        yield f"its weights take {size(facts.storage.total)}, and {size(here.free)} of memory is free: headrace plan"


def _kernels(here: Here) -> str:
    others = [isa for isa in here.isas if isa != here.isa]
    return f"the CPU's kernels, {here.isa}" + (f" (there are {', '.join(others)} too)" if others else "")


def as_json(facts: Facts) -> dict[str, Any]:
    """The object that --json prints; sizes in bytes, null for what is not known."""
    model, text = facts.model, facts.text
    return {
        "model": facts.source.name,
        "family": model.family,
        "notes": list(facts.source.notes),
        "layers": {"all": len(model.layers), "routed": list(model.moe_layers)},
        "hidden": model.hidden,
        "vocabulary": model.vocab,
        "tied_head": model.tied_head,
        "context": None if model.context >= NO_LIMIT else model.context,
        "attention": Counter(layer.mixer.kind for layer in model.layers if layer.mixer),
        **facts.heads,
        "experts": [None if e is None else asdict(e) for e in (layer.experts for layer in model.layers)],
        "total_parameters": model.total_parameters,
        "active_parameters": model.active_parameters,
        "from_headers": facts.source.tensors is not None,
        "formats": [asdict(run) for run in facts.runs],
        "bytes": {**facts.storage.groups, "total": facts.storage.total},
        "left_out": facts.storage.left_out,
        "active_bytes": facts.active_bytes,
        "kv_bytes_per_token": facts.cache_bytes,
        "kv_window_bytes": facts.window_bytes,
        "state_bytes": facts.state_bytes,
        "text": None if isinstance(text, str) else asdict(text),
        "no_text": text if isinstance(text, str) else None,
        "runs": not facts.here.objections,
        "here": asdict(facts.here),
    }
