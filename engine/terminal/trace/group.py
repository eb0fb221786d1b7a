"""`headrace trace`: its commands, each of which imports what it needs when it runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from ...config import EngineConfig, SamplingParams
from ...traces.kinds import KINDS
from ..command_line.arguments import HUB, a_file, json_flag, model_argument
from ..command_line.options import Command, FieldOption, Group, Values, takes
from ..load import load_model

seen = partial(click.option, cls=FieldOption, panel="What policies see")


@click.group(cls=Group, no_args_is_help=True)
def trace() -> None:
    """Record which experts a model's tokens choose, and sum it up."""


@trace.command(cls=Command)
@model_argument
@click.option("--prompts", metavar="FILE", type=Path, required=True, help="UTF-8 text, a prompt a line")
@click.option("--output", "-o", metavar="FILE", type=Path, default=None, help="where it goes; default as --store")
@click.option("--store", is_flag=True, help="keep it in the user's cache, as this model's trace")
@takes(SamplingParams, "sampling")
@takes(EngineConfig, "config", leave_out=["kv_disk", "trace", "speculate", "mtp", "draft_vocabulary"])
def record(
    model: str, prompts: Path, output: Path | None, store: bool, sampling: Values, config: Values
) -> int:  # fmt: skip
    """Complete all prompts of a file with MODEL, and keep which experts every token chose in every layer."""
    from . import record_command

    params, texts = SamplingParams(**sampling), record_command.prompts_of(prompts)
    to = record_command.file_for(output)
    llm = load_model(model, False, {**config, "trace": to})
    return record_command.run(llm, texts, params, to, is_named=output is not None, store=store)


@trace.command("list", cls=Command)
@json_flag
def list_(as_json: bool) -> int:
    """List the traces that are kept for models in the user's cache."""
    from . import list_command

    return list_command.show(as_json=as_json)


@trace.command(cls=Command)
@click.argument("file", metavar="FILE", type=Path, help="that --trace or trace record wrote")
@json_flag
@a_file("--plot", help="write a figure to this .png or .svg")
def stats(file: Path, as_json: bool, plot: Path | None) -> int:
    """Sum up a trace: hot experts, how soon they come again, how many a batch needs, how a layer tells the next."""
    from . import stats_command

    return stats_command.show(file, as_json=as_json, plot_to=plot)


@trace.command(cls=Command)
@click.argument("file", metavar="FILE", type=Path, help="that --trace, trace record or trace make wrote")
@click.option("--policy", metavar="NAMES", default=None, help="separated by commas (docs/policies.md); auto: the best")
@click.option("--vram", metavar="SIZES", default=None, help="for experts: 8GB,16GB or shares of them, 10%,25%")
@click.option("--hardware", metavar="PARTS", default=None, help="rtx-4090,ddr5-5600-2ch, or a file; this machine")
@click.option("--second-vram", metavar="SIZE", default=None, help="for experts on a second GPU; default all of it")
@click.option("--dense", metavar="SIZE", default="0", help="other weights that a pass reads on the GPU, as 6GB")
@click.option("--model", type=click.Choice(["full", "simple"]), default="full", help="simple: memory after memory")
@click.option("--graphs", is_flag=True, help="as where decode steps are graphs: the policy answers a step later")
@seen("--seed-experts", is_flag=True, help="policies are told what prompts chose before the first token")
@seen("--hold-out", is_flag=True, help="learn from the first half, replay the second")
@seen("--with-prompts", is_flag=True, help="prompts too, not only tokens that were generated")
@json_flag
@a_file("--plot", help="draw hits and tokens/s over the memory's size to this .png or .svg")
def replay(
    file: Path, policy: str | None, vram: str | None, hardware: str | None, second_vram: str | None, dense: str,
    model: str, graphs: bool, seed_experts: bool, hold_out: bool, with_prompts: bool, as_json: bool, plot: Path | None,
) -> int:  # fmt: skip
    """Replay a trace through policies of which experts lie in a fast memory: hits, bytes, tokens/s."""
    from . import replay_command

    machine = replay_command.Machine(
        hardware=hardware,
        second_vram=second_vram,
        dense=dense,
        in_turn=model == "simple",
        graphs=graphs,
        seeded=seed_experts,
    )
    return replay_command.show(
        file, policy, vram, machine, hold_out=hold_out, with_prompts=with_prompts, as_json=as_json, plot_to=plot
    )


@trace.command(cls=Command)
@model_argument
@click.option("--output", "-o", metavar="FILE", type=Path, required=True, help="where the trace goes")
@click.option("--kind", type=click.Choice(KINDS), default="topics", show_default=True, help="how experts are chosen")
@click.option("--tokens", metavar="N", default=1000, show_default=True, help="that are made up")
@click.option("--seed", metavar="N", default=0, show_default=True, help="of the random numbers")
@takes(EngineConfig, "config", only=["expert_format", *HUB])
def make(model: str, output: Path, kind: str, tokens: int, seed: int, config: Values) -> int:
    """Make up a trace in the shape of MODEL, of which only the config is needed."""
    from . import make_command

    return make_command.run(model, output, kind=kind, tokens=tokens, seed=seed, config=config)
