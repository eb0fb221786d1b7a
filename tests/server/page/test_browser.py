"""The page in Chromium, by the tests in browser/: where Node, Chromium and `make node-tools` are there."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

BROWSER = Path(__file__).parent / "browser"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
KEY = "secret"


def missing() -> str:
    """What is not there; "": nothing."""
    if shutil.which("node") is None:
        return "there is no node"
    if CHROMIUM is None:
        return "there is no chromium"
    if not (BROWSER / "node_modules" / "playwright-core").is_dir():
        return "playwright is not there: make node-tools"
    return ""


@pytest.mark.skipif(bool(missing()), reason=missing())
@pytest.mark.parametrize("name", ["page", "chat"])
def test_the_page_in_a_browser(serve: Any, name: str) -> None:
    open_client, _ = serve()
    key_client, _ = serve(api_key=(KEY,))
    at = {"PAGE_URL": str(open_client.base_url).rstrip("/"), "KEY_URL": str(key_client.base_url).rstrip("/")}
    run = subprocess.run(
        ["node", "--test", "--test-reporter=spec", f"{name}.test.mjs"], cwd=BROWSER, check=False, timeout=580,
        env={**os.environ, **at, "KEY": KEY, "CHROMIUM": str(CHROMIUM)}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-20000:] + run.stderr[-4000:]
