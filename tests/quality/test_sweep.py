"""Sweeps: how they are written, that rows are what runs of one setting give, and what is drawn."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headrace import LLM, OptionError
from headrace.engine.bench.quality import sweep as sweeping
from headrace.engine.bench.quality.options import FORMATS, Asked, parse
from headrace.engine.bench.quality.perplexity import Perplexity, perplexity
from headrace.engine.bench.quality.sweep import REPEATS, Point, Sweep, settings, usual
from headrace.engine.core.weight_source import CheckpointFiles
from headrace.engine.terminal.perplexity import sweep_plot, sweep_report
from headrace.kernels.packed import ExpertBank

Run = Callable[..., tuple[int, str, str]]
HELD_OUT = Path(__file__).parents[2] / "demo" / "heldout.txt"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (file := tmp_path / "text.txt").write_text(HELD_OUT.read_text(encoding="utf-8")[:4000], encoding="utf-8")
    return file


@pytest.fixture
def no_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CheckpointFiles, "load", lambda *_: pytest.fail("weights were loaded"))


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("experts-per-token=1,2,4", [("experts_per_token", (1, 2, 4))]),
        ("expert-format=q8_0,q4_0,q8_0", [("expert_format", ("q8_0", "q4_0"))]),
        ("experts-per-token", [("experts_per_token", ())]),
        ("kv-format=q8_0,kv-format", [("kv_format", ("q8_0",)), ("kv_format", ())]),
        ("experts-per-token,expert-format", [("experts_per_token", ()), ("expert_format", ())]),
        (
            "expert-format=native,q2_k,experts-per-token=3",
            [("expert_format", ("native", "q2_k")), ("experts_per_token", (3,))],
        ),
    ],
)
def test_a_sweep_is_read(said: str, wanted: list[Any]) -> None:
    assert parse(said) == wanted


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (["experts-per-tokn=1"], "--sweep has no 'experts-per-tokn'; there are experts-per-token, expert-format"),
        (["4"], "--sweep has no '4'"),
        (["experts-per-token=1,window=4"], "--sweep has no 'window'"),
        (["experts-per-token=1,x"], "--sweep experts-per-token has 'x'; give whole numbers"),
        (["experts-per-token="], "--sweep experts-per-token has ''; give whole numbers"),
        (["expert-format=q9"], "expert_format is 'q9'; choose one of"),
        (["kv-format=q4_0"], "kv_format is 'q4_0' (did you mean q8_0?); choose one of auto, f32, bf16, q8_0"),
        (["expert-format=q8_0", "expert-format"], "--sweep has expert-format twice"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_at_once(
    said: list[str], problem: str, run: Run, text: Path, no_loads: None
) -> None:
    with pytest.raises(OptionError, match=re.escape(problem)):
        Asked(sweep=tuple(said))
    status, _, err = run("perplexity", "demo", text, *(word for one in said for word in ("--sweep", one)))
    assert status == 1
    assert problem in err


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--sweep", "experts-per-token=4,9"], "experts_per_token is 9; a token of"),
        (["--sweep", "experts-per-token=0"], "experts_per_token is 0; a token of"),
        (["--sweep", "experts-per-token", "--experts-per-token", "2"], "both say experts-per-token: give one of them"),
        (["--sweep", "expert-format", "--expert-format", "q8_0"], "both say expert-format: give one of them"),
        (["--plot", "x.png"], "--plot draws a sweep: add --sweep"),
        (["--rounds", "3"], "--rounds is 3, and only a sweep has rounds: add --sweep"),
        (["--sweep", "expert-format", "--plot", "x.pdf"], ".png or .svg"),
        (["--sweep", "expert-format", "--rounds", "0"], "--rounds is 0: give at least 1"),
        (["--sweep", "expert-format", "--window", "5000"], "window is 5000, the context holds"),
        (["--sweep", "expert-format", "--stride", "513"], "stride is 513 with windows of 512"),
    ],
)
def test_what_a_model_cannot_do_is_said_before_weights_are_loaded(
    more: list[str], problem: str, run: Run, text: Path, no_loads: None
) -> None:
    status, out, err = run("perplexity", "demo", text, *more)
    assert (status, out) == (1, "")
    assert problem in err


def test_usual_values_make_a_curve() -> None:
    assert usual("experts_per_token", 4, 8) == (1, 2, 3, 4, 5, 6, 7, 8)
    assert usual("experts_per_token", 6, 12) == (1, 2, 4, 6, 8, 12)
    assert usual("experts_per_token", 8, 16) == (1, 2, 4, 8, 16)
    assert usual("expert_format", 4, 8) == FORMATS
    assert usual("kv_format", 4, 8) == ("bf16", "q8_0")
    trained, found = settings("demo", {}, [("experts_per_token", ()), ("expert_format", ())])
    assert trained == 4
    assert len(found) == 8 * len(FORMATS)
    assert found[0] == {"experts_per_token": 1, "expert_format": "native"}


def test_rows_are_what_runs_of_one_setting_give(run: Run, text: Path, tmp_path: Path) -> None:
    plot = tmp_path / "sweep.svg"
    pytest.importorskip("matplotlib")
    said = ("--sweep", "experts-per-token=1,4", "--sweep", "expert-format=native,q4_0", "--window", 128)
    status, out, err = run("perplexity", "demo", text, *said, "--rounds", 2, "--plot", plot, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert (found["model"], found["trained_experts_per_token"], found["base"]) == ("demo", 4, 2)
    rows = {(row["experts_per_token"], row["expert_format"]): row for row in found["rows"]}
    assert list(rows) == [(1, "native"), (1, "q4_0"), (4, "native"), (4, "q4_0")]
    for (count, format_), row in rows.items():
        llm = LLM("demo", experts_per_token=count, expert_format=format_)
        wanted = perplexity(llm, llm.encode(text.read_text()), 128)
        assert row["perplexity"]["value"] == pytest.approx(wanted.value)
        assert row["perplexity"]["error"] == pytest.approx(wanted.error)
        assert row["is_trained"] == (count == 4)
        banks = [layer.experts for layer in llm.parts.weights.layers]
        assert row["expert_bytes"] == sum(bank.nbytes for bank in banks if isinstance(bank, ExpertBank))
        assert row["prefill_tok_s"] > 0
        assert row["decode_tok_s"] > 0
        assert len(row["prefill_samples"]) == len(row["decode_samples"]) == 2 * REPEATS
        assert min(row["decode_samples"]) <= row["decode_tok_s"] <= max(row["decode_samples"])
        base = rows[4, "native"]["perplexity"]["value"]
        assert row["change"] == pytest.approx(wanted.value / base - 1)
    assert rows[1, "native"]["expert_bytes"] == rows[4, "native"]["expert_bytes"] == 7 * 16 * 3 * 64 * 256 * 2
    read = {key: row["bytes_per_token"] for key, row in rows.items()}
    assert read[4, "native"] - read[1, "native"] == pytest.approx(7 * 3 * 3 * 64 * 256 * 2, rel=0.01)
    assert read[1, "q4_0"] < read[1, "native"]
    assert rows[1, "native"]["change"] > 0.02 > rows[4, "q4_0"]["change"]
    assert found["passport"]["threads"] == 1
    assert "<svg" in plot.read_text()


def test_the_table_has_a_row_for_each_setting(run: Run, text: Path) -> None:
    status, out, err = run("perplexity", "demo", text, "--sweep", "experts-per-token=2,4", "--window", 64)
    assert status == 0
    lines = [line.split() for line in out.splitlines() if "MB" in line]
    assert [line[:2] for line in lines] == [["2", "bf16"], ["4", "*"]]
    assert lines[1][-1] == "+0.00±0.00"
    assert err.count("round 1 of 1: experts-per-token") == err.count("tokens/s of a prompt") == 2


def test_a_text_of_two_tokens_is_enough(run: Run, tmp_path: Path) -> None:
    (short := tmp_path / "short.txt").write_text("In the")
    status, out, err = run("perplexity", "demo", short, "--sweep", "experts-per-token=3", "--json")
    assert status == 0, err
    row = json.loads(out)["rows"][0]
    assert (row["perplexity"]["tokens"], row["perplexity"]["error"], row["change_error"]) == (1, None, None)


def test_a_warning_of_every_load_comes_once(
    run: Run, text: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = sweeping.score

    def warns(*given: Any) -> Any:
        logging.getLogger("headrace").warning("this machine is odd")
        return whole(*given)

    monkeypatch.setattr(sweeping, "score", warns)
    for _ in range(2):
        caplog.clear()
        assert run("perplexity", "demo", text, "--sweep", "experts-per-token=1,2,4", "--window", 64)[0] == 0
        assert [record.getMessage() for record in caplog.records].count("this machine is odd") == 1


def point(count: int, name: str, value: float, kv: str = "bf16") -> Point:
    scored = Perplexity(
        value=value, error=0.5, tokens=9, nll=1.0, nll_error=0.1, bits_per_byte=1.0, tok_s=5.0, window=8, stride=8
    )
    return Point(
        experts_per_token=count, is_trained=count == 4, expert_format=name, stored_as="bf16", expert_bytes=1000,
        kv_format=kv, bytes_per_token=100 * count, prefill_tok_s=50.0, decode_tok_s=10.0 / count,
        prefill_samples=(50.0,), decode_samples=(10.0 / count,), perplexity=scored, change=0.0, change_error=None,
    )  # fmt: skip


def made_up(*points: Point) -> Sweep:
    return Sweep(trained=4, base=0, points=points, passport={})


def test_lines_join_a_format_or_formats_where_each_has_one_point() -> None:
    found = made_up(*(point(count, name, 20.0) for name in ("native", "q8_0") for count in (2, 4)))
    assert {name: [p.experts_per_token for p in many] for name, many in sweep_plot.lines(found).items()} == {
        "bf16": [2, 4], "q8_0": [2, 4],
    }  # fmt: skip
    alone = made_up(*(point(4, name, 20.0) for name in ("native", "q8_0", "q2_k")))
    assert {name: len(many) for name, many in sweep_plot.lines(alone).items()} == {"4 experts a token": 3}
    caches = made_up(*(point(count, "q8_0", 20.0, kv) for kv in ("bf16", "q8_0") for count in (2, 4)))
    assert [*sweep_plot.lines(caches)] == ["q8_0, cache bf16", "q8_0, cache q8_0"]


@pytest.mark.parametrize("name", ["plot.png", "plot.svg"])
def test_a_plot_is_drawn(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for points in ([point(2, "q8_0", 25.0), point(4, "q8_0", 20.0)], [point(4, "q8_0", 20.0), point(4, "q2_k", 21.0)]):
        sweep_plot.save(made_up(*points), tmp_path / name, "model")
        start = b"\x89PNG" if name.endswith("png") else b"<?xml"
        assert (tmp_path / name).read_bytes().startswith(start)
    sweep_plot.save(made_up(point(4, "q8_0", 20.0)), tmp_path / name, "model", [sweep_plot.BYTES])
    with pytest.raises(OptionError, match="cannot write the plot"):
        sweep_plot.save(made_up(point(4, "q8_0", 20.0)), tmp_path / "missing" / name, "model")


def test_json_has_every_number() -> None:
    found = sweep_report.as_json(made_up(point(2, "q8_0", 25.0), replace(point(4, "q8_0", 20.0), change=-0.2)), "m")
    assert json.loads(json.dumps(found))["rows"][1]["change"] == -0.2
