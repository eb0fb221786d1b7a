"""How `benchmarks/gpu_suite.py` runs its parts, and the two calls of a machine with a GPU: what is killed, hangs or
fails leaves what it had, and the rest runs. With RAM in the GPU's part, and with programs in the place of parts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gpu_child
import pytest
import torch
from busy import HANG_S

pytest.importorskip("triton", reason="the GPU kernels need Triton", exc_type=ImportError)
import gpu_kit
import gpu_suite

from headrace.engine.bench import passport

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu_suite.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANG_S)
    assert done.returncode == 2
    assert "measures kernels on an NVIDIA GPU" in done.stderr
    assert "make test" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_checkout_is_enough() -> None:
    """Where headrace is not installed, importing `gpu_suite` makes the kernels importable, without the extension."""
    code = f"""
import sys
sys.meta_path = [f for f in sys.meta_path if "ScikitBuild" not in type(f).__name__]
sys.path.insert(0, {str(BENCHMARKS)!r})
import gpu_suite
from headrace.kernels import load
print(load("gpu").__file__, "headrace.kernels._cpu" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=HANG_S)
    assert done.stdout.split() == [
        str(BENCHMARKS.parent / "src/headrace/kernels/gpu/__init__.py"),
        "False",
    ]


def test_the_driver_is_in_the_passport(tmp_path: Path) -> None:
    """As both kinds of NVIDIA's kernel module say it."""
    file = tmp_path / "version"
    assert passport.driver(file) is None
    for words in ("NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (builder)",
                  "NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 07:09:31 UTC 2025"):  # fmt: skip
        file.write_text(f"NVRM version: {words}\nGCC version:  gcc version 13.2.0 (Debian)\n")
        assert passport.driver(file) == "580.65.06"
    file.write_text("something else\n")
    assert passport.driver(file) is None


# A child and what it reports


def child(code: str) -> list[str]:
    """A program that finds `keep`."""
    start = "import sys, time, gpu_child; keep = gpu_child.reporter(int(sys.argv[-1]))"
    return [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r})\n{start}\n{code}"]


def test_what_a_child_reports_is_kept() -> None:
    kept: list[Any] = []
    assert gpu_child.run(child("for n in range(3): keep({'n': n})"), kept.append, HANG_S) == {}
    assert kept == [{"n": 0}, {"n": 1}, {"n": 2}]


def test_a_child_that_fails_leaves_the_last_lines_of_its_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    kept: list[Any] = []
    deep = "def f(n): return f(n - 1) if n else 1 / 0\nkeep(1)\nprint('x\\n' * 40, file=sys.stderr)\nf(3)"
    wrong = gpu_child.run(child(deep), kept.append, HANG_S)
    assert kept == [1]
    assert wrong["problem"] == "ZeroDivisionError: division by zero"
    assert len(wrong["stderr"]) == 15
    assert "Traceback (most recent call last):" in wrong["stderr"]
    assert "ZeroDivisionError" in capfd.readouterr().err
    quiet = gpu_child.run(child("sys.exit(3)"), kept.append, HANG_S)
    assert quiet == {"problem": "ended with status 3", "stderr": []}


def test_a_child_that_hangs_is_killed() -> None:
    """After its time, and after a silence; what it reported is kept."""
    kept: list[Any] = []
    wrong = gpu_child.run(child("keep(1)\ntime.sleep(3600)"), kept.append, HANG_S, silence=5.0)
    assert kept == [1]
    assert re.match(r"killed after \d+ s, \d+ s after its last report", wrong["problem"])
    assert "killed after" in gpu_child.run(child("time.sleep(3600)"), kept.append, 0.5)["problem"]


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    """Also where the parent is killed: nobody goes on using the GPU."""
    code = f"import os\nopen({str(tmp_path / 'pid')!r} + '.new', 'w').write(str(os.getpid()))\n"
    code += f"os.rename({str(tmp_path / 'pid')!r} + '.new', {str(tmp_path / 'pid')!r})\ntime.sleep(3600)"
    program = tmp_path / "parent.py"
    program.write_text(f"import gpu_child\ngpu_child.run({child(code)!r}, print, 3600)")
    parent = subprocess.Popen([sys.executable, str(program)], env={**os.environ, "PYTHONPATH": str(BENCHMARKS)})
    wait_until((tmp_path / "pid").exists)
    number = int((tmp_path / "pid").read_text())
    parent.kill()
    parent.wait()
    wait_until(lambda: not Path(f"/proc/{number}").exists() or "Z" in Path(f"/proc/{number}/stat").read_text())


def wait_until(true: Any) -> None:
    end = time.monotonic() + HANG_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


# The suite


def suite(into: Path, *options: str) -> list[str]:
    command = [sys.executable, str(BENCHMARKS / "gpu_suite.py"), "--device", "simulated", "--json", str(into)]
    return [*command, "--prompts", "5", "9", "--batches", "1", "2", "--new", "3", *options]


def run(into: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(suite(into, *options), capture_output=True, text=True, check=False, timeout=HANG_S)


@pytest.fixture
def model(built: Any) -> str:
    return str(built.directory("qwen3_moe") / "config.json")


def test_parts_setups_and_tests_are_chosen(model: str, tmp_path: Path) -> None:
    into = tmp_path / "found.json"
    only = ["models:cpu-moe q4_0, eager:pp", "variants:none early:batch 2", "table"]
    done = run(into, "--model", model, "--only", *only)
    assert done.returncode == 0, done.stderr
    found = json.loads(into.read_text())
    assert list(found) == ["passport", "models", "variants", "table", "failures"]
    assert found["failures"] == []
    assert found["passport"]["gpu"] == "simulated"
    assert found["passport"]["versions"]["torch"] == torch.__version__
    [(name, setup)] = found["models"]["setups"].items()
    assert name == "cpu-moe q4_0, eager"
    assert [row["test"] for row in setup["rows"]] == ["pp5", "pp9"]
    [setup] = found["variants"]["setups"].values()
    assert [(row["test"], row["batch"]) for row in setup["rows"]] == [("tg3", 2)]
    assert found["table"]["skipped"] == "needs a GPU"
    assert found["models"]["seconds"] > 0


def test_a_part_that_fails_or_hangs_does_not_stop_the_rest(model: str, tmp_path: Path) -> None:
    """One is asked for what it has not, one has no time; the last one runs."""
    into = tmp_path / "found.json"
    done = run(into, "--model", model, "--only", "models:tape", "variants:none early:batch 1", "same:tape")
    assert done.returncode == 1
    found = json.loads(into.read_text())
    assert "no setup is called 'tape'" in found["models"]["ended"]["problem"]
    assert 1 < len(found["models"]["ended"]["stderr"]) <= 15
    assert found["variants"]["setups"]["cpu-moe q4_0, eager, none early"]["rows"]
    assert [line.split(":")[0] for line in found["failures"]] == ["models", "same"]
    assert "FAILED models: ValueError: no setup" in done.stdout
    late = run(into, "--model", model, "--seconds", "0.01", "--only", "models", "table")
    found = json.loads(into.read_text())
    assert late.returncode == 1
    assert "killed after" in found["models"]["ended"]["problem"]
    assert "killed after" in found["table"]["ended"]["problem"]


def test_a_call_that_is_killed_after_its_first_row_leaves_it(model: str, tmp_path: Path) -> None:
    into = tmp_path / "found.json"
    command = suite(into, "--model", model, "--only", "models:eager", "variants")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def rows() -> int:
        found = json.loads(into.read_text()) if into.exists() else {}
        return sum(len(one["rows"]) for one in found.get("models", {}).get("setups", {}).values())

    wait_until(lambda: rows() > 0 or process.poll() is not None)
    process.kill()
    process.wait()
    found = json.loads(into.read_text())
    assert found["passport"]["gpu"] == "simulated"
    assert found["models"]["setups"]["cpu-moe q4_0, eager"]["rows"][0]["test"] == "pp5"


def test_no_such_part_is_said_at_once(tmp_path: Path) -> None:
    done = run(tmp_path / "none.json", "--only", "tables")
    assert done.returncode == 2
    assert "there is no part 'tables': take one of micro, handoff, models," in done.stderr
    assert not (tmp_path / "none.json").exists()


def test_every_part_is_less_than_two_minutes_and_can_say_what_failed() -> None:
    for name, part in gpu_suite.PARTS.items():
        assert part.seconds < 120, name
        module = __import__(part.module)
        assert callable(module.show)
        assert callable(module.failures)
        assert name in str(gpu_suite.__doc__)


# The calls


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A kit, a folder for results, and a Python that notes what it is asked for; `handoff` ends badly."""
    out, python = tmp_path / "out", tmp_path / "python"
    out.mkdir()
    wheel, kernel = tmp_path / "headrace-0.1.0-cp312-cp312-linux_x86_64.whl", tmp_path / "kept/ABC/kernel.cubin"
    wheel.touch()
    kernel.parent.mkdir(parents=True)
    kernel.write_text("machine code")
    kit = tmp_path / gpu_kit.PACKED.name
    monkeypatch.setattr(gpu_kit, "KIT", tmp_path)
    gpu_kit.pack_kit(wheel, tmp_path / "kept", kit)
    python.write_text(
        "#!/bin/bash\n"
        'echo "$CUDA_LAUNCH_BLOCKING $*" >> "$LOG"\n'
        'while [ $# -gt 0 ]; do [ "$1" = --json ] && echo "{}" > "$2"; [ "$1" = handoff ] && exit 1; shift; done\n'
    )
    python.chmod(0o755)
    return {**os.environ, "PYTHON": str(python), "LOG": str(tmp_path / "log"), "OUT": str(out), "KIT": str(kit),
            "TRITON_CACHE_DIR": str(tmp_path / "cache"), "CUDA_LAUNCH_BLOCKING": ""}  # fmt: skip


def call(machine: dict[str, str], script: str, *what: str) -> tuple[str, list[str], list[str]]:
    """What it prints, what Python was asked for, and the results."""
    command = ["bash", str(BENCHMARKS / script), machine["KIT"], *what]
    done = subprocess.run(command, env=machine, capture_output=True, text=True, check=True, timeout=HANG_S)
    asked = Path(machine["LOG"]).read_text().splitlines()
    return done.stdout, asked, sorted(path.name for path in Path(machine["OUT"]).iterdir())


def test_the_first_call_runs_every_part_into_a_file_of_its_own(machine: dict[str, str], tmp_path: Path) -> None:
    said, asked, results = call(machine, "gpu_first_call.sh")
    parts = ["handoff", "measure", "micro", "models", "profile", "table"]
    assert results == sorted(["environment.txt", *(f"{part}.json" for part in parts)])
    assert (tmp_path / "cache/ABC/kernel.cubin").read_text() == "machine code"
    assert any("pip install" in line and "headrace-0.1.0" in line for line in asked)
    only = [re.split("--only ", line)[1] for line in asked if "gpu_suite.py" in line]
    assert only == ["micro", "handoff", "measure", "models", "profile", "table --rounds 2"]
    assert "== handoff ended with status 1" in said
    assert "== end" in said


def test_the_second_call_checks_or_repeats_what_broke(machine: dict[str, str]) -> None:
    _, asked, results = call(machine, "gpu_second_call.sh")
    assert {"checks.json", "same.json", "bf16.json"} <= set(results)
    assert all(line.startswith(" ") for line in asked), "launches are not waited for"
    Path(machine["LOG"]).unlink()
    _, asked, results = call(machine, "gpu_second_call.sh", "models:cpu-moe q4_0, memop", "micro:across")
    assert {"again-models-cpu-moe-q4_0--memop.json", "again-micro-across.json"} <= set(results)
    assert [line[0] for line in asked if "gpu_suite.py" in line] == ["1", "1"]


def test_calls_ask_only_for_what_there_is_and_end_in_time() -> None:
    """Parts and setups exist; the limits of time add up to less than the call may take."""
    for script, most in (("gpu_first_call.sh", 480), ("gpu_second_call.sh", 300)):
        text = (BENCHMARKS / script).read_text()
        limit = int(re.findall(r"^LIMIT=(\d+)", text, re.MULTILINE)[0])
        assert limit < most
        parts = re.findall(r"^ *part (\w+) (\d+) (?:--quick )?--only (\S+|\"[^\"]+\")", text, re.MULTILINE)
        assert len(parts) >= 2
        assert sum(int(seconds) for _, seconds, _ in parts) < limit - 15, script
        for _, _, only in parts:
            [(part, (name, _))] = gpu_suite.chosen([only.strip('"')]).items()
            if part == "variants":
                import gpu_models

                assert gpu_models.named(gpu_models.setups()["variants"], name)


def test_without_a_kit_or_a_folder_a_call_says_so(machine: dict[str, str]) -> None:
    for env, words in (({**machine, "OUT": "/none"}, [machine["KIT"]]), (machine, []), (machine, ["/none"])):
        command = ["bash", str(BENCHMARKS / "gpu_first_call.sh"), *words]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=HANG_S)
        assert done.returncode == 2
        assert "usage: OUT=FOLDER bash" in done.stderr
