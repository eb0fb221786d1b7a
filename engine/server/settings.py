"""What can be chosen of a server, besides its model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from ...errors import OptionError
from ..coerce import by_meaning
from ..option import COMMON, SPEED, option

KEYS_ENVIRONMENT = "HEADRACE_API_KEY"
SERVER = "Server"  # a panel of --help


@by_meaning
@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How a server listens, whom it lets in, and how requests share the model; each field says what it is. Raises
    OptionError for a value that cannot be used."""

    host: str = option("127.0.0.1", COMMON, "ADDRESS", "where to listen; another than this computer needs a key")
    port: int = option(8000, COMMON, "PORT", "where to listen; 0: any that is free")
    parallel: int = option(8, COMMON, "N", "requests that run at once; others wait")

    api_key: tuple[str, ...] = option((), SERVER, "KEY", f"that clients must send; also from {KEYS_ENVIRONMENT}")
    api_key_file: Path | None = option(None, SERVER, "FILE", "the same, one a line")
    no_auth: bool = option(False, SERVER, "", "listen on other addresses without a key")
    served_name: str | None = option(None, SERVER, "NAME", "of the model in answers; default MODEL")
    strict_model: bool = option(False, SERVER, "", "refuse requests that name another model")
    cors_origin: tuple[str, ...] = option((), SERVER, "ORIGIN", "of pages that may call it, besides this computer's")
    max_queue: int = option(64, SERVER, "N", "requests that may wait; more are refused with 429")
    no_page: bool = option(False, SERVER, "", "no page, only the API")
    no_keep_alive: bool = option(False, SERVER, "", "no comment lines in streams that are silent")
    dialect: str | None = option(None, SERVER, "NAME", "how calls are written; default as the chat template says")
    chat_template: str | None = option(None, SERVER, "NAME|FILE", "which of the model's templates, or one in a file")

    prefill_stall_ms: float = option(1000.0, SPEED, "MS", "how long a prompt may hold up the text of others")

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise OptionError(f"port is {self.port}; give one from 1 to 65535, or 0 for any that is free")
        for name, least in (("parallel", 1), ("max_queue", 0)):
            if getattr(self, name) < least:
                raise OptionError(f"{name} is {getattr(self, name)}; it must be a whole number of at least {least}")
        if not self.keys and not self.is_loopback and not self.no_auth:
            raise OptionError(
                f"host is {self.host!r}, and anybody who reaches it could use the model: give --api-key KEY (or "
                f"{KEYS_ENVIRONMENT}), or say --no-auth"
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this computer can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key that is let in; none: everybody is."""
        found = [*self.api_key, os.environ.get(KEYS_ENVIRONMENT, "")]
        if self.api_key_file is not None:
            try:
                found += self.api_key_file.read_text(encoding="utf-8").split()
            except (OSError, ValueError) as error:
                raise OptionError(f"api_key_file {self.api_key_file} cannot be read: {error}") from error
        return tuple(key.strip() for key in found if key.strip())
