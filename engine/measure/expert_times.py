"""What calibrations of the CPU's kernels share: how long a call of experts takes, and what an earlier one kept."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from ...kernels import Ops
from ...kernels.context import Context
from ...kernels.isa import kernels_digest
from ...kernels.packed import ExpertBank
from .. import writable
from ..bandwidth_model.profile import hardware_key, profile_path

EXPERTS = 8  # of one call


def seconds_of(ops: Ops, bank: ExpertBank, first: int, tokens: int) -> float:
    """Seconds of a call in which each of EXPERTS experts from `first` on gets so many tokens."""
    x = torch.ones(tokens, bank.layout.hidden)
    ids = ((torch.arange(EXPERTS) + first) % bank.experts).int().expand(tokens, -1).contiguous()
    weights = torch.ones(tokens, EXPERTS)
    start = time.perf_counter()
    ops.experts(x, ids, weights, bank)
    return time.perf_counter() - start


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def path_of(what: str, context: Context) -> Path:
    """Where a calibration is kept for this hardware: beside the machine's profile."""
    key = hardware_key(context)
    return profile_path(key).with_name(f"{what}-{key}.json")


def keep(what: str, context: Context, found: object) -> None:
    """Keeps a choice for this hardware and these kernels."""
    writable.keep(path_of(what, context), json.dumps({kernels_digest(): found}))


def kept(what: str, context: Context) -> Any:
    """The choice that was kept for this hardware and these kernels, whatever the file has there; None: none."""
    return read_object(path_of(what, context)).get(kernels_digest())
