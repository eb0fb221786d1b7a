"""Options of the command line, made from the fields of dataclasses (`option.py`), so that each is said once.

    @click.command(cls=Command)
    @takes(EngineConfig, "config", leave_out=["max_context"])
    def perplexity(model: str, config: Values) -> None: ...

`takes` gives a command an option for every field, and their values as one mapping to its parameter `config`.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import click

from ..option import Option, options_of
from .hosts import ranks

Values = dict[str, Any]  # of a dataclass' fields, by name
Function = Callable[..., Any]


class FieldOption(click.Option):
    """An option whose value belongs to a field of a dataclass; panel: of --help."""

    def __init__(self, *names: Any, panel: str | None, **attributes: Any) -> None:
        super().__init__(*names, **attributes)
        self.panel = panel


class Group(click.Group):
    """Commands in the order in which they are written."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names."""
        return list(self.commands)


class Command(click.Command):
    """A command whose --help shows its options by panel."""

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
            _add(run, f"{parameter}_{f.name}", known[f.name], hints[f.name], default)
        return run

    return decorate


def _add(command: Function, name: str, about: Option, hint: Any, default: Any) -> None:
    """Gives a command the option of one field."""
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
        show_default=default is not False and default != "",
        help=about.help + ("; may be repeated" if repeats else ""),
        metavar=about.value or None,
    )(command)


def _value(about: Option, given: Any) -> Any:
    """A field's value from what click read."""
    return given if about.read is None else about.read(about.names[-1], given)
