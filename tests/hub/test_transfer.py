"""Transfers from a hub on this machine: what survives a broken line, and what the progress bar says."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from fake_hub import FakeHub, etag_of
from huggingface_hub import constants
from huggingface_hub.utils import are_progress_bars_disabled, tqdm  # type: ignore[attr-defined]
from tiny_hub import FIRST, MIB, MODEL, NEEDED, SECOND, content, fetch, marks, noise, refusal

from headrace.loaders.hub import download
from headrace.loaders.hub.locate import locate

# Broken lines


@pytest.mark.parametrize("resets", [False, True])
def test_a_broken_connection_is_resumed(hub: FakeHub, cache: Path, resets: bool) -> None:
    hub.resets = resets
    hub.cuts[SECOND] = (1_000_000, 3)
    directory = fetch(cache)
    assert content(directory) == marks(NEEDED)
    assert [name for name, _ in hub.ranges] == [SECOND] * 3
    if not resets:
        assert [asked for _, asked in hub.ranges] == [f"bytes={n}000000-" for n in (1, 2, 3)]
        assert hub.sent[SECOND] == len(NEEDED[SECOND]), "no byte came twice"


def test_a_line_broken_for_good(hub: FakeHub, cache: Path) -> None:
    hub.cuts[FIRST] = (100_000, 10**9)
    said = refusal(cache)
    assert f"the connection to {hub.endpoint} failed, also when tried again, while fetching {MODEL}" in said
    assert "what was fetched stays, run again" in said
    assert hub.requests[f"GET {FIRST}"] == download.ATTEMPTS


def test_many_breaks_do_not_matter_while_bytes_come(hub: FakeHub, cache: Path) -> None:
    big = noise(7, 12 * MIB)
    hub.add("org/big", {"config.json": b"{}", "model.safetensors": big})
    hub.cuts["model.safetensors"] = (MIB, 10**9)
    assert content(fetch(cache, "org/big"))["model.safetensors"] == marks({"": big})[""]
    assert hub.requests["GET model.safetensors"] == 12 > download.ATTEMPTS


def test_a_fresh_run_goes_on_where_the_last_one_broke(hub: FakeHub, cache: Path) -> None:
    hub.cuts[FIRST] = (200_000, download.ATTEMPTS)
    refusal(cache)
    assert "is not in the cache" in refusal(cache, offline=True), "half a model is none"
    fetched = hub.sent[FIRST]
    assert fetched == 200_000 * download.ATTEMPTS
    hub.forget()
    assert content(fetch(cache)) == marks(NEEDED)
    assert hub.ranges[0] == (FIRST, f"bytes={fetched}-")
    assert hub.sent[FIRST] == len(NEEDED[FIRST]) - fetched
    assert not list(cache.rglob("*.incomplete"))


def test_a_part_that_is_damaged_is_noticed(hub: FakeHub, cache: Path) -> None:
    """Sizes agree, bytes do not: the hash says so, and the file comes again from its start."""
    hub.cuts[FIRST] = (500_000, 1)
    hub.garbles.add(FIRST)
    hub.forget()
    assert content(fetch(cache)) == marks(NEEDED)
    assert hub.requests[f"GET {FIRST}"] == 3


def test_a_leftover_that_is_too_long_is_dropped(hub: FakeHub, cache: Path) -> None:
    blobs = cache / "models--org--tiny-moe" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{etag_of(FIRST, NEEDED[FIRST])}.incomplete").write_bytes(b"x" * 4 * MIB)
    assert content(fetch(cache)) == marks(NEEDED)


def test_a_server_that_ignores_ranges(hub: FakeHub, cache: Path) -> None:
    hub.ignores_ranges = True
    hub.cuts[FIRST] = (500_000, 1)
    assert content(fetch(cache)) == marks(NEEDED)


def test_a_hub_that_is_busy_is_asked_again(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "BACKOFF_S", 0.2)
    hub.status = 503
    timer = threading.Timer(0.1, lambda: setattr(hub, "status", 200))
    timer.start()
    assert content(fetch(cache)) == marks(NEEDED)
    timer.join()


def test_two_runs_at_once_fetch_each_file_once(hub: FakeHub, cache: Path) -> None:
    found: list[Path] = []
    runs = [threading.Thread(target=lambda: found.append(fetch(cache))) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert len(found) == 2
    assert content(found[0]) == marks(NEEDED)
    assert hub.sent[FIRST] == len(NEEDED[FIRST])


def test_xet_is_left_aside_for_what_can_be_resumed(hub: FakeHub, cache: Path) -> None:
    hub.speaks_xet = True
    hub.cuts[FIRST] = (1_000_000, 1)
    assert content(fetch(cache)) == marks(NEEDED)
    assert hub.ranges == [(FIRST, "bytes=1000000-")]


def test_xet_on_demand_is_tried_again_too(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hf_xet")
    hub.speaks_xet = True
    monkeypatch.setattr(constants, "HF_XET_HIGH_PERFORMANCE", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    calls: list[str] = []

    def broken(model: str, name: str, **options: Any) -> None:
        calls.append(name)
        raise RuntimeError("Data processing error: connection lost")

    monkeypatch.setattr(download, "hf_hub_download", broken)
    assert "connection lost" in refusal(cache)
    assert calls == ["model.safetensors.index.json"] * download.ATTEMPTS
    assert hub.sent.total() == 0


def test_a_failure_stops_the_other_files(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "hf_hub_download", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(cache)


# Progress


def test_the_bar_counts_every_byte_once(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[Any] = []

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": False})  # type: ignore[no-untyped-call]
            bars.append(self)

    monkeypatch.setattr(download, "tqdm", Bar)
    hub.cuts[FIRST] = (1_000_000, 2)
    hub.garbles.add(FIRST)
    locate(MODEL, cache_dir=cache)
    assert bars[-1].total == sum(map(len, NEEDED.values()))
    assert bars[-1].n == bars[-1].total


def test_no_progress_puts_the_switch_back(hub: FakeHub, cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = are_progress_bars_disabled()
    fetch(cache)
    assert are_progress_bars_disabled() == before
    assert capfd.readouterr().err == ""
