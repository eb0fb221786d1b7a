"""Runs a server: listens at once, loads the model meanwhile, and says when it is ready."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable

import uvicorn
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ...errors import OptionError
from ..llm import LLM
from .app import make_app
from .page import files
from .security import Guard, error_response
from .service import Service
from .settings import ServerSettings
from .wire.errors import ApiError

KEEP_ALIVE_S = 120  # agents pause between turns, and do not send a request again when the connection was closed
GRACE_S = 15


class Loading:
    """The app until the model is there: says that it loads, and how far it is; then what it was made for."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.app: ASGIApp | None = None
        self.done, self.total = 0, 0
        self.hosts: tuple[int, int] | None = None  # that are here, of how many, while they are waited for
        self.is_over = threading.Event()  # nobody waits for the model any more
        self.guarded = Guard(self._not_yet, settings)

    def progress(self, done: int, total: int) -> None:
        """Bytes that are loaded, and of how many. Raises as `check` does."""
        self.check()
        self.done, self.total = done, total

    def joining(self, here: int, total: int) -> None:
        """Hosts that have joined, and how many are waited for. Raises as `check` does."""
        self.check()
        self.hosts = (here, total) if here < total else None

    def check(self) -> None:
        """Raises KeyboardInterrupt, which ends the load, where the server was stopped meanwhile: pools of threads that
        read files would be waited for, and what a load says would come behind the last line."""
        if self.is_over.is_set():
            raise KeyboardInterrupt

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        await (self.app or self.guarded)(scope, receive, send)

    async def _not_yet(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if not self.settings.no_page and files.is_page(scope["path"], headers):
            page = files.response(scope["path"], headers)
            if page is not None:
                return await page(scope, receive, send)
        details, text = {"loaded_bytes": self.done, "total_bytes": self.total}, "the model is loading"
        if self.hosts is not None:
            here, total = self.hosts
            details |= {"hosts_joined": here, "hosts_wanted": total}
            text = f"the model waits for hosts, {here} of {total} joined: start headrace host on the others"
        error = ApiError(
            503, f"{text}; ask again in a while", code="loading", details=details, headers={"retry-after": "2"}
        )
        await error_response(error, scope["path"])(scope, receive, send)


class Server(uvicorn.Server):
    """Listens, and ends when the model cannot be loaded."""

    def __init__(self, settings: ServerSettings) -> None:
        self.loading = Loading(settings)
        self.settings = settings
        self.failure: BaseException | None = None
        self.service: Service | None = None
        # Its warnings are about strangers' requests, and one wants packages installed that nothing here needs.
        super().__init__(
            uvicorn.Config(
                self.loading, log_level="error", access_log=False, lifespan="off", server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S, timeout_graceful_shutdown=GRACE_S, backlog=2048,
            )
        )  # fmt: skip

    async def run_with(
        self, load: Callable[[Loading], Service], listening: socket.socket, ready: Callable[[Service], None]
    ) -> None:
        """Serves until it is told to stop. load: makes the service, in a thread; ready: called when it is there."""
        loop = asyncio.get_running_loop()

        def there(service: Service | None, error: BaseException | None) -> None:
            self.service, self.failure = service, error
            if service is None:
                self.should_exit = True
            else:
                service.start()
                self.loading.app = make_app(service)
                ready(service)

        def run() -> None:
            try:
                made, problem = load(self.loading), None
            except BaseException as error:  # given to whoever runs the server
                made, problem = None, error
            with contextlib.suppress(RuntimeError):  # the loop has ended: Ctrl-C
                loop.call_soon_threadsafe(there, made, problem)

        threading.Thread(target=run, name="headrace-load", daemon=True).start()
        try:
            await self.serve(sockets=[listening])
        finally:
            self.loading.is_over.set()
        if self.failure is not None:
            raise self.failure

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends answers first, then connections."""
        if self.service is not None:
            await self.service.stop()
        await super().shutdown(sockets)


def listen(settings: ServerSettings) -> socket.socket:
    """A socket where clients can come; raises OptionError."""
    try:
        info = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(info[0], info[1])
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(info[4])
        found.listen(2048)
    except OSError as error:
        raise OptionError(
            f"cannot listen at {settings.host}:{settings.port}: {error.strerror}; choose another --port, or --host"
        ) from error
    return found


def address_of(listening: socket.socket) -> str:
    """Where it can be reached."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(
    load: Callable[[Loading], LLM],
    settings: ServerSettings,
    make: Callable[[LLM], Service],
    ready: Callable[[Service, str], None],
) -> None:
    """Serves a model until it is told to stop. Raises what loading it raises."""
    listening = listen(settings)
    server = Server(settings)
    try:
        asyncio.run(
            server.run_with(
                lambda loading: make(load(loading)), listening, lambda found: ready(found, address_of(listening))
            )
        )
    finally:
        listening.close()
        if server.service is not None:
            server.service.llm.close()
