"""GET /openapi.json: what can be asked, from the types that requests are read by, and what answers always have."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import msgspec

from .handlers.live import MOST_PASSES, CancelRequest
from .handlers.tokens import DetokenizeRequest, TokenizeRequest
from .openapi_answers import ANSWERS, ANTHROPIC_ERROR, ERROR, EVENT, TEXT
from .security import is_anthropic
from .wire.chat import ChatRequest
from .wire.completions import CompletionRequest
from .wire.messages import MessagesRequest
from .wire.responses import ResponsesRequest

REQUESTS: dict[str, type] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": MessagesRequest,
    "/v1/chat/completions/input_tokens": ChatRequest,
    "/v1/responses/input_tokens": ResponsesRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
    "/apply-template": ChatRequest,
    "/v1/headrace/cancel": CancelRequest,
}
LOOKS: dict[str, list[dict[str, Any]]] = {
    "/v1/models": [],
    "/v1/models/{id}": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}],
    "/health": [],
    "/props": [],
    "/slots": [],
    "/v1/headrace/ledger": [
        {"name": "last", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": MOST_PASSES}}
    ],
    "/v1/headrace/placement": [],
    "/v1/headrace/experts": [],
}
EVENTS = {"text/event-stream": {"itemSchema": EVENT}}
OTHERS: dict[str, dict[str, Any]] = {"/metrics": {"text/plain": {"schema": TEXT}}, "/live": EVENTS}
STREAMED = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
ERRORS = {
    "400": "what is wrong with the request, by field",
    "401": "a key is missing or wrong",
    "403": "a host or an origin that may not call",
    "404": "there is no such path, model or request",
    "405": "a method that the path does not take",
    "408": "the body did not arrive",
    "413": "the body is too large",
    "415": "a page sent something else than JSON",
    "429": "too many requests wait",
    "499": "the request was cancelled at the server",
    "500": "the engine failed",
    "503": "the model is loading, or the server is stopping",
    "529": "too many requests wait, for clients of Anthropic's API",
}


def document() -> dict[str, Any]:
    """The whole document."""
    kinds = list(dict.fromkeys(REQUESTS.values()))
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    by_kind = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, Any] = {
        path: {"get": {"parameters": parameters, "responses": _responses(path, _json(ANSWERS[path]))}}
        for path, parameters in LOOKS.items()
    }
    paths |= {path: {"get": {"responses": _responses(path, content)}} for path, content in OTHERS.items()}
    for path, kind in REQUESTS.items():
        body = {"required": True, "content": _json(by_kind[kind])}
        answer = {**_json(ANSWERS[path]), **(EVENTS if path in STREAMED else {})}
        about = (kind.__doc__ or "").strip()
        paths[path] = {"post": {"summary": about, "requestBody": body, "responses": _responses(path, answer)}}
    return {
        "openapi": "3.2.0",
        "info": {"title": "headrace", "version": version("headrace")},
        "paths": paths,
        "components": {
            "schemas": {**components, "Error": ERROR, "AnthropicError": ANTHROPIC_ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _responses(path: str, answer: dict[str, Any]) -> dict[str, Any]:
    error = _json({"$ref": f"#/components/schemas/{'AnthropicError' if is_anthropic(path) else 'Error'}"})
    errors = {status: {"description": about, "content": error} for status, about in ERRORS.items()}
    return {"200": {"description": "the answer", "content": answer}, **errors}
