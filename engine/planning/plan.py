"""One plan: a model on a machine, every placement that is worth comparing, the best of them, and what would change it.

`make` is pure: a source, a machine, what is to be run. `terminal/plan/plan_report.py` prints a plan, `as_json` gives
it to scripts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ...errors import ConfigError, MemoryNeeded, OptionError
from ...kernels.formats import KVFormat
from ...loaders.architecture.architecture import Architecture, Cache
from ...loaders.families import quantisation
from ...loaders.families.config_reader import ConfigReader
from ...loaders.families.quantisation import Quantisation
from ...loaders.model_source import Source
from ...loaders.quants import of_text
from ...loaders.quants.encodings import ENCODINGS
from ...loaders.quants.quant import Quant
from ..bandwidth_model.flop_counts import STATE_WIDTH
from ..bandwidth_model.hardware import ENDS, Device, End, Hardware, Range
from ..config import EngineConfig
from ..ledger.windows import PAGE, Window, pages_for
from ..placement.placement import parse
from ..placement.tier_memory import GPU_RESERVE
from . import layouts as placing
from . import of_headers as headers
from . import storage as storing
from .articles import RuleOfThumb, rule_of_thumb
from .experts_per_token import with_experts
from .hosts import comparison, machines
from .hosts.comparison import Hosted
from .layouts import Demand, Placement
from .options import Options, check_kv_rows
from .own_layer import drafting, layer
from .own_layer.drafting import OwnDrafts
from .own_layer.layer import OwnLayer
from .speed import CHUNK, Distinct, Drafted, Model, Rated, Workload, simple_seconds
from .storage import Storage

GB = 1e9
SMALLER = ("q8_0", "q6_k", "q4_k", "q4_0", "q3_k", "q2_k", "iq2_xxs")  # tried when a model does not fit, largest first


@dataclass(frozen=True, kw_only=True)
class Changed:
    """One row of the what-if table."""

    what: str
    placement: str
    decode_tok_s: float | None
    prefill_tok_s: float | None
    bottleneck: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that `headrace plan` says. `best` None: there is no machine to plan for. drafts: gains of guesses that
    cost nothing; own_drafts: of the model's own layer, where it is used. hosted: of --hosts."""

    source: Source
    options: Options
    storage: Storage
    quant: Quant
    demand: Demand
    hardware: Hardware | None
    rated: tuple[Rated, ...]
    best: Rated | None
    rule: RuleOfThumb | None
    simple_tok_s: float | None
    bytes_per_token: dict[str, dict[str, int]]
    what_if: tuple[Changed, ...]
    drafts: tuple[Drafted, ...] = ()
    own_drafts: OwnDrafts | None = None
    distinct: Distinct | None = None
    hosted: Hosted | None = None

    @property
    def model(self) -> Architecture:
        return self.source.described.architecture

    @property
    def kept(self) -> int:
        """Bytes of the caches of one sequence, without states."""
        options, state = self.options, STATE_WIDTH * self.model.state_elements
        return sum(cache_bytes(self.model, options.context, 1, options.kv)) - state

    @property
    def fits(self) -> bool | None:
        return None if self.best is None else self.best.fits

    @property
    def decode_tok_s(self) -> Range | None:
        """With --model simple the article's sum, which has no range."""
        if self.options.model == "simple":
            return None if self.simple_tok_s is None else Range(*(self.simple_tok_s,) * 3)
        return None if self.best is None else self.best.decode_tok_s(self.options.batch)


def make(source: Source, hardware: Hardware | None, options: Options, distinct: Distinct | None = None) -> Plan:
    """Plans a model. Raises OptionError for what cannot be, as a context that the model does not have."""
    source = with_experts(source, options.experts_per_token)
    model = source.described.architecture
    if options.context > model.context:
        raise OptionError(f"--context is {options.context}, {source.name} allows at most {model.context} tokens")
    has_indexer = any(cache.chosen is not None for cache in model.caches)
    rows = (row for cache in model.caches for row in cache.rows or (cache.width,))
    check_kv_rows(options.kv, rows, has_indexer=has_indexer)
    prompt = min(options.prompt, options.context)
    work = Workload(context=options.context, batch=options.batch, prompt=prompt, kv=options.kv)
    storage, quant = sizes(source, options.quant)
    own = _own_layer(source, options, storage, quant)
    demand = _with_own(needs(model, work, hardware), own, work, options)
    if hardware is None:
        bytes_per_token = _abstract_bytes(model, storage, work)
        return Plan(
            source=source, options=options, storage=storage, quant=quant, demand=demand, hardware=None, rated=(),
            best=None, rule=None, simple_tok_s=None, bytes_per_token=bytes_per_token, what_if=(),
        )  # fmt: skip
    engine = Model(model, storage, hardware, distinct)
    hosted = _hosted(engine, work, options)
    rated = _rated(engine, demand, work, options.placement, hosted)
    best = best_of(rated, work)
    simple, drafts = simple_seconds(model, storage, hardware), best.decode and not _is_hosted(best, hosted)
    return Plan(
        source=source,
        options=options,
        storage=storage,
        quant=quant,
        demand=demand,
        hardware=hardware,
        rated=tuple(rated),
        best=best,
        rule=_rule(storage, hardware),
        simple_tok_s=1 / simple if simple else None,
        bytes_per_token=_bytes_per_token(engine, best, work, hosted),
        what_if=tuple(
            _what_if(source, hardware, work, storage, quant, distinct)
            if hosted is None
            else _what_if_hosted(engine, hosted, work)
        ),
        drafts=engine.with_drafts(best.placement, work) if drafts and options.speculate != "off" else (),
        own_drafts=drafting.of(own, demand, engine, best.placement, work, options.draft_vocabulary)
        if own and drafts
        else None,
        distinct=distinct,
        hosted=hosted,
    )


def _own_layer(source: Source, options: Options, storage: Storage, quant: Quant) -> OwnLayer | None:
    """The model's own layer that drafts, where it would be loaded. Raises OptionError where it is asked for and not
    there."""
    if options.speculate not in ("auto", "mtp") or options.hosts is not None:
        return None
    must, is_native = options.speculate == "mtp", options.quant.strip().lower() == "native"
    own = layer.find(source, quant, is_native, _quantised(source), must=must, file=options.mtp)
    return own if own is None or must or drafting.is_worth_loading(storage, own) else None


def _with_own(demand: Demand, own: OwnLayer | None, work: Workload, options: Options) -> Demand:
    cache = 0 if own is None else sum(cache_bytes(own.held, work.context, work.batch, work.kv))
    return drafting.with_own(demand, own, cache, work.batch, beside_gpu=options.speculate == "mtp")


def _hosted(engine: Model, work: Workload, options: Options) -> Hosted | None:
    """With --hosts. Raises OptionError."""
    if options.hosts is None:
        if parse(options.placement).kind == "hosts":
            raise OptionError(f"--placement hosts needs --hosts, such as --hosts {machines.EXAMPLE}")
        return None
    comparison.check(engine.hardware, engine.model)
    hops, fills = machines.parse(options.hosts), parse(options.placement).kind != "hosts"
    found = comparison.compare(engine, hops, options.wire, _needs_of(engine.model, work), work, fills_vram=fills)
    comparison.check_rest(found)
    return found


def _needs_of(model: Architecture, work: Workload) -> comparison.Needs:
    """Where no layer of the model's own is used, as beside hosts."""
    return lambda hardware: needs(model, work, hardware)


def _is_hosted(rated: Rated, hosted: Hosted | None) -> bool:
    return hosted is not None and any(rated is one for one in hosted.rated)


def _bytes_per_token(engine: Model, best: Rated, work: Workload, hosted: Hosted | None) -> dict[str, dict[str, int]]:
    if hosted is not None and _is_hosted(best, hosted):
        return hosted.bytes_per_token(best, engine, work)
    return engine.bytes_per_token(best.placement, work)


def _what_if_hosted(engine: Model, hosted: Hosted, work: Workload) -> list[Changed]:
    """The same hosts with one thing changed."""
    rows, needed = list[Changed](), _needs_of(engine.model, work)
    for what, hops, wire in comparison.variants(hosted):
        best = best_of([*replace(hosted, hops=hops, wire=wire).anew(engine, needed, work).rated], work)
        rows.append(_changed(what, best, work))
    return rows


def sizes(source: Source, text: str) -> tuple[Storage, Quant]:
    """The bytes of a model: those of its headers as it is, computed ones in another format."""
    model = source.described.architecture
    is_native = text.strip().lower() == "native"
    try:
        native = source.native()
    except ConfigError:
        if is_native and source.tensors is None:
            raise
        plain = ENCODINGS["bf16"]
        native = Quant(experts=plain, dense=plain, head=plain, embed=plain)
    quant = of_text.parse(text, native)
    if is_native and source.tensors is not None:
        return headers.of_headers(model, source.tensors, source.name, _quantised(source)), quant
    return storing.computed(model, quant), quant


def _quantised(source: Source) -> Quantisation | None:
    """How the weights of safetensors are quantised; None: they are not, or in a way that cannot be run."""
    try:
        return None if source.gguf is not None else quantisation.read(ConfigReader(dict(source.config), source.name))
    except ConfigError:
        return None


def needs(model: Architecture, work: Workload, hardware: Hardware | None) -> Demand:
    """Caches and states by layer, and the activations of a pass (of a chunk of the prompt): hidden states, the widest
    rows twice, and logits, in float32."""
    cache = cache_bytes(model, work.context, work.batch, work.kv)
    tokens = min(work.prompt, CHUNK["gpu" if hardware is not None and hardware.gpus else "cpu"])
    widest = max((part.rows for layer in model.layers for part in layer.parts), default=0)
    return Demand(cache=cache, activations=4 * (tokens * (4 * model.hidden + 2 * widest) + work.batch * model.vocab))


def cache_bytes(model: Architecture, context: int, batch: int, kv: KVFormat) -> tuple[int, ...]:
    """Caches and states of so many sequences, by layer. A layer over a window has the pages that the engine gives it:
    those of the window, of a chunk of a prompt, and what is kept behind the window."""

    def kept(cache: Cache) -> int:
        if cache.every > 1:  # a page has room for those that end there
            return batch * pages_for(context) * max(1, PAGE // cache.every) * cache.width
        if cache.window is None:
            return batch * cache.stored(context)
        pages = Window(cache.window, cache.in_chunks).pool(context, batch, max(EngineConfig.prefill_chunk, batch))
        return min(batch * context, pages * PAGE) * cache.width

    mixers = [layer.mixer for layer in model.layers]
    return tuple(kv.bytes(sum(map(kept, one.caches))) + batch * STATE_WIDTH * one.state if one else 0 for one in mixers)


def _rated(engine: Model, demand: Demand, work: Workload, wanted: str, hosted: Hosted | None) -> list[Rated]:
    kind, on_hosts = parse(wanted).kind, [] if hosted is None else [*hosted.rated]
    if kind == "hosts":
        return on_hosts
    if kind == "auto":
        found = placing.choices(engine.storage, engine.hardware, demand)
    else:
        found = [placing.named(wanted, engine.storage, engine.hardware, demand)]
    return [*on_hosts, *(rate(engine, demand, work, placement) for placement in found)]


def rate(engine: Model, demand: Demand, work: Workload, placement: Placement, ends: tuple[End, ...] = ENDS) -> Rated:
    """Memory and times of one placement, at those ends of the machine's ranges."""
    memory = placing.memory(placement, engine.storage, engine.hardware, demand)
    if not all(tier.fits for tier in memory.values()):
        return Rated(placement=placement, memory=memory, decode=None, prefill=None)
    step, prompt = engine.decode(placement, work), engine.prefill(placement, work)
    decode = {end: engine.seconds(step, end) for end in ends}
    prefill = None if prompt is None else {end: engine.seconds(prompt, end) for end in ends}
    return Rated(placement=placement, memory=memory, decode=decode, prefill=prefill)


def best_of(rated: list[Rated], work: Workload) -> Rated:
    """The fastest placement in decode that fits; if none does, the one that misses least."""
    fitting = [r for r in rated if r.decode is not None]
    if fitting:
        return min(fitting, key=lambda r: r.decode["mid"].seconds if r.decode else 0.0)
    return min(rated, key=lambda r: sum(tier.missing for tier in r.memory.values()))


def _rule(storage: Storage, hardware: Hardware) -> RuleOfThumb | None:
    """Layers on the first GPU by file size alone, as people work it out by hand."""
    gpu = hardware.gpus[0] if hardware.gpus else None
    if gpu is None or gpu.memory is None or hardware.cpu is None:
        return None
    return rule_of_thumb(gpu.memory, GPU_RESERVE, storage.total, len(storage.layers))


def _abstract_bytes(model: Architecture, storage: Storage, work: Workload) -> dict[str, dict[str, int]]:
    """Bytes of a token where no machine says on which tier they lie: as on a machine with RAM alone."""
    everywhere = (placing.CPU,) * len(storage.layers)
    everything = Placement(name="cpu", common=everywhere, experts=everywhere, outside=placing.CPU)
    return Model(model, storage, Hardware(name="none")).bytes_per_token(everything, work)


def _what_if(
    source: Source, hardware: Hardware, work: Workload, storage: Storage, quant: Quant, distinct: Distinct | None
) -> list[Changed]:
    """The same run with one thing changed."""
    model = source.described.architecture

    def changed(what: str, machine: Hardware, bytes_of: Storage) -> Changed:
        engine = Model(model, bytes_of, machine, distinct)
        demand = needs(model, work, machine)
        choices = placing.choices(bytes_of, machine, demand)
        best = best_of([rate(engine, demand, work, choice, ("mid",)) for choice in choices], work)
        return _changed(what, best, work)

    rows = [changed(what, machine, storage) for what, machine in variants(hardware)]
    for name in ("q8_0", "q4_0"):
        other = of_text.parse(name, quant)
        if other.experts != quant.experts or (storage.from_headers and storage.expert_format != name):
            rows.append(changed(f"--quant {name}", hardware, storing.computed(model, other)))
    return rows


def _changed(what: str, best: Rated, work: Workload) -> Changed:
    """A row for the best placement of what was changed."""
    return Changed(
        what=what,
        placement=best.placement.name if best.fits else "does not fit",
        decode_tok_s=work.batch / best.decode["mid"].seconds if best.decode else None,
        prefill_tok_s=work.prompt / best.prefill["mid"].seconds if best.prefill else None,
        bottleneck=best.decode["mid"].bottleneck if best.decode else "",
    )


def variants(hardware: Hardware) -> list[tuple[str, Hardware]]:
    """Machines with one thing changed: a second GPU, faster RAM, more channels, more VRAM, no GPU."""
    found: list[tuple[str, Hardware]] = []
    gpus, cpu = hardware.gpus, hardware.cpu
    if gpus and gpus[0].kind == "gpu":
        found.append(("one more GPU of the same kind", replace(hardware, gpus=(*gpus, gpus[0]))))
        if gpus[0].memory is not None:
            bigger = replace(gpus[0], memory=2 * gpus[0].memory)
            found.append(("twice the VRAM", replace(hardware, gpus=(bigger, *gpus[1:]))))
    if cpu is not None:
        for factor, what in ((1.25, "RAM 25 % faster"), (2.0, "twice the RAM channels")):
            found.append((what, replace(hardware, cpu=_faster(cpu, factor))))
        if gpus:
            found.append(("no GPU", replace(hardware, gpus=())))
    return found


def _faster(cpu: Device, factor: float) -> Device:
    return replace(
        cpu,
        nominal=cpu.nominal * factor,
        bandwidth=cpu.bandwidth.times(factor),
        by_format={name: rate * factor for name, rate in cpu.by_format.items()},
        dense_by_format={name: rate * factor for name, rate in cpu.dense_by_format.items()},
    )


def refuse_if_too_large(plan: Plan) -> None:
    """Raises MemoryNeeded if no placement fits: by how much, and in which formats the model would."""
    if plan.best is None or plan.best.fits or plan.hardware is None:
        return
    short = {name: tier for name, tier in plan.best.memory.items() if not tier.fits}
    where = ", ".join(
        f"{name.upper()} {tier.total / GB:.1f} GB of {(tier.available or 0) / GB:.1f} GB"
        for name, tier in short.items()
    )
    missing = sum(tier.missing for tier in short.values()) / GB
    fitting = _fitting(plan)
    disk = "no format listed here fits: add memory, or name a disk (--hardware 'this, nvme-gen4')"
    if plan.hardware.cpu is None and plan.hardware.gpus[0].kind == "gpu":
        disk = f"no RAM is named: add it, as in --hardware '{plan.hardware.name}, ddr5-6000-2ch 64gb'"
    remedy = f"it would fit with {fitting}" if fitting else disk
    raise MemoryNeeded(
        f"{plan.source.name} does not fit {plan.hardware.name} as {plan.best.placement.name}: {where}, "
        f"{missing:.1f} GB too much; {remedy}"
    )


def _fitting(plan: Plan) -> str:
    """The largest formats in which the model fits, as options."""
    assert plan.hardware is not None
    found = []
    for name in SMALLER:
        storage = storing.computed(plan.model, of_text.parse(name, plan.quant))
        if storage.total < plan.storage.total and any(_would_fit(plan, storage)):
            found.append(f"--quant {name} ({storage.total / GB:.1f} GB)")
    return " or ".join(found[:2])


def _would_fit(plan: Plan, storage: Storage) -> Iterator[bool]:
    """Of each placement that may be."""
    assert plan.hardware is not None
    if plan.hosted is not None:
        engine, options = Model(plan.model, storage, plan.hardware, plan.distinct), plan.options
        work = Workload(context=options.context, batch=options.batch, prompt=options.prompt, kv=options.kv)
        found = plan.hosted.anew(engine, _needs_of(plan.model, work), work)
        yield from (rated.fits for rated in found.rated)
    for placement in placing.choices(storage, plan.hardware, plan.demand):
        yield all(t.fits for t in placing.memory(placement, storage, plan.hardware, plan.demand).values())
