"""`headrace serve` in the terminal: loads, says where it listens, and one line for every request that ended."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from typing import Any

from ...errors import OptionError
from ..server.settings import ServerSettings

MISSING = "headrace serve needs more packages: pip install 'headrace[serve]'"


def serve(model: str, settings: ServerSettings, config: dict[str, Any]) -> None:
    """Serves a model until Ctrl-C or SIGTERM. Raises OptionError where packages are missing, what a load raises, and
    KeyboardInterrupt where Ctrl-C comes before it serves."""
    try:
        from ..server import run
        from ..server.service import Service
    except ModuleNotFoundError as error:
        raise OptionError(f"{MISSING} ({error.name} is missing)") from error
    from ...loaders.files import generation_defaults
    from ..llm import LLM
    from .generate_command import ensure_profile, load_progress, say, start_up
    from .interrupts import as_ever

    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("headrace.access").setLevel(logging.INFO)
    options = {**config, "max_sequences": settings.parallel, "prefill_stall_ms": settings.prefill_stall_ms}
    bars, serves = contextlib.ExitStack(), threading.Event()

    def load(loading: run.Loading) -> LLM:
        moves = bars.enter_context(load_progress())

        def progress(done: int, total: int) -> None:
            loading.progress(done, total)
            moves["progress"](done, total)

        llm = LLM(model, progress=progress, compiling=moves["compiling"], joining=loading.joining, **options)
        loading.check()
        bars.close()
        start_up(llm)
        ensure_profile(llm)
        return llm

    def make(llm: LLM) -> Service:
        defaults = {"temperature": 1.0, **generation_defaults.read(llm.parts.checkpoint.directory)}
        return Service(llm, settings, settings.served_name or model, defaults)

    def ready(service: Service, address: str) -> None:
        serves.set()
        say(f"reasoning and calls: {service.choice}")
        say(f"{service.name} at {address} (OpenAI: {address}/v1, Anthropic: {address}); Ctrl-C stops", style="bold")

    as_ever()
    with bars:
        try:
            run.serve(load, settings, make, ready)
        except KeyboardInterrupt:
            if not serves.is_set():  # nothing was begun that could have ended well
                raise
