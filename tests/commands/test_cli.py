"""The command line as a user and as a script meet it: text, tables, one JSON object, ledger files, help."""

from __future__ import annotations

import io
import json
import math
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import quick
from terminal import folded
from test_options import COMMANDS

from headrace import cli
from headrace.engine.bandwidth_model import profile as profiles
from headrace.engine.bandwidth_model.profile import Profile
from headrace.engine.measure.kernel_rates import USUAL
from headrace.engine.terminal import chat_options, generate_command, generate_report
from headrace.kernels.context import Context

# (exit status, standard output, standard error) of a command
Run = Callable[..., tuple[int, str, str]]
QUESTION = "How much water does a mill wheel of this size need in a day?"


def passes(path: Path) -> list[dict[str, Any]]:
    """The lines of a ledger file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- generate


def test_text_goes_to_standard_output_and_tables_to_standard_error(run: Run, talker: Path) -> None:
    status, out, err = run("generate", talker, "Hello", "-n", 12, "--ignore-eos")
    assert status == 0
    assert out.endswith("\n")
    assert "expert" not in out
    text = folded(err)
    for word in ("what lies where", "2 x 8 experts", "KV, 65536 tokens ", "bytes read per token", "tokens/s"):
        assert word in text
    assert "prefill, 5 tokens" in text
    assert "decode, 11 tokens" in text


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "amx"])
def test_tables_fit_into_eighty_columns(isa: str, run: Run, talker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the kernels are called: a cell that did not fit would be broken into two lines."""
    monkeypatch.setattr(generate_command.notes, "width", 80)
    monkeypatch.setattr(generate_report, "_kernel", lambda device: f"C++ {isa}")
    _, _, err = run("generate", talker, "Hello", "-n", 4, "--ignore-eos")
    lines = [line for line in err.splitlines() if " RAM " in line]
    assert len(lines) == 6
    assert all(f"C++ {isa} " in line for line in lines)


def test_json_is_one_object(run: Run, talker: Path) -> None:
    status, out, err = run("generate", talker, "Hello", "-n", 8, "--ignore-eos", "--json")
    assert (status, err) == (0, "")
    assert out.count("\n") == 1
    found = json.loads(out)
    keys = {"text", "token_ids", "prompt_tokens", "prefill_tok_s", "decode_tok_s", "bytes_per_token"}
    assert keys | {"predicted_tok_s", "residual_ms", "finish_reason", "reused_tokens"} <= set(found)
    assert found["prompt_tokens"] == 5
    assert len(found["token_ids"]) == 8
    assert found["finish_reason"] == "length"
    groups = found["bytes_per_token"]["cpu_dram"]
    assert set(groups) == {"experts", "dense", "kv", "head", "total"}
    assert groups["total"] == sum(v for k, v in groups.items() if k != "total")
    assert groups["experts"] == 2 * 3 * 3 * 64 * 32 * 4  # layers, experts of a token, matrices of float32
    assert found["predicted_tok_s"] == pytest.approx(1e10 / groups["total"], rel=1e-3)
    measured_ms = 1e3 / found["decode_tok_s"]
    assert found["residual_ms"] == pytest.approx(measured_ms - 1e3 / found["predicted_tok_s"], abs=1e-2)


@pytest.mark.parametrize(("held", "text"), [("Hello", "Hello"), ("Hello\r\n", "Hello"), ("Hello\n\n", "Hello\n")])
def test_a_prompt_of_standard_input(held: str, text: str, run: Run, talker: Path) -> None:
    how = ("-n", 4, "--ignore-eos", "--json")
    piped, said = run("generate", talker, "-", *how, stdin=held), run("generate", talker, text, *how)
    assert json.loads(piped[1])["prompt_tokens"] == json.loads(said[1])["prompt_tokens"]
    assert json.loads(piped[1])["text"] == json.loads(said[1])["text"]


def test_bytes_of_standard_input_are_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("日本\n".encode()), encoding="ascii"))
    assert chat_options.prompt_of("-") == "日本"


@pytest.mark.parametrize(("held", "said"), [("", "is empty"), ("\n", "is empty"), ("x" * 101, "more than")])
def test_standard_input_that_is_no_prompt(held: str, said: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_options, "MOST_INPUT", 100)
    status, _, err = run("generate", "nowhere", "-", stdin=held)
    assert status == 1
    assert said in err


def test_several_prompts_are_one_batch(run: Run, talker: Path, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    _, out, _ = run("generate", talker, "One", "Three", "-n", 6, "--ignore-eos", "--json", "--ledger", ledger)
    found = json.loads(out)
    assert [c["prompt_tokens"] for c in found["completions"]] == [3, 5]
    assert [len(c["token_ids"]) for c in found["completions"]] == [6, 6]
    assert [(p["phase"], p["tokens"]) for p in passes(ledger)] == [("prefill", 8)] + [("decode", 2)] * 5
    status, out, _ = run("generate", talker, "One", "Three", "-n", 6, "--ignore-eos")
    assert status == 0
    for i, one in enumerate(found["completions"]):
        assert f"--- prompt {i + 1}\n{one['text']}\n" in out


def test_ledger_has_a_line_for_every_pass(run: Run, talker: Path, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    status, out, _ = run(
        "generate", talker, QUESTION, "-n", 10, "--ignore-eos", "--json", "--ledger", ledger, "--prefill-chunk", 50
    )
    assert status == 0
    lines = passes(ledger)
    size = len(QUESTION)
    assert [p["phase"] for p in lines] == ["prefill"] * 2 + ["decode"] * 9
    assert [p["tokens"] for p in lines] == [50, size - 50] + [1] * 9
    assert [p["context"] for p in lines] == [50, *range(size, size + 10)]
    assert [p["index"] for p in lines] == list(range(11))
    for line in lines:
        assert line["residual_ms"] == pytest.approx(line["measured_ms"] - line["predicted_ms"], abs=2e-4)
        groups = dict(line["bytes"]["cpu_dram"])
        assert groups.pop("total") == sum(groups.values())
    decode = [p["bytes"]["cpu_dram"]["total"] for p in lines if p["phase"] == "decode"]
    assert json.loads(out)["bytes_per_token"]["cpu_dram"]["total"] == round(sum(decode) / 9)


def test_the_seed_decides(run: Run, talker: Path) -> None:
    draw = ["generate", talker, "Hello", "-n", 12, "--temperature", 1, "--ignore-eos", "--json", "--seed"]
    first, again, other = (json.loads(run(*draw, seed)[1])["token_ids"] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_stop_text_is_not_shown(run: Run, talker: Path) -> None:
    whole = json.loads(run("generate", talker, "Hello", "-n", 12, "--ignore-eos", "--json")[1])["text"]
    stop = whole[4:6]
    found = json.loads(run("generate", talker, "Hello", "-n", 12, "--ignore-eos", "--json", "--stop", stop)[1])
    assert found["text"] == whole[: whole.index(stop)]
    assert found["finish_reason"] == "stop"


def test_chat_template_around_a_single_prompt(run: Run, talker: Path) -> None:
    options = ("-n", 2, "--ignore-eos", "--json", "--chat")
    assert json.loads(run("generate", talker, "Hello", *options)[1])["prompt_tokens"] == 1 + 5 + 1 + 1
    with_system = json.loads(run("generate", talker, "Hello", *options, "--system", "be")[1])
    assert with_system["prompt_tokens"] == 8 + 1 + 2 + 1


def test_the_reference_kernels_say_the_same_and_predict_nothing(run: Run, talker: Path) -> None:
    options = ("generate", talker, "Hello", "-n", 8, "--ignore-eos", "--dtype", "float32")
    fast = json.loads(run(*options, "--json")[1])
    plain = json.loads(run(*options, "--json", "--kernels", "reference")[1])
    assert plain["token_ids"] == fast["token_ids"]
    assert plain["bytes_per_token"] == fast["bytes_per_token"]
    assert plain["predicted_tok_s"] is None
    _, _, err = run(*options, "--kernels", "reference")
    assert "no prediction" in err


def test_a_machine_that_was_not_measured_is_measured_once(
    run: Run, talker: Path, cache_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (cache_home / "headrace").iterdir():
        path.unlink()
    quick.measure(monkeypatch)
    _, _, err = run("generate", talker, "Hello", "-n", 4, "--ignore-eos")
    assert "was not measured yet" in err
    assert "saved in" in err
    _, _, err = run("generate", talker, "Hello", "-n", 4, "--ignore-eos")
    assert "was not measured yet" not in err


# ---- the other commands


def test_convert(run: Run, talker: Path, tmp_path: Path) -> None:
    status, out, err = run("convert", talker, tmp_path / "packed")
    assert (status, out) == (0, "")
    assert "headrace generate" in err
    names = {p.name for p in (tmp_path / "packed").iterdir()}
    assert {"config.json", "tokenizer.json", "headrace.json", "headrace.safetensors"} <= names
    ask = ("Hello", "-n", 8, "--ignore-eos", "--json")
    packed = json.loads(run("generate", tmp_path / "packed", *ask)[1])
    fresh = json.loads(run("generate", talker, *ask, "--expert-format", "q4_0")[1])
    assert packed["token_ids"] == fresh["token_ids"]
    assert packed["bytes_per_token"] == fresh["bytes_per_token"]
    status, _, err = run("generate", tmp_path / "packed", *ask, "--expert-format", "q8_0")
    assert status == 1
    assert "converted to q4_0" in err
    assert run("convert", talker, tmp_path / "packed", "--expert-format", "q8_0")[0] == 0  # over an older conversion
    assert run("generate", tmp_path / "packed", *ask, "--expert-format", "q8_0")[0] == 0


def test_a_gguf_file_is_not_converted(run: Run, tmp_path: Path) -> None:
    """Said before it is loaded."""
    (path := tmp_path / "model.gguf").write_bytes(b"no GGUF")
    status, _, err = run("convert", path, tmp_path / "to")
    assert status == 1
    assert "run it as it is" in err


def test_perplexity(run: Run, talker: Path, tmp_path: Path) -> None:
    (text := tmp_path / "text.txt").write_text("The wheel turns as fast as the water arrives. " * 4)
    status, out, _ = run("perplexity", talker, text, "--json", "--window", 64)
    found = json.loads(out)
    assert status == 0
    assert found["tokens"] == 184 - 3  # the first token of each window is not scored
    assert 1 < found["value"] < math.inf
    status, out, _ = run("perplexity", talker, text, "--window", 64)
    assert out.startswith(f"perplexity {found['value']:.4f} +- {found['error']:.4f} over {found['tokens']} tokens, ")
    (empty := tmp_path / "empty.txt").write_text("")
    status, _, err = run("perplexity", talker, empty)
    assert status == 1
    assert "0 tokens" in err.splitlines()[-1]


def test_measure(run: Run, cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick.measure(monkeypatch)
    status, out, err = run("measure", "--rounds", 1)
    assert (status, out) == (0, "")
    for word in ("plain read", "q4_0", "experts GB/s", "attention", "us a layer", str(cache_home)):
        assert word in folded(err)
    status, out, _ = run("measure", "--rounds", 1, "--threads", 2, "--json")
    found = json.loads(out)
    assert status == 0
    assert found == asdict(profiles.load_profile(Context(threads=2)) or Profile(**found))
    assert set(found["experts"]) == set(found["linear"]) == set(USUAL)
    assert all(rate > 0 for name in ("experts", "linear", "attention") for rate in found[name].values())
    assert len(found["attention"]) == 3
    assert found["copies"]["host"] > 0
    assert found["pace_s"] > 0
    assert str(found["threads"]) in found["stream_by_threads"]
    assert found["pass_s"] >= 0  # what is left of a pass behind its bytes: on a busy machine it may be nothing


def test_a_cache_that_cannot_be_written_is_said_and_no_more(
    run: Run, talker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    quick.measure(monkeypatch)
    for command in (["measure", "--rounds", 1], ["generate", talker, "Hello", "-n", 2, "--ignore-eos"]):
        status, _, err = run(*command)
        assert status == 0
        assert "not saved: Not a directory" in err
        assert "XDG_CACHE_HOME" in err


# ---- help


def test_help_lists_every_command(run: Run) -> None:
    status, out, _ = run("--help")
    assert status == 0
    assert all(f"  {command.split()[0]} " in out for command in COMMANDS)
    assert out.index("  generate ") < out.index("  serve ") < out.index("  trace ")


@pytest.mark.parametrize("group", [(), ("trace",)])
def test_without_a_command_help_is_whole(group: tuple[str, ...], run: Run) -> None:
    status, out, err = run(*group)
    assert (status, out) == (2, "")
    assert err == run(*group, "--help")[1]
    assert len(err.splitlines()) > 10


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "x", "Hello", "--colour"], "--colour"),
        (["generate", "x", "Hello", "-n", "many"], "--max-new-tokens"),
        (["measure", "--rounds", "0"], "--rounds"),
        (["generate"], "MODEL"),
        (["mill"], "mill"),
    ],
)
def test_command_that_cannot_be_parsed(arguments: list[str], said: str, run: Run) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert said in err


def test_config_keys_can_be_ignored(run: Run, talker: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(talker, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "surprise": 7, "other": 8}))
    ask = ("generate", model, "Hello", "-n", 2, "--json")
    status, _, err = run(*ask)
    assert status == 1
    assert "--ignore-config-keys other,surprise" in err
    assert run(*ask, "--ignore-config-keys", "other,surprise")[0] == 0


# ---- memory


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("alloc.cpp: can't allocate memory: 8 bytes\nmore")])
def test_memory_that_the_system_does_not_give_is_one_line(
    error: Exception, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    status, out, err = run("generate")
    assert (status, out) == (1, "")
    assert err.count("\n") == 1
    assert "gave no more memory" in err


def test_other_errors_of_ours_keep_their_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(RuntimeError, match="a mistake"):
        run("generate")


def test_a_limit_of_the_process_refuses_before_memory_is_taken() -> None:
    """`ulimit -v`, as a batch system sets it: what is left of it is what is free."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    asked = ["bench", "Qwen3-30B-A3B", "--random-weights", "--layers", "8", "--no-measure"]
    done = subprocess.run(
        ["bash", "-c", 'ulimit -v 3000000; exec "$@"', "bash", sys.executable, "-m", "headrace", *asked],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    found = re.search(r"8 layers of this model need 11\.\d+ GB, (\d\.\d+) GB can be taken", done.stderr)
    assert found, done.stderr
    assert 0.3 < float(found[1]) < 3.0
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss <= max(before, 2_000_000), "KB"


def test_python_seldom_looks_for_garbage_in_what_is_imported() -> None:
    code = """
import gc, sys
from headrace.__main__ import main
sys.argv = ["headrace", "--version"]
try:
    main()
finally:
    import headrace.engine.llm
    print([made["collections"] for made in gc.get_stats()])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    young, middle, old = json.loads(done.stdout.splitlines()[-1])
    assert young < 200, "483 by Python's own threshold, 50 by ours"
    assert middle < 20
    assert old == 0
