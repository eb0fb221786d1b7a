"""Who is let in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import Served, serving

from headrace import OptionError
from headrace.engine.server.settings import KEYS_ENVIRONMENT, ServerSettings

BODY = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}


@pytest.fixture(scope="module")
def locked() -> Iterator[Served]:
    with serving(api_key=("one", "two")) as found:
        yield found


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.7", "::", "example.org"])
def test_other_addresses_need_a_key(host: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--api-key"):
        ServerSettings(host=host)
    assert ServerSettings(host=host, no_auth=True).keys == ()
    assert ServerSettings(host=host, api_key="a").keys == ("a",)
    (tmp_path / "keys").write_text("b\nc\n")
    assert ServerSettings(host=host, api_key_file=tmp_path / "keys").keys == ("b", "c")
    monkeypatch.setenv(KEYS_ENVIRONMENT, "d")
    assert ServerSettings(host=host).keys == ("d",)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.9"])
def test_this_computer_needs_none(host: str) -> None:
    assert ServerSettings(host=host).is_loopback


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer three"}, 401),
        ({"authorization": "one"}, 401),
        ({"authorization": "Bearer two"}, 200),
        ({"x-api-key": "one"}, 200),
        ({"x-api-key": "ä"}, 401),
    ],
)
def test_keys(headers: dict[str, str], status: int, locked: Served) -> None:
    encoded: Any = {name: value.encode() for name, value in headers.items()}
    for method, path in (("GET", "/v1/models"), ("GET", "/slots"), ("POST", "/v1/chat/completions")):
        body = BODY if method == "POST" else None
        assert httpx.request(method, locked.url + path, headers=encoded, json=body).status_code == status
    assert httpx.get(f"{locked.url}/health", headers=encoded).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", ""]
)
def test_a_name_that_is_not_this_computer_is_refused(host: str, served: Served) -> None:
    assert httpx.get(f"{served.url}/v1/models", headers={"host": host}).status_code in (400, 403)


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1:80", "[::1]:8000"])
def test_names_of_this_computer(host: str, served: Served) -> None:
    assert httpx.get(f"{served.url}/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.example"])
def test_pages_of_others_may_not_call(origin: str, served: Served) -> None:
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=BODY, headers={"origin": origin})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers
    assert httpx.options(f"{served.url}/v1/models", headers={"origin": origin}).status_code == 403


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1:8080", "https://app.example"])
def test_pages_of_this_computer_and_named_ones_may(origin: str) -> None:
    with serving(cors_origin="https://app.example") as served:
        before = httpx.options(f"{served.url}/v1/chat/completions", headers={"origin": origin})
        assert before.status_code == 204
        answer = httpx.post(f"{served.url}/v1/chat/completions", json=BODY, headers={"origin": origin})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == origin
        form = {"origin": origin, "content-type": "text/plain"}
        assert httpx.post(f"{served.url}/v1/chat/completions", content="{}", headers=form).status_code == 415


def test_answers_are_not_kept_and_not_guessed(served: Served) -> None:
    headers = httpx.get(f"{served.url}/v1/models").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "default-src 'none'" in headers["content-security-policy"]


@pytest.mark.parametrize(
    "wrong", [{"port": 70000}, {"parallel": 0}, {"max_queue": -1}, {"api_key_file": Path("/nowhere/keys")}]
)
def test_settings_that_cannot_be_used(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        ServerSettings(**wrong)
