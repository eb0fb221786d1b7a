"""Every command that README and docs/ name is one that the command line takes: its options exist, and their values
are of the kind that they want. `tools/try_docs.py` runs them.
"""

from __future__ import annotations

import click
import pytest
from documented import Documented, documented

from headrace import cli

EVERY = [*documented()]


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """The innermost command, and what is said to it."""
    command: click.Command = cli.app
    while isinstance(command, click.Group) and words:
        found = command.commands.get(words[0])
        assert found, f"no command {words[0]}"
        command, words = found, words[1:]
    return command, words


def test_there_are_commands() -> None:
    assert len([one for one in EVERY if one.whole]) > 60
    assert len({one.arguments[0] for one in EVERY if one.whole and one.arguments}) >= 9


@pytest.mark.parametrize("one", [one for one in EVERY if one.whole], ids=lambda one: one.where)
def test_a_command_is_taken(one: Documented) -> None:
    command, words = command_of(one.arguments)
    command.make_context("headrace", words)


@pytest.mark.parametrize("one", [one for one in EVERY if not one.whole], ids=lambda one: one.where)
def test_options_in_a_sentence_exist(one: Documented) -> None:
    if one.arguments[0] == "...":
        return
    command, words = command_of(one.arguments)
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    said = {
        word.split("=")[0] for word in words if word.strip("-") and word[0] == "-" and not word.lstrip("-").isdigit()
    }
    assert said <= known | {"--help", "--version"}
