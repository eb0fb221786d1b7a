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

from .engine.bench.grid import Grid
from .engine.config import EngineConfig, SamplingParams
from .engine.planning.options import Options
from .engine.terminal.chat_options import ChatOptions
from .engine.terminal.options import Values, takes
from .errors import HeadraceError, OptionError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Runs mixture-of-experts language models on one machine, and accounts for every byte.",
)
flag = partial(typer.Option, metavar="")  # takes no value, and so shows none
a_file = partial(typer.Option, metavar="FILE")
argument = partial(typer.Argument, show_default=False)

Model = Annotated[str, argument(metavar="MODEL", help="directory, hub id, or 'demo'")]
RandomWeights = Annotated[bool, flag("--random-weights", help="shape of MODEL from its config, weights made in RAM")]
Json = Annotated[bool, flag("--json", help="print one JSON object instead of text and tables")]
HUB = ("revision", "offline", "cache_dir")


def _load(model: str, quiet: bool, options: dict[str, Any]) -> Any:
    """The loaded model, with a progress bar and the start-up table unless `quiet`."""
    from .engine.llm import LLM
    from .engine.terminal import generate_command, generate_report

    if quiet:
        return LLM(model, **options)
    with generate_command.load_progress() as progress:
        llm = LLM(model, progress=progress, **options)
    generate_command.notes.print(generate_report.startup_table(llm))
    return llm


@app.command()
@takes(ChatOptions, "talk")
@takes(SamplingParams, "sampling")
@takes(EngineConfig, "config")
def generate(
    *,
    model: Model,
    prompts: Annotated[list[str] | None, argument(metavar="PROMPTS", help="text to complete")] = None,
    talk: Values,
    sampling: Values,
    config: Values,
    as_json: Json = False,
    ledger: Annotated[Path | None, a_file(help="write one JSON line per forward pass to this file")] = None,
) -> None:
    """Complete PROMPTS with MODEL, stream the text, then show the bytes that every token read."""
    from .engine.ledger.ledger import Ledger
    from .engine.terminal import generate_command

    chosen, texts = ChatOptions(**talk), prompts or []
    chosen.check(texts, as_json)
    params = SamplingParams(**sampling)
    if ledger is not None:
        Ledger.check_path(ledger)
    llm = _load(model, as_json, config)
    asked = [llm.ask(text, chosen.system) if chosen.chat else llm.encode(text) for text in texts]
    generate_command.ensure_profile(llm)
    generate_command.watch(llm)
    if ledger is not None:
        llm.ledger.open(ledger)
        llm.time_tiers()
    if chosen.interactive:
        raise typer.Exit(generate_command.chat(llm, params, chosen.system))
    raise typer.Exit(generate_command.complete(llm, asked, params, as_json, "" if chosen.chat else texts[0]))


@app.command()
@takes(
    EngineConfig,
    "config",
    only=["expert_format", "dense_format", "dtype", "ignore_config_keys", *HUB],
    defaults={"expert_format": "q4_0"},
)
def convert(
    *,
    model: Model,
    directory: Annotated[Path, argument(metavar="DIRECTORY", help="where to write the packed model")],
    config: Values,
) -> None:
    """Save MODEL in packed formats as a directory that loads without quantising again."""
    from .engine.terminal import generate_command
    from .loaders.weights import converted

    converted.check_destination(directory)
    llm = _load(model, False, {**config, "max_context": 1})
    parts = llm.parts
    converted.save(parts.checkpoint.directory, directory, parts.weights, parts.checkpoint.formats)
    generate_command.say(f"wrote {directory}; use it as: headrace generate {directory} ...")


@app.command()
@takes(EngineConfig, "config", leave_out=["max_context", "prefill_chunk"])
def perplexity(
    *,
    model: Model,
    file: Annotated[Path, argument(metavar="FILE", help="UTF-8 text")],
    window: Annotated[int, typer.Option(metavar="TOKENS", help="in a window; windows do not overlap")] = 512,
    config: Values,
    as_json: Json = False,
) -> None:
    """Measure how well MODEL predicts the text in FILE."""
    from .engine.bench.perplexity import perplexity as measure

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise OptionError(f"cannot read {file}: {reason}; give a UTF-8 text file") from error
    llm = _load(model, as_json, config)
    found = measure(llm, llm.encode(text), window)
    print(json.dumps(asdict(found)) if as_json else f"perplexity {found.value:.4f} over {found.tokens} tokens")


@app.command()
@takes(EngineConfig, "config", only=["threads"])
def measure(
    *,
    config: Values,
    rounds: Annotated[
        int, typer.Option(metavar="N", min=1, help="how often each kernel is timed; the median counts")
    ] = 25,
    quick: Annotated[bool, flag("--quick", help="under 20 seconds: fewer rounds over less memory")] = False,
    as_json: Json = False,
) -> None:
    """Measure how fast this machine's kernels read memory and what a step costs besides; saved for predictions."""
    from .engine.bench import calibrate
    from .engine.measure import other_load, tile_thresholds
    from .engine.terminal import generate_command, generate_report
    from .kernels.context import THREADS, Context

    context = Context(threads=config["threads"] or THREADS)
    profile = calibrate.measure(context, rounds, quick)
    if as_json:
        print(json.dumps(asdict(profile)))
    else:
        generate_command.notes.print(generate_report.profile_table(profile))
        for line in generate_report.profile_lines(profile):
            generate_command.say(line)
    if other_load.are_in_the_way(profile.busy):
        generate_command.say(
            f"other processes took {profile.busy:.1f} cores meanwhile, so that these rates are too low: measure again "
            "when nothing else runs"
        )
    generate_command.save_profile(profile)
    if found := tile_thresholds.refresh(context):
        least = ", ".join(f"{count} ({name})" for name, count in found.items())
        generate_command.say(f"matrix tiles take over from so many tokens on: {least}")


@app.command()
@takes(Grid, "grid")
@takes(EngineConfig, "config", leave_out=["kernels", "placement", "cpu_moe", "n_cpu_moe", "max_context"])
def bench(
    *,
    model: Model,
    grid: Values,
    random_weights: RandomWeights = False,
    layers: Annotated[int | None, typer.Option(metavar="N", help="with --random-weights: so many layers only")] = None,
    config: Values,
    save_to: Annotated[Path | None, a_file("--json", help="write the result to this file")] = None,
    compare: Annotated[Path | None, a_file(help="an old result: exit 1 if a test is 5 % slower")] = None,
) -> None:
    """Measure prefill and decode speed of MODEL, with bytes, prediction, residual and share of the ceiling."""
    from .engine.terminal import bench_command, bench_report

    tests = Grid(**grid)
    old = None if compare is None else bench_report.load(compare)
    options = {**config, "max_context": tests.context, "max_sequences": tests.sequences}
    load = partial(bench_command.load, model, options, random_weights, layers)
    raise typer.Exit(bench_command.run(load, model, tests, save_to=save_to, old=old))


@app.command()
@takes(EngineConfig, "config", only=["expert_format", "dense_format", "threads", *HUB])
def doctor(
    *,
    model: Annotated[str | None, argument(metavar="MODEL", help="of a short run")] = None,
    random_weights: RandomWeights = False,
    config: Values,
) -> None:
    """Say what slows this machine down; with MODEL what each cause costs in tokens per second, and what to do first."""
    from .engine.terminal import bench_command, doctor_command

    if model is None:
        if random_weights:
            raise OptionError("--random-weights makes weights for a MODEL: name one")
        raise typer.Exit(doctor_command.run(None))
    options = {**config, "max_context": 64, "max_sequences": 1}
    raise typer.Exit(doctor_command.run(lambda: bench_command.load(model, options, random_weights, None)))


@app.command()
@takes(Options, "asked", defaults={"context": None})
@takes(EngineConfig, "where", only=HUB)
def plan(
    *,
    model: Annotated[
        str | None, argument(metavar="MODEL", help="directory, .gguf, config.json, hub id or catalogue name")
    ] = None,
    hardware: Annotated[
        str | None,
        typer.Option(metavar="PARTS", help='"rtx-3090, epyc-9005-8ch, 768gb", or a JSON file; default this machine'),
    ] = None,
    asked: Values,
    trace: Annotated[Path | None, a_file(help="recorded routing, for the distinct experts of a batch")] = None,
    plot: Annotated[Path | None, a_file(help="write a figure to this .png or .svg")] = None,
    article: Annotated[bool, flag("--article", help="print the worked numbers of the articles")] = False,
    as_json: Json = False,
    where: Values,
) -> None:
    """Predict what of MODEL fits where, how fast it runs, and what bounds it; from headers alone, nothing is loaded."""
    from .engine.terminal.plan import plan_command

    if article:
        raise typer.Exit(plan_command.show_articles())
    if model is None:
        raise OptionError("no model: headrace plan MODEL, or headrace plan --article")
    shorten = asked["context"] is None
    options = Options(**{name: value for name, value in asked.items() if value is not None})
    status = plan_command.show(
        model, hardware, options, where, shorten=shorten, as_json=as_json, plot_to=plot, trace_from=trace
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
