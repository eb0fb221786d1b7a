"""What a server says of itself: models, health, properties, slots."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from ...generation.request import Request as EngineRequest
from ..generation import Generation
from ..reports.metrics import Metrics
from ..service import Service
from ..wire.errors import ApiError
from .common import Json, service_of


def model_entry(service: Service) -> dict[str, Any]:
    """A model as the list has it, for clients of both vendors; the context under every name that they look for."""
    trained = service.llm.admission.trained
    return {
        "id": service.name,
        "object": "model",
        "type": "model",
        "display_name": service.name,
        "created": int(service.started),
        "created_at": datetime.fromtimestamp(int(service.started), timezone.utc).isoformat(),
        "owned_by": "headrace",
        "root": service.name,
        "max_model_len": service.limit,
        "context_length": service.limit,
        "meta": {"n_ctx": service.limit, "n_ctx_train": trained, "vocab_size": service.llm.spec.vocab},
    }


async def models(request: Request) -> Response:
    """GET /v1/models"""
    one = model_entry(service_of(request))
    return Json({"object": "list", "data": [one], "has_more": False, "first_id": one["id"], "last_id": one["id"]})


async def model(request: Request) -> Response:
    """GET /v1/models/{id}"""
    service, asked = service_of(request), request.path_params["id"]
    if not asked:  # a list's path with a slash behind it
        return await models(request)
    if asked != service.name and service.settings.strict_model:
        raise ApiError(404, f"there is no model {asked!r} here, only {service.name!r}", code="model_not_found")
    return Json({**model_entry(service), "id": asked})


async def health(request: Request) -> Response:
    """GET /health: 200 as long as the engine runs; never waits for it."""
    service = service_of(request)
    if not service.engine.is_running:
        raise ApiError(500, "the engine has stopped")
    if service.is_closing:
        raise ApiError(503, "the server is stopping")
    failure = service.engine.failure
    return Json({"status": "ok", "last_error": None if failure is None else str(failure)})


async def props(request: Request) -> Response:
    """GET /props: what clients of llama.cpp read."""
    service = service_of(request)
    tokenizer, params = service.llm.tokenizer, service.defaults
    templates = {} if tokenizer is None else {name: one.text for name, one in tokenizer.templates.items()}
    return Json(
        {
            "default_generation_settings": {
                "n_ctx": service.limit, "temperature": params.temperature, "top_k": params.top_k,
                "top_p": params.top_p, "min_p": params.min_p,
            },
            "total_slots": service.settings.parallel,
            "model_path": service.name,
            "model_alias": service.name,
            "chat_template": templates.get(service.template or "default", service.template or ""),
            "dialect": str(service.choice),
            "build_info": f"headrace {version('headrace')}",
            "is_sleeping": False,
        }
    )  # fmt: skip


async def slots(request: Request) -> Response:
    """GET /slots: every request that runs or waits."""
    return Json([slot(one) for one in list(service_of(request).open.values())])


def slot(generation: Generation) -> dict[str, Any]:
    """How far a request is."""
    request: EngineRequest = generation.request
    sequence, now = request.sequence, time.monotonic()
    made = max(0, len(sequence.tokens) - sequence.prompt_tokens)
    seconds = now - generation.first if generation.first else 0.0
    return {
        "id": sequence.id,
        "is_processing": sequence.admitted is not None,
        "phase": "waiting" if sequence.admitted is None else "decode" if made else "prefill",
        "n_prompt_tokens": sequence.prompt_tokens,
        "n_prompt_tokens_processed": min(sequence.computed, sequence.prompt_tokens),
        "n_prompt_tokens_cached": sequence.reused,
        "n_decoded": made,
        "tokens_per_second": round(made / seconds, 3) if seconds > 0 else None,
        "seconds": round(now - generation.submitted, 3),
        "priority": sequence.priority,
    }


async def metrics(request: Request) -> Response:
    """GET /metrics, as Prometheus reads it."""
    found: Metrics = request.app.state.metrics
    return Response(await asyncio.to_thread(found.text), media_type=CONTENT_TYPE_LATEST)


async def openapi(_: Request) -> Response:
    """GET /openapi.json"""
    from ..openapi import document

    return Json(document())


GETS = {
    "/health": health,
    "/v1/health": health,
    "/v1/models": models,
    "/models": models,
    "/v1/models/{id:path}": model,
    "/models/{id:path}": model,
    "/props": props,
    "/slots": slots,
    "/metrics": metrics,
    "/openapi.json": openapi,
}
