"""The command line: parses, builds a config, calls. Nothing is decided here.

headrace generate MODEL "prompt"      complete a prompt (several prompts: one batch; -i: a chat)
headrace convert MODEL DIRECTORY      save a model packed, so that it loads without quantising
headrace perplexity MODEL FILE        how well a model predicts a text
headrace measure                      how fast this machine's kernels read memory
headrace plan MODEL                   what fits where and how fast, before a download
headrace bench MODEL                  how fast, against what the bytes allow; --random-weights: without a download
headrace doctor [MODEL]               what slows this machine down, what that costs, what to do first
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import HeadraceError, OptionError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Runs mixture-of-experts language models on one machine, and accounts for every byte.",
)

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="directory of a checkpoint, a hub id, or 'demo'", show_default=False)
]
ExpertFormat = Annotated[str, typer.Option(help="format of the routed experts: native, bf16, q8_0, q4_0, f32, f16")]
DenseFormat = Annotated[str, typer.Option(help="format of attention, shared experts and head, likewise")]
Dtype = Annotated[str, typer.Option(help="what 'native' means: auto (as stored), float32 or bfloat16")]
Kernels = Annotated[str, typer.Option(help="auto (C++), cpu or reference (plain torch)")]
Activations = Annotated[str, typer.Option(help="how activations meet quantised weights: int8, or bf16 (exact, slower)")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; default one per core")]
Device = Annotated[
    str, typer.Option(help="auto, cpu, cuda, cuda:N, or simulated (RAM in the part of a GPU): for all but experts")
]
CpuMoe = Annotated[bool, typer.Option("--cpu-moe", help="beside a GPU: all routed experts in RAM")]
NCpuMoe = Annotated[
    str | None, typer.Option(help="beside a GPU: those of the first N layers in RAM; auto: of as few as fit")
]
Placement = Annotated[
    str | None, typer.Option(help="cpu, gpu, auto, cpu-moe, n-cpu-moe=N, or a file NAME.json (docs/placement.md)")
]
TensorSplit = Annotated[
    str | None, typer.Option(metavar="A,B", help="deal out layers whose experts are in VRAM over two GPUs; 0,1: second")
]
VramLimit = Annotated[float | None, typer.Option(help="most GB to take of each GPU; default what is free, less 1")]
StreamFrom = Annotated[
    str, typer.Option(help="tokens of a pass from which on experts in RAM are copied to the GPU: N, never or auto")
]
Split = Annotated[str, typer.Option(help="with fewer tokens: so many of a layer's experts in RAM, N or auto")]
PinnedLimit = Annotated[
    str | None,
    typer.Option(metavar="GB|SHARE%", help="most of the experts in RAM to pin for the GPU; default 80%; 0: none"),
]
HandOff = Annotated[str, typer.Option(help="GPU to CPU in decode: auto, eager, or by graphs with memop or hostfunc")]
MaxContext = Annotated[int | None, typer.Option(help="longest prompt plus completion, in tokens; default what fits")]
PrefillChunk = Annotated[int, typer.Option(help="most prompt tokens in one forward pass")]
Revision = Annotated[str | None, typer.Option(help="branch, tag or commit of a hub model")]
Offline = Annotated[bool, typer.Option("--offline", help="use only what was downloaded before")]
CacheDir = Annotated[Path | None, typer.Option(help="where hub downloads are kept")]
IgnoreKeys = Annotated[str, typer.Option(help="config keys to ignore, separated by commas")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object instead of text and tables")]


def _keys(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(key for key in text.split(",") if key)


def _load(model: str, quiet: bool, options: dict[str, Any]) -> Any:
    """The loaded model, with a progress bar and the start-up table unless `quiet`."""
    from .engine.llm import LLM
    from .engine.terminal import generate, generate_report

    options["ignore_config_keys"] = _keys(options.pop("ignore_config_keys", ""))
    if quiet:
        return LLM(model, **options)
    with generate.load_progress() as progress:
        llm = LLM(model, progress=progress, **options)
    generate.notes.print(generate_report.startup_table(llm))
    return llm


@app.command()
def generate(
    model: Model,
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="[PROMPTS]...", help="text to complete", show_default=False)
    ] = None,
    interactive: Annotated[bool, typer.Option("-i", "--interactive", help="chat, keeping the history")] = False,
    chat: Annotated[bool, typer.Option("--chat", help="put the prompt into the model's chat template")] = False,
    system: Annotated[str | None, typer.Option(help="system message of a chat")] = None,
    max_new_tokens: Annotated[int, typer.Option("-n", "--max-new-tokens", help="most tokens to write")] = 256,
    temperature: Annotated[float, typer.Option(help="divides the logits; 0: always the likeliest token")] = 0.0,
    top_k: Annotated[int, typer.Option(help="draw from the k likeliest tokens; 0: off")] = 0,
    top_p: Annotated[float, typer.Option(help="draw from the likeliest that reach this sum; 1: off")] = 1.0,
    min_p: Annotated[float, typer.Option(help="drop tokens below this share of the likeliest; 0: off")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="divides the logits of tokens seen; 1: off")] = 1.0,
    presence_penalty: Annotated[float, typer.Option(help="taken off the logits of tokens written; 0: off")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="default: a new one each time")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="text that ends the completion; may be repeated")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="go on past end tokens")] = False,
    ledger: Annotated[Path | None, typer.Option(help="write one JSON line per forward pass to this file")] = None,
    as_json: Json = False,
    expert_format: ExpertFormat = "native",
    dense_format: DenseFormat = "native",
    dtype: Dtype = "auto",
    kernels: Kernels = "auto",
    cpu_activations: Activations = "int8",
    threads: Threads = None,
    device: Device = "auto",
    cpu_moe: CpuMoe = False,
    n_cpu_moe: NCpuMoe = None,
    placement: Placement = None,
    tensor_split: TensorSplit = None,
    vram_limit: VramLimit = None,
    stream_from: StreamFrom = "auto",
    split: Split = "auto",
    pinned_limit: PinnedLimit = None,
    handoff: HandOff = "auto",
    max_context: MaxContext = None,
    prefill_chunk: PrefillChunk = 512,
    revision: Revision = None,
    offline: Offline = False,
    cache_dir: CacheDir = None,
    ignore_config_keys: IgnoreKeys = "",
) -> None:
    """Complete PROMPTS with MODEL, stream the text, then show the bytes that every token read."""
    from .engine.config import SamplingParams
    from .engine.ledger.ledger import Ledger
    from .engine.terminal import generate

    if not prompts and not interactive:
        raise OptionError('no prompt: headrace generate MODEL "text", or -i for a chat')
    if interactive and (prompts or as_json):
        raise OptionError(
            "-i asks for prompts and prints text as it comes: leave out " + ("PROMPTS" if prompts else "--json")
        )
    if system and not (chat or interactive):
        raise OptionError("--system is part of a chat: add --chat, or -i")
    params = SamplingParams(
        max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=repetition_penalty, presence_penalty=presence_penalty, seed=seed, stop=tuple(stop or ()),
        ignore_eos=ignore_eos,
    )  # fmt: skip
    if ledger is not None:
        Ledger.check_path(ledger)
    options = dict(
        expert_format=expert_format, dense_format=dense_format, dtype=dtype, kernels=kernels,
        cpu_activations=cpu_activations, threads=threads, device=device, cpu_moe=cpu_moe, n_cpu_moe=n_cpu_moe,
        placement=placement, tensor_split=tensor_split, vram_limit=vram_limit, stream_from=stream_from, split=split,
        pinned_limit=pinned_limit, handoff=handoff, max_context=max_context, prefill_chunk=prefill_chunk,
        revision=revision, offline=offline, cache_dir=cache_dir, ignore_config_keys=ignore_config_keys,
    )  # fmt: skip
    llm = _load(model, as_json, options)
    asked = [llm.ask(text, system) if chat else llm.encode(text) for text in prompts or []]
    generate.ensure_profile(llm)
    generate.watch(llm)
    if ledger is not None:
        llm.ledger.open(ledger)
        llm.time_tiers()
    if interactive:
        raise typer.Exit(generate.chat(llm, params, system))
    echo = "" if chat else (prompts or [""])[0]
    raise typer.Exit(generate.complete(llm, asked, params, as_json, echo))


@app.command()
def convert(
    model: Model,
    directory: Annotated[
        Path, typer.Argument(metavar="DIRECTORY", help="where to write the packed model", show_default=False)
    ],
    expert_format: ExpertFormat = "q4_0",
    dense_format: DenseFormat = "native",
    dtype: Dtype = "auto",
    revision: Revision = None,
    offline: Offline = False,
    cache_dir: CacheDir = None,
    ignore_config_keys: IgnoreKeys = "",
) -> None:
    """Save MODEL in packed formats as a directory that loads without quantising again."""
    from .engine.terminal import generate
    from .loaders.weights import converted

    converted.check_destination(directory)
    options = dict(
        expert_format=expert_format, dense_format=dense_format, dtype=dtype, max_context=1, revision=revision,
        offline=offline, cache_dir=cache_dir, ignore_config_keys=ignore_config_keys,
    )  # fmt: skip
    llm = _load(model, False, options)
    converted.save(llm.parts.checkpoint.directory, directory, llm.parts.weights, llm.parts.checkpoint.formats)
    generate.say(f"wrote {directory}; use it as: headrace generate {directory} ...")


@app.command()
def perplexity(
    model: Model,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="UTF-8 text", show_default=False)],
    window: Annotated[int, typer.Option(help="tokens in a window; windows do not overlap")] = 512,
    as_json: Json = False,
    expert_format: ExpertFormat = "native",
    dense_format: DenseFormat = "native",
    dtype: Dtype = "auto",
    kernels: Kernels = "auto",
    cpu_activations: Activations = "int8",
    threads: Threads = None,
    device: Device = "auto",
    cpu_moe: CpuMoe = False,
    n_cpu_moe: NCpuMoe = None,
    placement: Placement = None,
    tensor_split: TensorSplit = None,
    vram_limit: VramLimit = None,
    stream_from: StreamFrom = "auto",
    split: Split = "auto",
    pinned_limit: PinnedLimit = None,
    handoff: HandOff = "auto",
    revision: Revision = None,
    offline: Offline = False,
    cache_dir: CacheDir = None,
    ignore_config_keys: IgnoreKeys = "",
) -> None:
    """Measure how well MODEL predicts the text in FILE."""
    from .engine.bench.perplexity import perplexity as measure

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise OptionError(f"cannot read {file}: {reason}; give a UTF-8 text file") from error
    options = dict(
        expert_format=expert_format, dense_format=dense_format, dtype=dtype, kernels=kernels,
        cpu_activations=cpu_activations, threads=threads, device=device, cpu_moe=cpu_moe, n_cpu_moe=n_cpu_moe,
        placement=placement, tensor_split=tensor_split, vram_limit=vram_limit, stream_from=stream_from, split=split,
        pinned_limit=pinned_limit, handoff=handoff, revision=revision, offline=offline, cache_dir=cache_dir,
        ignore_config_keys=ignore_config_keys,
    )  # fmt: skip
    llm = _load(model, as_json, options)
    found = measure(llm, llm.encode(text), window)
    print(json.dumps(asdict(found)) if as_json else f"perplexity {found.value:.4f} over {found.tokens} tokens")


@app.command()
def measure(
    threads: Threads = None,
    rounds: Annotated[int, typer.Option(min=1, help="how often each kernel is timed; the median counts")] = 25,
    quick: Annotated[bool, typer.Option("--quick", help="under 20 seconds: fewer rounds over less memory")] = False,
    as_json: Json = False,
) -> None:
    """Measure how fast this machine's kernels read memory and what a step costs besides; saved for predictions."""
    from .engine.bench import calibrate
    from .engine.devices import host
    from .engine.measure import other_load, tile_thresholds
    from .engine.terminal import generate, generate_report

    host.set_threads(threads)
    profile = calibrate.measure(rounds, quick)
    if as_json:
        print(json.dumps(asdict(profile)))
    else:
        generate.notes.print(generate_report.profile_table(profile))
        for line in generate_report.profile_lines(profile):
            generate.say(line)
    if other_load.are_in_the_way(profile.busy):
        generate.say(
            f"other processes took {profile.busy:.1f} cores meanwhile, so that these rates are too low: measure again "
            "when nothing else runs"
        )
    generate.save_profile(profile)
    if found := tile_thresholds.refresh():
        least = ", ".join(f"{count} ({name})" for name, count in found.items())
        generate.say(f"matrix tiles take over from so many tokens on: {least}")


@app.command()
def bench(
    model: Model,
    prompt: Annotated[str, typer.Option("-p", "--prompt", help="prompt lengths, separated by commas; 0: none")] = "512",
    new: Annotated[str, typer.Option("-n", "--new", help="tokens to decode, likewise")] = "128",
    batch: Annotated[str, typer.Option("-b", "--batch", help="sequences that decode together, likewise")] = "1",
    depth: Annotated[str, typer.Option("-d", "--depth", help="tokens in the cache before decoding, likewise")] = "0",
    rounds: Annotated[int, typer.Option("-r", "--rounds", help="how often each test is timed; the median counts")] = 5,
    placement: Annotated[
        str, typer.Option(help="where the model lies, likewise: cpu, gpu, auto, cpu-moe, n-cpu-moe=N, NAME.json")
    ] = "cpu",
    device: Device = "auto",
    tensor_split: TensorSplit = None,
    vram_limit: VramLimit = None,
    stream_from: StreamFrom = "auto",
    split: Split = "auto",
    pinned_limit: PinnedLimit = None,
    handoff: HandOff = "auto",
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="real shapes from a config alone, weights made in RAM")
    ] = False,
    layers: Annotated[int | None, typer.Option(help="with --random-weights: so many layers only")] = None,
    save_to: Annotated[Path | None, typer.Option("--json", help="write the result to this file")] = None,
    compare: Annotated[Path | None, typer.Option(help="an old result: exit 1 if a test is 5 % slower")] = None,
    expert_format: ExpertFormat = "native",
    dense_format: DenseFormat = "native",
    dtype: Dtype = "auto",
    cpu_activations: Activations = "int8",
    threads: Threads = None,
    prefill_chunk: PrefillChunk = 512,
    revision: Revision = None,
    offline: Offline = False,
    cache_dir: CacheDir = None,
    ignore_config_keys: IgnoreKeys = "",
) -> None:
    """Measure prefill and decode speed of MODEL, with bytes, prediction, residual and share of the ceiling."""
    from .engine.bench.bench import Grid
    from .engine.terminal import bench_command, bench_report

    lists = {"prompt": prompt, "new": new, "batch": batch, "depth": depth}
    tests = Grid(
        **{name: bench_command.numbers(f"--{name}", text) for name, text in lists.items()},
        rounds=rounds,
        placements=tuple(name.strip() for name in placement.split(",")),
    )
    old = None if compare is None else bench_report.load(compare)
    options = dict(
        expert_format=expert_format, dense_format=dense_format, dtype=dtype, cpu_activations=cpu_activations,
        threads=threads, prefill_chunk=prefill_chunk, max_context=tests.context, max_sequences=tests.sequences,
        revision=revision, offline=offline, cache_dir=cache_dir, ignore_config_keys=_keys(ignore_config_keys),
        device=device, tensor_split=tensor_split, vram_limit=vram_limit, stream_from=stream_from, split=split,
        pinned_limit=pinned_limit, handoff=handoff,
    )  # fmt: skip
    load = partial(bench_command.load, model, options, random_weights, layers)
    raise typer.Exit(bench_command.run(load, model, tests, save_to=save_to, old=old))


@app.command()
def doctor(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="model of a short run", show_default=False)
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="the shape of MODEL, weights made up")
    ] = False,
    expert_format: ExpertFormat = "native",
    dense_format: DenseFormat = "native",
    threads: Threads = None,
    revision: Revision = None,
    offline: Offline = False,
    cache_dir: CacheDir = None,
) -> None:
    """Say what slows this machine down; with MODEL what each cause costs in tokens per second, and what to do first."""
    from .engine.terminal import bench_command, doctor_command

    if model is None:
        if random_weights:
            raise OptionError("--random-weights makes weights for a MODEL: name one")
        raise typer.Exit(doctor_command.run(None))
    options = dict(
        expert_format=expert_format, dense_format=dense_format, threads=threads, max_context=64, max_sequences=1,
        revision=revision, offline=offline, cache_dir=cache_dir,
    )  # fmt: skip
    raise typer.Exit(doctor_command.run(lambda: bench_command.load(model, options, random_weights, None)))


@app.command()
def plan(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="directory, .gguf, config.json, hub id or catalogue name", show_default=False
        ),
    ] = None,
    hardware: Annotated[
        str | None, typer.Option(help='parts ("rtx-3090, epyc-9005-8ch, 768gb") or a JSON file; default this machine')
    ] = None,
    quant: Annotated[str, typer.Option(help="native, q4_0, 4.5bpw, or experts=q4_0,dense=q8_0")] = "native",
    context: Annotated[
        int | None,
        typer.Option(help="tokens of each sequence when its last one is decoded; default 4096, or what the model has"),
    ] = None,
    batch: Annotated[int, typer.Option(help="sequences decoded together")] = 1,
    prompt: Annotated[int, typer.Option(help="tokens of the prompt that prefill is timed for")] = 512,
    placement: Annotated[str, typer.Option(help="auto, cpu, gpu, cpu-moe, n-cpu-moe=N, or NAME.json")] = "auto",
    estimate: Annotated[str, typer.Option("--model", help="full, or simple (bytes over nominal bandwidths)")] = "full",
    trace: Annotated[Path | None, typer.Option(help="recorded routing, for the distinct experts of a batch")] = None,
    plot: Annotated[Path | None, typer.Option(help="write a figure to this .png or .svg")] = None,
    article: Annotated[bool, typer.Option("--article", help="print the worked numbers of the articles")] = False,
    as_json: Json = False,
    revision: Revision = None,
    offline: Offline = False,
    cache_dir: CacheDir = None,
) -> None:
    """Predict what of MODEL fits where, how fast it runs, and what bounds it; from headers alone, nothing is loaded."""
    from .engine.planning.plan import Options
    from .engine.terminal import plan_command

    if article:
        raise typer.Exit(plan_command.show_articles())
    if model is None:
        raise OptionError("no model: headrace plan MODEL, or headrace plan --article")
    options = Options(
        quant=quant, context=4096 if context is None else context, batch=batch, prompt=prompt, placement=placement,
        model=estimate,
    )  # fmt: skip
    where = dict(revision=revision, offline=offline, cache_dir=cache_dir)
    status = plan_command.show(
        model, hardware, options, where, shorten=context is None, as_json=as_json, plot_to=plot, trace_from=trace
    )
    raise typer.Exit(status)


def main() -> None:
    """Runs the command line; errors that a user can mend are one line, without a traceback."""
    try:
        app()
    except HeadraceError as error:
        print(f"headrace: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("headrace: interrupted", file=sys.stderr)
        sys.exit(130)
