"""What answers look like, for the document of the API: what each always has, not what it may have besides."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
WHOLE: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
RECORD: Schema = {"type": "object"}


def record(**fields: Schema) -> Schema:
    """An object that has these fields."""
    return {"type": "object", "properties": fields, "required": list(fields)}


def rows(of: Schema) -> Schema:
    """A list."""
    return {"type": "array", "items": of}


def either(*values: str | None) -> Schema:
    """One of some values."""
    return {"enum": list(values)}


ERROR = record(error=record(message=TEXT, type=TEXT, param=TEXT_OR_NULL, code=TEXT_OR_NULL))
ANTHROPIC_ERROR = record(type=either("error"), error=record(type=TEXT, message=TEXT), request_id=TEXT)
EVENT: Schema = {"type": "object", "properties": {"event": TEXT, "data": TEXT}}

COUNTS = record(
    prompt_tokens=WHOLE, completion_tokens=WHOLE, total_tokens=WHOLE, prompt_tokens_details=record(cached_tokens=WHOLE)
)
OTHER_COUNTS = record(input_tokens=WHOLE, output_tokens=WHOLE)
TIMINGS = record(
    cache_n=WHOLE, prompt_n=WHOLE, prompt_ms=NUMBER, predicted_n=WHOLE, predicted_ms=NUMBER,
    predicted_per_second=NUMBER,
)  # fmt: skip
REASON = either("stop", "length", "tool_calls")
HEAD = {"id": TEXT, "created": WHOLE, "model": TEXT}
MODEL = record(id=TEXT, object=either("model"), created=WHOLE, owned_by=TEXT, max_model_len=WHOLE, context_length=WHOLE)
COUNTED = record(input_tokens=WHOLE)
TOKENS = rows({"type": ["integer", "object"]})

ANSWERS: dict[str, Schema] = {
    "/v1/chat/completions": record(
        **HEAD, object=either("chat.completion"), usage=COUNTS, timings=TIMINGS,
        choices=rows(
            record(
                index=WHOLE, finish_reason=REASON, message=record(role=either("assistant"), content=TEXT_OR_NULL),
                logprobs={"type": ["object", "null"]},
            )
        ),
    ),
    "/v1/completions": record(
        **HEAD, object=either("text_completion"), usage=COUNTS, timings=TIMINGS,
        choices=rows(record(index=WHOLE, finish_reason=REASON, text=TEXT)),
    ),
    "/v1/responses": record(
        id=TEXT, object=either("response"), created_at=WHOLE, model=TEXT, status=either("completed", "incomplete"),
        output=rows(record(id=TEXT, type=either("message", "reasoning", "function_call"), status=TEXT)),
        usage=OTHER_COUNTS, timings=TIMINGS,
    ),
    "/v1/messages": record(
        id=TEXT, type=either("message"), role=either("assistant"), model=TEXT, usage=OTHER_COUNTS, timings=TIMINGS,
        content=rows(record(type=either("text", "thinking", "tool_use"))),
        stop_reason=either("end_turn", "max_tokens", "stop_sequence", "tool_use"), stop_sequence=TEXT_OR_NULL,
    ),
    "/v1/messages/count_tokens": COUNTED,
    "/v1/chat/completions/input_tokens": COUNTED,
    "/v1/responses/input_tokens": COUNTED,
    "/tokenize": record(tokens=TOKENS, count=WHOLE, max_model_len=WHOLE),
    "/detokenize": record(content=TEXT, prompt=TEXT),
    "/apply-template": record(prompt=TEXT),
    "/v1/headrace/cancel": record(id=WHOLE, cancelled={"const": True}),
    "/v1/models": record(object=either("list"), data=rows(MODEL)),
    "/v1/models/{id}": MODEL,
    "/health": record(status=either("ok"), last_error=TEXT_OR_NULL),
    "/props": record(default_generation_settings=record(n_ctx=WHOLE), total_slots=WHOLE, model_path=TEXT),
    "/slots": rows(record(id=WHOLE, phase=either("waiting", "prefill", "decode"), n_prompt_tokens=WHOLE)),
    "/v1/headrace/ledger": record(count=WHOLE, passes=rows(RECORD), sums=RECORD),
    "/v1/headrace/placement": RECORD,
    "/v1/headrace/experts": RECORD,
}  # fmt: skip
