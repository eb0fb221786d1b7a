"""Looks for bytes that headrace neither reads nor refuses: `python tools/fuzz.py [TARGET ...] [--seconds N]`.

atheris (`pip install atheris`) mutates files and keeps those that reach new code (libFuzzer's method). Each target runs
in a process of its own, with a limit of memory and of seconds for one file. What it found stays in build/fuzz/TARGET;
the faulty file is written to build/fuzz/TARGET-found, and is to be copied to tests/mutations/found/TARGET with its
mend.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "fuzz"
SECONDS, MEGABYTES = 10, 3000  # for one file; of a process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", help="which; none: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--json", type=Path, help="executions and findings by target, added to what is there")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        _inside(asked.inside, asked.seconds)
        return
    from fuzz_targets import TARGETS

    if unknown := sorted({*asked.targets} - {*TARGETS}):
        raise SystemExit(f"no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    results = {name: _run(name, asked.seconds) for name in asked.targets or TARGETS}
    if asked.json:
        _add(asked.json, results)
    raise SystemExit(int(any(result["found"] for result in results.values())))


def _run(name: str, seconds: int) -> dict[str, int]:
    """One target in a process of its own, begun again behind each fault until its time is over."""
    command = [sys.executable, __file__, "--inside", name, "--seconds", str(seconds)]
    said = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", check=False).stderr
    runs = re.findall(r"stat::number_of_executed_units: (\d+)|^Done (\d+) runs|^#(\d+)", said, re.MULTILINE)
    count = max((int(number) for one in runs for number in one if number), default=0)
    reached = re.findall(r"ft: (\d+)", said)
    found = [*(FOLDER / f"{name}-found").glob("*")]
    print(f"{name}: {count} executions, {reached[-1] if reached else 0} features, {len(found)} found", flush=True)
    if found:
        print(said[-3000:])
    return {
        "executions": count,
        "features": int(reached[-1]) if reached else 0,
        "seconds": seconds,
        "found": len(found),
    }


def _inside(name: str, seconds: int) -> None:
    import atheris
    from fuzz_targets import REFUSED, TARGETS

    # What atheris does at an import it cannot do here: an editable install has a loader of its own.
    for function in _functions():
        atheris.instrument_func(function)

    target = TARGETS[name]
    corpus, found = FOLDER / name, FOLDER / f"{name}-found"
    for folder in (corpus, found):
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    more = [f"-artifact_prefix={found}/", "-print_final_stats=1", "-len_control=20"]
    if target.words:
        words = FOLDER / f"{name}.dict"
        words.write_text("".join(f"{json.dumps(word)}\n" for word in target.words))
        more.append(f"-dict={words}")

    def one(data: bytes) -> None:
        with contextlib.suppress(*REFUSED):
            target.run(data)

    limits = [f"-max_total_time={seconds}", f"-timeout={SECONDS}", f"-rss_limit_mb={MEGABYTES}", "-max_len=65536"]
    atheris.Setup([sys.argv[0], *limits, *more, str(corpus)], one)
    atheris.Fuzz()


def _functions() -> Iterator[FunctionType]:
    """What was imported of what sees a stranger's bytes, each once."""
    seen: set[int] = set()
    rooms = [module for name, module in sys.modules.items() if name.split(".")[0] in ("headrace", "jinja2")]
    for module in rooms:
        if module.__name__.startswith("headrace.kernels"):
            continue
        for value in [*vars(module).values()]:
            members = [*vars(value).values()] if isinstance(value, type) else [value]
            for member in members:
                found = (
                    getattr(member, "__func__", None)
                    or getattr(member, "fget", None)
                    or getattr(member, "func", member)
                )
                if isinstance(found, FunctionType) and found.__module__ == module.__name__ and id(found) not in seen:
                    seen.add(id(found))
                    yield found


def _add(path: Path, results: dict[str, dict[str, int]]) -> None:
    """Sums of all runs, by target."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    for name, result in results.items():
        before = kept.get(name, {"executions": 0, "seconds": 0})
        kept[name] = {
            "executions": before["executions"] + result["executions"], "seconds": before["seconds"] + result["seconds"],
            "features": result["features"],
        }  # fmt: skip
    path.write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
