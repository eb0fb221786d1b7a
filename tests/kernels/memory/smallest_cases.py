"""One small case of each op."""

from __future__ import annotations

from headrace.kernels.cases.all import CASES
from headrace.kernels.cases.case import Case
from headrace.kernels.cases.mixers import MIXER_CASES
from headrace.kernels.cases.recurrent import KEY_CASES, RECURRENT_CASES
from headrace.kernels.cases.state_space import STATE_SPACE_CASES
from headrace.kernels.cases.variants.own_norms import OWN_NORMS_CASES
from headrace.kernels.cases.variants.pooled import POOLED_CASES
from headrace.kernels.cases.variants.sparse import SPARSE_CASES
from headrace.kernels.cases.variants.streams import STREAM_CASES


def smallest() -> list[Case]:
    """One case of each op, that with the fewest bytes of inputs."""
    every = (
        *CASES, *MIXER_CASES, *RECURRENT_CASES, *KEY_CASES, *STATE_SPACE_CASES, *OWN_NORMS_CASES, *SPARSE_CASES,
        *STREAM_CASES, *POOLED_CASES,
    )  # fmt: skip
    found: dict[str, Case] = {}
    for case in every:
        if not case.bench and (case.op not in found or case.name.startswith("q4_0")):
            found.setdefault(case.op, case)
    return [found[op] for op in sorted(found)]
