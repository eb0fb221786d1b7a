"""Options of the command line, made from the fields of dataclasses (`option.py`), so that each is said once.

    @takes(EngineConfig, "config", leave_out=["max_context"])
    def perplexity(*, model: Model, config: Values, as_json: Json = False) -> None: ...

typer reads a command's signature. `takes` puts an option for every field there, in the place of the parameter `config`,
and gives the command their values as one mapping. A command takes everything by name, so that any order will do.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from types import NoneType
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

import typer

from ..option import Option, options_of

Values = dict[str, Any]  # of a dataclass' fields, by name
Command = Callable[..., None]


class _Field(NamedTuple):
    """A field as an option: its name, what it is, its type, and its value if it is left out."""

    name: str
    option: Option
    hint: Any
    default: Any

    @property
    def repeats(self) -> bool:
        """Whether the option is given once for each part of the value."""
        return get_origin(self.hint) is tuple and self.option.read is None

    @property
    def kind(self) -> Any:
        """The type that typer reads: text for whatever may be text."""
        kinds = {*(get_args(self.hint) or [self.hint])} - {NoneType}
        if self.repeats:
            return list[str]
        return str if str in kinds or self.option.read else kinds.pop()

    def parameter(self, name: str, panel: str | None) -> inspect.Parameter:
        """The parameter of a command that typer makes the option of."""
        about = self.option.help + ("; may be repeated" if self.repeats else "")
        made = typer.Option(*self.option.names, help=about, metavar=self.option.value, rich_help_panel=panel)
        default = self.default
        if isinstance(default, tuple):
            default = None if self.repeats else ",".join(map(str, default))
        kind = self.kind if default is not None else self.kind | None
        hint: Any = Annotated[kind, made]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)

    def value(self, given: Any) -> Any:
        """The field's value from what typer read."""
        if self.option.read is not None:
            return self.option.read(self.option.names[-1], given)
        return tuple(given or ()) if self.repeats else given


def takes(
    source: type[Any],
    parameter: str,
    *,
    only: Collection[str] = (),
    leave_out: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> Callable[[Command], Command]:
    """Gives a command the options of a dataclass, and their values to its parameter of that name.

    only, leave_out: names of fields. defaults: by field, where the command has another than the dataclass.
    """
    chosen = _chosen(source, only, leave_out, defaults or {})
    by_parameter = {f"{parameter}_{one.name}": one for one in chosen}
    panels = [one.option.panel for one in chosen]

    def decorate(command: Command) -> Command:
        made = [
            # A panel of one option is a frame around nothing: the option joins the first panel.
            one.parameter(name, one.option.panel if panels.count(one.option.panel) > 1 else None)
            for name, one in by_parameter.items()
        ]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            values = {one.name: one.value(given.pop(name)) for name, one in by_parameter.items()}
            command(**given, **{parameter: values})

        _sign(run, command, parameter, made)
        return run

    return decorate


def _chosen(
    source: type[Any], only: Collection[str], leave_out: Collection[str], defaults: Mapping[str, Any]
) -> list[_Field]:
    """The fields of a dataclass that become options."""
    known, hints = options_of(source), get_type_hints(source)
    unknown = {*only, *leave_out, *defaults} - {*known}
    assert not unknown, f"{source.__name__} has no option {', '.join(unknown)}"
    names = {*(only or known)} - {*leave_out}
    return [
        _Field(f.name, known[f.name], hints[f.name], defaults.get(f.name, f.default))
        for f in fields(source)
        if f.name in names
    ]


def _sign(run: Command, command: Command, parameter: str, made: list[inspect.Parameter]) -> None:
    """Gives `run` the signature of `command`, with other parameters in the place of one of them."""
    signed: list[inspect.Parameter] = []
    for name, one in inspect.signature(command, eval_str=True).parameters.items():
        signed += made if name == parameter else [one]
    run.__signature__ = inspect.Signature(signed)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in signed}  # what older versions of typer read
