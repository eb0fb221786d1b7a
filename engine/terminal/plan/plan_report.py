"""What `headrace plan` shows: tables for a person, one JSON object for a script. Computes nothing that a plan lacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from rich.table import Table

from ....errors import short
from ....loaders.architecture.architecture import GROUPS, Architecture
from ....loaders.quants.by_format import ByFormat
from ...bandwidth_model.flop_counts import STATE_WIDTH
from ...bandwidth_model.hardware import REACHED, Device, Range
from ...bandwidth_model.machine_file import unknown_gpus
from ...planning import layouts as placing
from ...planning.hosts import machines
from ...planning.hosts.comparison import Hosted
from ...planning.own_layer.drafting import OwnDrafts
from ...planning.plan import Plan
from ...planning.speed import Drafted, Rated
from ...units import GB, count, rounded, size
from ..tables import new_table


def tables(plan: Plan) -> Iterable[Table | str]:
    """Everything a plan says, in the order in which it is read."""
    yield from headlines(plan)
    yield storage_table(plan)
    yield cache_line(plan)
    if plan.hardware is None or plan.best is None:
        yield (
            "this machine was not measured yet, so there are no times: run headrace measure, or name parts, as in "
            '--hardware "rtx-3090, ddr5-6000-2ch, 64gb"'
        )
        return
    yield machine_table(plan)
    yield placements_table(plan)
    yield memory_table(plan, plan.best)
    if plan.best.decode is not None:
        yield time_table(plan, plan.best)
    yield from hosts_lines(plan)
    yield from layers_lines(plan)
    yield what_if_table(plan)
    yield from drafts_line(plan)
    yield from remarks(plan)


def headlines(plan: Plan) -> Iterable[str]:
    model, described = plan.model, plan.source.described
    yield (
        f"{plan.source.name}: {model.family}, {len(model.layers)} layers, {count(model.total_parameters)} "
        f"parameters, {count(model.active_parameters)} active per token"
    )
    for objection in described.objections:
        yield short(f"cannot be run: {objection}")
    yield from notes(plan)
    counted = plan.storage.counted
    if counted is not None and abs(counted - model.total_parameters) > 1e-3 * model.total_parameters:
        yield f"its files hold {count(counted)} parameters: the config is read wrongly, or belongs to another model"
    if described.unknown_keys:
        unknown = ", ".join(described.unknown_keys)
        yield f"config keys that this family does not know, and that may change sizes: {unknown}"


def notes(plan: Plan) -> tuple[str, ...]:
    """How model and formats were read, where that is not plain."""
    return (*plan.source.notes, *(() if plan.storage.from_headers else plan.quant.notes))


def parameters(model: Architecture) -> dict[str, int]:
    """Parameters by group; a tied embedding counts as the head."""
    counts: Counter[str] = Counter()
    for part in model.common_parts():
        counts[part.group] += part.elements
    counts["experts"] = model.routed_parameters
    counts["embedding"] = 0 if model.tied_head else model.embedding.elements
    counts["tables"] = sum(part.elements for part in model.lookup)
    return {group: counts[group] for group in GROUPS if counts[group]}


def storage_table(plan: Plan) -> Table:
    origin = "in its files" if plan.storage.from_headers else plan.quant.name
    shown = new_table(f"storage, {origin}", "tensors", "parameters", "bytes", "format")
    counts = parameters(plan.model)
    for group in GROUPS:
        if group in plan.storage.groups:
            number, held = counts.get(group, 0), plan.storage.groups[group]
            shown.add_row(group, count(number), size(held), _format(plan, group, number, held))
    shown.add_row("all", count(sum(counts.values())), size(plan.storage.total), "")
    if plan.storage.in_memory != plan.storage.total:
        shown.add_row("in memory", "", size(plan.storage.in_memory), "")
    for what, held in plan.storage.left_out.items():
        shown.add_row(f"left out: {what}", "", size(held), "")
    return shown


def _format(plan: Plan, group: str, count: int, held: int) -> str:
    """The format of a group; of files, and of formats that differ inside a group, the bits of a weight on average."""
    if plan.storage.from_headers or (plan.quant.special and group not in ("router", "norms")):
        return f"{8 * held / count:.2f} bits" if count else ""
    return "f32" if group in ("router", "norms") else plan.quant.of(group).name


def cache_line(plan: Plan) -> str:
    context, model = plan.options.context, plan.model
    state = f" and {size(STATE_WIDTH * model.state_elements)} of state" if model.state_elements else ""
    kept = size(plan.kept)
    kind = "" if plan.options.kv_format == "bf16" else f" as {plan.options.kv_format}"
    batch = plan.options.batch
    together = f" ({batch} sequences: {size(sum(plan.demand.cache))})" if batch > 1 else ""
    return f"a sequence of {context} tokens keeps {kept} in the cache{kind}{state}{together}"


def machine_table(plan: Plan) -> Table:
    assert plan.hardware is not None
    shown = new_table(f"machine: {plan.hardware.name}", "part", "memory", "GB/s", "reached", "TFLOP/s", "copies GB/s")
    for device in plan.hardware.devices:
        shown.add_row(device.name, *_device_cells(device))
    for hop in () if plan.hosted is None else plan.hosted.hops:
        shown.add_row(hop.device.name, *_device_cells(hop.device))
    return shown


def _device_cells(device: Device) -> list[str]:
    memory = "-" if device.kind == "disk" else "as needed" if device.memory is None else size(device.memory)
    flops = _range(device.flops, 1e12, 1) if device.flops else "-"
    link = _range(device.link, GB, 0) if device.link else "-"
    return [memory, f"{device.nominal / GB:.0f}", _range(device.bandwidth, GB, 0), flops, link]


def _range(value: Range, unit: float, digits: int) -> str:
    if value.low == value.high:
        return f"{value.mid / unit:.{digits}f}"
    return f"{value.low / unit:.{digits}f}-{value.high / unit:.{digits}f}"


def _speed(value: Range | None) -> str:
    return "-" if value is None else f"{value.mid:.1f} ({value.low:.1f}-{value.high:.1f})"


def placements_table(plan: Plan) -> Table:
    options = plan.options
    prompt = min(options.prompt, options.context)
    title = f"tokens/s: batch {options.batch}, context {options.context}, prompt {prompt} (* best)"
    shown = new_table(title, "placement", "decode", "prefill", "bound by")
    for rated in plan.rated:
        bound = rated.decode["mid"].bottleneck if rated.decode else rated.lacks
        decode, prefill = rated.decode_tok_s(options.batch), rated.prefill_tok_s(prompt)
        mark = "* " if rated is plan.best and rated.fits else "  "
        shown.add_row(mark + rated.placement.name, _speed(decode), _speed(prefill), bound)
    if plan.simple_tok_s is not None:
        shown.add_row("the plain sum", f"{plan.simple_tok_s:.1f}", "-", "nominal, one sequence")
    return shown


def memory_table(plan: Plan, rated: Rated) -> Table:
    shown = new_table(f"memory: {rated.placement.name}", "tier", "needs", "of", "made of")
    for name, tier in rated.memory.items():
        if tier.total:
            made = ", ".join(f"{what} {size(held)}" for what, held in tier.needed.items())
            room = "-" if tier.available is None else size(tier.available)
            shown.add_row(name if tier.fits else f"{name}: too small", size(tier.total), room, made)
    return shown


def time_table(plan: Plan, rated: Rated) -> Table:
    """Bytes and time of one decode step by tier, at the middle of all ranges."""
    assert rated.decode is not None
    step = rated.decode["mid"]
    shown = new_table(
        f"one decode step: {step.seconds * 1e3:.2f} ms", "tier", "bytes per token", "ms", "share of the step"
    )
    for tier in dict.fromkeys((*plan.bytes_per_token, *step.terms)):
        read, took = sum(plan.bytes_per_token.get(tier, {}).values()), step.terms.get(tier)
        times = ("in net", "-") if took is None else (f"{took * 1e3:.2f}", f"{took / step.seconds:.0%}")
        shown.add_row(tier, size(read) if read else "-", *times)
    return shown


def layers_lines(plan: Plan) -> Iterable[str]:
    """--n-cpu-moe by exact sizes, and what the rule of thumb would have said."""
    exact = n_cpu_moe(plan)
    if plan.rule is None or exact is None:
        return
    why = f"from {plan.rule.fraction:.2f} layers that fit" if plan.rule.n_cpu_moe else "as all layers fit"
    yield (
        f"--n-cpu-moe {exact} by exact sizes; the rule of thumb (file size / layers) says {plan.rule.n_cpu_moe}, {why}"
    )


def n_cpu_moe(plan: Plan) -> int | None:
    """The fewest layers whose experts must be in RAM when the GPUs are filled; None without GPU or without RAM."""
    if plan.hardware is None or not plan.hardware.gpus or plan.hardware.cpu is None:
        return None
    filled = placing.offloaded(plan.storage, plan.hardware, plan.demand)
    return None if filled is None else filled.n_cpu_moe


def hosts_lines(plan: Plan) -> Iterable[str]:
    """How layers and experts are dealt out, the links, and which way is faster and why."""
    hosted = plan.hosted
    if hosted is None:
        return
    links = dict.fromkeys(
        f"{_range(hop.rate, GB, 2)} GB/s, round trip {hop.round_trip.high * 1e6:.0f}-{hop.round_trip.low * 1e6:.0f} us"
        for hop in hosted.hops
    )
    yield f"links: {'; '.join(links)}; rows go as {hosted.wire}"
    names = ["here", *(hop.name for hop in hosted.hops)]
    parts = ", ".join(f"{name} {share:.0%}" for name, share in zip(names, hosted.shares, strict=True))
    runs = ", ".join(f"{name} {len(run)}" for name, run in zip(names, hosted.runs, strict=True))
    in_vram = "" if hosted.layers_in_vram is None else f"; in VRAM: all of {hosted.layers_in_vram} layers"
    yield f"by experts, of each layer's: {parts}{in_vram}; by layers: {runs}"
    yield from hosted.why


def what_if_table(plan: Plan) -> Table:
    shown = new_table("what if", "change", "placement", "decode", "prefill", "bound by")
    for row in plan.what_if:
        cells = [f"{v:.1f}" if v is not None else "-" for v in (row.decode_tok_s, row.prefill_tok_s)]
        shown.add_row(row.what, row.placement, *cells, row.bottleneck or "-")
    return shown


def drafts_line(plan: Plan) -> Iterable[str]:
    """What speculative decoding is expected to gain, by how often a guess is right."""
    if plan.drafts:
        yield f"drafts gain, by how often a drafted token is right: {', '.join(map(_gain, plan.drafts))}"
    if (own := plan.own_drafts) is not None:
        yield (
            f"the model's own layer ({size(own.weights)}, {size(own.cache)} of cache, {own.token_s * 1e3:.2f} ms a "
            f"drafted token, {_among(own, plan)}) gains: {', '.join(map(_gain, own.gains))}"
        )
    elif said := plan.options.about_own_layer:
        yield (
            f"{said[0]} changes nothing: the model has no layer of its own that drafts, or a run would not load it by "
            "itself here (--speculate mtp)"
        )


def _among(own: OwnDrafts, plan: Plan) -> str:
    """How many tokens a guess is chosen among, and what it reads."""
    whole = own.rows == plan.model.vocab
    return f"chosen among {'all' if whole else f'the first {own.rows}'} tokens, {size(own.guess_bytes)}"


def _gain(one: Drafted) -> str:
    tokens = f"{one.length} token{'s' * (one.length > 1)}"
    return f"{one.gain:.2f} times at {one.accepted:.0%} ({tokens})" if one.length else f"nothing at {one.accepted:.0%}"


def remarks(plan: Plan) -> Iterable[str]:
    assert plan.hardware is not None
    yield from doubts(plan)
    if plan.hardware.measured:
        yield "bandwidths are measured; compute of the CPU's cores, which decides on prefill, is assumed from its kind"
        if gpus := unknown_gpus():
            yield f'this machine has {gpus} GPUs that are left out: add them, as in --hardware "this, rtx-3090"'
    else:
        kinds = {"gpu": ("gpu memory", "gpu compute", "link"), "cpu": ("ram",), "disk": ("disk",)}
        used = dict.fromkeys(k for d in plan.hardware.devices for k in kinds.get(d.kind, ("gpu memory",)))
        parts = "; ".join(
            f"{kind} {REACHED[kind][0].low:.0%}-{REACHED[kind][0].high:.0%} of nominal ({REACHED[kind][1]})"
            for kind in used
        )
        yield f"ranges of named parts are assumptions, nobody measured them: {parts}"
    if plan.hosted is not None:
        yield (
            f"what is reached of links ({machines.REACHED.low:.0%}-{machines.REACHED.high:.0%}), round trips, and "
            f"{machines.HOP.high * 1e6:.0f}-{machines.HOP.low * 1e6:.0f} us that a hop takes besides are assumptions"
        )
    if plan.best is not None and plan.best.fits and plan.best.prefill is None:
        yield _no_prefill(plan)


def _no_prefill(plan: Plan) -> str:
    devices = () if plan.hardware is None else plan.hardware.devices
    without = [one for one in devices if one.kind != "disk" and one.flops is None]
    said = f"no prefill time: no compute rate is known of {', '.join(one.name for one in without) or 'a part'}"
    cores = any(one.kind == "cpu" for one in without)
    return f'{said}; give the cores of the CPU, as in --hardware "..., 16cores"' if cores else said


def doubts(plan: Plan) -> list[str]:
    """Why measured rates may be off."""
    if plan.hardware is None:
        return []
    found = [device.doubt for device in plan.hardware.devices if device.doubt]
    layers = [part for layer in plan.storage.layers for part in (layer.common_in, layer.expert_in)]
    used = ByFormat.sum([*layers, plan.storage.outside_in]).names
    return found + [line for device in plan.hardware.devices if (line := device.estimated(used))]


def as_json(plan: Plan) -> dict[str, Any]:
    """The object that --json prints: bytes, tokens/s, seconds; null for what is not known."""
    model, best, decode = plan.model, plan.best, plan.decode_tok_s
    prefill = best.prefill_tok_s(min(plan.options.prompt, plan.options.context)) if best else None
    step = best.decode["mid"] if best and best.decode else None
    return {
        "model": plan.source.name,
        "family": model.family,
        "runs": not plan.source.described.objections,
        "objections": list(plan.source.described.objections),
        "unknown_config_keys": list(plan.source.described.unknown_keys),
        "notes": [*notes(plan), *doubts(plan)],
        "total_parameters": model.total_parameters,
        "parameters_in_files": plan.storage.counted,
        "active_parameters": model.active_parameters,
        "routed_parameters": model.routed_parameters,
        "quant": plan.storage.quant,
        "storage": {**plan.storage.groups, "total": plan.storage.total},
        "in_memory": plan.storage.in_memory,
        "left_out": plan.storage.left_out,
        "from_headers": plan.storage.from_headers,
        "context": plan.options.context,
        "batch": plan.options.batch,
        "prompt": min(plan.options.prompt, plan.options.context),
        "kv_cache": {
            "format": plan.options.kv_format,
            "bytes": plan.kept,
            "state_bytes": STATE_WIDTH * model.state_elements,
        },
        "bytes_per_token": {t: {**g, "total": sum(g.values())} for t, g in plan.bytes_per_token.items()},
        "hardware": None if plan.hardware is None else plan.hardware.name,
        "measured": plan.hardware is not None and plan.hardware.measured,
        "placement": best.placement.name if best else None,
        "fits": plan.fits,
        "memory": _memory_json(best) if best else {},
        "n_cpu_moe": n_cpu_moe(plan),
        "n_cpu_moe_rule_of_thumb": plan.rule.n_cpu_moe if plan.rule else None,
        "estimate": plan.options.model,
        "decode_tok_s": rounded(decode.mid if decode else None),
        "decode_tok_s_range": [rounded(decode.low), rounded(decode.high)] if decode else None,
        "prefill_tok_s": rounded(prefill.mid if prefill else None),
        "prefill_tok_s_range": [rounded(prefill.low), rounded(prefill.high)] if prefill else None,
        "simple_decode_tok_s": rounded(plan.simple_tok_s),
        "ms_by_tier": {tier: round(s * 1e3, 4) for tier, s in step.terms.items()} if step else {},
        "bottleneck": step.bottleneck if step else None,
        "placements": [_rated_json(r, plan) for r in plan.rated],
        "what_if": [vars(row) for row in plan.what_if],
        "hosts": None if plan.hosted is None else _hosts_json(plan.hosted, plan),
        **_drafts_json(plan),
    }


def _hosts_json(hosted: Hosted, plan: Plan) -> dict[str, Any]:
    """Machines in their order, both ways to split the model, and why the faster one is."""
    there = [
        {
            "name": hop.name,
            "ram_gbs": rounded(hop.device.bandwidth.mid / GB),
            "link_gbs": rounded(hop.rate.mid / GB),
            "round_trip_us": rounded(hop.round_trip.mid * 1e6),
            "experts_share": rounded(share),
            "layers": len(run),
        }
        for hop, share, run in zip(hosted.hops, hosted.shares[1:], hosted.runs[1:], strict=True)
    ]
    ways = {
        name: {**_rated_json(rated, plan), "net_bytes": hosted.net_bytes[rated.placement.name],
               "memory": _memory_json(rated)}
        for name, rated in (("by_experts", hosted.by_experts), ("by_layers", hosted.by_layers))
    }  # fmt: skip
    ways["by_experts"]["layers_in_vram"] = hosted.layers_in_vram
    return {"machines": there, "wire": hosted.wire, **ways, "why": list(hosted.why)}


def _drafts_json(plan: Plan) -> dict[str, Any]:
    own = plan.own_drafts
    lists = {} if own is None else {name: [vars(row) for row in getattr(own, name)] for name in ("ways", "gains")}
    costly = None if own is None else {**vars(own), **lists}
    return {"drafts": [vars(row) for row in plan.drafts], "own_drafts": costly}


def _memory_json(rated: Rated) -> dict[str, Any]:
    return {
        name: {"needed": tier.total, "available": tier.available, "fits": tier.fits, **tier.needed}
        for name, tier in rated.memory.items()
    }


def _rated_json(rated: Rated, plan: Plan) -> dict[str, Any]:
    decode = rated.decode_tok_s(plan.options.batch)
    prefill = rated.prefill_tok_s(min(plan.options.prompt, plan.options.context))
    return {
        "placement": rated.placement.name,
        "n_cpu_moe": rated.placement.n_cpu_moe,
        "fits": rated.fits,
        "decode_tok_s": rounded(decode.mid if decode else None),
        "prefill_tok_s": rounded(prefill.mid if prefill else None),
        "bottleneck": rated.decode["mid"].bottleneck if rated.decode else None,
    }
