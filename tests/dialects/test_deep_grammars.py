"""Grammars of strangers that go deeper than a stack, or take longer than anybody waits: refused, or read; never the end
of the process."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from headrace.engine.generation.grammars import grammar, long_stack
from headrace.engine.generation.grammars.grammar import Grammar, Vocabulary
from headrace.engine.generation.grammars.long_stack import on_a_long_stack
from headrace.errors import OptionError
from headrace.loaders.hub.local import DEMO_DIRECTORY
from headrace.loaders.tokens.tokenizer import Tokenizer

DEEP = 4500  # rules or references; 2000 to 4000 filled a stack of 8 MB


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    tokenizer = Tokenizer.load(DEMO_DIRECTORY)
    return Vocabulary(tokenizer, tokenizer.vocab_size, tokenizer.eos_ids)


def chain(name: str) -> str:
    rules = "".join(f'{name}{i}: "b" {name}{i + 1}\n' for i in range(DEEP))
    return f'start: {name}0\n{rules}{name}{DEEP}: "a"\n'


def references(between: str) -> dict[str, Any]:
    """Definitions that each refer to the next; between: what the reference stands in, none or anyOf."""
    made: dict[str, Any] = {f"a{DEEP}": {"type": "null"}}
    for i in range(DEEP):
        to: dict[str, Any] = {"$ref": f"#/$defs/a{i + 1}"}
        made[f"a{i}"] = {between: [{"type": "integer"}, to]} if between else to
    return {"$ref": "#/$defs/a0", "$defs": made}


@pytest.mark.parametrize("name", ["r", "R"], ids=["rules", "terminals"])
def test_rules_that_go_down_thousands_of_times(name: str, vocabulary: Vocabulary) -> None:
    matcher = vocabulary.matcher(Grammar.of_lark(chain(name)))
    tokens = vocabulary.tokens_of("bbb")
    assert matcher.validate_tokens(tokens) == len(tokens)


@pytest.mark.parametrize("between", ["", "anyOf"])
def test_references_that_go_down_thousands_of_times(between: str, vocabulary: Vocabulary) -> None:
    matcher = vocabulary.matcher(Grammar.of_schema(references(between)))
    tokens = vocabulary.tokens_of("null")
    assert matcher.validate_tokens(tokens) == len(tokens)


def gbnf(rules: int, is_up: bool) -> str:
    """Rules in a row, each referring to the next; is_up: those that are referred to come first."""
    row = [f'r{i} ::= "b" r{i + 1}' for i in range(rules)] + [f'r{rules} ::= "a"']
    return "\n".join(["root ::= r0", *(reversed(row) if is_up else row)]) + "\n"


def test_a_gbnf_that_takes_time_by_its_square_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "GBNF_SECONDS", 0.5)
    began = time.process_time()
    with pytest.raises(OptionError, match=r"more than 0\.5 s to translate: put rules behind"):
        Grammar.of_lark(gbnf(20_000, is_up=False))
    assert time.process_time() - began < 20
    with pytest.raises(OptionError, match=f"give {grammar.MOST_SCHEMA} at most"):
        Grammar.of_lark("root ::= a\n" + "#" * grammar.MOST_SCHEMA)


def test_a_long_gbnf_of_many_tools_is_read(vocabulary: Vocabulary) -> None:
    names = [f"tool{i}" for i in range(1000)]
    rules = "".join(f'{name} ::= "{{" "{name}" string "}}"\n' for name in names)
    text = f'root ::= {" | ".join(names)}\n{rules}string ::= ":" [a-z]*\n'
    assert len(text) > 1 << 15
    tokens = vocabulary.tokens_of("{tool999:abc}")
    assert vocabulary.matcher(Grammar.of_lark(text)).validate_tokens(tokens) == len(tokens)
    tokens = vocabulary.tokens_of("bbb")  # of one in which rules stand behind those that they refer to
    assert vocabulary.matcher(Grammar.of_lark(gbnf(4000, is_up=True))).validate_tokens(tokens) == len(tokens)


def test_what_is_raised_there_is_raised_here() -> None:
    def fails() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        on_a_long_stack(fails, 1)
    assert on_a_long_stack(threading.current_thread, 1) is not threading.current_thread()
    assert threading.stack_size() == 0


def test_without_memory_for_a_stack_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_stack, "STACK", 1 << 60)
    monkeypatch.setattr(long_stack, "LEAST", 1 << 60)
    with pytest.raises(OptionError, match="no memory for the thread that compiles a grammar"):
        Grammar.of_regex("a")
    assert threading.stack_size() == 0


def test_a_stack_is_as_large_as_its_grammar_may_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short one takes little address space, of which a limit may leave no more."""
    asked: list[int] = []
    set_size = threading.stack_size
    monkeypatch.setattr(threading, "stack_size", lambda size: asked.append(size) or set_size(size))
    for length in (0, 1000, grammar.MOST_SCHEMA):
        on_a_long_stack(lambda: None, length)
    assert asked[::2] == [16 << 20, (16 << 20) + 1000 * (4 << 10), 1 << 30]
