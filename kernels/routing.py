"""The words of a router's recipe; what they mean stands at `route` in `reference.py`."""

from __future__ import annotations

from typing import Literal

Scoring = Literal["softmax", "softmax_topk", "sigmoid"]
GroupScore = Literal["max", "top2"]
