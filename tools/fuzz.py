"""Looks for bytes that headrace neither reads nor refuses: `python tools/fuzz.py [TARGET ...] [--seconds N]`.

atheris (`pip install atheris`) mutates files and keeps those that reach new code (libFuzzer's method). Each target runs
in a process of its own, with a limit of memory and of seconds for one file. Seconds are those of a processor, so that
other work of the machine takes nothing from them. What reached new code stays in build/fuzz/TARGET; a faulty file is
written to build/fuzz/TARGET-found, and is to be copied to tests/mutations/found/TARGET with its mend.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "fuzz"
SECONDS, MEGABYTES = 10, 3000  # for one file, of a processor; of a process
ENDLESS = 300  # seconds of the clock for one file: it may be that the process does not run
MOST = 20  # faults, behind which a target is given up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", help="which; none: all")
    parser.add_argument("--seconds", type=int, default=60, help="of a processor, for each target")
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
    begun, count, features, covered, said = _spent(), 0, 0, 0, ""
    folder = FOLDER / f"{name}-found"
    before = {*folder.glob("*")}
    log = FOLDER / f"{name}.log"  # of libFuzzer, to look at meanwhile
    FOLDER.mkdir(parents=True, exist_ok=True)
    while (left := seconds - round(_spent() - begun)) > 0 and len({*folder.glob("*")} - before) < MOST:
        command = [sys.executable, __file__, "--inside", name, "--seconds", str(left)]
        with log.open("w") as to:
            ended = subprocess.run(command, stderr=to, check=False)
        text = log.read_text(errors="replace")
        runs = re.findall(r"stat::number_of_executed_units: (\d+)|^Done (\d+) runs|^#(\d+)", text, re.MULTILINE)
        count += max((int(number) for one in runs for number in one if number), default=0)
        for cov, ft in re.findall(r"cov: (\d+) ft: (\d+)", text)[-1:]:
            covered, features = int(cov), int(ft)
        said += text[-3000:] if ended.returncode else ""
        if ended.returncode and not {*folder.glob("*")} - before:
            break  # it did not begin
    found, spent = sorted({*folder.glob("*")} - before), round(_spent() - begun)
    print(
        f"{name}: {spent} s, {count} executions, {covered} edges, {features} features, {len(found)} found", flush=True
    )
    if said:
        print(said)
    return {"executions": count, "features": features, "seconds": spent, "found": len(found)}


def _spent() -> float:
    """Processor seconds of the processes that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


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
        begun = time.process_time()
        with contextlib.suppress(*REFUSED):
            target.run(data)
        ended = time.process_time()
        assert ended - begun < SECONDS, f"{ended - begun:.0f} s for one file"
        if ended > seconds:
            os.kill(os.getpid(), signal.SIGUSR1)  # libFuzzer then ends with its figures

    limits = [f"-timeout={ENDLESS}", f"-report_slow_units={ENDLESS}", f"-rss_limit_mb={MEGABYTES}", "-max_len=65536"]
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
