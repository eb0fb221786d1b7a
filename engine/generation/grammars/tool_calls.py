"""Grammars of a chat's answers, in the words of the model's dialect: a call that must come, or the call of one tool, or
calls that may come and are then held to their tools, or an answer of a form.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ....errors import OptionError
from ....loaders.tokens.conversation import tools_of
from ....loaders.tokens.dialects.dialect import Dialect
from ....loaders.tokens.dialects.forms.calls import CallGrammar, grammar_of
from ....loaders.tokens.dialects.machine import marks_of
from ....loaders.tokens.tokenizer import Tokenizer
from ...config import SamplingParams
from .grammar import Grammar, Vocabulary, Waking

Schema = Mapping[str, Any]
Functions = Sequence[Mapping[str, Any]]
log = logging.getLogger("headrace")
BAR = -100.0  # on the logit of a token that must not come


def of_chat(
    dialect: Dialect,
    vocabulary: Vocabulary,
    *,
    tools: Any = None,
    choice: Any = None,
    several: bool = True,
    schema: Schema | None = None,
    form: Callable[[], Grammar | None] | None = None,
) -> Grammar | None:
    """The grammar of an answer: of a call that must come, of the form that is asked for, or of either; or what holds
    calls to their tools. None: of any answer. choice: of tools, as `forced_names` reads it; several: whether more than
    one call may come; schema: of the form, where it is JSON; form: makes its grammar. Raises OptionError."""
    is_forced, only = forced_names(choice)
    if is_forced or (tools and schema is not None):
        or_else = None if is_forced else schema
        return of_calls(dialect, tools, vocabulary, only=only, several=several, or_else=or_else)
    if schema is not None and dialect.style == "channels":
        return of_answer(dialect, schema, vocabulary)
    if form is not None:
        return form()
    return held(dialect, tools, vocabulary, several) if tools else None


def schema_of(params: SamplingParams) -> Schema | None:
    """The schema that sampling parameters ask for, where it is an object; text that is no JSON is none."""
    schema = params.json_schema
    if isinstance(schema, str):
        with contextlib.suppress(ValueError, RecursionError):
            schema = json.loads(schema)
    return schema if isinstance(schema, Mapping) else None


def of_calls(
    dialect: Dialect,
    tools: Any,
    vocabulary: Vocabulary,
    *,
    only: str | None = None,
    several: bool = True,
    or_else: Schema | None = None,
) -> Grammar:
    """One call or several. only: of this tool; or_else: or an answer of this schema instead. Raises OptionError where
    that cannot be had, and for schemas that cannot be used."""
    if not dialect.forms:
        raise OptionError(
            f"calls cannot be forced in the dialect of this model ({dialect.name}): give 'auto' or 'none'"
        )
    named = [tool for tool in tools_of(tools) or () if only in (None, tool["function"]["name"])]
    if not named:
        known = f"there is no tool {only!r}" if only else "there are no tools"
        raise OptionError(f"it asks for a call, and {known}: give tools")
    marks, many = marks_of(dialect, vocabulary.tokenizer), several and only is None
    made = grammar_of(dialect, named, marks, several=many, or_else=or_else, ends=vocabulary.ends)
    return Grammar.of_rules(made.text)


def of_answer(dialect: Dialect, schema: Schema, vocabulary: Vocabulary) -> Grammar:
    """An answer of a schema where answers have headers, and what is thought before has one too."""
    marks = marks_of(dialect, vocabulary.tokenizer)
    return Grammar.of_rules(grammar_of(dialect, [], marks, or_else=schema, ends=vocabulary.ends).text)


def held(dialect: Dialect, tools: Any, vocabulary: Vocabulary, several: bool) -> Grammar | None:
    """What holds calls to their tools where the model decides whether it calls any; None where that cannot be had. A
    tool whose schema cannot be used may be called with any object."""
    functions = tools_of(tools)
    if not dialect.forms or not functions:
        return None
    try:
        vocabulary.made()
    except OptionError as error:
        log.warning("calls are not held to the schemas of the tools: %s", error)
        return None
    key = f"{dialect.name} {several} {json.dumps(functions, sort_keys=True)}"
    return vocabulary.kept(key, lambda: _held(dialect, functions, vocabulary, several))


def _held(dialect: Dialect, functions: Functions, vocabulary: Vocabulary, several: bool) -> Grammar | None:
    for tools in (functions, None, [_loose(tool) for tool in functions]):
        try:
            if tools is None:
                tools = [_usable(dialect, tool, vocabulary) for tool in functions]
            return _awake_behind(_asleep(dialect, tools, vocabulary, several), dialect, vocabulary)
        except OptionError as error:
            reason = error
    log.warning("calls are not held to the schemas of the tools: %s", reason)
    return None


def _asleep(dialect: Dialect, tools: Functions, vocabulary: Vocabulary, several: bool) -> CallGrammar:
    marks = marks_of(dialect, vocabulary.tokenizer)
    return grammar_of(dialect, tools, marks, several=several, asleep=True, ends=vocabulary.ends)


def _usable(dialect: Dialect, tool: Mapping[str, Any], vocabulary: Vocabulary) -> Mapping[str, Any]:
    """A tool as it is, or without a schema where there is no grammar of that."""
    try:
        Grammar.of_rules(_asleep(dialect, [tool], vocabulary, several=False).text)
        return tool
    except OptionError as error:
        log.warning("calls of %s are not held to its schema: %s", tool["function"]["name"], error)
        return _loose(tool)


def _loose(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"function": {"name": tool["function"]["name"], "parameters": {"type": "object"}}}


def _awake_behind(made: CallGrammar, dialect: Dialect, vocabulary: Vocabulary) -> Grammar:
    """A grammar that sleeps until its text was written."""
    marks = marks_of(dialect, vocabulary.tokenizer)
    wakes, header = marks.spell(made.wakes), re.escape(marks.spell(made.header))
    pattern = f"{header}[^\ud800-\udfff]*?" if header else ""
    waking = Waking(re.compile(pattern + re.escape(wakes)), wakes[-1], made.repeats)
    return Grammar.of_rules(made.text, waking)


def forced_names(choice: Any) -> tuple[bool, str | None]:
    """Whether a choice of tools asks for a call, and of which tool; of the chat API's choices and Anthropic's. Raises
    OptionError for a choice that is none."""
    if choice in (None, "auto", "none"):
        return False, None
    if choice in ("required", "any"):
        return True, None
    if isinstance(choice, Mapping):
        kind, function = choice.get("type"), choice.get("function")
        if kind in ("auto", "none"):
            return False, None
        if kind in ("any", "required"):
            return True, None
        name = function.get("name") if isinstance(function, Mapping) else choice.get("name")
        if kind in ("function", "tool") and isinstance(name, str):
            return True, name
    raise OptionError(f"{choice!r} is none: give auto, none, required, or a tool by its name")


def leaves_out(choice: Any) -> bool:
    """Whether no call may come."""
    return choice == "none" or (isinstance(choice, Mapping) and choice.get("type") == "none")


def barred(params: SamplingParams, dialect: Dialect, tokenizer: Tokenizer) -> SamplingParams:
    """The same, but that no call may begin, in dialects where one begins with a token of its own: tools that are in the
    prompt, which stays as it is, so that its keys and values are reused, tempt a model."""
    marks = marks_of(dialect, tokenizer)
    tokens = {marks.token_of(marks.spell(form.wakes)) for form in dialect.forms}
    bias = {token: BAR for token in tokens if token is not None}
    return replace(params, logit_bias={**(params.logit_bias or {}), **bias}) if bias else params


def single(parallel: bool | None, choice: Any) -> bool:
    """Whether at most one call may come."""
    disabled = isinstance(choice, Mapping) and choice.get("disable_parallel_tool_use") is True
    return parallel is False or disabled
