"""Messages as clients send them, against transformers where it takes them too, and templates with names, tools and
arguments of their own."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from vocabularies import byte_level, made, save

from headrace.errors import TokenizerError
from headrace.loaders.tokens.conversation import Ways, normalise, tools_of
from headrace.loaders.tokens.tokenizer import Tokenizer

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "of a town", "parameters": {"type": "object", "properties": {}}},
}
ARGUMENTS = {"town": "Łódź", "days": 2}


def called(arguments: Any) -> list[dict[str, Any]]:
    """A conversation in which a tool was called with these arguments."""
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "name": "weather", "content": "none"},
    ]


# Ways in which released templates write the arguments of a call.
DUMPS = "{% for c in m.tool_calls %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
WALKS = (
    "{% for c in m.tool_calls %}{% for k, v in c.function.arguments.items() %}<{{ k }}>{{ v }}{% endfor %}{% endfor %}"
)
OWN = (
    "{% for c in m.tool_calls %}{% set a = c.function.arguments %}{% if a is mapping %}"
    "{% for k, v in a.items() %}{{ k }}:<{{ v }}>{% endfor %}{% else %}{{ a }}{% endif %}{% endfor %}"
)
JOINS = "{% for c in m.tool_calls %}{{ c.function.name + c.function.arguments }}{% endfor %}"
PRINTS = "{% for c in m.tool_calls %}{{ c.function.arguments }}{% endfor %}"
LOOP = "{%% for m in messages %%}[{{ m.role }}]{{ m.content }}{%% if m.tool_calls %%}%s{%% endif %%}{%% endfor %%}"


@pytest.fixture(scope="module")
def chatty() -> tokenizers.Tokenizer:
    return byte_level()


@pytest.mark.parametrize(
    ("style", "written"),
    [
        (DUMPS, '[user]Rain?[assistant]weather{"town": "Łódź", "days": 2}[tool]none'),
        (OWN, "[user]Rain?[assistant]town:<Łódź>days:<2>[tool]none"),
        (WALKS, "[user]Rain?[assistant]<town>Łódź<days>2[tool]none"),
        (JOINS, '[user]Rain?[assistant]weather{"town": "Łódź", "days": 2}[tool]none'),
        (PRINTS, '[user]Rain?[assistant]{"town": "Łódź", "days": 2}[tool]none'),
    ],
)
@pytest.mark.parametrize("as_text", [True, False])
def test_arguments_come_as_the_template_reads_them(
    style: str, written: str, as_text: bool, chatty: tokenizers.Tokenizer
) -> None:
    messages = called(json.dumps(ARGUMENTS, ensure_ascii=False) if as_text else ARGUMENTS)
    before = copy.deepcopy(messages)
    assert made(chatty, LOOP % style).render_chat(messages, add_generation_prompt=False) == written
    assert messages == before


@pytest.mark.parametrize("broken", ["{town: 1}", "", "[1]"])
def test_arguments_that_a_model_wrote_badly_stop_no_chat(broken: str, chatty: tokenizers.Tokenizer) -> None:
    for style in (DUMPS, WALKS, JOINS):
        assert broken in made(chatty, LOOP % style).render_chat(called(broken)).replace('\\"', '"')


def test_parts_and_null_are_text() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "input_text", "text": "two"}, "three"]
    found = normalise([{"role": "user", "content": parts}, {"role": "assistant", "content": None, "name": None}])
    assert found == [{"role": "user", "content": "one\ntwo\nthree"}, {"role": "assistant", "content": ""}]


def test_developer_is_the_system_unless_the_template_knows_it(chatty: tokenizers.Tokenizer) -> None:
    messages = [{"role": "developer", "content": "x"}]
    roles = "{% for m in messages %}{{ m.role }}{% endfor %}"
    assert made(chatty, roles).render_chat(messages) == "system"
    assert made(chatty, roles + "{# developer #}").render_chat(messages) == "developer"


# ---- what clients send back


THOUGHT = "{% for m in messages %}[{{ m.role }}]{{ m.reasoning_content or '' }}|{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    "sent",
    [
        {"reasoning_content": "hm"},
        {"reasoning": "hm"},
        {"reasoning_content": None, "reasoning": "hm"},
        {"reasoning_content": "hm", "reasoning": "hm"},
        {"reasoning_details": [{"type": "reasoning.text", "text": "hm"}, {"type": "reasoning.encrypted", "data": "x"}]},
        {"reasoning_details": [{"type": "reasoning.summary", "summary": "hm"}]},
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
                {"type": "text", "text": "b"},
            ]
        },
    ],
)
def test_reasoning_comes_by_many_names(sent: dict[str, Any], chatty: tokenizers.Tokenizer) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", **sent}]
    assert made(chatty, THOUGHT).render_chat(messages) == "[user]|a[assistant]hm|b"


@pytest.mark.parametrize("depth", [9, 600, 900])
def test_reasoning_within_reasoning_without_end_has_no_text(depth: int, chatty: tokenizers.Tokenizer) -> None:
    nested: Any = "hm"
    for level in range(depth):
        nested = [nested] if level % 2 else {"text": nested}
    messages = [{"role": "assistant", "content": "b", "reasoning": nested}]
    assert made(chatty, THOUGHT).render_chat(messages) == "[assistant]|b"


@pytest.mark.parametrize("key", ["thinking", "reasoning", "reasoning_content"])
@pytest.mark.parametrize("reads", ["m.%s", "m['%s']", "m.get('%s')"])
def test_reasoning_has_the_name_that_the_template_reads(key: str, reads: str, chatty: tokenizers.Tokenizer) -> None:
    messages = [{"role": "assistant", "content": "b", "reasoning": "hm"}]
    template = "{% for m in messages %}{{ " + reads % key + " }}|{{ m.content }}{% endfor %}"
    assert made(chatty, template).render_chat(messages) == "hm|b"


def test_a_template_with_room_for_reasoning_or_text_beside_calls_gets_both_as_one(chatty: tokenizers.Tokenizer) -> None:
    template = (
        "{% for m in messages %}"
        "{% if m.tool_calls and m.thinking and m.content %}{{ raise_exception('two') }}{% endif %}"
        "{{ m.thinking }}|{{ m.content }}{% endfor %}"
    )
    (message,) = called({})[1:2]
    sent = [{**message, "content": "b", "reasoning_content": "hm"}]
    assert made(chatty, template).render_chat(sent) == "hm\n\nb|"


LATE = [
    {"role": "system", "content": "s"}, {"role": "user", "content": "a"}, {"role": "system", "content": "t"},
    {"role": "assistant", "content": "b"}, {"role": "system", "content": "u"}, {"role": "user", "content": "c"},
]  # fmt: skip
PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
REFUSES = PLAIN.replace(
    "[{{", "{% if m.role == 'system' and not loop.first %}{{ raise_exception('late') }}{% endif %}[{{"
)
LEAVES_OUT = PLAIN.replace("[{{ m.role }}]{{ m.content }}", "{% if m.role != 'system' or loop.first %}[{{ m.role }}]{{ m.content }}{% endif %}")  # fmt: skip  # noqa: E501
IN_FRONT = "{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}" + PLAIN.replace(
    "in messages", "in messages if m.role != 'system'"
)


def test_a_late_system_message_stays_where_it_is(chatty: tokenizers.Tokenizer) -> None:
    wanted = "[system]s[user]a[system]t[assistant]b[system]u[user]c"
    assert made(chatty, PLAIN).render_chat(LATE) == wanted
    for template, start in ((REFUSES, "[system]s"), (LEAVES_OUT, "[system]s"), (IN_FRONT, "s")):
        tokenizer = made(chatty, template)
        assert tokenizer.render_chat(LATE) == f"{start}[user]a\n\nt[assistant]b[user]u\n\nc"
        assert tokenizer.render_chat(LATE[:3]) == f"{start}[user]a\n\nt", "the prompt before begins that of later"
        assert tokenizer.render_chat(LATE[:5]) == f"{start}[user]a\n\nt[assistant]b[user]u"


def test_several_system_messages_in_front_are_one(chatty: tokenizers.Tokenizer) -> None:
    messages = [LATE[0], {"role": "developer", "content": "t"}, LATE[1]]
    assert made(chatty, REFUSES).render_chat(messages) == "[system]s\n\nt[user]a"


def test_a_system_message_behind_a_tools_answer_is_no_part_of_it() -> None:
    tool, late = {"role": "tool", "content": "x"}, {"role": "system", "content": "s"}
    ways = Ways(late_system=False)
    assert normalise([tool, late], ways) == [tool, {"role": "user", "content": "s"}]
    assert normalise([tool, late, LATE[3]], ways) == [tool, {"role": "user", "content": "s"}, LATE[3]]


def test_ids_that_a_client_sanitised_are_restored() -> None:
    def sent(id: str, name: str = "get_weather") -> list[Any]:
        call = {"id": id, "type": "function", "function": {"name": name, "arguments": "{}"}}
        found = normalise(
            [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": id, "content": ""}]
        )
        assert found[0]["tool_calls"][0]["id"] == found[1]["tool_call_id"]
        return [found[1]["tool_call_id"]]

    assert sent("functions_get_weather_3") == sent("functions-get_weather-3") == ["functions.get_weather:3"]
    for id in ("functions.get_weather:3", "call_1", "functions_get_weather", "functions_get-weather_3", "functions_3"):
        assert sent(id) == [id], "what is not certain stays"


def test_answers_of_tools_are_in_the_order_of_their_calls() -> None:
    calls = [{"id": id, "function": {"name": "f"}} for id in "ab"]
    answers = [{"role": "tool", "tool_call_id": id, "content": id} for id in "ba"]
    messages = [{"role": "assistant", "tool_calls": calls}, *answers, {"role": "user", "content": "c"}]
    assert [one["content"] for one in normalise(messages)] == ["", "a", "b", "c"]
    messages[1] = {"role": "tool", "tool_call_id": "?", "content": "b"}
    assert [one["content"] for one in normalise(messages)] == ["", "b", "a", "c"], "unless one is of no call"


def test_parts_are_joined_as_the_template_does_it(chatty: tokenizers.Tokenizer) -> None:
    parts = [{"type": "text", "text": "a", "cache_control": {}}, {"type": "text", "text": "b"}]
    walks = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }}SEP{% endfor %}{% endif %}{% endfor %}"  # fmt: skip  # noqa: E501
    for template, wanted in ((PLAIN, "[user]a\nb"), (walks.replace("SEP", ""), "ab"), (walks.replace("SEP", "{{ ' ' }}"), "a b")):  # fmt: skip  # noqa: E501
        assert made(chatty, template).render_chat([{"role": "user", "content": parts}]) == wanted


def test_content_beside_calls_is_null_where_the_template_wants_it(chatty: tokenizers.Tokenizer) -> None:
    wants = "{% for m in messages %}{% if m.content is none %}{{ m.tool_calls[0].function.name }}{% else %}{{ m.content }}{% endif %}{% endfor %}"  # fmt: skip  # noqa: E501
    assert made(chatty, wants).render_chat(called({})) == "Rain?weathernone"
    assert made(chatty, LOOP % DUMPS).render_chat(called({})).startswith("[user]Rain?[assistant]weather")


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "type 'image_url'.*reads text"),
        ([{"role": "user"}], "no content"),
        ([{"role": "user", "content": 3}], "no content"),
        ([{"role": "tool"}], "no content"),
        ([{"role": "assistant", "tool_calls": "x"}], "tool_calls"),
        ([{"role": "assistant", "tool_calls": [{"function": {}}]}], "without a function and its name"),
        ({"role": "user", "content": "x"}, "no messages"),
    ],
)
def test_what_is_no_message_is_named(messages: Any, said: str, chatty: tokenizers.Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=said):
        made(chatty, LOOP % DUMPS).render_chat(messages)


def test_tools_are_taken_as_clients_send_them() -> None:
    function = WEATHER["function"]
    assert tools_of([WEATHER]) == tools_of([function]) == [WEATHER]
    assert tools_of([]) is tools_of(None) is None
    for odd in ("weather", [{"type": "function"}], [3]):
        with pytest.raises(TokenizerError, match=r"tool"):
            tools_of(odd)


@pytest.mark.parametrize(
    "values",
    [
        {"tools": [WEATHER]},
        {"enable_thinking": False},
        {"reasoning_effort": "low", "documents": [{"title": "a", "text": "b"}]},
        {},
    ],
)
def test_tools_and_arguments_agree_with_transformers(
    values: dict[str, Any], tmp_path: Path, chatty: tokenizers.Tokenizer
) -> None:
    transformers = pytest.importorskip("transformers")
    template = (
        "{% if tools %}{{ tools | tojson }}{% endif %}{{ documents }}{{ reasoning_effort | default('medium') }}"
        "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
    )
    messages = [{"role": "user", "content": "x"}]
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(save(tmp_path / "oracle", chatty))
    wanted = theirs.apply_chat_template(messages, chat_template=template, tokenize=False, **values)
    given = {key: value for key, value in values.items() if key != "tools"}
    assert made(chatty, template).render_chat(messages, tools=values.get("tools"), arguments=given) == wanted


def test_what_the_chat_gives_is_no_argument(chatty: tokenizers.Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"messages is no argument"):
        made(chatty, "x").render_chat([{"role": "user", "content": "x"}], arguments={"messages": []})


# ---- several templates, several places

QUESTION = [{"role": "user", "content": "x"}]


@pytest.mark.parametrize("place", ["list", "mapping", "files"])
def test_a_template_is_chosen_by_name(place: str, tmp_path: Path, chatty: tokenizers.Tokenizer) -> None:
    several = {"default": "plain", "tool_use": "tools", "rag": "documents"}
    settings: dict[str, Any] = {}
    if place == "files":
        (tmp_path / "additional_chat_templates").mkdir()
        for name, text in several.items():
            file = "chat_template" if name == "default" else f"additional_chat_templates/{name}"
            (tmp_path / f"{file}.jinja").write_text(text)
    elif place == "mapping":
        settings["chat_template"] = several
    else:
        settings["chat_template"] = [{"name": name, "template": text} for name, text in several.items()]
    tokenizer = Tokenizer.load(save(tmp_path, chatty, settings))
    assert tokenizer.render_chat(QUESTION) == "plain"
    assert tokenizer.render_chat(QUESTION, tools=[WEATHER]) == "tools"
    assert tokenizer.render_chat(QUESTION, template="rag") == "documents"
    assert tokenizer.render_chat(QUESTION, template="{{ 'own' }}") == "own"
    with pytest.raises(TokenizerError, match=r"'chat' is no template.*default, rag, tool_use"):
        tokenizer.render_chat(QUESTION, template="chat")


def test_without_a_default_the_names_are_said(tmp_path: Path, chatty: tokenizers.Tokenizer) -> None:
    several = [{"name": "tool_use", "template": "x"}, {"name": "rag", "template": "y"}]
    tokenizer = Tokenizer.load(save(tmp_path, chatty, {"chat_template": several}))
    with pytest.raises(TokenizerError, match=r"no default.*--chat-template: rag, tool_use"):
        tokenizer.render_chat(QUESTION)
    assert tokenizer.render_chat(QUESTION, tools=[WEATHER]) == "x"


def test_two_places_that_differ_are_said(tmp_path: Path, chatty: tokenizers.Tokenizer) -> None:
    (tmp_path / "chat_template.jinja").write_text("one\n")
    assert Tokenizer.load(save(tmp_path, chatty, {"chat_template": "one"})).notes == ()
    differing = Tokenizer.load(save(tmp_path, chatty, {"chat_template": "two"}))
    assert differing.render_chat(QUESTION) == "one"
    assert "chat_template.jinja and tokenizer_config.json hold different" in differing.notes[0]
