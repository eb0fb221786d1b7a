"""What users are told when a hub refuses, cannot be reached, or the disk does not take its files."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from fake_hub import FakeHub
from tiny_hub import MODEL, fetch, refusal

from headrace.loaders.hub import download

# Refusals of the hub


def test_no_such_repo(hub: FakeHub, cache: Path) -> None:
    said = refusal(cache, "org/absent")
    assert f"{hub.endpoint} has no model 'org/absent', or it is private or gated" in said
    assert "hf auth login" in said
    assert "HF_TOKEN" in said


@pytest.mark.parametrize("token", [None, "hf_secret"])
def test_gated_repo(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch, token: str | None) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    hub.repos[MODEL].gated = True
    said = refusal(cache)
    assert f"{MODEL} is gated: open {hub.endpoint}/{MODEL} in a browser, accept its terms" in said
    assert "HF_TOKEN" in said
    assert "hf_secret" not in said


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "refused access to org/tiny-moe (HTTP 401): is HF_TOKEN still valid?"),
        (403, "refused access to org/tiny-moe (HTTP 403)"),
        (503, "cannot serve org/tiny-moe now (HTTP 503): run again later"),
        (429, "cannot serve org/tiny-moe now (HTTP 429)"),
        (418, "refused a file of org/tiny-moe"),
    ],
)
def test_other_refusals(hub: FakeHub, cache: Path, status: int, said: str) -> None:
    hub.status = status
    assert said in refusal(cache)


@pytest.mark.parametrize("page", [b"<html>please log in</html>", b"[]", b"{}"])
def test_a_page_that_is_no_hub(hub: FakeHub, cache: Path, page: bytes) -> None:
    hub.page = page
    said = refusal(cache)
    assert f"{hub.endpoint} answered about {MODEL} as no hub does" in said
    assert "HF_ENDPOINT" in said


def test_no_such_revision(hub: FakeHub, cache: Path) -> None:
    said = refusal(cache, revision="v9")
    assert f"{MODEL} has no revision 'v9'" in said
    assert "/org/tiny-moe/tree/main" in said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nosuch.gguf", "'nosuch.gguf' is no directory, no file and no name on the hub (org/name): check the spelling"),
        ("./nosuch.gguf", "there is no file './nosuch.gguf'"),
        ("qwen3-30b-a3b", "did you mean Qwen/Qwen3-30B-A3B?"),
    ],
)
def test_what_can_be_no_name_on_the_hub_is_not_looked_for(hub: FakeHub, cache: Path, name: str, said: str) -> None:
    hub.status = 503  # whoever asks gets another error
    assert said in refusal(cache, name)


# No network


def closed_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_no_network(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = closed_port()
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    said = refusal(cache)
    assert f"the connection to {endpoint} failed" in said
    assert "copy the model's directory from another machine" in said


def test_no_network_but_a_copy_in_the_cache(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = fetch(cache)
    monkeypatch.setenv("HF_ENDPOINT", closed_port())
    assert "a complete copy is in the cache, run with --offline" in refusal(cache)
    assert fetch(cache, offline=True) == directory


# Disks


def test_a_disk_that_fills_up_on_the_way(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download, "_receive", full)
    assert f"the disk of {cache} is full while fetching {MODEL}: make room, then run again" in refusal(cache)


def test_a_cache_that_cannot_be_written(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = refusal(tmp_path / "file" / "cache")
    assert "cannot be stored in" in said
    assert "HF_HOME" in said
