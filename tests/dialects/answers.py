"""Answers as models of each dialect write them, and what they say."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """said: ("think", text), ("text", text), ("call", name, arguments) in order. prompt: the end of the prompt."""

    dialect: str
    name: str
    answer: str
    said: list[tuple[str, ...]]
    prompt: str = ""

    def __str__(self) -> str:
        return f"{self.dialect}: {self.name}"


def think(text: str) -> tuple[str, ...]:
    return ("think", text)


def text(text: str) -> tuple[str, ...]:
    return ("text", text)


def call(name: str, arguments: str = "{}") -> tuple[str, ...]:
    return ("call", name, arguments)


CHATML, OPEN = "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n<|im_start|>assistant\n<think>\n"
WEATHER = '{"city": "Łódź", "days": 2}'
HERMES_CALL = f'<tool_call>\n{{"name": "get_weather", "arguments": {WEATHER}}}\n</tool_call>'
HERMES_DRAFT = '<tool_call>\n{"name": "get_weather"}\n</tool_call>'


def before(answer: str, mark: str) -> str:
    """An answer that ends before the first of these marks."""
    return answer[: answer.index(mark)]


def _thinking(dialect: str, open_prompt: str, closed_prompt: str) -> list[Case]:
    """What all dialects with <think> share."""
    return [
        Case(dialect, "plain", "Hello, world.\n", [text("Hello, world.\n")], closed_prompt),
        Case(dialect, "reasoning, text", "<think>\nHm.\n\n  Yes.\n</think>\n\nIt is.", [think("Hm.\n\n  Yes."), text("It is.")]),
        Case(dialect, "reasoning is open", "Hm.\n</think>\n\n    code", [think("Hm."), text("    code")], open_prompt),
        Case(dialect, "opened twice", "<think>\nHm.</think>So", [think("Hm."), text("So")], open_prompt),
        Case(dialect, "nothing thought", "\n\n</think>\n\nSo", [text("So")], open_prompt),
        Case(dialect, "reasoning without end", "Hm, and", [think("Hm, and")], open_prompt),
        Case(dialect, "closed in the prompt", "So", [text("So")], f"{open_prompt}\n</think>\n\n"),
        Case(dialect, "closed again", "</think>\n\nSo", [text("So")], closed_prompt),
        Case(dialect, "marks within text", "The <think> and </think> marks", [text("The <think> and </think> marks")]),
        Case(dialect, "less", "a < b, <thin, </th", [text("a < b, <thin, </th")]),
    ]  # fmt: skip


HERMES = [
    *_thinking("hermes", OPEN, CHATML),
    Case("hermes", "call", HERMES_CALL, [call("get_weather", WEATHER)]),
    Case(
        "hermes", "reasoning, call", f"<think>\nHm.\n</think>\n\n{HERMES_CALL}",
        [think("Hm."), call("get_weather", WEATHER)],
    ),
    Case(
        "hermes", "two calls", f'{HERMES_CALL}\n<tool_call>{{"name":"get_time","arguments":{{}}}}</tool_call>\n',
        [call("get_weather", WEATHER), call("get_time")],
    ),
    Case("hermes", "text, call", f"Let me look.\n\n{HERMES_CALL}", [text("Let me look."), call("get_weather", WEATHER)]),
    Case("hermes", "call, text", f"{HERMES_CALL}\n\nDone.", [call("get_weather", WEATHER), text("\n\nDone.")]),
    Case("hermes", "no end", before(HERMES_CALL, "</tool_call>"), [call("get_weather", WEATHER)]),
    Case("hermes", "no bracket either", before(HERMES_CALL, "}\n</tool_call>"), [call("get_weather", WEATHER)]),
    Case(
        "hermes", "one ends where the next begins", f'{HERMES_CALL[:-13]}<tool_call>{{"name": "get_time"}}</tool_call>',
        [call("get_weather", WEATHER), call("get_time")],
    ),
    Case(
        "hermes", "a draft", f"I could say {HERMES_DRAFT} now, or {HERMES_CALL} then.</think>\nNo.",
        [think(f"I could say {HERMES_DRAFT} now, or {HERMES_CALL} then."), text("No.")], OPEN,
    ),
    Case(
        "hermes", "a draft, then a call", f"First {HERMES_DRAFT}\n</think>\n{HERMES_CALL}",
        [think(f"First {HERMES_DRAFT}"), call("get_weather", WEATHER)], OPEN,
    ),
    Case(
        "hermes", "reasoning is not closed", f"I look.\n{HERMES_CALL}\n{HERMES_CALL}\n",
        [think("I look."), call("get_weather", WEATHER), call("get_weather", WEATHER)], OPEN,
    ),
    Case(
        "hermes", "name behind arguments", f'<tool_call>{{"arguments": {WEATHER}, "name": "get_weather"}}</tool_call>',
        [call("get_weather", WEATHER)],
    ),
    Case(
        "hermes", "a list", f'<tool_call>[{{"name": "get_time"}}, {{"name": "get_weather", "parameters": {WEATHER}}}]</tool_call>',
        [call("get_time"), call("get_weather", WEATHER)],
    ),
    Case(
        "hermes", "as OpenAI writes it",
        '<tool_call>{"id": "call_7", "type": "function", "function": {"name": "get_weather", "arguments": "{\\"city\\": \\"\\\\u0141\\"}"}}</tool_call>',
        [call("get_weather", '{"city": "\\u0141"}')],
    ),
    Case(
        "hermes", "no such tool", '<tool_call>\n{"name": "fly", "arguments": {"a": 1}}\n</tool_call>!',
        [text('<tool_call>\n{"name": "fly", "arguments": {"a": 1}}\n</tool_call>!')],
    ),
    Case("hermes", "no call", "<tool_call> is a mark.", [text("<tool_call> is a mark.")]),
    Case("hermes", "no name", '<tool_call>{"arguments": {}}</tool_call>', [text('<tool_call>{"arguments": {}}</tool_call>')]),
    Case(
        "hermes", "one bracket more", f"{HERMES_CALL[:-13]}}}\n</tool_call>",
        [call("get_weather", WEATHER), text("}")],
    ),
    Case(
        "hermes", "marks in a value",
        '<tool_call>{"name": "write_file", "arguments": {"path": "a", "text": "<tool_call></tool_call> \\"</tool_call>"}}</tool_call>',
        [call("write_file", '{"path": "a", "text": "<tool_call></tool_call> \\"</tool_call>"}')],
    ),
    Case(
        "hermes", "line breaks and odd escapes",
        '<tool_call>{"name": "write_file", "arguments": {"path": "C:\\dir", "text": "a\n\tb \\u00e9 \\u12"}}</tool_call>',
        [call("write_file", '{"path": "C:\\\\dir", "text": "a\\n\\tb \\u00e9 \\\\u12"}')],
    ),
    Case(
        "hermes", "words and commas of Python",
        '<tool_call>{"name": "get_weather", "arguments": {"city": "x", "exact": True, "days": None,}}</tool_call>',
        [call("get_weather", '{"city": "x", "exact": true, "days": null}')],
    ),
    Case(
        "hermes", "no JSON is passed on", "<tool_call>{\"name\": \"get_weather\", \"arguments\": {'city': 1}}</tool_call>",
        [call("get_weather", "{'city': 1}}")],
    ),
    Case("hermes", "null", '<tool_call>{"name": "get_time", "arguments": null}</tool_call>', [call("get_time")]),
    Case(
        "hermes", "what else the object holds", '<tool_call>{"name": "get_time", "why": "now"}</tool_call>',
        [call("get_time"), text('"why": now')],
    ),
]  # fmt: skip

CODER_CALL = "<tool_call>\n<function=get_weather>\n<parameter=city>\nŁódź\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>"
FILE = "\n\n<a>\n  <parameter=x>1</parameter> and </function>\n</parameter> b\n</tool_call>c\n"
FILE_JSON = '"\\n<a>\\n  <parameter=x>1</parameter> and </function>\\n</parameter> b\\n</tool_call>c"'
QWEN_CODER = [
    *_thinking("qwen-coder", OPEN, CHATML),
    Case("qwen-coder", "call", CODER_CALL, [call("get_weather", WEATHER)]),
    Case(
        "qwen-coder", "reasoning, text, call", f"Hm.\n</think>\n\nI look.\n\n{CODER_CALL}",
        [think("Hm."), text("I look."), call("get_weather", WEATHER)], OPEN,
    ),
    Case("qwen-coder", "two calls", f"{CODER_CALL}\n{CODER_CALL}", [call("get_weather", WEATHER)] * 2),
    Case("qwen-coder", "no opener", f"I look.\n{CODER_CALL[12:]}", [text("I look."), call("get_weather", WEATHER)]),
    Case("qwen-coder", "no closers", before(CODER_CALL, "</function>"), [call("get_weather", WEATHER)]),
    Case(
        "qwen-coder", "no end of a value", CODER_CALL.replace("\n</parameter>", ""),
        [call("get_weather", WEATHER)],
    ),
    Case("qwen-coder", "call in reasoning", f"Hm.\n{CODER_CALL}", [think("Hm."), call("get_weather", WEATHER)], OPEN),
    Case(
        "qwen-coder", "reasoning closed behind the call", f"Hm.\n{CODER_CALL}\n</think>\n\n",
        [think("Hm."), call("get_weather", WEATHER)], OPEN,
    ),
    Case("qwen-coder", "no parameters", "<tool_call>\n<function=get_time>\n</function>\n</tool_call>", [call("get_time")]),
    Case(
        "qwen-coder", "several in one", f"{CODER_CALL[:-13]}\n<function=get_time>\n</function>\n</tool_call>",
        [call("get_weather", WEATHER), call("get_time")],
    ),
    Case(
        "qwen-coder", "types by the schema",
        "<tool_call><function=get_weather><parameter=city>\n123\n</parameter><parameter=days>three</parameter>"
        "<parameter=exact>\nTrue\n</parameter><parameter=else>7</parameter></function></tool_call>",
        [call("get_weather", '{"city": "123", "days": "three", "exact": true, "else": 7}')],
    ),
    Case(
        "qwen-coder", "lists, objects and null",
        '<tool_call><function=search><parameter=queries>\n["a", 1]\n</parameter><parameter=options>\n{"b":\n{}}\n</parameter>'
        "<parameter=note>null</parameter></function></tool_call>",
        [call("search", '{"queries": ["a", 1], "options": {"b":\n{}}, "note": null}')],
    ),
    Case(
        "qwen-coder", "marks and line breaks in a value",
        f"<tool_call>\n<function=write_file>\n<parameter=path>\na\n</parameter>\n<parameter=text>{FILE}\n</parameter>\n</function>\n</tool_call>",
        [call("write_file", f'{{"path": "a", "text": {FILE_JSON[:-1]}\\n"}}')],
    ),
    Case(
        "qwen-coder", "an empty value", "<tool_call><function=get_weather><parameter=city>\n</parameter></function></tool_call>",
        [call("get_weather", '{"city": ""}')],
    ),
    Case(
        "qwen-coder", "a broken mark",
        "<tool_call><function=get_weather>\n<parameter=city\nx\n</parameter>\n<parameter=days>\n1\n</parameter>\n</function></tool_call>",
        [call("get_weather", '{"days": 1}'), text("<parameter=city\nx\n</parameter>")],
    ),
    Case(
        "qwen-coder", "no such tool", "<tool_call>\n<function=fly>\n</function>\n</tool_call>",
        [text("<tool_call>\n<function=fly>\n</function>\n</tool_call>")],
    ),
    Case("qwen-coder", "JSON after all", HERMES_CALL, [call("get_weather", WEATHER)]),
]  # fmt: skip

V31_CALL = "<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>" + WEATHER + "<｜tool▁call▁end｜>"
V31 = f"<｜tool▁calls▁begin｜>{V31_CALL}<｜tool▁calls▁end｜>"
V3_CALL = f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{WEATHER}\n```<｜tool▁call▁end｜>"
SEEK_OPEN, SEEK_CLOSED = "x<｜Assistant｜><think>", "x<｜Assistant｜></think>"
DEEPSEEK = [
    *_thinking("deepseek-v3", SEEK_OPEN, SEEK_CLOSED),
    Case("deepseek-v3", "call", V31, [call("get_weather", WEATHER)]),
    Case("deepseek-v3", "fenced", f"<｜tool▁calls▁begin｜>{V3_CALL}<｜tool▁calls▁end｜>", [call("get_weather", WEATHER)]),
    Case(
        "deepseek-v3", "two fenced", f"<｜tool▁calls▁begin｜>{V3_CALL}\n{V3_CALL}<｜tool▁calls▁end｜>",
        [call("get_weather", WEATHER)] * 2,
    ),
    Case("deepseek-v3", "two calls", V31.replace(V31_CALL, V31_CALL * 2), [call("get_weather", WEATHER)] * 2),
    Case("deepseek-v3", "text, call", f"I look.\n\n{V31}", [text("I look."), call("get_weather", WEATHER)], SEEK_CLOSED),
    Case("deepseek-v3", "in reasoning", f"Hm.{V31}", [think("Hm."), call("get_weather", WEATHER)], SEEK_OPEN),
    Case("deepseek-v3", "behind reasoning", f"Hm.</think>{V31}", [think("Hm."), call("get_weather", WEATHER)], SEEK_OPEN),
    Case("deepseek-v3", "no closers", before(V31, "<｜tool▁call▁end｜>"), [call("get_weather", WEATHER)]),
    Case("deepseek-v3", "no section", V31_CALL, [call("get_weather", WEATHER)]),
    Case("deepseek-v3", "no separator", V31.replace("<｜tool▁sep｜>", ""), [call("get_weather", WEATHER)]),
    Case("deepseek-v3", "cut within a text", V31[: V31.index("dź")], [call("get_weather", '{"city": "Łó"}')]),
    Case(
        "deepseek-v3", "no such tool", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>fly<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        [text("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>fly<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>")],
    ),
    Case(
        "deepseek-v3", "after a tool's answer", "It rains.", [text("It rains.")],
        f"<｜Assistant｜><think>Hm.</think>{V31}<｜end▁of▁sentence｜><｜tool▁output▁begin｜><think><｜tool▁output▁end｜>",
    ),
]  # fmt: skip


def dsml(name: str, *parameters: tuple[str, str, str], outer: str = "function_calls") -> str:
    inner = "".join(
        f'<｜DSML｜parameter name="{key}" string="{kind}">{value}</｜DSML｜parameter>\n'
        for key, kind, value in parameters
    )
    return f'<｜DSML｜{outer}>\n<｜DSML｜invoke name="{name}">\n{inner}</｜DSML｜invoke>\n</｜DSML｜{outer}>'


DSML_CALL = dsml("get_weather", ("city", "true", "Łódź"), ("days", "false", "2"))
DSML = [
    *_thinking("deepseek-dsml", SEEK_OPEN, SEEK_CLOSED),
    Case("deepseek-dsml", "call", DSML_CALL, [call("get_weather", WEATHER)], SEEK_CLOSED),
    Case("deepseek-dsml", "of V4", DSML_CALL.replace("function_calls", "tool_calls"), [call("get_weather", WEATHER)]),
    Case(
        "deepseek-dsml", "reasoning, text, call", f"Hm.</think>I look.\n\n{DSML_CALL}",
        [think("Hm."), text("I look."), call("get_weather", WEATHER)], SEEK_OPEN,
    ),
    Case("deepseek-dsml", "in reasoning", f"Hm.\n\n{DSML_CALL}", [think("Hm."), call("get_weather", WEATHER)], SEEK_OPEN),
    Case(
        "deepseek-dsml", "two calls",
        DSML_CALL.replace("</｜DSML｜function_calls>", '<｜DSML｜invoke name="get_time">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>'),
        [call("get_weather", WEATHER), call("get_time")],
    ),
    Case(
        "deepseek-dsml", "it says what is text", dsml("search", ("note", "true", "null"), ("queries", "false", "[1]"), ("x", "true", "5")),
        [call("search", '{"note": "null", "queries": [1], "x": "5"}')],
    ),
    Case("deepseek-dsml", "no closers", before(DSML_CALL, "</｜DSML｜invoke>"), [call("get_weather", WEATHER)]),
    Case("deepseek-dsml", "no such tool", dsml("fly"), [text(dsml("fly"))]),
    Case(
        "deepseek-dsml", "after a tool's answer", "It rains.", [text("It rains.")],
        f"{SEEK_OPEN}Hm.</think>{DSML_CALL}<｜end▁of▁sentence｜>\n\n<function_results>\n<result><think></result>\n</function_results>\n\n</think>",
    ),
]  # fmt: skip

KIMI_CALL = f"<|tool_call_begin|>functions.get_weather:3<|tool_call_argument_begin|>{WEATHER}<|tool_call_end|>"
KIMI_TURN = "<|im_assistant|>assistant<|im_middle|>"


def section(calls: str) -> str:
    return f"<|tool_calls_section_begin|>{calls}<|tool_calls_section_end|>"


KIMI = [
    *_thinking("kimi", f"{KIMI_TURN}<think>", KIMI_TURN),
    Case("kimi", "call", section(KIMI_CALL), [call("get_weather", WEATHER)]),
    Case(
        "kimi", "reasoning, text, call", f"<think>Hm.</think>I look.{section(KIMI_CALL)}",
        [think("Hm."), text("I look."), call("get_weather", WEATHER)],
    ),
    Case("kimi", "in reasoning", f"<think>Hm.{section(KIMI_CALL)}", [think("Hm."), call("get_weather", WEATHER)]),
    Case("kimi", "two calls", section(f"{KIMI_CALL}\n{KIMI_CALL}"), [call("get_weather", WEATHER)] * 2),
    Case(
        "kimi", "section in the singular", section(KIMI_CALL).replace("calls_section", "call_section"),
        [call("get_weather", WEATHER)],
    ),
    Case("kimi", "no section", KIMI_CALL, [call("get_weather", WEATHER)]),
    Case("kimi", "no closers", before(section(KIMI_CALL), "<|tool_call_end|>"), [call("get_weather", WEATHER)]),
    Case("kimi", "neither dot nor colon", section(KIMI_CALL).replace("functions.get_weather:3", "functionsget_weather3"), [call("get_weather", WEATHER)]),
    Case("kimi", "a number alone", section(KIMI_CALL).replace("functions.get_weather:3", "call00003"), [call("get_weather", WEATHER)]),
    Case("kimi", "no such tool", section(KIMI_CALL).replace("weather", "fish"), [text(section(KIMI_CALL).replace("weather", "fish"))]),
]  # fmt: skip


def harmony(channel: str, body: str, end: str = "<|end|>", head: str = "") -> str:
    return f"<|channel|>{channel}{head}<|message|>{body}{end}"


NEXT = "<|start|>assistant"
HARMONY_CALL = harmony("commentary", WEATHER, "<|call|>", " to=functions.get_weather <|constrain|>json")
HARMONY = [
    Case("harmony", "plain", harmony("final", "Hello, world.\n", "<|return|>"), [text("Hello, world.\n")], NEXT),
    Case(
        "harmony", "reasoning, text", f"{harmony('analysis', 'Hm.')}{NEXT}{harmony('final', 'So.', '')}",
        [think("Hm."), text("So.")], NEXT,
    ),
    Case(
        "harmony", "reasoning, call", f"{harmony('analysis', 'Hm.')}{NEXT}{HARMONY_CALL}",
        [think("Hm."), call("get_weather", WEATHER)], NEXT,
    ),
    Case(
        "harmony", "reasoning, text, call", f"{harmony('analysis', 'Hm.')}{NEXT}{harmony('commentary', 'I look.')}{NEXT}{HARMONY_CALL}",
        [think("Hm."), text("I look."), call("get_weather", WEATHER)], NEXT,
    ),
    Case("harmony", "two calls", f"{HARMONY_CALL}{NEXT}{HARMONY_CALL}", [call("get_weather", WEATHER)] * 2, NEXT),
    Case("harmony", "no end", before(HARMONY_CALL, "<|call|>"), [call("get_weather", WEATHER)], NEXT),
    Case("harmony", "no bracket", before(HARMONY_CALL, "}<|call|>"), [call("get_weather", WEATHER)], NEXT),
    Case(
        "harmony", "recipient before the channel", f" to=functions.get_weather<|channel|>commentary json<|message|>{WEATHER}<|call|>",
        [call("get_weather", WEATHER)], NEXT,
    ),
    Case(
        "harmony", "recipient on analysis", harmony("analysis", WEATHER, "<|call|>", " to=functions.get_weather code"),
        [call("get_weather", WEATHER)], NEXT,
    ),
    Case("harmony", "recipient without functions", HARMONY_CALL.replace("functions.", ""), [call("get_weather", WEATHER)], NEXT),
    Case("harmony", "no channel", "<|message|>So.<|return|>", [text("So.")], NEXT),
    Case("harmony", "no header", "So it is.", [text("So it is.")], NEXT),
    Case("harmony", "no message", "<|channel|>final So it is.<|return|>", [text("So it is.")], NEXT),
    Case(
        "harmony", "a call without message", f"<|channel|>commentary to=functions.get_weather <|constrain|>json {WEATHER}<|call|>",
        [call("get_weather", WEATHER)], NEXT,
    ),
    Case("harmony", "no end between messages", f"{harmony('analysis', 'Hm.', '')}{harmony('final', 'So.', '')}", [think("Hm."), text("So.")], NEXT),
    Case("harmony", "twice", f"{harmony('analysis', 'Hm.')}{NEXT}{harmony('analysis', 'Yes.')}", [think("Hm.\n\nYes.")], NEXT),
    Case("harmony", "begun in the prompt", "Hm.<|end|>" + NEXT + harmony("final", "So."), [think("Hm."), text("So.")], NEXT + "<|channel|>analysis<|message|>"),
    Case("harmony", "no such tool", harmony("commentary", "{}", "<|call|>", " to=browser.open"), [text("<|channel|>commentary to=browser.open<|message|>{}<|call|>")], NEXT),
    Case("harmony", "a tool of its own", harmony("analysis", "1+1", "<|call|>", " to=python code"), [think("<|channel|>analysis to=python code<|message|>1+1<|call|>")], NEXT),
    Case("harmony", "no arguments", harmony("commentary", "", "<|call|>", " to=functions.get_time"), [call("get_time")], NEXT),
]  # fmt: skip

GLM_CALL = "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Łódź</arg_value>\n<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>"
GLM = [
    *_thinking("glm", "x<|assistant|>\n<think>", "x<|assistant|>"),
    Case("glm", "empty reasoning", "\nSo", [text("So")], "x<|assistant|>\n<think></think>"),
    Case("glm", "call", GLM_CALL, [call("get_weather", WEATHER)]),
    Case("glm", "in one line", GLM_CALL.replace("\n", ""), [call("get_weather", WEATHER)]),
    Case(
        "glm", "reasoning, text, call", f"\n<think>Hm.</think>\nI look.\n{GLM_CALL}",
        [think("Hm."), text("I look."), call("get_weather", WEATHER)],
    ),
    Case("glm", "two calls", f"{GLM_CALL}\n{GLM_CALL}", [call("get_weather", WEATHER)] * 2),
    Case("glm", "no opener", f"I look.\n{GLM_CALL[11:]}", [text("I look."), call("get_weather", WEATHER)]),
    Case("glm", "no opener, in one line", GLM_CALL[11:].replace("\n", ""), [call("get_weather", WEATHER)]),
    Case("glm", "no opener and no parameters", "get_time\n</tool_call>", [call("get_time")]),
    Case("glm", "no parameters", "<tool_call>get_time</tool_call>", [call("get_time")]),
    Case("glm", "no closer", before(GLM_CALL, "\n</tool_call>"), [call("get_weather", WEATHER)]),
    Case("glm", "a draft", f"Say {GLM_CALL} now?</think>No.", [think(f"Say {GLM_CALL} now?"), text("No.")], "<|assistant|><think>"),
    Case("glm", "reasoning is not closed", f"I look.{GLM_CALL}", [think("I look."), call("get_weather", WEATHER)], "<|assistant|><think>"),
    Case(
        "glm", "marks in a value",
        "<tool_call>write_file\n<arg_key>path</arg_key>\n<arg_value>a</arg_value>\n<arg_key>text</arg_key>\n<arg_value>\n<arg_value>x</arg_value> y</tool_call>z\n</arg_value>\n</tool_call>",
        [call("write_file", '{"path": "a", "text": "\\n<arg_value>x</arg_value> y</tool_call>z\\n"}')],
    ),
    Case("glm", "no such tool", GLM_CALL.replace("weather", "fish"), [text(GLM_CALL.replace("weather", "fish"))]),
]  # fmt: skip

MINIMAX_INVOKE = '<invoke name="get_weather">\n<parameter name="city">Łódź</parameter>\n<parameter name="days">2</parameter>\n</invoke>\n'
MINIMAX_CALL = f"<minimax:tool_call>\n{MINIMAX_INVOKE}</minimax:tool_call>"
MINIMAX_OPEN = "]~b]ai\n<think>\n"
MINIMAX = [
    *_thinking("minimax", MINIMAX_OPEN, "]~b]ai\n"),
    Case("minimax", "call", f"Hm.\n</think>\n\n{MINIMAX_CALL}", [think("Hm."), call("get_weather", WEATHER)], MINIMAX_OPEN),
    Case(
        "minimax", "text, call", f"Hm.\n</think>\n\nI look.\n{MINIMAX_CALL}\n",
        [think("Hm."), text("I look."), call("get_weather", WEATHER)], MINIMAX_OPEN,
    ),
    Case(
        "minimax", "several in one block", MINIMAX_CALL.replace(MINIMAX_INVOKE, MINIMAX_INVOKE * 3),
        [call("get_weather", WEATHER)] * 3,
    ),
    Case("minimax", "in reasoning", f"Hm.\n{MINIMAX_CALL}", [think("Hm."), call("get_weather", WEATHER)], MINIMAX_OPEN),
    Case("minimax", "no block", MINIMAX_INVOKE, [call("get_weather", WEATHER)]),
    Case("minimax", "no closers", before(MINIMAX_CALL, "</invoke>"), [call("get_weather", WEATHER)]),
    Case("minimax", "no such tool", MINIMAX_CALL.replace("weather", "fish"), [text(MINIMAX_CALL.replace("weather", "fish"))]),
]  # fmt: skip

MISTRAL_LIST = (
    f'[{{"name": "get_weather", "arguments": {WEATHER}}}, {{"name": "get_time", "arguments": {{}}, "id": "abcdefghi"}}]'
)
MISTRAL = [
    Case("mistral", "plain", "Hello [1], [TOOL, world.\n", [text("Hello [1], [TOOL, world.\n")], "x[/INST]"),
    Case("mistral", "reasoning, text", "[THINK]Hm.[/THINK]So.", [think("Hm."), text("So.")], "x[/INST]"),
    Case("mistral", "calls", f"[TOOL_CALLS] {MISTRAL_LIST}", [call("get_weather", WEATHER), call("get_time")], "x[/INST]"),
    Case("mistral", "text, calls", f"I look.[TOOL_CALLS]{MISTRAL_LIST}", [text("I look."), call("get_weather", WEATHER), call("get_time")]),
    Case("mistral", "no brackets", before(f"[TOOL_CALLS]{MISTRAL_LIST}", ', "id"'), [call("get_weather", WEATHER), call("get_time")]),
    Case("mistral", "named", f"[TOOL_CALLS]get_weather[ARGS]{WEATHER}[TOOL_CALLS]get_time[ARGS]{{}}", [call("get_weather", WEATHER), call("get_time")]),
    Case("mistral", "no such tool", '[TOOL_CALLS][{"name": "fly", "arguments": {}}]', [text('[TOOL_CALLS][{"name": "fly", "arguments": {}}]')]),
    Case("mistral", "an empty list", "[TOOL_CALLS][]", [text("[TOOL_CALLS][]")]),
]  # fmt: skip

GRANITE_3 = [
    Case("granite-3", "plain", "Hello, <|world|>.\n", [text("Hello, <|world|>.\n")]),
    Case("granite-3", "call", f"<|tool_call|>{MISTRAL_LIST}", [call("get_weather", WEATHER), call("get_time")]),
    Case("granite-3", "text, call", f"I look.\n<|tool_call|> {MISTRAL_LIST}", [text("I look."), call("get_weather", WEATHER), call("get_time")]),
    Case("granite-3", "no list", '<|tool_call|>{"name": "get_time", "arguments": {}}', [call("get_time")]),
    Case("granite-3", "no end", f"<|tool_call|>{MISTRAL_LIST[:-1]}", [call("get_weather", WEATHER), call("get_time")]),
    Case("granite-3", "one is none", '<|tool_call|>[{"name": "get_time"}, {"name": "fly"}]', [call("get_time"), text(' {"name": "fly"}]')]),
    Case("granite-3", "text behind it", '<|tool_call|>[{"name": "get_time"}] Done.', [call("get_time"), text(" Done.")]),
]  # fmt: skip

Q = '<|"|>'
GEMMA_CALL = f"<|tool_call>call:get_weather{{city:{Q}Łódź{Q},days:2}}<tool_call|>"
GEMMA_WEATHER = '{"city":"Łódź","days":2}'
GEMMA = [
    Case("gemma-4", "plain", "Hello, world.\n", [text("Hello, world.\n")], "<|turn>model\n<|channel>thought\n<channel|>"),
    Case("gemma-4", "reasoning, text", "<|channel>thought\nHm.\n<channel|>So.", [think("Hm."), text("So.")], "<|turn>model\n"),
    Case("gemma-4", "reasoning, call", f"<|channel>thought\nHm.\n<channel|>{GEMMA_CALL}", [think("Hm."), call("get_weather", GEMMA_WEATHER)]),
    Case("gemma-4", "text, call", f"I look.\n{GEMMA_CALL}", [text("I look."), call("get_weather", GEMMA_WEATHER)]),
    Case("gemma-4", "two calls", GEMMA_CALL * 2, [call("get_weather", GEMMA_WEATHER)] * 2),
    Case("gemma-4", "no parameters", "<|tool_call>call:get_time{}<tool_call|>", [call("get_time")]),
    Case(
        "gemma-4", "lists, objects, marks in a text",
        f'<|tool_call>call:search{{queries:[{Q}a "b", c:d{Q}, 1.5, true],options:{{x:{{y:null}},{Q}z{Q}:{Q}}}<tool_call|>!{Q}}}}}<tool_call|>',
        [call("search", '{"queries":["a \\"b\\", c:d", 1.5, true],"options":{"x":{"y":null},"z":"}<tool_call|>!"}}')],
    ),
    Case("gemma-4", "no closer", before(GEMMA_CALL, "<tool_call|>"), [call("get_weather", GEMMA_WEATHER)]),
    Case("gemma-4", "no bracket", before(GEMMA_CALL, "}"), [call("get_weather", GEMMA_WEATHER)]),
    Case("gemma-4", "no such tool", GEMMA_CALL.replace("weather", "fish"), [text(GEMMA_CALL.replace("weather", "fish"))]),
]  # fmt: skip

NONE = [
    Case("none", "plain", "\nHello <think> x </think> <tool_call>{}</tool_call> \n", [text("\nHello <think> x </think> <tool_call>{}</tool_call> \n")]),
]  # fmt: skip

CASES = [
    *NONE, *_thinking("thinking", OPEN, CHATML), *HERMES, *QWEN_CODER, *DEEPSEEK, *DSML, *KIMI, *HARMONY, *GLM, *MINIMAX,
    *MISTRAL, *GRANITE_3, *GEMMA,
]  # fmt: skip
