"""The page's files: what is sent and how, and that the libraries are those of the lock."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace.engine.server.page import files
from headrace.engine.server.run import Loading
from headrace.engine.server.settings import ServerSettings

HTML = {"accept": "text/html,*/*"}
VENDOR = files.WEB / "vendor"


def test_browsers_get_the_page_and_clients_a_line(serve: Any) -> None:
    client, _ = serve()
    page = client.get("/", headers=HTML)
    assert page.headers["content-type"].startswith("text/html")
    assert page.text.startswith("<!doctype html>")
    for answer in (client.get("/"), client.head("/"), client.get("/", headers={"accept": "application/json"})):
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain")


def test_every_file_comes_with_a_policy_and_is_not_sent_twice(serve: Any) -> None:
    client, _ = serve()
    for name in files.files():
        found = client.get(f"/page/{name}")
        assert found.status_code == 200, name
        assert found.headers["x-content-type-options"] == "nosniff"
        assert "script-src 'self' 'sha256-" in found.headers["content-security-policy"]
        again = client.get(f"/page/{name}", headers={"if-none-match": found.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("path", ["/page/", "/page/../run.py", "/page/%2e%2e/run.py", "/page/vendor/files.json"])
def test_nothing_else_is_sent(serve: Any, path: str) -> None:
    client, _ = serve()
    assert client.get(path).status_code == 404


def test_without_a_page_there_is_only_the_api(serve: Any) -> None:
    client, _ = serve(no_page=True)
    assert client.get("/", headers=HTML).headers["content-type"].startswith("text/plain")
    assert client.get("/page/css/page.css").status_code == 404
    assert client.get("/v1/models").status_code == 200


async def _get(app: Any, path: str, headers: dict[str, str]) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        return await client.get(path, headers=headers)


def test_the_page_is_there_while_the_model_loads() -> None:
    import asyncio

    loading = Loading(ServerSettings())
    loading.progress(3, 10)
    assert asyncio.run(_get(loading, "/", HTML)).text.startswith("<!doctype html>")
    waiting = asyncio.run(_get(loading, "/health", {}))
    assert waiting.status_code == 503
    assert waiting.json()["error"]["loaded_bytes"] == 3
    assert "hosts" not in waiting.text
    loading.joining(1, 2)
    waiting = asyncio.run(_get(loading, "/health", {}))
    assert waiting.status_code == 503
    error = waiting.json()["error"]
    assert "the model waits for hosts, 1 of 2 joined: start headrace host" in error["message"]
    assert (error["code"], error["hosts_joined"], error["hosts_wanted"]) == ("loading", 1, 2)
    loading.joining(2, 2)
    assert "the model is loading" in asyncio.run(_get(loading, "/health", {})).json()["error"]["message"]
    assert asyncio.run(_get(Loading(ServerSettings(no_page=True)), "/", HTML)).status_code == 503


def test_libraries_are_those_that_were_taken_from_npm() -> None:
    """Bytes as when they were copied; a licence beside each; nothing that nobody lists; versions as in the lock."""
    listed = json.loads((VENDOR / "files.json").read_text())
    for name, one in listed.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == one["sha256"], name
    here = {one.name for one in VENDOR.iterdir()} - {"files.json", "package.json", "package-lock.json"}
    assert here == set(listed)
    wanted = json.loads((VENDOR / "package.json").read_text())["dependencies"]
    lock = json.loads((VENDOR / "package-lock.json").read_text())["packages"]
    sources = [one["from"] for one in listed.values()]
    for package, exact in wanted.items():
        assert lock[f"node_modules/{package}"]["version"] == exact
        assert lock[f"node_modules/{package}"]["integrity"].startswith("sha512-")
        assert f"{package}/LICENSE" in sources, f"{package} has no licence here"


def own_files() -> list[Path]:
    return [one for one in files.WEB.rglob("*") if one.is_file() and VENDOR not in one.parents]


@pytest.mark.parametrize("path", own_files(), ids=lambda p: str(p.relative_to(files.WEB)))
def test_own_files_are_short_and_name_no_other_origin(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    assert not re.findall(r"""(?:src|href|import|fetch|url)\W{1,4}(?:https?:)?//""", text)
    assert "innerHTML" not in text.replace("dangerouslySetInnerHTML", "") or path.name == "markdown.js"


def test_imports_of_the_page_lead_to_files() -> None:
    found = files.files()
    named = json.loads(files.IMPORT_MAP.findall(found["index.html"])[0])["imports"]
    for target in named.values():
        assert target.removeprefix("/page/") in found
    for name, data in found.items():
        if name.endswith(".js") and not name.startswith("vendor/"):
            for target in re.findall(r"""from\s+["']([^"']+)["']""", data.decode()):
                place = (Path("/") / name).parent / target
                assert target in named or place.resolve().as_posix()[1:] in found, f"{name} imports {target}"
