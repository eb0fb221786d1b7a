"""Who may call, and how much: keys, hosts, origins, sizes. Plain ASGI, so that nothing hides a client that leaves.

A page on the internet can send requests to this computer: by a name that suddenly means 127.0.0.1, or as a form. So
without a key only names of this computer are answered, and only pages of this computer, or of `cors_origin`, may read.
"""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .settings import ServerSettings
from .wire.errors import ApiError
from .wire.usage import new_id

LOCAL = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?", re.IGNORECASE)
LOCAL_ORIGIN = re.compile(rf"https?://{LOCAL.pattern}", re.IGNORECASE)
DIGITS = 18  # of a number that a client states: as many say that it is too large
OPEN_PATHS = ("/health", "/v1/health")
PAGE_FILES = "/page/"  # code of the page, no data
MOST_BODY, BODY_S = 32 << 20, 60.0  # bytes of a body, seconds until it is there
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SAFE = {"x-content-type-options": "nosniff", "content-security-policy": POLICY, "referrer-policy": "no-referrer"}


def is_anthropic(path: str) -> bool:
    """Whether a path belongs to Anthropic's API, whose errors look different."""
    return "/messages" in path


def error_response(error: ApiError, path: str) -> Response:
    """An error as the API of a path has it."""
    request_id = new_id("req")
    if is_anthropic(path):
        status = 529 if error.code == "queue_full" else error.status
        return JSONResponse(error.anthropic(request_id), status, {**error.headers, "request-id": request_id})
    return JSONResponse(error.openai(), error.status, {**error.headers, "x-request-id": request_id})


class Guard:
    """Lets requests through to `app` that may pass."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self.app, self.settings = app, settings
        self.keys = tuple(key.encode() for key in settings.keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, path = Headers(scope=scope), scope["path"]
        origin = headers.get("origin")
        shown = self._cors(origin, headers) if origin else {}
        if scope["method"] == "OPTIONS" and origin:
            await Response(status_code=204 if shown else 403, headers=shown)(scope, receive, send)
            return
        try:
            self._check(scope["method"], path, headers, origin, bool(shown))
        except ApiError as error:
            await error_response(error, path)(scope, receive, with_headers(send, shown))
            return
        await self.app(scope, limited(receive), with_headers(send, {**SAFE, **shown}))

    def _check(self, method: str, path: str, headers: Headers, origin: str | None, is_known: bool) -> None:
        """Raises ApiError for a request that may not pass."""
        # A browser always says which host it calls; what says none (HTTP/1.0, as some health checks) is no page.
        host = headers.get("host")
        if not self.keys and self.settings.is_loopback and host is not None and not LOCAL.fullmatch(host):
            raise ApiError(403, f"host {host!r} is not this computer: call it by localhost, or start with --api-key")
        if origin and not is_known and not same_origin(origin, host or ""):
            raise ApiError(403, f"pages of {origin} may not call this server: start it with --cors-origin {origin}")
        if origin and method == "POST" and not headers.get("content-type", "").startswith("application/json"):
            raise ApiError(415, "send a body of application/json")
        if self.keys and path not in OPEN_PATHS and not is_page(path) and not self._has_key(headers):
            raise ApiError(401, "the key is missing or wrong: send Authorization: Bearer KEY", code="invalid_api_key")
        if int_of(headers.get("content-length")) > MOST_BODY:
            raise too_large()
        if (packed := headers.get("content-encoding", "identity")).lower() != "identity":
            raise ApiError(415, f"the body is compressed ({packed[:40]}): send it as it is")

    def _has_key(self, headers: Headers) -> bool:
        bearer = headers.get("authorization", "")
        given = [bearer[7:].strip()] if bearer[:7].lower() == "bearer " else []
        given += [value for name in ("x-api-key", "api-key") if (value := headers.get(name))]
        # Every key is compared, in the same time whatever is in it.
        found = [hmac.compare_digest(one.encode(), key) for one in given for key in self.keys]
        return any(found)

    def _cors(self, origin: str, headers: Headers) -> dict[str, str]:
        """What a browser is told for a page that may read answers. It may send whatever headers it wants to: vendors'
        clients have some of their own."""
        allowed = self.settings.cors_origin
        if not (LOCAL_ORIGIN.fullmatch(origin) or origin in allowed or "*" in allowed):
            return {}
        return {
            "access-control-allow-origin": origin,
            "access-control-allow-methods": "GET, POST, OPTIONS",
            "access-control-allow-headers": headers.get(
                "access-control-request-headers", "authorization, content-type"
            ),
            "access-control-expose-headers": "request-id, retry-after, x-request-id, x-should-retry",
            "access-control-max-age": "600",
            "vary": "origin, access-control-request-headers",
        }


def is_page(path: str) -> bool:
    """Whether a path is of the page's own code, which shows nothing without a key."""
    return path == "/" or path.startswith(PAGE_FILES)


def same_origin(origin: str, host: str) -> bool:
    """Whether a page comes from the server itself."""
    return origin.partition("://")[2].lower() == host.lower()


def int_of(text: str | None) -> int:
    """A length that a client states; 0 for none, or nonsense."""
    return int(text[:DIGITS]) if text and text.isdecimal() else 0


def too_large() -> ApiError:
    """The error for a body that is too long."""
    return ApiError(413, f"the body is larger than {MOST_BODY >> 20} MB: send less")


def limited(receive: Receive) -> Receive:
    """Receives a body of limited size in limited time; afterwards only waits for the client to leave."""
    loop = asyncio.get_running_loop()
    end, size, is_done = loop.time() + BODY_S, 0, False

    async def next_part() -> Message:
        nonlocal size, is_done
        if is_done:
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), max(0.0, end - loop.time()))
        except asyncio.TimeoutError:
            raise ApiError(408, f"the body did not arrive within {BODY_S:g} s") from None
        size += len(message.get("body", b""))
        is_done = not message.get("more_body", False)
        if size > MOST_BODY:
            raise too_large()
        return message

    return next_part


def with_headers(send: Send, more: dict[str, str]) -> Send:
    """Adds headers to an answer, where it does not have them."""
    raw: Iterable[tuple[bytes, bytes]] = [(name.encode(), value.encode()) for name, value in more.items()]

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            there = {name.lower() for name, _ in message.get("headers", [])}
            message["headers"] = [*message.get("headers", []), *(one for one in raw if one[0] not in there)]
        await send(message)

    return sent
