"""What handlers share."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ..service import Service
from ..wire.errors import ApiError


class Json(Response):
    """A JSON answer."""

    media_type = "application/json"

    def __init__(self, content: Any, status_code: int = 200, headers: dict[str, str] | None = None) -> None:
        super().__init__(msgspec.json.encode(content), status_code, {"cache-control": "no-store", **(headers or {})})


def service_of(request: Request) -> Service:
    """The model that is served."""
    service: Service = request.app.state.service
    return service


def model_name(service: Service, asked: str | None) -> str:
    """The name that an answer gives: the one that was asked for. Raises ApiError for another model, if that matters."""
    if service.settings.strict_model and asked not in (None, "", service.name):
        raise ApiError(
            404, f"there is no model {asked!r} here, only {service.name!r}", code="model_not_found", param="model"
        )
    return asked or service.name
