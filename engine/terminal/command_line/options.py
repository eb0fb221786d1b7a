"""Options of the command line, made from the fields of dataclasses (`option.py`), so that each is said once.

    @click.command(cls=Command)
    @takes(EngineConfig, "config", leave_out=["max_context"])
    def perplexity(model: str, config: Values) -> None: ...

`takes` gives a command an option for every field, and their values as one mapping to its parameter `config`.
"""

from __future__ import annotations

import functools
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields
from types import NoneType
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

import click

from ...option import Option, options_of
from ..hosts import ranks
from .elsewhere import command_here, said_here

Values = dict[str, Any]  # of a dataclass' fields, by name
Function = Callable[..., Any]


class FieldOption(click.Option):
    """An option whose value belongs to a field of a dataclass; panel: of --help."""

    def __init__(self, *names: Any, panel: str | None, **attributes: Any) -> None:
        super().__init__(*names, **attributes)
        self.panel = panel


def _refuse(ctx: click.Context, arguments: Iterable[str], error: click.UsageError) -> NoReturn:
    """Raises what click found wrong with a command line, or what words of other programs in it are here."""
    own = {name for one in ctx.command.get_params(ctx) for name in (*one.opts, *one.secondary_opts)}
    if said := said_here(arguments, own):
        raise click.UsageError(said, ctx) from error
    raise error


class Group(click.Group):
    """Commands in the order in which they are written."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names."""
        return list(self.commands)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Reads what stands before a command; raises UsageError."""
        first = args[0] if args else ""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise click.UsageError(command_here(first, False) or error.format_message(), ctx) from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of that name; raises UsageError, for a name that others use with the one that it has here."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            is_model = ctx.parent is None and (args[0] == "demo" or os.path.exists(os.path.expanduser(args[0])))
            if said := command_here(args[0], is_model):
                raise click.UsageError(said, ctx) from error
            raise


class Command(click.Command):
    """A command whose --help shows its options by panel."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Reads its arguments; raises UsageError, for options that other programs have with what they are here."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            _refuse(ctx, given, error)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs it; with --hosts auto as one of several processes that torchrun started, of which one is asked, and the
        others are its hosts."""
        if ctx.params.get("config_hosts") == ranks.AUTO:
            join = ranks.settle(ctx.params)
            if join is not None:
                return ranks.run_host(ctx.params, join)
        return super().invoke(ctx)

    def get_short_help_str(self, limit: int = 0) -> str:
        """What it does, whole: the list of commands breaks lines."""
        return self.help or ""

    def format_arguments(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Nothing: `format_options` writes them."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the arguments and each panel; a panel of one option joins the first one."""
        panels: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        params = self.get_params(ctx)
        named = [getattr(one, "panel", None) for one in params]
        for one, panel in zip(params, named, strict=True):
            title = "Arguments" if isinstance(one, click.Argument) else "Options"
            if record := one.get_help_record(ctx):
                panels[panel if panel and named.count(panel) > 1 else title].append(record)
        for title, records in panels.items():
            with formatter.section(title):
                formatter.write_dl(records)


def takes(
    source: type[Any],
    parameter: str,
    *,
    only: Collection[str] = (),
    leave_out: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> Callable[[Function], Function]:
    """Gives a command the options of a dataclass, and their values to its parameter of that name.

    only, leave_out: names of fields. defaults: by field, where the command has another than the dataclass.
    """
    known, hints, others = options_of(source), get_type_hints(source), defaults or {}
    unknown = {*only, *leave_out, *others} - {*known}
    assert not unknown, f"{source.__name__} has no option {', '.join(unknown)}"
    chosen = [f for f in fields(source) if f.name in {*(only or known)} - {*leave_out}]

    def decorate(command: Function) -> Function:
        @functools.wraps(command)
        def run(**given: Any) -> Any:
            values = {f.name: _value(known[f.name], given.pop(f"{parameter}_{f.name}")) for f in chosen}
            return command(**given, **{parameter: values})

        for f in reversed(chosen):
            default = others.get(f.name, f.default)
            shown: bool | str = default is not False and default != ""
            if default is None and f.default is not None:  # a command decides, and has the field's as a rule
                shown = str(f.default)
            _add(run, f"{parameter}_{f.name}", known[f.name], hints[f.name], default, shown)
        return run

    return decorate


def _add(command: Function, name: str, about: Option, hint: Any, default: Any, shown: bool | str) -> None:
    """Gives a command the option of one field. shown: whether --help says its default, or another one that it says."""
    kinds = {*(get_args(hint) or [hint])} - {NoneType}
    repeats = get_origin(hint) is tuple and about.read is None
    # Text for whatever may be text.
    kind = str if repeats or str in kinds or about.read else kinds.pop()
    if isinstance(default, tuple):
        default = None if repeats else ",".join(map(str, default))
    click.option(
        name,
        *about.names,
        cls=FieldOption,
        panel=about.panel,
        type=kind,
        is_flag=kind is bool,
        multiple=repeats,
        default=default,
        show_default=shown,
        help=about.help + ("; may be repeated" if repeats else ""),
        metavar=about.value or None,
    )(command)


def _value(about: Option, given: Any) -> Any:
    """A field's value from what click read."""
    return given if about.read is None else about.read(about.names[-1], given)
