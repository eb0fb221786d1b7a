"""The board for Grafana asks for what /metrics has, and for all of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import Served

BOARD: dict[str, Any] = json.loads((Path(__file__).parents[2] / "docs" / "grafana.json").read_text(encoding="utf-8"))
ASKED = [(panel["title"], target["expr"]) for panel in BOARD["panels"] for target in panel["targets"]]
FROM_PROMETHEUS = {"instance", "le"}  # labels that Prometheus sets, or a histogram's own
NAME = re.compile(r"headrace_\w+")


@pytest.fixture(scope="module")
def labels(served: Served) -> dict[str, set[str]]:
    """By metric its labels, after a request."""
    served.says("Hello there")
    body = {"messages": [{"role": "user", "content": "Hello"}]}
    assert httpx.post(f"{served.url}/v1/chat/completions", json=body).status_code == 200
    families = text_string_to_metric_families(httpx.get(f"{served.url}/metrics").text)
    return {sample.name: {*sample.labels} for family in families for sample in family.samples}


def test_every_metric_that_it_asks_for_is_there(labels: dict[str, set[str]]) -> None:
    for title, expression in ASKED:
        names = set(NAME.findall(expression))
        assert names, title
        # The ratio to predictions is there only where the machine was measured.
        assert names <= {*labels, "headrace_measured_over_predicted"}, title
        grouped = {one for group in re.findall(r"by \(([\w, ]+)\)", expression) for one in group.split(", ")}
        there = set[str]().union(*(labels[name] for name in names & {*labels}))
        assert grouped <= there | FROM_PROMETHEUS, title


def test_it_asks_for_every_metric(labels: dict[str, set[str]]) -> None:
    asked = {name for _, expression in ASKED for name in NAME.findall(expression)}
    kinds = ("_bucket", "_sum", "_count")

    def stem(name: str) -> str:
        return next((name.removesuffix(kind) for kind in kinds if name.endswith(kind)), name)

    assert {stem(name) for name in labels if not name.endswith("_created")} <= {stem(name) for name in asked}


def test_it_is_a_board() -> None:
    panels = BOARD["panels"]
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)
    sources = {target["datasource"]["uid"] for panel in panels for target in panel["targets"]}
    assert sources == {"${source}"}
    assert [one["name"] for one in BOARD["templating"]["list"]] == ["source", "instance"]
    for title, expression in ASKED:
        assert expression.count("(") == expression.count(")"), title
        assert len(NAME.findall(expression)) == expression.count('{instance=~"$instance"}'), title
