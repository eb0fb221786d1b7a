"""What prompts of a trace chose, for policies that learn from them: before which pass it is known, as in a run."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from ..between import Event, Read
from .choices import Ids


def reads(ids_TLK: Ids, pass_T: Ids, generated_T: NDArray[np.bool_]) -> dict[int, list[Event]]:
    """By pass, counted over those that generate: prompts that were read between the one before and it, or beside the
    one before. ids [tokens, layers, top k], -1 for none; pass_T: rising, the pass of every token."""
    step_T = np.searchsorted(np.unique(pass_T[generated_T]), pass_T, side="right")
    found: defaultdict[int, list[Event]] = defaultdict(list)
    for step in np.unique(step_T[~generated_T]).tolist():
        rows_NLK = ids_TLK[(step_T == step) & ~generated_T]
        prompt = []
        for layer in range(rows_NLK.shape[1]):
            experts, counts = np.unique(rows_NLK[:, layer], return_counts=True)
            prompt.append({e: n for e, n in zip(experts.tolist(), counts.tolist(), strict=True) if e >= 0})
        found[step].append(Read(prompt))
    return dict(found)
