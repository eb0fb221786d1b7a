"""The greeting: both sides prove that they have the same token without sending it.

    coordinator -> host   CHALLENGE  version, nonce
    host -> coordinator   HELLO      version, name, nonce, HMAC(token, "host", both nonces, name)
    coordinator -> host   TERMS      HMAC(token, "coordinator", both nonces), how the model is to be opened

Neither the store of the meeting nor what follows is encrypted: the token keeps strangers out, it hides nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import socket
from pathlib import Path
from typing import Any

from ....errors import OptionError
from .frames import VERSION, Broken, Kind, as_json, receive, send_json

VARIABLE = "HEADRACE_HOST_TOKEN"
LONGEST_NAME = 64
WRONG_TOKEN = f"the token differs: give coordinator and hosts the same one (--host-token FILE, or {VARIABLE})"


def token(file: Path | None) -> bytes:
    """The secret that coordinator and hosts share: of a file, else of the environment; empty where neither says one.
    Raises OptionError."""
    if file is None:
        return os.environ.get(VARIABLE, "").encode()
    try:
        found = file.read_bytes().strip()
    except OSError as error:
        raise OptionError(f"cannot read the token {file}: {error.strerror}; name a file with a secret text") from error
    if not found:
        raise OptionError(f"the token {file} is empty: put a secret text there, such as 32 random letters")
    return found


def proof(secret: bytes, *said: str) -> str:
    """What only a holder of the token can say of these."""
    text = "\n".join(said).encode(errors="replace")  # halves of surrogates, which JSON can hold
    return hmac.new(secret, text, hashlib.sha256).hexdigest()


def is_same(known: str, said: object) -> bool:
    """Whether the other side's proof is the one that is known; how long it takes does not tell."""
    return hmac.compare_digest(known.encode(), str(said).encode(errors="replace"))


def challenge(sock: socket.socket, secret: bytes) -> tuple[str, str]:
    """The coordinator's first half: the host's name, and the proof to answer with. Raises Broken, after telling the
    host why."""
    nonce = secrets.token_hex(16)
    send_json(sock, Kind.CHALLENGE, {"version": VERSION, "nonce": nonce})
    said = as_json(receive(sock, Kind.HELLO)[1])
    name, other = str(said.get("name", ""))[:LONGEST_NAME], str(said.get("nonce", ""))
    known = proof(secret, "host", nonce, other, name)
    if not name.isprintable() or not name or not is_same(known, said.get("proof", "")):
        refuse(sock, WRONG_TOKEN)
        raise Broken(f"a host that calls itself {name!r} was turned away: {WRONG_TOKEN}")
    return name, proof(secret, "coordinator", other, nonce)


def answer(sock: socket.socket, secret: bytes, name: str) -> dict[str, Any]:
    """The host's half: the coordinator's terms. Raises Broken where it has not the token."""
    nonce = secrets.token_hex(16)
    other = str(as_json(receive(sock, Kind.CHALLENGE)[1]).get("nonce", ""))
    said = {"version": VERSION, "name": name, "nonce": nonce, "proof": proof(secret, "host", other, nonce, name)}
    send_json(sock, Kind.HELLO, said)
    terms = as_json(receive(sock, Kind.TERMS)[1])
    if not is_same(proof(secret, "coordinator", nonce, other), terms.get("proof", "")):
        raise Broken(WRONG_TOKEN)
    return terms


def refuse(sock: socket.socket, reason: str, again: bool = False) -> None:
    """Says why there will be nothing more, to whoever may be gone already; again: it may be otherwise later."""
    try:
        send_json(sock, Kind.REFUSED, {"reason": reason, "again": again})
    except OSError:
        return
