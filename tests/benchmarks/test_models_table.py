"""docs/models.md against the code."""

from __future__ import annotations

from pathlib import Path

import models_table

from headrace.loaders.architecture import catalogue

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text() == models_table.page(), "python benchmarks/models_table.py > docs/models.md"


def test_every_model_of_the_catalogue_stands_there_once() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    named = [model for row in rows for model in row.split(" | ")[1].split(", ")]
    assert [name for name in catalogue.names() if named.count(name) != 1] == []
