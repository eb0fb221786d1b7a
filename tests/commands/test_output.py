"""Output that does not take everything: other encodings, closed or full streams, readers that leave, terminals."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import tiny_tokenizer
from refusals import refused
from terminal import folded

from headrace import HeadraceError, OptionError
from headrace.engine import writable
from headrace.engine.generation.outputs import Chunk
from headrace.engine.terminal import output
from headrace.engine.terminal.tables import Screen, new_table
from headrace.errors import brief, listed, short

# (exit status, standard output, standard error) of a command
Run = Callable[..., tuple[int, str, str]]
PROGRAM = f"{sys.executable} -m headrace"
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")


def shell(line: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs a line of bash, in which {} is the program."""
    command = ["bash", "-c", f"set -o pipefail; {line.format(PROGRAM)}"]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONUTF8"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**clean, **environ})


def in_a_terminal(code: str) -> str:
    """What Python code shows in a terminal that has both of its streams."""
    mine, its = pty.openpty()
    code = f"import sys; from headrace.engine.terminal import output; output.settle(); {code}"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=its, stderr=its, stdin=subprocess.DEVNULL)
    os.close(its)
    shown = b""
    while True:
        try:
            piece = os.read(mine, 4096)
        except OSError:  # Linux says so at the end
            piece = b""
        if not piece:
            break
        shown += piece
    process.wait()
    os.close(mine)
    return shown.decode()


# ---- encodings


@pytest.mark.usefixtures("profile")
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_characters_that_an_encoding_lacks_are_replaced(encoding: str, tmp_path: Path) -> None:
    tiny.build("qwen3_moe", tmp_path, max_position_embeddings=1 << 10)
    tiny_tokenizer.save(tmp_path)
    script = (
        "from headrace import cli; from headrace.engine.generation import request; import sys\n"
        "plain = request.Chunk\n"
        "request.Chunk = lambda text, **more: plain(text='\\U0001f600\\u0142\\ud800', **more)\n"
        f"sys.argv = ['headrace', 'generate', {str(tmp_path)!r}, 'Hello \\u2603', '-n', '2', '--ignore-eos']\n"
        "cli.main()\n"
    )
    environ = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, env=environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"??????")
    assert b"Hello \\u2603" in done.stderr
    assert "bytes read per token" in folded(done.stderr.decode(encoding)), "the account is whole"


def test_a_prompt_in_another_encoding_than_the_locale_knows() -> None:
    typed = os.fsencode("déjà ☃").decode("ascii", "surrogateescape")
    assert output.typed(typed) == "déjà ☃"
    assert output.typed("plain ☃") == "plain ☃"
    assert output.typed("\udcff") == "\N{REPLACEMENT CHARACTER}"


def test_json_is_ascii(run: Run, talker: Path) -> None:
    status, out, _ = run("generate", talker, "Hello", "-n", 12, "--ignore-eos", "--json")
    assert status == 0
    assert out.isascii()
    assert json.loads(out)["text"]


# ---- streams


@needs_full
@pytest.mark.parametrize("command", ["plan demo", "plan demo --json", "--version", "--help"])
def test_a_full_or_closed_output_is_one_line(command: str) -> None:
    for where, reason in ((">/dev/full", "No space left"), (">&-", "it is closed")):
        done = shell(f"{{}} {command} {where}")
        assert (done.returncode, done.stdout) == (1, "")
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert done.stderr.startswith("headrace: standard output cannot be written: ")
        assert reason in done.stderr


@needs_full
@pytest.mark.usefixtures("profile")
def test_what_is_said_may_be_lost_and_the_run_goes_on(talker: Path) -> None:
    expected = shell(f"{{}} generate {talker} Hello -n 9 --ignore-eos 2>/dev/null").stdout
    assert expected.strip()
    for where in ("2>/dev/full", "2>&- <&-", "2> >(true)"):
        done = shell(f"{{}} generate {talker} Hello -n 9 --ignore-eos {where}")
        assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


@pytest.mark.usefixtures("profile")
def test_a_reader_that_leaves_ends_the_run_quietly(talker: Path) -> None:
    done = shell(f"{{}} generate {talker} Hello -n 60000 --ignore-eos | head -c 3")
    assert done.returncode == output.BROKEN_PIPE
    assert "Traceback" not in done.stderr
    assert "headrace:" not in done.stderr
    assert shell("{} plan demo --json | true").returncode in (0, output.BROKEN_PIPE)


def test_nothing_is_open() -> None:
    assert shell("{} plan demo >&- 2>&- <&-").returncode == 1
    assert shell("{} measure --threads 0 >&- 2>&- <&-").returncode == 1


# ---- lines


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("output.write('half a line'); output.fail('no')", "half a line\r\nheadrace: no\r\n"),
        ("output.write('a line\\n'); output.fail('no')", "a line\r\nheadrace: no\r\n"),
        ("output.fail('no')", "headrace: no\r\n"),
        ("print('asked', end='', file=sys.stderr, flush=True); output.begun('err', 'asked'); output.fail('no')",
         "asked\r\nheadrace: no\r\n"),
        ("print('asked', end='', file=sys.stderr, flush=True); output.begun('err', 'asked'); output.write(' more');"
         "output.fail('no')", "asked more\r\nheadrace: no\r\n"),
        ("output.write('a\\x1b[2Jb\\x07\\x9b\\tc\\n')", "a\u241b[2Jb\u2407\ufffd\tc\r\n"),
    ],
)  # fmt: skip
def test_an_error_has_a_line_of_its_own_in_a_terminal(code: str, shown: str) -> None:
    assert in_a_terminal(code).replace("\t", " " * 3).replace("   c", "\tc") == shown


def test_text_in_a_file_is_as_the_model_wrote_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    output.settle()
    output.write("a\x1b[2Jb")
    output.fail("no")
    assert capsys.readouterr() == ("a\x1b[2Jb", "headrace: no\n"), "two files: neither gets what is the other's"


def test_an_error_after_the_prompt_was_shown(run: Run, talker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise HeadraceError("it broke")

    monkeypatch.setattr("headrace.engine.core.loop.Loop.step", broken)
    status, out, err = run("generate", talker, "Hello")
    assert (status, out) == (1, "")
    assert err.splitlines()[-2:] == ["Hello", "headrace: it broke"]


def test_a_remark_in_the_midst_of_text(run: Run, talker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from headrace.engine.terminal import generate_command

    def stream(*_: object) -> SimpleNamespace:
        def chunks() -> object:
            yield Chunk(text="begun", token_id=1, finish_reason=None)
            generate_command.say("remark")
            raise HeadraceError("it broke")

        return chunks()  # type: ignore[return-value]

    monkeypatch.setattr("headrace.engine.llm.LLM.stream", stream)
    status, out, err = run("generate", talker, "Hello")
    assert (status, out) == (1, "begun")
    assert err.splitlines()[-3:] == ["Hello", "remark", "headrace: it broke"]


@pytest.mark.parametrize("arguments", [["plan", "no/" + "x" * 4000], ["generate", "m" * 4000, "x"], ["x" * 4000]])
def test_errors_are_short(arguments: list[str], run: Run) -> None:
    status, _, err = run(*arguments)
    assert status != 0
    assert max(map(len, err.splitlines())) <= 320
    assert "..." in err


def test_what_a_name_holds_is_visible(run: Run, tmp_path: Path) -> None:
    status, _, err = run("plan", tmp_path / "a\nb\x1b[31m\udcff")
    assert status == 1
    assert len(err.splitlines()) == 1
    assert "\\n" in err
    assert "\x1b" not in err
    with refused(OptionError, "a\\nb\\ud800"):
        raise OptionError("a\nb\ud800")


def test_parts_of_messages() -> None:
    assert listed("abc") == "a, b, c"
    assert listed(range(60), 3) == "0, 1, 2 and 57 more"
    assert short("x" * 300) == "x" * 300
    cut = short("begin" + "x" * 5000 + "remedy")
    assert len(cut) == 300
    assert cut.startswith("begin")
    assert cut.endswith("remedy")
    assert brief("a\n" * 500).startswith("'a\\na")
    assert len(brief(["name"] * 500)) <= 60


@pytest.mark.parametrize("width", [20, 40, 55, 80])
def test_no_word_is_torn_or_lost_in_a_narrow_terminal(width: int, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where columns do not fit beside each other, rows become lines of a header and its value."""
    plan = "plan", "demo", "--hardware", "rtx-3090, epyc-9005-8ch, 768gb"
    _, whole, _ = run(*plan)
    monkeypatch.setenv("COLUMNS", str(width))
    _, out, _ = run(*plan)
    lost = Counter(whole.split()) - Counter(out.split())
    assert all(set(word) == {"\u2500"} for word in lost), lost
    lines = out.splitlines()
    assert all(len(line) <= max(40, width) for line in lines if line.startswith((" ", "tokens/s: ", "memory: ")))
    assert ("part           NVIDIA GeForce RTX 3090" in map(str.rstrip, lines)) == (width < 80)


def test_a_file_has_room_for_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS")
    assert Screen(file=io.StringIO()).size.width == 120
    assert Screen(file=io.StringIO(), width=33).size.width == 40


def test_a_cell_without_words_is_shown() -> None:
    """A stranger's name may be spaces alone."""
    table = new_table("names", "name", "count", "more")
    table.add_row(" " * 30, "1", "2")
    out = io.StringIO()
    Screen(file=out, width=20).print(table)
    assert "count" in out.getvalue()


# ---- files that cannot be written


@pytest.mark.parametrize(
    ("name", "said"), [("", "Is a directory"), ("no/such", "No such file"), ("x" * 400, "too long")]
)
def test_places_where_no_file_can_be(name: str, said: str, tmp_path: Path, run: Run) -> None:
    with refused(OptionError, "cannot write the thing to", said, "choose another path"):
        writable.check(tmp_path / name, "the thing")
    status, _, err = run("bench", "demo", "--json", tmp_path / name)
    assert status == 1
    assert said in err
    assert "loading" not in err, "before the model is loaded"


def test_a_file_that_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    (there := tmp_path / "there").write_text("kept")
    writable.check(there, "it")
    assert there.read_text() == "kept"
    writable.check(tmp_path / "new", "it")
    assert not (tmp_path / "new").exists()
    writable.check(Path(os.devnull), "it")
    os.mkfifo(tmp_path / "pipe")
    writable.check(tmp_path / "pipe", "it")


@needs_full
def test_no_room() -> None:
    with refused(OptionError, "No space left", "make room"):
        writable.check(FULL, "the ledger")


@pytest.mark.parametrize("code", ["EDQUOT", "ENOSPC", "EROFS"])
def test_a_full_disk_is_found_before_the_work(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    number = getattr(errno, code)

    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(writable.os, "posix_fallocate", full)
    with refused(OptionError, "the ledger", os.strerror(number), "choose another path"):
        writable.check(tmp_path / "ledger", "the ledger")
    assert list(tmp_path.iterdir()) == []
