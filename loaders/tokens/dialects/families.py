"""The dialects of released models, a literal each, and which is whose."""

from __future__ import annotations

from ....errors import TokenizerError
from .dialect import LINE, NUMBER, Dialect, Form, Tags

THINK = (("<think>",), ("</think>",))
CHATML = ("<|im_start|>assistant",)
DEEPSEEK_TURNS = ("<｜Assistant｜>", "<｜tool▁output▁end｜>", "<｜tool▁outputs▁end｜>", "</function_results>")

_NAME, _ARGUMENTS = '{"name": "', '", "arguments": '

NONE = Dialect(name="none")

THINKING = Dialect(name="thinking", think=THINK, turns=(*CHATML, "<｜Assistant｜>", "<|assistant|>"))

HERMES = Dialect(
    name="hermes",
    think=THINK,
    call=(("<tool_call>",), ("</tool_call>",)),
    style="json",
    turns=(*CHATML, "<|start_of_role|>assistant<|end_of_role|>"),
    forms=(
        Form(
            before=f"<tool_call>\n{_NAME}",
            behind=_ARGUMENTS,
            after="}\n</tool_call>",
            between="\n",
            wakes="<tool_call>",
        ),
    ),
)

QWEN_CODER = Dialect(
    name="qwen-coder",
    think=THINK,
    section=(("<tool_call>",), ("</tool_call>",)),
    call=(("<function=",), ()),
    style="tags",
    tags=Tags(
        name_end=(">",),
        key="<parameter=",
        key_end=((">", None),),
        value=("\n",),
        value_end=("\n</parameter>", "</parameter>"),
        end=("</function>",),
    ),
    drafts=False,
    turns=CHATML,
    forms=(
        Form(
            before="<tool_call>\n<function=",
            behind=">\n",
            after="\n</tool_call>",
            between="\n",
            wakes="<tool_call>",
            value="\n",
            gap="\n",
        ),
    ),
)

DEEPSEEK_V3 = Dialect(
    name="deepseek-v3",
    think=THINK,
    section=(("<｜tool▁calls▁begin｜>",), ("<｜tool▁calls▁end｜>",)),
    call=(("<｜tool▁call▁begin｜>",), ("<｜tool▁call▁end｜>",)),
    style="json",
    separators=("<｜tool▁sep｜>",),
    drafts=False,
    turns=DEEPSEEK_TURNS,
    forms=tuple(
        Form(
            begin="<｜tool▁calls▁begin｜>",
            end="<｜tool▁calls▁end｜>",
            before=f"<｜tool▁call▁begin｜>{before}",
            behind=behind,
            after=f"{after}<｜tool▁call▁end｜>",
            between=LINE,
            wakes="<｜tool▁calls▁begin｜>",
        )
        for before, behind, after in (
            ("", "<｜tool▁sep｜>", ""),  # V3.1
            ("function<｜tool▁sep｜>", "\n```json\n", "\n```"),
        )
    ),
)

_DSML = ("<｜DSML｜function_calls>", "<｜DSML｜tool_calls>"), ("</｜DSML｜function_calls>", "</｜DSML｜tool_calls>")

DSML = Dialect(
    name="deepseek-dsml",
    think=THINK,
    section=_DSML,
    call=(('<｜DSML｜invoke name="',), ()),
    style="tags",
    tags=Tags(
        name_end=('">',),
        key='<｜DSML｜parameter name="',
        key_end=(('" string="true">', True), ('" string="false">', False), ('">', None)),
        value_end=("</｜DSML｜parameter>",),
        end=("</｜DSML｜invoke>",),
    ),
    drafts=False,
    turns=DEEPSEEK_TURNS,
    forms=tuple(
        Form(
            begin=f"{begin}\n",
            end=end,
            before='<｜DSML｜invoke name="',
            behind='">\n',
            after="\n",
            gap="\n",
            wakes=begin,
        )
        for begin, end in zip(*_DSML, strict=True)
    ),
)

KIMI = Dialect(
    name="kimi",
    think=THINK,
    section=(
        ("<|tool_calls_section_begin|>", "<|tool_call_section_begin|>"),
        ("<|tool_calls_section_end|>", "<|tool_call_section_end|>"),
    ),
    call=(("<|tool_call_begin|>",), ("<|tool_call_end|>",)),
    style="json",
    separators=("<|tool_call_argument_begin|>",),
    drafts=False,
    ids="model",
    stop_tokens=("<|im_end|>",),
    turns=("<|im_assistant|>assistant<|im_middle|>",),
    forms=(
        Form(
            begin="<|tool_calls_section_begin|>",
            end="<|tool_calls_section_end|>",
            before="<|tool_call_begin|>functions.",
            behind=f":{NUMBER}<|tool_call_argument_begin|>",
            after="<|tool_call_end|>",
            between=LINE,
            wakes="<|tool_calls_section_begin|>",
        ),
    ),
)

HARMONY = Dialect(
    name="harmony",
    style="channels",
    stop_tokens=("<|call|>", "<|return|>"),
    turns=("<|start|>assistant",),
    forms=tuple(
        Form(
            before=f"{channel}to=functions.",
            behind=behind,
            after="<|call|>",
            wakes="to=functions.",
            lead=("<|channel|>analysis<|message|>", "<|end|><|start|>assistant"),
            answer="<|channel|>final<|message|>",
        )
        for channel, behind in (
            ("<|channel|>commentary ", " <|constrain|>json<|message|>"),
            ("<|channel|>commentary ", "<|message|>"),
            (" ", "<|channel|>commentary <|constrain|>json<|message|>"),
            (" ", "<|channel|>commentary json<|message|>"),
        )
    ),
)

GLM = Dialect(
    name="glm",
    think=THINK,
    call=(("<tool_call>",), ("</tool_call>",)),
    style="tags",
    tags=Tags(
        name_end=("\n",),
        name_before=("<arg_key>", "</tool_call>"),
        key="<arg_key>",
        key_end=(("</arg_key>", None),),
        value=("\n<arg_value>", "<arg_value>"),
        value_end=("</arg_value>",),
        end=("</tool_call>",),
    ),
    bare=True,
    stop_tokens=("<|user|>", "<|observation|>"),
    turns=("<|assistant|>",),
    forms=(
        Form(
            before="<tool_call>", behind=LINE, between=LINE, wakes="<tool_call>", value=f"{LINE}<arg_value>", gap=LINE
        ),
    ),
)

MINIMAX = Dialect(
    name="minimax",
    think=THINK,
    section=(("<minimax:tool_call>",), ("</minimax:tool_call>",)),
    call=(('<invoke name="',), ()),
    style="tags",
    tags=Tags(
        name_end=('">',),
        key='<parameter name="',
        key_end=(('">', None),),
        value_end=("</parameter>",),
        end=("</invoke>",),
    ),
    drafts=False,
    stop_tokens=("[e~[",),
    turns=("]~b]ai",),
    forms=(
        Form(
            begin="<minimax:tool_call>\n",
            end="</minimax:tool_call>",
            before='<invoke name="',
            behind='">\n',
            after="\n",
            gap="\n",
            wakes="<minimax:tool_call>",
        ),
    ),
)

MISTRAL = Dialect(
    name="mistral",
    think=(("[THINK]",), ("[/THINK]",)),
    call=(("[TOOL_CALLS]",), ()),
    style="json",
    separators=("[ARGS]",),
    drafts=False,
    ids="nine",
    turns=("[/INST]", "[/TOOL_RESULTS]"),
    forms=(
        Form(before="[TOOL_CALLS]", behind="[ARGS]", wakes="[TOOL_CALLS]", needs=("[ARGS]",)),
        Form(
            begin="[TOOL_CALLS][",
            end="]",
            before=_NAME,
            behind=_ARGUMENTS,
            after="}",
            between=", ",
            wakes="[TOOL_CALLS]",
            lacks=("[ARGS]",),
        ),
    ),
)

GRANITE_3 = Dialect(
    name="granite-3",
    think=THINK,
    call=(("<|tool_call|>",), ("<|/tool_call|>",)),
    style="json",
    turns=("<|start_of_role|>assistant<|end_of_role|>",),
    forms=(
        Form(
            begin="<|tool_call|>[",
            end="]",
            before=_NAME,
            behind=_ARGUMENTS,
            after="}",
            between=", ",
            wakes="<|tool_call|>",
        ),
    ),
)

GEMMA_4 = Dialect(
    name="gemma-4",
    think=(("<|channel>thought\n", "<|channel>thought"), ("<channel|>",)),
    call=(("<|tool_call>call:", "<|tool_call>"), ("<tool_call|>",)),
    style="braces",
    drafts=False,
    stop_tokens=("<turn|>", "<|tool_response>"),
    turns=("<|turn>model", "<tool_response|>"),
    forms=(Form(before="<|tool_call>call:", after="<tool_call|>", wakes="<|tool_call>"),),
)

ALL = (
    NONE, THINKING, HERMES, QWEN_CODER, DEEPSEEK_V3, DSML, KIMI, HARMONY, GLM, MINIMAX, MISTRAL, GRANITE_3, GEMMA_4,
)  # fmt: skip
NAMES = {one.name: one for one in ALL}


def named(name: str) -> Dialect:
    """The dialect of that name; raises TokenizerError if there is none."""
    if name not in NAMES:
        raise TokenizerError(f"there is no dialect {name!r}: choose one of {', '.join(NAMES)}")
    return NAMES[name]
