"""Clients for Node, by the tests beside this file: where Node and `make node-tools` are there."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from serving import Served

HERE = Path(__file__).parent
CALL = '<tool_call>\n{"name": "weather", "arguments": {"place": "Oslo", "days": 2}}\n</tool_call>'
# By what a prompt's last message has, what the model says to it; its own words where nothing fits.
WORDS = {
    "<tool_response>": "It rains in Oslo.",
    "What is the weather": CALL,
    "Think, then": "<think>\nA greeting, then.\n</think>\n\nHello!",
    "Say hello": "Hello!",
    "for a long time": "and so on " * 250,
}


def missing() -> str:
    """What is not there; "": nothing."""
    if shutil.which("node") is None:
        return "there is no node"
    if not (HERE / "node_modules" / "openai").is_dir():
        return "the clients for Node are not there: make node-tools"
    return ""


def reply(prompt: str) -> str | None:
    """What the model says to a prompt."""
    last = prompt.rpartition("<|user|>")[2]
    return next((said for asked, said in WORDS.items() if asked in last), None)


@pytest.mark.skipif(bool(missing()), reason=missing())
@pytest.mark.parametrize("name", ["openai", "ai_sdk"])
def test_a_client_for_node(name: str, served: Served) -> None:
    served.says(reply)
    run = subprocess.run(
        ["node", "--test", "--test-reporter=spec", f"{name}.test.mjs"], cwd=HERE, check=False, timeout=120,
        env={**os.environ, "BASE": served.url}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-20000:] + run.stderr[-4000:]
    assert not served.service.open


def test_the_lock_names_no_registry() -> None:
    """Packages come from the registry that npm is set up for, and are known by their digests."""
    for lock in Path(HERE.parent).rglob("package-lock.json"):
        if "node_modules" not in lock.parts:
            assert "resolved" not in lock.read_text(), lock
            assert lock.read_text().count('"integrity"') > 1, lock
