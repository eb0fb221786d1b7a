"""The workflows name what the Makefile, the release and pyproject.toml have: nobody can run them here."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import wheels
import yaml

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def read(path: Path) -> dict[Any, Any]:
    found: dict[Any, Any] = yaml.safe_load(path.read_text())
    return found


def jobs() -> list[tuple[str, dict[str, Any]]]:
    return [(f"{path.name}: {name}", job) for path in FILES for name, job in read(path)["jobs"].items()]


def lines() -> list[tuple[str, str]]:
    """What runs, each line once for every value of what it is made of."""
    found: list[tuple[str, str]] = []
    for name, job in jobs():
        choices = job.get("strategy", {}).get("matrix", {})
        for step in job["steps"]:
            texts = [step["run"]] if "run" in step else []
            for key, values in choices.items():
                said = "${{ matrix." + key + " }}"
                texts = [text.replace(said, value) for text in texts for value in (values if said in text else [""])]
            found += [(name, text) for text in texts]
    return found


def test_there_are_workflows() -> None:
    assert [path.name for path in FILES] == ["ci.yml", "release.yml"]
    assert len(lines()) >= 8


@pytest.mark.parametrize(("name", "job"), jobs(), ids=[name for name, _ in jobs()])
def test_a_job_is_one(name: str, job: dict[str, Any]) -> None:
    assert set(job) <= {"runs-on", "timeout-minutes", "strategy", "steps", "needs", "environment", "permissions"}
    known = {other.split(": ")[1] for other, _ in jobs() if other.split(": ")[0] == name.split(": ")[0]}
    assert set(job.get("needs", [])) <= known
    for step in job["steps"]:
        assert set(step) <= {"uses", "with", "run"}
        assert ("uses" in step) != ("run" in step)
        assert re.fullmatch(r"[\w.-]+/[\w./-]+@[\w./]+", step.get("uses", "a/b@v1")), step


@pytest.mark.parametrize(("name", "text"), lines())
def test_what_runs_is_there(name: str, text: str) -> None:
    assert "${{" not in text
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    for target in re.findall(r"\bmake ([\w-]+)", text):
        if shutil.which("make"):
            done = subprocess.run(
                ["make", "-n", "PYTHON=python3", target], cwd=ROOT, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
    for path in re.findall(r"-r ([\w./-]+)|(?:grep '[^']+' )([\w./-]+)", text):
        assert (ROOT / (path[0] or path[1])).is_file()


def test_pythons_are_those_of_a_release() -> None:
    tested = read(ROOT / ".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert tuple(tested) == wheels.PYTHONS
    project = (ROOT / "pyproject.toml").read_text()
    assert f'requires-python = ">={wheels.PYTHONS[0]}"' in project
    built = " ".join(f"cp{version.replace('.', '')}-*" for version in wheels.PYTHONS)
    assert f'build = "{built}"' in project


def test_sanitizers_are_those_of_the_makefile() -> None:
    kinds = read(ROOT / ".github/workflows/ci.yml")["jobs"]["sanitize"]["strategy"]["matrix"]["kind"]
    (targets,) = re.findall(r"^((?:sanitize-\w+ ?)+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [f"sanitize-{kind}" for kind in kinds] == targets.split()
