"""The command line: parses, builds a config, calls. Nothing is decided here.

headrace generate MODEL "prompt"      complete a prompt (several prompts: one batch; -i: a chat)
headrace serve MODEL                  the APIs of OpenAI and Anthropic, for every client that speaks them
headrace host MODEL --join ADDRESS    hold experts or layers of MODEL, and compute them for a coordinator elsewhere
headrace convert MODEL DIRECTORY      save a model packed, so that it loads without quantising
headrace perplexity MODEL FILE        how well a model predicts a text
headrace measure                      how fast this machine's kernels read memory
headrace plan MODEL                   what fits where and how fast, before a download
headrace inspect MODEL                what a model is, from its headers, and what runs it here
headrace bench MODEL                  how fast, against what the bytes allow; --random-weights: without a download
headrace doctor [MODEL]               what slows this machine down, what that costs, what to do first
headrace trace record MODEL           which experts every token chooses, kept in a file; trace stats FILE: in numbers;
                                      trace replay FILE: what policies of placement would have made of it
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from .engine import writable
from .engine.bench.grid import Grid
from .engine.bench.quality.options import Asked
from .engine.config import EngineConfig, SamplingParams
from .engine.planning.options import Options
from .engine.server.settings import ServerSettings
from .engine.terminal import output
from .engine.terminal.chat_options import ChatOptions, prompt_of
from .engine.terminal.command_line.arguments import HUB, MODEL, a_file, json_flag, model_argument
from .engine.terminal.command_line.options import Command, Group, Values, takes
from .engine.terminal.load import load_model
from .engine.terminal.trace.group import trace
from .errors import HeadraceError, OptionError, is_out_of_memory, short, visible

random_weights_flag = click.option(
    "--random-weights", is_flag=True, help="shape of MODEL from its config, weights made in RAM"
)

# Read when torch is loaded: else its store warns of every host whose address has no name.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

NO_MEMORY = (
    "the system, or a limit of this process, gave no more memory: free some, raise the limit, "
    "or take less (--max-context, --expert-format)"
)


@click.group(cls=Group, context_settings={"max_content_width": 120}, no_args_is_help=True)
@click.version_option(package_name="headrace", message="%(prog)s %(version)s")
def app() -> None:
    """Runs mixture-of-experts language models on one machine, and accounts for every byte."""


command: Callable[[Callable[..., Any]], click.Command] = app.command(cls=Command)


@command
@model_argument
@click.argument("prompts", metavar="[PROMPTS]...", nargs=-1, help="text to complete; -: standard input")
@takes(ChatOptions, "talk")
@takes(SamplingParams, "sampling", defaults={"max_new_tokens": None})
@takes(EngineConfig, "config")
@json_flag
@a_file("--ledger", help="write one JSON line per forward pass to this file")
def generate(
    model: str,
    prompts: tuple[str, ...],
    talk: Values,
    sampling: Values,
    config: Values,
    as_json: bool,
    ledger: Path | None,
) -> int:
    """Complete PROMPTS with MODEL, stream the text, then show the bytes that every token read."""
    from .engine.ledger.ledger import Ledger
    from .engine.terminal import generate_command

    chosen = ChatOptions(**talk)
    chosen.check(prompts, as_json)
    params = chosen.params(sampling)
    if ledger is not None:
        Ledger.check_path(ledger)
    prompts = tuple(map(prompt_of, prompts))
    asked: list[Any] = []

    def check(admission: Any) -> None:
        asked.extend(generate_command.asked(admission, chosen, prompts, params))

    llm = load_model(model, as_json, config, check)
    generate_command.ensure_profile(llm)
    generate_command.watch(llm)
    if ledger is not None:
        llm.ledger.open(ledger)
        llm.time_tiers()
    try:
        if chosen.interactive:
            return generate_command.chat(llm, params, chosen)
        return generate_command.complete(llm, asked, params, as_json, "" if chosen.is_chat else prompts[0])
    finally:
        if config["trace"] is not None:
            llm.close()


@command
@model_argument
@takes(ServerSettings, "server")
@takes(EngineConfig, "config")
def serve(model: str, server: Values, config: Values) -> None:
    """Serve MODEL to clients of OpenAI's and Anthropic's APIs, on this computer."""
    from .engine.terminal import serve_command

    serve_command.serve(model, ServerSettings(**server), config)


@command
@click.argument("model", metavar="[MODEL]", required=False, help="as of the coordinator; default its own files")
@click.option("--join", metavar="ADDRESS[:PORT]", required=True, help="where the coordinator listens (--listen)")
@click.option("--name", metavar="NAME", default=None, help="of this host; default the machine's, and a number")
@takes(EngineConfig, "config", only=["host_token", "i_know", "threads", "ram_limit", *HUB])
def host(model: str | None, join: str, name: str | None, config: Values) -> None:
    """Hold experts or layers of MODEL, and compute them for a coordinator (headrace generate or serve MODEL --hosts N).
    Without MODEL the weights come from the coordinator, over the connection."""
    from .engine.terminal.hosts import host_command

    host_command.run(model, join, name, config)


@command
@model_argument
@click.argument("directory", metavar="DIRECTORY", type=Path, help="where to write the packed model")
@takes(
    EngineConfig,
    "config",
    only=["expert_format", "dense_format", "dtype", "ignore_config_keys", "ignore_tensors", *HUB],
    defaults={"expert_format": "q4_0"},
)
def convert(model: str, directory: Path, config: Values) -> None:
    """Save MODEL in packed formats as a directory that loads without quantising again."""
    from .engine.terminal import generate_command
    from .loaders.weights import converted

    converted.check_destination(directory)
    converted.refuse_gguf(Path(model).expanduser())
    llm = load_model(model, False, {**config, "max_context": 1, "speculate": "off"})
    parts = llm.parts
    converted.save(parts.checkpoint.directory, directory, parts.weights, parts.checkpoint.formats)
    generate_command.say(f"wrote {directory}; use it as: headrace generate {directory} ...")


@command
@model_argument
@click.argument("file", metavar="FILE", type=Path, help="UTF-8 text")
@takes(Asked, "asked")
@takes(
    EngineConfig,
    "config",
    leave_out=["max_context", "prefill_chunk", "kv_disk", "trace", "speculate", "mtp", "draft_vocabulary"],
)
@json_flag
def perplexity(model: str, file: Path, asked: Values, config: Values, as_json: bool) -> int:
    """Measure how well MODEL predicts the text in FILE; --sweep: with more or fewer experts, in other formats."""
    from .engine.terminal.perplexity import perplexity_command

    return perplexity_command.show(model, file, Asked(**asked), {**config, "speculate": "off"}, as_json=as_json)


@command
@takes(EngineConfig, "config", only=["threads", "profile"])
@click.option(
    "--rounds",
    metavar="N",
    type=click.IntRange(1),
    default=25,
    show_default=True,
    help="how often each kernel is timed; the median counts",
)
@click.option("--quick", is_flag=True, help="under 20 seconds: fewer rounds over less memory")
@click.option(
    "--formats", metavar="NAME,...", default="", help="besides the usual ones, or all; a run adds its model's"
)
@json_flag
def measure(config: Values, rounds: int, quick: bool, formats: str, as_json: bool) -> None:
    """Measure how fast this machine's kernels read memory and what a step costs besides; saved for predictions."""
    from .engine.bench import calibrate
    from .engine.measure import attention_products, other_load, tile_thresholds, weight_prefetch
    from .engine.terminal import generate_command
    from .engine.terminal.doctor import profile_table
    from .kernels.context import THREADS, Context

    chosen = EngineConfig(**config)
    context = Context(threads=chosen.threads or THREADS)
    if chosen.profile is not None:
        writable.check(chosen.profile, "the profile")
    context = replace(context, prefetch=weight_prefetch.refresh(context))
    products = attention_products.refresh(context) if context.has_bf16_attention else "float32"
    profile = calibrate.measure(context, rounds, quick, calibrate.named(formats))
    if as_json:
        print(json.dumps(asdict(profile)))
    else:
        generate_command.notes.print(profile_table.profile_table(profile))
        for line in profile_table.profile_lines(profile):
            generate_command.say(line)
    if other_load.are_in_the_way(profile.busy):
        generate_command.say(
            f"other processes took {profile.busy:.1f} cores meanwhile, so that these rates are too low: measure again "
            "when nothing else runs"
        )
    generate_command.save_profile(profile, file=chosen.profile)
    if found := tile_thresholds.refresh(context):
        least = ", ".join(f"{count} ({name})" for name, count in found.items())
        generate_command.say(f"matrix tiles take over from so many tokens on: {least}")
    generate_command.say(f"attention on a cache of bf16 multiplies {products}")


@command
@click.argument("model", metavar="[MODEL]", required=False, help=f"{MODEL}; none with --from alone")
@takes(Grid, "grid")
@random_weights_flag
@click.option("--layers", metavar="N", type=int, default=None, help="with --random-weights: so many layers only")
@takes(
    EngineConfig,
    "config",
    leave_out=["kernels", "placement", "cpu_moe", "n_cpu_moe", "max_context", "kv_disk"],
    defaults={"speculate": "off"},  # what is timed is a pass for each token, unless drafts are asked for
)
@a_file("--json", "save_to", help="write the result to this file", panel="Results")
@a_file("--compare", help="an old result: exit 1 if a test is 5 % slower", panel="Results")
@a_file("--plot", help="draw speed over several --batch or --depth to this .png or .svg", panel="Results")
@a_file("--from", "beside", help="a result of --json that --plot draws too", panel="Results", repeats=True)
def bench(
    model: str | None,
    grid: Values,
    random_weights: bool,
    layers: int | None,
    config: Values,
    save_to: Path | None,
    compare: Path | None,
    plot: Path | None,
    beside: tuple[Path, ...],
) -> int:
    """Measure prefill and decode speed of MODEL, with bytes, prediction, residual and share of the ceiling."""
    from .engine.bench.bench import room
    from .engine.terminal.bench import bench_command, bench_report

    if beside and plot is None:
        raise OptionError("--from says what is drawn: add --plot FILE.png")
    if model is None:
        if not beside or plot is None or save_to or compare:
            raise OptionError("no model: headrace bench MODEL, or headrace bench --plot FILE.png --from RESULT.json")
        return bench_command.draw(beside, plot)
    tests = Grid(**grid)
    if save_to is not None:
        writable.check(save_to, "the result")
    old = None if compare is None else bench_report.load(compare)
    draw = bench_command.plotting(plot, tests, beside)
    if config["trace"] is not None and len(tests.placements) > 1:
        raise OptionError("--trace records one model, and --placement loads it several times: give one placement")
    if config["speculate"] not in (None, "off") and not any(tests.new):
        raise OptionError(f"--speculate is {config['speculate']}, and no test decodes: give --new above 0")
    load = partial(bench_command.load, model, {**config, **room(tests)}, random_weights, layers)
    return bench_command.run(load, model, tests, save_to=save_to, old=old, plot=draw)


@command
@click.argument("model", metavar="[MODEL]", required=False, help="of a short run")
@random_weights_flag
@takes(EngineConfig, "config", only=["expert_format", "dense_format", "threads", "profile", *HUB])
def doctor(model: str | None, random_weights: bool, config: Values) -> int:
    """Say what slows this machine down; with MODEL what each cause costs in tokens per second, and what to do first."""
    from .engine.terminal.bench import bench_command
    from .engine.terminal.doctor import doctor_command

    if model is None:
        if random_weights:
            raise OptionError("--random-weights makes weights for a MODEL: name one")
        return doctor_command.run(None, config["profile"])
    options = {**config, "max_context": 64, "max_sequences": 1}
    return doctor_command.run(lambda: bench_command.load(model, options, random_weights, None))


@command
@click.argument(
    "model", metavar="[MODEL]", required=False, help="directory, .gguf, config.json, hub id or catalogue name"
)
@click.option(
    "--hardware",
    metavar="PARTS",
    default=None,
    help='"rtx-3090, epyc-9005-8ch, 768gb", or a JSON file; default this machine',
)
@takes(Options, "asked", defaults={"context": None})
@a_file("--trace", help="recorded routing, for the distinct experts of a batch")
@a_file("--plot", help="write a figure to this .png or .svg")
@click.option("--article", is_flag=True, help="print the worked numbers of the articles")
@json_flag
@takes(EngineConfig, "where", only=HUB)
def plan(
    model: str | None,
    hardware: str | None,
    asked: Values,
    trace: Path | None,
    plot: Path | None,
    article: bool,
    as_json: bool,
    where: Values,
) -> int:
    """Predict what of MODEL fits where, how fast it runs, and what bounds it; from headers alone, nothing is loaded."""
    from .engine.terminal.plan import plan_command

    if article:
        return plan_command.show_articles()
    if model is None:
        raise OptionError("no model: headrace plan MODEL, or headrace plan --article")
    shorten = asked["context"] is None
    options = Options(**{name: value for name, value in asked.items() if value is not None})
    return plan_command.show(
        model, hardware, options, where, shorten=shorten, as_json=as_json, plot_to=plot, trace_from=trace
    )


@command
@click.argument("model", metavar="MODEL", help="directory, .gguf, config.json, hub id or catalogue name")
@json_flag
@takes(EngineConfig, "where", only=HUB)
def inspect(model: str, as_json: bool, where: Values) -> int:
    """Say what MODEL is: sizes, formats, bytes, tokenizer, chat template, and what runs it here; from headers alone."""
    from .engine.terminal.inspect import inspect_command

    return inspect_command.show(model, where, as_json=as_json)


app.add_command(trace)


def main() -> None:
    """Runs the command line; errors that a user can mend are one short line, without a traceback."""
    output.settle()
    sys.exit(output.finish(_status()))


def _status() -> int:
    """The exit status of the command that was asked for, its error said."""
    try:
        return int(app(prog_name="headrace", standalone_mode=False) or 0)
    except HeadraceError as error:
        return output.fail(str(error))
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()  # the whole help, on lines of its own
        return error.exit_code
    except click.ClickException as error:
        error.message = short(visible(error.message))  # type: ignore[misc]
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return output.fail("interrupted", 130)
    except output.Lost as error:
        return output.lost(error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return output.fail(NO_MEMORY)
