"""Conversations with reasoning and calls: as Python sees them, and on the command line."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_tokenizer

from headrace import LLM, ChatCompletion, SamplingParams
from headrace.engine.terminal import output
from headrace.engine.terminal.chat.answer_view import AnswerView
from headrace.errors import TokenizerError
from headrace.loaders.tokens.dialects.events import CallArguments, CallEnd, CallStart, Reasoning, Text

Run = Callable[..., tuple[int, str, str]]
TOOLS = [{"name": "sum", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}]
# Writes calls as Hermes does, and shows what reaches it.
TEMPLATE = (
    "{% for m in messages %}<user>{{ m.role }}:{{ m.reasoning_content }}|{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}{% endfor %}<model>"
)
CALL = '<tool_call>{"name": "sum", "arguments": {"a": 1}}</tool_call>'
ANSWER = f"<think>Hm.</think>\n\nI add.\n{CALL}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("conversation")
    tiny.build("qwen3_moe", directory, max_position_embeddings=512)
    tiny_tokenizer.save(directory, template=TEMPLATE)
    return directory


class Script:
    """A sampler that writes answers from a list, one after another, whatever the logits say."""

    def __init__(self, *answers: str) -> None:
        self.answers, self.llm = list(answers), None
        self.tokens: Iterator[int] = iter(())
        self.prompts: list[str] = []

    def __call__(self, logits: Any, sequences: Any, ops: Any) -> list[int]:
        (sequence,) = sequences
        if not sequence.completion:
            self.tokens = iter(self._ids(self.answers.pop(0)))
            self.prompts.append(self.tokenizer.decode(sequence.tokens, skip_special_tokens=False))
        return [next(self.tokens)]

    def _ids(self, text: str) -> list[int]:
        return [*self.tokenizer.encode(text, add_special_tokens=False), *self.tokenizer.eos_ids]


@pytest.fixture
def scripted(model: Path) -> Callable[..., tuple[LLM, Script]]:
    def load(*answers: str) -> tuple[LLM, Script]:
        script = Script(*answers)
        llm = LLM(model, kernels="reference", no_measure=True, sampler=script)
        script.tokenizer = llm.tokenizer  # type: ignore[attr-defined]
        return llm, script

    return load


def test_an_answer_comes_in_parts_and_goes_back_as_a_message(scripted: Callable[..., tuple[LLM, Script]]) -> None:
    llm, script = scripted(ANSWER, "Done.")
    messages: list[Any] = [{"role": "user", "content": "1?"}]
    answer = llm.chat(messages, SamplingParams(max_new_tokens=200), tools=TOOLS)
    assert isinstance(answer, ChatCompletion)
    assert (answer.reasoning, answer.text, answer.finish_reason) == ("Hm.", "I add.", "stop")
    (call,) = answer.tool_calls
    assert call["function"] == {"name": "sum", "arguments": '{"a": 1}'}
    assert answer.message == {
        "role": "assistant", "content": "I add.", "reasoning_content": "Hm.", "tool_calls": [call],
    }  # fmt: skip
    messages += [answer.message, {"role": "tool", "tool_call_id": call["id"], "content": "1"}]
    assert llm.chat(messages, {"max_new_tokens": 50}, tools=TOOLS).message == {"role": "assistant", "content": "Done."}
    assert script.prompts[1] == (
        '<user>user:|1?<user>assistant:Hm.|I add.<tool_call>{"name": "sum", "arguments": {"a": 1}}</tool_call>'
        "<user>tool:|1<model>"
    )


def test_events_come_as_they_are_written(scripted: Callable[..., tuple[LLM, Script]]) -> None:
    llm, _ = scripted(ANSWER)
    stream = llm.chat_stream([{"role": "user", "content": "1?"}], {"max_new_tokens": 200}, tools=TOOLS)
    events = list(stream)
    assert [type(e) for e in events if not isinstance(e, (Reasoning, Text, CallArguments))] == [CallStart, CallEnd]
    assert "".join(e.text for e in events if isinstance(e, Reasoning)) == "Hm."
    assert sum(isinstance(e, Text) for e in events) > 3
    assert stream.result.text == "I add."


def test_a_stream_that_is_closed_says_what_there_is(scripted: Callable[..., tuple[LLM, Script]]) -> None:
    llm, _ = scripted(ANSWER)
    stream = llm.chat_stream([{"role": "user", "content": "1?"}], {"max_new_tokens": 200}, tools=TOOLS)
    for event in stream:
        if isinstance(event, CallArguments):
            break
    stream.close()
    stream.rest()
    assert stream.result.finish_reason == "interrupted"
    assert stream.result.tool_calls[0]["function"]["name"] == "sum"


def test_stop_strings_count_in_what_is_said(scripted: Callable[..., tuple[LLM, Script]]) -> None:
    llm, _ = scripted("<think>I add.</think>I add. 3", "<think>a", ANSWER)
    params = {"max_new_tokens": 200, "stop": [" add"]}
    answer = llm.chat([{"role": "user", "content": "1?"}], params)
    assert (answer.reasoning, answer.text) == ("I add.", "I")
    answer = llm.chat([{"role": "user", "content": "1?"}], {"max_new_tokens": 8})
    assert (answer.reasoning, answer.text, answer.finish_reason) == ("a", "", "length")
    answer = llm.chat([{"role": "user", "content": "1?"}], {"max_new_tokens": len(ANSWER) - 15}, tools=TOOLS)
    assert answer.finish_reason == "length"
    assert answer.tool_calls[0]["function"]["arguments"] == '{"a": ', "cut, not completed"


def test_a_dialect_may_be_said(scripted: Callable[..., tuple[LLM, Script]]) -> None:
    llm, _ = scripted("<think>a</think>b")
    assert llm.chat([{"role": "user", "content": "1?"}], dialect="none").text == "<think>a</think>b"
    with pytest.raises(TokenizerError, match="no dialect 'x'"):
        llm.chat([{"role": "user", "content": "1?"}], dialect="x")


# ---- on the command line


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Script]:
    """Models that are loaded from now on write these answers."""

    def write(*texts: str) -> Script:
        script, init = Script(*texts), LLM.__init__

        def load(self: LLM, *arguments: Any, **options: Any) -> None:
            init(self, *arguments, **{**options, "sampler": script})
            script.tokenizer = self.tokenizer  # type: ignore[attr-defined]

        monkeypatch.setattr(LLM, "__init__", load)
        return script

    return write


def ask(run: Run, model: Path, *arguments: object, stdin: str) -> tuple[str, str]:
    options = ("-n", 200, "--kernels", "reference", "--no-measure")
    status, out, err = run("generate", model, "-i", *arguments, *options, stdin=stdin)
    assert status == 0, err
    return out, err


def test_the_history_has_messages_and_not_raw_text(run: Run, model: Path, answers: Callable[..., Script]) -> None:
    script = answers("<think>Hm.</think>\nYes.", "No.")
    out, _ = ask(run, model, stdin="a\nb\n/exit\n")
    assert out == "Hm.\n\nYes.\nNo.\n"
    assert script.prompts[1] == "<user>user:|a<user>assistant:Hm.|Yes.<user>user:|b<model>"


def test_the_user_answers_for_the_tools(run: Run, model: Path, answers: Callable[..., Script], tmp_path: Path) -> None:
    (tools := tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    script = answers(f"{CALL}\n{CALL}", "Two.")
    out, err = ask(run, model, "--tools", tools, stdin="a\n1\n2\n/exit\n")
    assert out == '[sum {"a": 1}]\n[sum {"a": 1}]\nTwo.\n'
    assert err.count("type what sum answers") == 2
    assert script.prompts[1].endswith("<user>tool:|1<user>tool:|2<model>")


def test_a_question_that_is_too_long_is_taken_back(run: Run, model: Path, answers: Callable[..., Script]) -> None:
    script = answers("Yes.")
    _, err = ask(run, model, stdin=f"{'x' * 600}\na\n/exit\n")
    assert "/reset" in err
    assert script.prompts == ["<user>user:|a<model>"]


def test_an_unknown_dialect_is_said_before_weights_are_loaded(run: Run, model: Path) -> None:
    for arguments, said in ((["-i", "--dialect", "x"], "no dialect 'x'"), (["Hi", "--dialect", "glm"], "add -i")):
        status, _, err = run("generate", model, *arguments)
        assert status == 1
        assert said in err


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("kind", "thought"), [("xterm", "\x1b[2mhm\x1b[0m"), ("dumb", "hm")])
def test_reasoning_is_dim_on_a_terminal(kind: str, thought: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", kind)
    for screen, shown in ((Screen(), thought), (io.StringIO(), "hm")):
        monkeypatch.setattr("sys.stdout", screen)
        view = AnswerView()
        for event in (Reasoning("hm"), Text("a"), CallStart(0, "x", "f"), CallArguments(0, "{}"), CallEnd(0)):
            view.show(event)
        view.end()
        assert screen.getvalue() == f"{shown}\n\na\n\n[f {{}}]\n"
    output.settle()
