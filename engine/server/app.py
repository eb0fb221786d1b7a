"""The server as an ASGI app: every route, and what becomes of an error."""

from __future__ import annotations

import logging
import re

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...errors import HeadraceError
from .generation import CLIENT
from .handlers import about, answers, live, other_apis, tokens
from .page.live import Live
from .reports.access_log import AccessLog
from .reports.metrics import Metrics
from .security import Guard, error_response
from .service import Service
from .wire.errors import ApiError, of_exception

log = logging.getLogger("headrace")


def make_app(service: Service) -> ASGIApp:
    """The app of a model whose service has started."""
    app = Starlette(
        middleware=[Middleware(Errors)],
        routes=routes(service),
        exception_handlers={HTTPException: missing},
    )
    app.state.service, app.state.log = service, AccessLog(service)
    app.state.live = Live(service, app.state.log.misses)
    app.state.metrics = Metrics(service, app.state.live.totals)
    return Guard(app, service.settings)


def routes(service: Service) -> list[BaseRoute]:
    """By path what answers; paths of OpenAI's API also without /v1."""
    posts = {
        "/chat/completions": answers.chat,
        "/completions": answers.completions,
        "/chat/completions/input_tokens": tokens.count_chat,
        "/responses": other_apis.responses,
        "/responses/input_tokens": other_apis.count_response,
        "/messages": other_apis.messages,
        "/messages/count_tokens": other_apis.count_tokens,
    }
    found: list[BaseRoute] = [
        Route(f"{start}{path}", call, methods=["POST"]) for path, call in posts.items() for start in ("/v1", "")
    ]
    found += [Route(path, call, methods=["POST"]) for path, call in {**tokens.POSTS, **live.POSTS}.items()]
    found += [Route(path, call, methods=["GET", "HEAD"]) for path, call in {**live.GETS, **about.GETS}.items()]
    return found


async def missing(request: Request, error: Exception) -> Response:
    """What is not there, in JSON: clients look for APIs that other engines have."""
    status, headers = (error.status_code, error.headers) if isinstance(error, HTTPException) else (404, None)
    path = request.url.path
    if status == 405:
        text = f"{path[:200]} does not take {request.method}"
    else:
        text = f"there is no {path[:200]} here; docs/serving.md lists what there is"
    code = "not_found" if status == 404 else None
    return error_response(ApiError(status, text, code=code, headers=dict(headers or {})), path)


class Errors:
    """Answers what handlers raise. Starlette's own way is to log a traceback for each, and a client's mistake needs
    none."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def sent(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        CLIENT.set(client_of(scope))
        try:
            await self.app(scope, receive, sent)
        except Exception as error:
            if has_begun:
                raise
            if not isinstance(error, (ApiError, HeadraceError)):
                log.exception("%s %s has failed", scope.get("method"), scope.get("path"))
            await error_response(of_exception(error), scope["path"])(scope, receive, send)


def client_of(scope: Scope) -> str:
    """What a client calls itself, in short; from elsewhere with its address. It is a stranger's text."""
    name = re.sub(r"[^!-~]", "", Headers(scope=scope).get("user-agent", "").strip().partition(" ")[0])[:40]
    address = (scope.get("client") or ("127.0.0.1",))[0]
    return name if address in ("127.0.0.1", "::1") else f"{name or 'somebody'} at {address}"
