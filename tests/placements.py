"""Placements that tests run the demo model under: every kind of rule, on a simulated GPU or two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

EVEN_ON_CPU = {
    "version": 1,
    "default": "gpu0",
    "rules": [
        {"layers": "all", "experts": list(range(0, 16, 2)), "tier": "cpu"},
        {"layers": "2-4", "experts": "5-12", "tier": "gpu1"},
        {"layers": 5, "tier": "cpu"},
        {"layers": 6, "tier": "gpu1"},
    ],
}
PLACEMENTS: dict[str, dict[str, Any]] = {
    "cpu-moe": {"cpu_moe": True},
    "half": {"n_cpu_moe": 3},
    "gpu": {"placement": "gpu"},
    "auto": {"vram_limit": 0.027},
    "split": {"n_cpu_moe": 2, "tensor_split": "1,1"},
    "second": {"n_cpu_moe": 1, "tensor_split": "0,1"},
    "file": {"placement": "file"},
}


def placed(options: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The options with a real file where one is meant."""
    if options.get("placement") != "file":
        return options
    (tmp_path / "even.json").write_text(json.dumps(EVEN_ON_CPU))
    return {**options, "placement": tmp_path / "even.json"}
