"""Sizes that a user gives as text: a limit of memory in GB or as a share, a folder and the room it may take."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

from ..errors import OptionError

KV_DISK_GB = 20  # where no limit was given
PINNED_SHARE = 0.8  # of the machine's memory, where no limit was given: what is pinned can neither move nor be swapped


_MEMORY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([MGT]B?)?", re.IGNORECASE)
_UNITS = {"M": 1e-3, "G": 1.0, "T": 1e3}


def gigabytes(text: str) -> float | None:
    """GB of "8", "8GB", "512 MB" or "1.5tb"; None of anything else."""
    found = _MEMORY.fullmatch(text.strip())
    return None if found is None else float(found[1]) * _UNITS[(found[2] or "G")[0].upper()]


def parse_limit(asked: float | str | None, name: str = "pinned_limit") -> tuple[float, str]:
    """A limit of memory as a number and what it counts: "GB", or "%" of what there is; None: the default share. Raises
    OptionError for anything else."""
    if asked is None:
        return 100 * PINNED_SHARE, "%"
    text = str(asked).strip()
    unit = "%" if text.endswith("%") else "GB"
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        known = gigabytes(text)
        number = -1.0 if known is None else known
    if isinstance(asked, bool) or not 0 <= number < math.inf or (unit == "%" and number > 100):
        raise OptionError(f"{name} is {asked!r}; give GB from 0 on, as 8 or 512MB, or a share such as 50%")
    return number, unit


def parse_kv_disk(asked: str) -> tuple[Path, float]:
    """A folder, and the GB that it may take. Raises OptionError."""
    folder, colon, size = asked.rpartition(":")
    if not colon or os.sep in size:  # the folder alone
        folder, size = asked, str(KV_DISK_GB)
    limit = gigabytes(size) or 0.0
    if not folder or not 0 < limit < math.inf:
        raise OptionError(f"kv_disk is {asked!r}; give a folder, and behind a colon the GB it may take: DIR, or DIR:50")
    return Path(folder).expanduser(), limit
