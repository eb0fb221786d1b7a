"""What the command line shows about a model and a run: the start-up table, the byte table, the JSON object.

Text and numbers only; it computes nothing that the ledger does not hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from rich.table import Table

from ...kernels.cpu import CpuOps
from ...kernels.packed import ExpertBank
from ...loaders.quants.by_format import ByFormat
from ...loaders.weights.model_weights import TierBanks
from ..devices.device import Device, why_no_gpu
from ..devices.host import HUGE_FROM, quota
from ..experts.cache import report
from ..generation.outputs import Completion
from ..hosts.layers.net_layers import NetLayers
from ..ledger import in_formats
from ..ledger.ledger import Ledger
from ..ledger.pass_bytes import GROUPS
from ..ledger.passes import CHANNELS
from ..ledger.residual import tier_times
from ..ledger.summary import PHASES, Summary
from ..llm import LLM
from ..memory.required import EXPERT_CACHE, MTP, READING, STREAM
from ..placement.placement import Tier
from ..units import GB, size
from .hosts import host_rows, layer_rows
from .tables import new_table


class TableRow(NamedTuple):
    """A row of the start-up table. rate: GB a second that a step of one token is predicted to read it with, "~" before
    what is estimated; "": not known."""

    what: str
    device: str
    format: str
    bytes: str
    kernel: str
    huge_pages: str = "-"
    rate: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        return self[:-1]


def startup_table(llm: LLM) -> Table:
    """Where each group of tensors lies, how many bytes it takes, and what will compute it."""
    is_cpu, context = llm.parts.kernels == "cpu", llm.parts.context
    threads = context.threads if is_cpu else torch.get_num_threads()
    team = f"{threads} thread{'s' * (threads > 1)}{quota()}{context.bf16_products if is_cpu else ''}"
    rows = placement_rows(llm)
    lines = [f"{llm.spec.family}: what lies where, computed by {team}", *_tiers(llm), *_rates(rows)]
    table = new_table("\n".join(lines))
    for column in ("tensors", "device", "format", "bytes", "kernel", "huge pages"):
        table.add_column(column, justify="right" if column == "bytes" else "left")
    for row in rows:
        table.add_row(*row.cells)
    if llm.config.device == "auto" and len(llm.parts.devices) == 1 and torch.cuda.is_available():
        table.caption = f"there is a GPU, which is not used: {why_no_gpu()}"
    return table


def _cache_rows(llm: LLM, place: str, kernel: str) -> Iterator[TableRow]:
    """The KV cache, and what of it is over windows."""
    name, budget, kernel = llm.parts.kv_format.name, llm.parts.kv_budget, kernel + llm.parts.products
    huge = _huge(llm, "kv") if "kv" in llm.parts.huge_pages else "-"
    yield TableRow(f"KV, {budget.max_context} tokens", place, name, f"<= {size(budget.kv_bytes)}", kernel, huge)
    for kind, (window, pages) in enumerate(budget.windows, 1):
        each = sum(part.nbytes for part in llm.parts.decoder.cache.page_parts(0, kind))
        yield TableRow(f"of it, over {window.length} tokens", place, name, f"<= {size(pages * each)}", kernel)


def _layer_rows(llm: LLM, split: NetLayers, kernel: str) -> Iterator[TableRow]:
    """The layers of each machine, and their part of the KV cache."""
    kv = f"their KV, {llm.parts.kv_budget.max_context} tokens"
    for what, where, read, cache in layer_rows.layer_rows(llm, split):
        yield TableRow(what, where, _formats(read), size(round(read.total)), kernel)
        yield TableRow(kv, where, llm.parts.kv_format.name, f"<= {size(cache)}", kernel)


def _rates(rows: list[TableRow]) -> list[str]:
    """At what rates weights are predicted to be read."""
    known = [f"{row.what} {row.rate}" for row in rows if row.rate]
    return [f"predicted, GB/s: {', '.join(known)}"] if known else []


def _tiers(llm: LLM) -> list[str]:
    """The placement, and of every GPU what it is, what it holds and what it may hold."""
    if llm.parts.net_experts is not None:
        return host_rows.lines(llm) + _gpus(llm)
    if (split := layer_rows.split_of(llm)) is not None:
        return [layer_rows.line(split)]
    if len(llm.parts.devices) == 1:
        return []
    why = llm.parts.memory_plan.why
    lines = [f"placement {llm.parts.placement.name}" + (f": {why}" if why else "")]
    lines += _gpus(llm)
    if any(Tier.CPU in row for row in llm.parts.placement.experts):
        lines += llm.parts.memory_plan.offload.notes
    if llm.parts.expert_cache is not None:
        lines += report.at_start(llm.parts.expert_cache)
    return lines + _pinning(llm)


def _gpus(llm: LLM) -> list[str]:
    """Of every GPU what it is, what it holds and what it may hold."""
    held, devices = llm.parts.memory_plan.memory, llm.parts.devices
    gpus = [tier for tier in llm.parts.placement.tiers if tier in devices and not devices[tier].is_host]
    return [
        f"{one.value}: {devices[one].name}, {size(held[one].total)} of the {size(devices[one].free)} that may be taken"
        for one in gpus
    ]


def placement_rows(llm: LLM) -> list[TableRow]:
    """One row a group."""
    formats, main = llm.parts.checkpoint.formats, llm.parts.main
    sizes, tied = in_formats.of_model(llm.spec, formats), llm.spec.tied_head
    layers = ByFormat.sum(layer.common for layer in sizes.layers)
    split = layer_rows.split_of(llm)
    rows = list(_expert_rows(llm)) if split is None else []
    if split is None:
        rows.append(_row(llm, main, "rest of the layers", layers, "layers"))
    rows.append(_row(llm, main, "head = embedding" if tied else "head", sizes.head, "embed" if tied else "head"))
    if not tied:
        table = llm.parts.devices[llm.parts.memory_plan.table]
        rows.append(_row(llm, table, "embedding", sizes.embedding, "embed"))
    place, kernel = "RAM" if main.is_host else main.tier.value, _kernel(main)
    rows += _cache_rows(llm, place, kernel) if split is None else _layer_rows(llm, split, kernel)
    work = f"pass of {llm.config.prefill_chunk} tokens"
    rows.append(TableRow(work, place, "f32", f"<= {size(llm.parts.kv_budget.work_bytes)}", kernel))
    if len(llm.parts.devices) > 1:
        rows += _hand_off_rows(llm)
    is_on_disk = Tier.DISK in llm.parts.placement.tiers
    place = "RAM" if is_on_disk else place
    needed = llm.parts.memory_plan.memory[Tier.CPU if is_on_disk else llm.parts.placement.main].needed
    rows += [
        TableRow(what, place, formats.names["experts"], size(needed[what]), kernel)
        for what in (MTP, STREAM, READING, *((EXPERT_CACHE,) if is_on_disk else ()))
        if what in needed
    ]
    return rows


def _hand_off_rows(llm: LLM) -> list[TableRow]:
    """What was pinned of the experts in RAM, and the buffers between GPU and CPU."""
    rows: list[TableRow] = []
    if llm.parts.expert_arena is not None and llm.parts.expert_arena.report is not None:
        found = llm.parts.expert_arena.report
        rows.append(TableRow("pinned", "RAM", "-", f"{size(found.pinned)} of {size(found.total)}", "-"))
    if (buffers := llm.parts.host_buffers) is not None:
        pinned = "RAM pinned" if llm.parts.main.is_cuda else "RAM pageable"
        rows.append(TableRow("hand-off", pinned, "f32", size(buffers.nbytes), "-"))
    if llm.parts.graphed is not None and llm.parts.signal_choice is not None and llm.parts.graphed.nbytes:
        taken, way = size(llm.parts.graphed.nbytes), llm.parts.signal_choice.name
        rows.append(TableRow("mailbox", "RAM pinned", "f32", taken, way))
    return rows


def _pinning(llm: LLM) -> list[str]:
    """How experts in RAM lie, and how they are handed over, with the reasons."""
    lines = []
    if llm.parts.expert_arena is not None and llm.parts.expert_arena.report is not None:
        found = llm.parts.expert_arena.report
        if llm.parts.runtime is None and not llm.parts.main.is_cuda:  # nothing crosses a link, so it costs nothing
            lines.append(f"experts in RAM are not pinned: {found.reason}")
        else:
            lines.append(found.warning or f"pinned: all experts in RAM, {found.seconds:.1f} s of the driver's time")
    if llm.parts.signal_choice is not None:
        lines.append(f"hand-off: {llm.parts.signal_choice.name}, {llm.parts.signal_choice.reason}")
    return lines


def _expert_rows(llm: LLM) -> Iterator[TableRow]:
    """The routed experts, a row for every tier that has some."""
    banks = [layer.experts for layer in llm.parts.weights.layers if layer.experts is not None]
    if llm.parts.net_experts is not None:
        for what, where, read in host_rows.expert_rows(llm):
            device = llm.parts.main if where == llm.parts.main.tier.value else llm.parts.devices[Tier.CPU]
            yield TableRow(what, where, _formats(read), size(round(read.total)), _kernel(device))
        return
    for tier in llm.parts.placement.tiers:
        if len(llm.parts.devices) == 1 and tier is not Tier.DISK:
            mine, group = [bank for bank in banks if isinstance(bank, ExpertBank)], "experts"
            what = f"{len(mine)} x {llm.spec.moe.experts} experts"
        else:
            mine = [b.banks[tier.value] for b in banks if isinstance(b, TierBanks) and tier.value in b.banks]
            group, what = f"experts.{tier.value}", f"{sum(bank.experts for bank in mine)} experts"
        if mine:
            read = ByFormat.sum(ByFormat.of(bank.layout.bytes_by_format).times(bank.experts) for bank in mine)
            if tier is Tier.DISK:
                yield TableRow(what, "disk", _formats(read), size(round(read.total)), _kernel(llm.parts.main))
            else:
                yield _row(llm, llm.parts.devices[tier], what, read, group, is_experts=True)


def _row(llm: LLM, device: Device, what: str, held: ByFormat, group: str, is_experts: bool = False) -> TableRow:
    """A row about weights."""
    taken, rate = size(round(held.total)), _predicted(llm, device, held, is_experts)
    if not device.is_host:
        return TableRow(what, device.tier.value, _formats(held), taken, _kernel(device), rate=rate)
    ram = {0: "RAM, one node", 1: "RAM"}.get(llm.parts.nodes, f"RAM, {llm.parts.nodes} nodes")
    if len(llm.parts.devices) > 1 and is_experts:
        report = None if llm.parts.expert_arena is None else llm.parts.expert_arena.report
        share = "no" if report is None else str(report)
        ram += {"yes": " pinned", "no": " pageable"}.get(share, f", {share} pinned")
    return TableRow(what, ram, _formats(held), taken, _kernel(device), _huge(llm, group), rate)


def _formats(held: ByFormat) -> str:
    """The two formats of matrices with most bytes, and how many more; float32 of routers and norms goes without
    saying."""
    names = [name for name in held.names if name != "f32"] or [*held.names]
    return "/".join(names[:2]) + (f" +{len(names) - 2}" if len(names) > 2 else "")


def _predicted(llm: LLM, device: Device, held: ByFormat, is_experts: bool) -> str:
    """GB a second that a step of one token is predicted to read it with; "~" before what was not measured; "" where
    nothing is known."""
    model = llm.predictions.pass_model
    known = None if model is None else model.machine.memories.get(device.tier.channel)
    if known is None:
        return ""
    is_sure = all(known.measured(name, is_experts) and name not in known.estimates for name in held.names)
    return f"{'' if is_sure else '~'}{known.mean_rate(held, is_experts) / GB:.1f}"


def _kernel(device: Device) -> str:
    """Who computes on a device."""
    if isinstance(device.ops, CpuOps):
        return f"C++ {device.ops.context.isa}"
    return {"gpu": "Triton"}.get(device.backend, device.backend)


def _huge(llm: LLM, group: str) -> str:
    """Whether the large tensors of a group have huge pages under them."""
    if llm.parts.kernels != "cpu":
        return "-"
    last = {"layers": "qkv"}.get(group, group)
    found = [granted for name, granted in llm.parts.huge_pages.items() if f".{name}".endswith(f".{last}")]
    if not found:
        return f"< {HUGE_FROM >> 20} MB: no"
    return "yes" if all(found) else "refused"


def byte_table(ledger: Ledger) -> Table:
    """Bytes per token by group, and predicted against measured time, for prefill and decode, and passes of both."""
    phases = [s for s in map(ledger.summary, PHASES) if s.passes]
    table = new_table("bytes read per token")
    table.add_column("")
    for phase in phases:
        table.add_column(f"{phase.phase}, {phase.tokens} token{'s' * (phase.tokens != 1)}", justify="right")
    for label, cells in _byte_rows(phases):
        table.add_row(label, *cells)
    return table


def _byte_rows(phases: list[Summary]) -> list[tuple[str, list[str]]]:
    per = [p.bytes_per_token() for p in phases]
    rows = []
    for tier in sorted({t for one in per for t in one}, key=CHANNELS.index):
        there = {group for one in per for group in one.get(tier, {})}
        for group in (*GROUPS, "total"):
            if group in there:
                rows.append((f"{tier} {group}", [size(one.get(tier, {}).get(group, 0)) for one in per]))
    rows.append(("predicted ms", [_ms(p.predicted_s, p.tokens) for p in phases]))
    rows.append(("measured ms", [_ms(p.measured_s, p.tokens) for p in phases]))
    rows.append(("residual ms", ["-" if p.residual_ms is None else f"{p.residual_ms:+.3f}" for p in phases]))
    if len({tier for one in per for tier in one}) > 1:
        rows += _time_rows(phases)
    rows.append(("tokens/s", [f"{p.tok_s:.1f}" for p in phases]))
    return rows + _draft_rows(phases)


def _draft_rows(phases: list[Summary]) -> list[tuple[str, list[str]]]:
    """What drafts were: tokens guessed, those that came true, bytes a token with and without; what a guess was."""
    if not any(p.drafted for p in phases):
        return []
    each = [sum(per["total"] for per in p.bytes_per_token().values()) for p in phases]
    rows = {
        "drafted": [str(p.drafted) if p.drafted else "" for p in phases],
        "accepted": [f"{p.accepted} ({p.accepted / p.drafted:.0%})" if p.drafted else "" for p in phases],
        "bytes with drafts": [size(n) if p.drafted else "" for n, p in zip(each, phases, strict=True)],
        "bytes without": [size(p.bytes_without_drafts or 0) if p.drafted and p.plain_tokens else "" for p in phases],
        "guessed among": [f"{p.guesses.mean_rows} tokens" if p.guesses.passes else "" for p in phases],
        "bytes a guess": [size(p.guesses.mean_bytes) if p.guesses.nbytes else "" for p in phases],
    }
    return [(name, [one or "-" for one in cells]) for name, cells in rows.items() if any(cells) or "guess" not in name]


def _time_rows(phases: list[Summary]) -> list[tuple[str, list[str]]]:
    """Milliseconds per token by tier, with the prediction, what the GPU waited for, and what ran side by side: a row
    for each that is known."""
    busy = [{} if p.times is None else p.times.busy for p in phases]
    waits = [{} if p.times is None else p.times.waits for p in phases]
    terms = [{} if p.predicted is None else p.predicted.terms for p in phases]
    rows = []
    for tier in CHANNELS:
        if any(tier in one for one in busy):
            parts = zip(busy, terms, phases, strict=True)
            rows.append((f"{tier} ms", [_beside(b.get(tier), t.get(tier), p.tokens) for b, t, p in parts]))
    for tier in CHANNELS:
        if any(tier in one for one in waits):
            cells = [_ms(one.get(tier), p.tokens) for one, p in zip(waits, phases, strict=True)]
            rows.append((f"GPU waits for {tier} ms", cells))
    saved = [None if p.times is None else p.times.overlap_s for p in phases]
    if any(one is not None for one in saved):
        hoped = [None if p.predicted is None else p.predicted.overlap_s for p in phases]
        cells = [_beside(s, h, p.tokens) for s, h, p in zip(saved, hoped, phases, strict=True)]
        rows.append(("side by side ms", cells))
    return rows


def _beside(seconds: float | None, predicted: float | None, tokens: int) -> str:
    """Measured, and predicted if there is a prediction."""
    measured = _ms(seconds, tokens)
    return measured if predicted is None else f"{measured} ({_ms(predicted, tokens)})"


def _ms(seconds: float | None, tokens: int) -> str:
    return "-" if seconds is None else f"{seconds * 1e3 / max(1, tokens):.3f}"


def remark(llm: LLM) -> str | None:
    """One line where the bandwidth model cannot be right, with the reason."""
    if len(llm.parts.devices) > 1:
        return _gpu_remark(llm)
    if llm.parts.kernels != "cpu":
        return "no prediction: the reference kernels are written to be read, memory does not bound them"
    if llm.predictions.profile is None:
        return "no prediction: this machine was not measured yet (headrace measure)"
    if (unmeasured := host_rows.remark(llm)) is not None:
        return unmeasured
    if llm.predictions.in_caches:
        return (
            f"the whole model is {size(llm.parts.weights.nbytes)}: it stays in the CPU's caches, so that DRAM "
            "bandwidth does not bound it"
        )
    return llm.predictions.estimates or None


def _gpu_remark(llm: LLM) -> str:
    """What a prediction beside a GPU counts, or why there is none."""
    model = llm.predictions.pass_model
    if model is None:
        reason = (
            llm.predictions.unpredicted or "the reference kernels are written to be read, memory does not bound them"
        )
        return f"no prediction: {reason}; the bytes are exact"
    handed = ", nor is the hand-off of a layer, which was not measured" if model.handoff_s is None else ""
    sources = [*model.machine.sources, *filter(None, [llm.predictions.estimates])]
    return f"predicted from: {'; '.join(sources)}. Launches of kernels are not counted{handed}"


def run_json(llm: LLM, results: Sequence[Completion]) -> dict[str, Any]:
    """The object that --json prints: of one completion, or with a list of them under "completions"."""
    prefill, decode = llm.ledger.summary("prefill"), llm.ledger.summary("decode")
    tiers = tier_times(decode) if len(decode.bytes) > 1 else None
    shared = {
        "prefill_tok_s": round(prefill.tok_s, 3),
        "decode_tok_s": round(decode.tok_s, 3),
        "bytes_per_token": decode.bytes_per_token(),
        "prefill_bytes_per_token": prefill.bytes_per_token(),
        "predicted_tok_s": None if decode.predicted_tok_s is None else round(decode.predicted_tok_s, 3),
        "residual_ms": None if decode.residual_ms is None else round(decode.residual_ms, 4),
        "tiers": None if tiers is None else asdict(tiers),
        **({} if not decode.drafted else {"speculation": _drafts_json(decode)}),
        **({} if llm.parts.expert_cache is None else {"expert_cache": report.as_json(llm.parts.expert_cache)}),
    }
    each = [completion_json(r) for r in results]
    return {**each[0], **shared} if len(each) == 1 else {"completions": each, **shared}


def _drafts_json(decode: Summary) -> dict[str, Any]:
    return {
        "drafted": decode.drafted,
        "accepted": decode.accepted,
        "tokens_per_pass": round(decode.tokens / decode.passes, 3),
        "bytes_per_token_without": decode.bytes_without_drafts,
        **(decode.guesses.as_json() if decode.guesses.passes else {}),
    }


def completion_json(result: Completion) -> dict[str, Any]:
    return {
        "text": result.text,
        "token_ids": result.token_ids,
        "finish_reason": result.finish_reason,
        "prompt_tokens": result.prompt_tokens,
        "reused_tokens": result.reused_tokens,
    }
