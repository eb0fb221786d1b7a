"""The rendezvous: torch's TCPStore at the coordinator, where hosts find the port of the hop.

Measured on one machine under load, a gloo pair took 5 times (at best) to 270 times (in the median) as long as a plain
socket for 16 KB there and back (docs/hosts.md). So only the meeting is torch's; rows go over a socket whose port is
told there.
"""

from __future__ import annotations

import datetime
import socket
import time
from collections.abc import Callable

from ....errors import OptionError
from . import address as addresses

HOP = "headrace/hop"
STEP = 0.5  # seconds between tries


class Meeting:
    """The coordinator's store and the socket that hosts connect to, both on one address. Raises OptionError where the
    port is taken."""

    def __init__(self, address: str, port: int, option: str = "--listen") -> None:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            door = socket.create_server((address, port), family=family)
        except OSError as error:
            raise OptionError(
                f"{option} is {addresses.shown(address, port)}, where nobody can listen ({error.strerror}): give an "
                "address of this machine and a free port"
            ) from error
        self.listener = socket.create_server((address, 0), family=family, backlog=64)
        self.address, self.port = address, int(door.getsockname()[1])
        self.store: TCPStore | None = TCPStore(
            address, self.port, is_master=True, wait_for_workers=False, master_listen_fd=door.detach(),
            timeout=datetime.timedelta(seconds=10),
        )  # fmt: skip
        self.store.set(HOP, str(self.listener.getsockname()[1]))

    @property
    def shown(self) -> str:
        """What hosts are to join."""
        return addresses.shown(self.address, self.port)

    def close(self) -> None:
        """Nobody can join any more; the port is free again."""
        self.listener.close()
        self.store = None


def join(
    address: str, port: int, is_wanted: Callable[[], bool] = lambda: True, waits: Callable[[str], None] | None = None
) -> socket.socket | None:
    """A connection to the coordinator; waits until one listens. waits: told why, once. None: nobody wants it any
    more."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    while is_wanted():
        try:
            socket.create_connection((address, port), timeout=5).close()  # torch would log each try
            store = TCPStore(address, port, is_master=False, timeout=datetime.timedelta(seconds=10))
            return socket.create_connection((address, int(store.get(HOP))), timeout=10)
        except (OSError, RuntimeError, ValueError) as error:
            if waits is not None:
                waits(getattr(error, "strerror", None) or str(error))
                waits = None
            time.sleep(STEP)
    return None
