"""Addresses: where a coordinator listens and a host joins, and which are refused."""

from __future__ import annotations

import ipaddress
import socket

from ....errors import OptionError

PORT = 29477  # where none is said
OPEN = "neither the rendezvous nor the rows of experts are encrypted"


def parse(text: str, option: str) -> tuple[str, int]:
    """The numeric address and the port of HOST, HOST:PORT or [IPV6]:PORT. Raises OptionError."""
    host, port = text.strip(), str(PORT)
    if host.startswith("["):
        host, _, rest = host[1:].partition("]")
        port = rest.removeprefix(":") or port
    elif host.count(":") == 1:
        host, port = host.split(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise OptionError(f"{option} is {text!r}; give an address and a port, as in 10.0.0.1:{PORT}")
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise OptionError(f"{option} is {text!r}, and no machine has that name: give its address") from error
    address = str(found[0][4][0])
    return address, int(port)


def check(address: str, option: str, i_know: bool) -> None:
    """Raises OptionError for an address of all networks, and for a public one that nobody insists on."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if found.is_unspecified:
        raise OptionError(
            f"{option} is {address}, every network of this machine, and {OPEN}: name one address of a private network"
        )
    if found.is_global and not i_know:
        raise OptionError(
            f"{option} is {address}, a public address, and {OPEN}: take a private network or a tunnel, or insist with "
            "--i-know"
        )


def is_loopback(address: str) -> bool:
    """Whether only this machine gets there."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def shown(address: str, port: int) -> str:
    """As `parse` reads it."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
