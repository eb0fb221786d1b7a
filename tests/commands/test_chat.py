"""What a chat on the command line takes: arguments of the template, tools, conversations, templates by name; and that
what cannot be asked is said before weights are loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_tokenizer

from headrace.engine.core.weight_source import CheckpointFiles

Run = Callable[..., tuple[int, str, str]]
# Shows what reaches the template.
TEMPLATE = (
    "{% for m in messages %}<user>{{ m.role }}:{{ m.content }}{% endfor %}|{{ thinking }}|{{ effort }}|"
    "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}<model>"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("chat")
    tiny.build("qwen3_moe", directory, max_position_embeddings=512)
    tiny_tokenizer.save(directory, template=TEMPLATE)
    return directory


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts of requests, as text."""
    from headrace.engine.generation.admission import Admission

    seen: list[str] = []
    request = Admission.request

    def remember(self: Admission, prompt: Any, params: Any) -> Any:
        seen.append(self.need_tokenizer("tests").decode(prompt, skip_special_tokens=False))
        return request(self, prompt, params)

    monkeypatch.setattr(Admission, "request", remember)
    return seen


def ask(run: Run, model: Path, *arguments: object) -> None:
    status, _, err = run("generate", model, *arguments, "-n", 1, "--kernels", "reference")
    assert status == 0, err


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--template-arg", "thinking=false"], "False||"),
        (["--template-arg", "thinking=true", "--template-arg", "effort=low"], "True|low|"),
        (["--template-arg", 'effort={"a": 1}'], "|{'a': 1}|"),
        (["--template-arg", "effort="], "||"),
    ],
)
def test_arguments_reach_the_template(
    arguments: list[str], shown: str, run: Run, model: Path, prompts: list[str]
) -> None:
    ask(run, model, "Hi", "--chat", *arguments)
    assert prompts == [f"<user>user:Hi|{shown}<model>"]


def test_tools_and_a_conversation_come_from_files(run: Run, model: Path, prompts: list[str], tmp_path: Path) -> None:
    (tools := tmp_path / "tools.json").write_text(json.dumps([{"name": "weather", "parameters": {}}]))
    history = [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "assistant", "content": "b"}]
    (messages := tmp_path / "messages.json").write_text(json.dumps(history))
    ask(run, model, "c", "--messages", messages, "--tools", tools, "--system", "s")
    assert prompts == ["<user>system:s<user>user:a<user>assistant:b<user>user:c|||weather<model>"]


def test_the_body_of_a_request_is_a_conversation(run: Run, model: Path, prompts: list[str], tmp_path: Path) -> None:
    body = {
        "model": "any", "messages": [{"role": "user", "content": "a"}], "tools": [{"function": {"name": "f"}}],
        "chat_template_kwargs": {"thinking": False, "effort": "high"}, "temperature": 1.0,
    }  # fmt: skip
    (file := tmp_path / "body.json").write_text(json.dumps(body))
    ask(run, model, "--messages", file, "--template-arg", "effort=low")
    assert prompts == ["<user>user:a|False|low|f<model>"]


def test_a_template_may_lie_in_a_file(run: Run, model: Path, prompts: list[str], tmp_path: Path) -> None:
    (file := tmp_path / "mine.jinja").write_text("<s>{{ messages[0].content }}!")
    ask(run, model, "Hi", "--chat", "--chat-template", file)
    assert prompts == ["<s>Hi!"]


def test_several_questions_are_conversations_of_their_own(run: Run, model: Path, prompts: list[str]) -> None:
    ask(run, model, "a", "b", "--chat")
    assert prompts == ["<user>user:a|||<model>", "<user>user:b|||<model>"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["Hi", "--template-arg", "x=1"], "--template-arg is part of a chat"),
        (["Hi", "--chat", "--template-arg", "x"], "--template-arg is 'x': give NAME=VALUE"),
        (["Hi", "--chat", "--template-arg", "1x=2"], "--template-arg is '1x=2'"),
        (["Hi", "--chat", "--tools", "absent.json"], "--tools: cannot read absent.json"),
        (["Hi", "--chat", "--chat-template", "absent"], "'absent' is no template"),
        (["--messages", "absent.json"], "--messages: cannot read absent.json"),
        (["Hi", "--tools", "t.json"], "--tools is part of a chat"),
        (["a", "b", "--messages", "m.json"], "give one prompt"),
    ],
)
def test_what_cannot_be_asked_is_said(arguments: list[str], said: str, run: Run, model: Path) -> None:
    status, out, err = run("generate", model, *arguments)
    assert (status, out) == (1, "")
    assert said in err


# ---- before weights are loaded


@pytest.mark.parametrize(
    ("template", "arguments", "said"),
    [
        (None, ["Hi", "--chat"], "no chat template"),
        (None, ["-i"], "no chat template"),
        (None, [""], "the prompt is empty"),
        (None, ["x" * 600], "the prompt has 600 tokens"),
        (None, ["Hi", "-n", "9999"], "lower max_new_tokens"),
        ("{{ nothing.at.all }}", ["Hi", "--chat"], "'nothing' is undefined"),
        ("{{ raise_exception('no system') }}", ["-i", "--system", "x"], "no system"),
    ],
)
def test_what_cannot_run_is_said_before_weights_are_loaded(
    template: str | None, arguments: list[str], said: str, run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_tokenizer.save(model, template=template)
    monkeypatch.setattr(CheckpointFiles, "load", lambda *_: pytest.fail("weights were loaded"))
    try:
        status, out, err = run("generate", model, *arguments)
    finally:
        tiny_tokenizer.save(model, template=TEMPLATE)
    assert (status, out) == (1, "")
    assert said in err


def test_a_text_that_cannot_be_scored_is_said_before_weights_are_loaded(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(CheckpointFiles, "load", lambda *_: pytest.fail("weights were loaded"))
    (text := tmp_path / "text").write_text("x")
    assert "at least 2 tokens" in run("perplexity", model, text)[2]
    text.write_text("long enough")
    assert "window is 1000" in run("perplexity", model, text, "--window", 1000)[2]


def test_a_tokenizer_whose_text_cannot_be_streamed_is_refused_before_weights_are_loaded(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.build("qwen3_moe", tmp_path)
    tiny_tokenizer.save(tmp_path)
    values = json.loads((tmp_path / "tokenizer.json").read_text())
    values["decoder"] = {"type": "Strip", "content": " ", "start": 0, "stop": 1}
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    monkeypatch.setattr(CheckpointFiles, "load", lambda *_: pytest.fail("weights were loaded"))
    status, _, err = run("generate", tmp_path, "Hi")
    assert status == 1
    assert "strips text at the end" in err
