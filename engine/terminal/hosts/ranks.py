"""`--hosts auto`: coordinator and hosts are started together, by torchrun or whatever sets its variables.

    RANK 0          is the coordinator: what is asked of the command it does, with WORLD_SIZE - 1 hosts
    other ranks     are `headrace host` of the same model, which end when the coordinator does

They meet at MASTER_ADDR and the port behind MASTER_PORT, which is torchrun's own; or where --listen says.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from ....errors import OptionError
from ...config import EngineConfig

AUTO = "auto"
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
OF_A_HOST = ("host_token", "i_know", "threads", "ram_limit", "revision", "offline", "cache_dir")


class Join(NamedTuple):
    """What a rank joins, and its name."""

    address: str
    name: str


def settle(params: dict[str, Any]) -> Join | None:
    """Puts the number of hosts and the address to listen at into a command's parameters; of another rank than 0: what
    it joins. Raises OptionError without the variables, and of a rank that is alone."""
    missing = [name for name in VARIABLES if not os.environ.get(name)]
    rank, size, port = (_number(name) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    if missing or rank is None or size is None or port is None:
        raise OptionError(
            f"--hosts auto goes by {', '.join(VARIABLES)}, and {(missing or ['a number'])[0]} is missing: start it by "
            "torchrun, or give a number of hosts"
        )
    if not 0 <= rank < size or size < 2:
        raise OptionError(f"--hosts auto: RANK is {rank} of WORLD_SIZE {size}; start two processes at least")
    said = params["config_listen"]
    address = f"{os.environ['MASTER_ADDR']}:{port + 1}" if said == EngineConfig.listen else str(said)
    if rank:
        return Join(address, f"rank{rank}")
    params["config_hosts"], params["config_listen"] = str(size - 1), address
    return None


def _number(name: str) -> int | None:
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else None


def run_host(params: dict[str, Any], join: Join) -> None:
    """A rank's work: of the command it was started with only what a host has of it."""
    from . import host_command

    given = {name: params.get(f"config_{name}") for name in OF_A_HOST}
    config = {name: value for name, value in given.items() if value is not None}
    host_command.run(str(params["model"]), join.address, join.name, config, once=True)
