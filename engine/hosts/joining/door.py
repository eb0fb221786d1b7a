"""Opens the coordinator's door, where a config says."""

from __future__ import annotations

from ....errors import OptionError
from ....loaders.weights.checkpoint import Checkpoint
from ...config import EngineConfig
from ..files.served import ServedFiles
from ..messages import greeting
from ..messages.terms import Terms
from . import address as addresses
from . import fingerprint, meeting
from .gathering import Gathering


def opened(config: EngineConfig, terms: Terms, checkpoint: Checkpoint) -> Gathering:
    """Hosts are let in from now on that have the token and this model. Raises OptionError for an address that cannot
    be, or that needs a token."""
    address, port = addresses.parse(config.listen, "--listen")
    addresses.check(address, "--listen", config.i_know)
    secret = greeting.token(config.host_token)
    if not secret and not addresses.is_loopback(address):
        raise OptionError(
            f"hosts join {address} with a token: put a secret text into a file, and name it with --host-token here "
            "and on the hosts"
        )
    known, files = fingerprint.of(checkpoint), ServedFiles(checkpoint)
    return Gathering(meeting.Meeting(address, port), secret, terms, known, files)
