"""GET /openapi.json: what can be asked, from the types that requests are read by."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import msgspec

from .handlers.tokens import DetokenizeRequest, TokenizeRequest
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
}
LOOKS = (
    "/v1/models", "/health", "/props", "/slots", "/v1/headrace/ledger", "/v1/headrace/placement",
    "/v1/headrace/experts",
)  # fmt: skip
STREAMED = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
ANY_JSON: dict[str, Any] = {"application/json": {"schema": {"type": ["object", "array"]}}}
ERRORS = {
    "400": "what is wrong with the request, by field",
    "401": "a key is missing or wrong",
    "403": "a host or an origin that may not call",
    "413": "the body is too large",
    "429": "too many requests wait",
    "500": "the engine failed",
    "503": "the model is loading, or the server is stopping",
    "529": "too many requests wait, for clients of Anthropic's API",
}


def document() -> dict[str, Any]:
    """The whole document."""
    kinds = list(dict.fromkeys(REQUESTS.values()))
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    by_kind = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, Any] = {path: {"get": {"responses": _responses()}} for path in LOOKS}
    for path, kind in REQUESTS.items():
        body = {"required": True, "content": {"application/json": {"schema": by_kind[kind]}}}
        about = (kind.__doc__ or "").strip()
        paths[path] = {"post": {"summary": about, "requestBody": body, "responses": _responses(path in STREAMED)}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "headrace", "version": version("headrace")},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _responses(may_stream: bool = False) -> dict[str, Any]:
    content = {**ANY_JSON, **({"text/event-stream": {"schema": {"type": "string"}}} if may_stream else {})}
    errors = {status: {"description": about, "content": ANY_JSON} for status, about in ERRORS.items()}
    return {"200": {"description": "the answer", "content": content}, **errors}
