"""Kills headrace at random moments and looks at what is left: `python tools/kills.py [KIND ...] [--times 20]`.

    convert   a conversion: it is not there, refused as unfinished, or whole; and converting again succeeds
    cache     a folder of `--kv-disk`: later runs with it give the text that they give without
    trace     a trace: it is read as far as it is whole, or refused

Each kind is killed `--times` times, at moments spread over the time that an undisturbed run takes.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

from headrace import LLM, SamplingParams
from headrace.engine.traces import reader
from headrace.errors import HeadraceError

PROMPT = "In the beginning God created the heaven and the earth. " * 12
PARAMS = SamplingParams(max_new_tokens=24)


def text_of(model: str, **options: object) -> str:
    llm = LLM(model, **options)
    try:
        return llm.generate([PROMPT], PARAMS)[0].text
    finally:
        llm.close()


class Convert:
    """command: of a victim; look: says what was left of it, AssertionError: what must not be."""

    def __init__(self, folder: Path) -> None:
        self.to = folder / "converted"
        self.said = text_of("demo", expert_format="q4_0", dense_format="q8_0")

    def command(self) -> list[str]:
        shutil.rmtree(self.to, ignore_errors=True)
        return ["convert", "demo", str(self.to), "--expert-format", "q4_0", "--dense-format", "q8_0"]

    def look(self) -> str:
        if not self.to.exists():
            return "nothing"
        try:
            assert text_of(str(self.to)) == self.said
        except HeadraceError:
            return "refused"
        return "whole"


class Cache:
    def __init__(self, folder: Path) -> None:
        self.kept = folder / "pages"
        self.said = text_of("demo")

    def command(self) -> list[str]:
        return ["generate", "demo", PROMPT, "--max-new-tokens", "24", "--kv-disk", str(self.kept)]

    def look(self) -> str:
        pages = sum(1 for path in self.kept.rglob("*") if path.is_file()) if self.kept.exists() else 0
        assert text_of("demo", kv_disk=str(self.kept)) == self.said
        shutil.rmtree(self.kept, ignore_errors=True)
        return "with files" if pages else "nothing"


class Recorded:
    def __init__(self, folder: Path) -> None:
        self.file = folder / "run.trace"

    def command(self) -> list[str]:
        self.file.unlink(missing_ok=True)
        return ["generate", "demo", PROMPT, "--max-new-tokens", "400", "--trace", str(self.file)]

    def look(self) -> str:
        if not self.file.exists():
            return "nothing"
        try:
            found = reader.read(self.file)
        except HeadraceError:
            return "refused"
        assert found.ids.shape[1] == len(found)
        return "damaged, read up to there" if found.damage else "whole"


KINDS: dict[str, Callable[[Path], Convert | Cache | Recorded]] = {"convert": Convert, "cache": Cache, "trace": Recorded}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", help="which; none: all")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    random.seed(asked.seed)
    results = {name: run(KINDS[name], asked.times) for name in asked.kinds or KINDS}
    print(json.dumps(results, indent=2))


def run(kind: Callable[[Path], Convert | Cache | Recorded], times: int) -> dict[str, int]:
    folder = Path(mkdtemp(prefix="headrace-kills-"))
    found: dict[str, int] = {}
    try:
        one = kind(folder)
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "headrace", *one.command()], check=True, capture_output=True)
        whole = time.monotonic() - began
        one.look()
        for _ in range(times):
            victim = subprocess.Popen(
                [sys.executable, "-m", "headrace", *one.command()], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            # Before a third of the time a process imports modules, and nothing can be lost.
            time.sleep(random.uniform(0.3, 1.05) * whole)
            victim.send_signal(signal.SIGKILL)
            victim.wait()
            left = one.look()
            found[left] = found.get(left, 0) + 1
        subprocess.run([sys.executable, "-m", "headrace", *one.command()], check=True, capture_output=True)
        one.look()
    finally:
        shutil.rmtree(folder)
    return found


if __name__ == "__main__":
    main()
