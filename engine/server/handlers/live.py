"""The page, and what no other API has: bytes and times of passes as they come, where weights lie, ending somebody's
request."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ...ledger.summary import PHASES, summarise
from .. import sse
from ..page import experts as routed
from ..page import files
from ..page.live import Live
from ..page.passes import as_json, newest
from ..wire import fields
from ..wire.errors import ApiError, bad_request
from .common import Json, service_of

MOST_PASSES, PASSES = 4096, 100  # of an answer: at most, and when nobody says


class CancelRequest(msgspec.Struct, kw_only=True):
    """Which request is to end: its id as /slots has it."""

    id: int


def live_of(request: Request) -> Live:
    """What viewers are shown."""
    live: Live = request.app.state.live
    return live


async def live(request: Request) -> Any:
    """GET /live: events of what the model is (hello), its last passes (history), and how it does (tick)."""
    if request.method == "HEAD":
        return Response(headers=sse.HEADERS)
    return sse.EventStream(live_of(request).watch())


async def ledger(request: Request) -> Response:
    """GET /v1/headrace/ledger?last=N: the last passes, oldest first, and their sums by phase."""
    given = request.query_params.get("last", str(PASSES))
    if not given.isdecimal() or not 1 <= int(given) <= MOST_PASSES:
        raise bad_request(f"last is {given[:20]!r}; give a number of passes from 1 to {MOST_PASSES}", "last")
    found = service_of(request).llm.ledger

    def read() -> dict[str, Any]:
        passes = newest(found.account.recent, 0, int(given))
        sums = [summarise(passes, phase) for phase in PHASES]
        return {
            "count": found.account.count,
            "passes": [one.as_json() for one in passes],
            "sums": {one.phase: as_json(one) for one in sums if one.passes},
        }

    return Json(await asyncio.to_thread(read))


async def placement(request: Request) -> Response:
    """GET /v1/headrace/placement: bytes of every layer by tier."""
    return Json(live_of(request).facts.placement)


async def experts(request: Request) -> Response:
    """GET /v1/headrace/experts: how many tokens every expert of every layer served, and where it lies."""
    return Json(await asyncio.to_thread(routed.as_json, service_of(request)))


async def cancel(request: Request) -> Response:
    """POST /v1/headrace/cancel {"id": N}: ends a request, whose client is told."""
    service, asked = service_of(request), fields.read(await request.body(), CancelRequest)
    generation = service.open.get(asked.id)
    if generation is None:
        raise ApiError(404, f"no request {asked.id} runs or waits; /slots lists those that do", param="id")
    # Not by generation.cancel(): whoever reads the answer is told by the pass that ends it.
    generation.request.error = ApiError(499, "the request was cancelled at the server", code="cancelled")
    service.engine.cancel(generation.request)
    return Json({"id": asked.id, "cancelled": True})


async def page(request: Request) -> Response:
    """GET /page/...: a file of the page. GET and HEAD /: the page for browsers; for clients, that somebody is there."""
    path, headers = request.url.path, request.headers
    found = None
    if not service_of(request).settings.no_page and files.is_page(path, headers):
        found = files.response(path, headers)
    if found is None and path == "/":
        return Response("headrace serves a model here: see /v1/models\n", media_type="text/plain")
    if found is None:
        raise ApiError(404, f"there is no {path[:200]} here", code="not_found")
    return found


GETS = {
    "/": page,
    "/page/{path:path}": page,
    "/live": live,
    "/v1/headrace/ledger": ledger,
    "/v1/headrace/placement": placement,
    "/v1/headrace/experts": experts,
}
POSTS = {"/v1/headrace/cancel": cancel}
