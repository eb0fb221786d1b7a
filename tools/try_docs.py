"""Runs what README and docs/ say to type, as a newcomer would: `python tools/try_docs.py [--headrace PROGRAM]`.

PROGRAM is the command of an environment that a wheel was installed into; without it that of this Python. Each command
runs in an empty folder with a few files of the names that the pages use, and the demo model where they name one that is
not here. Left out, and said, is what needs a GPU, other machines, or a download. A command that ends with an error or a
traceback is a stumble.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from documented import ROOT, Documented, documented

SECONDS = 300  # for one command
MODEL = re.compile(r"\./[\w.-]+|MODEL|model\.gguf|[\w-]+/[\w.-]+(:\w+)?")
NEEDS = {
    "--device cuda": "a GPU", "--hosts": "other machines", "inspect": "the hub",
    "BOX.json": "a machine's file", "--mtp": "a draft layer", "--speculate mtp": "a draft layer", "-i ": "a terminal",
    "serve": "a client", "host ": "other machines", "measure": "minutes alone", "list": "traces of before",
    "--random-weights": "minutes, and RAM for that model",
}  # fmt: skip
# What the demo model, with its context of 1024 tokens, takes in place of a page's numbers.
SHORTER = {"--context": "512", "--window": "512", "--depth": "0,128,256"}
# Where a plan may end with status 1: it says that the model does not fit this machine, which a page cannot know.
TOO_LARGE = "does not fit this machine"
# What a page's neighbours made before: a machine's file, traces, results, prompts, a text, a conversation.
TEXT = "In the beginning was the word.\nAnd it came to pass that they went up.\n"
FILES = {"prompts.txt": TEXT, "text.txt": TEXT * 40, "one.txt": TEXT,
         "conversation.json": '[{"role": "user", "content": "Hello"}]', "tools.json": "[]",
         "machine.json": '{"gpus": ["rtx-3090"], "cpu": {"memory_gb": 1536, "bandwidth_gbs": 400}}'}  # fmt: skip
FIRST = (["trace", "record", "demo", "--prompts", "prompts.txt", "-o", "run.trace", "-n", "20"],
         ["trace", "record", "demo", "--prompts", "prompts.txt", "-o", "one.trace", "-n", "20"],
         ["bench", "demo", "-r", "1", "--json", "old.json"],
         *(["bench", "demo", "-p", "0", "-n", "8", "-b", "1,2", "-r", "1", "--json", name]
           for name in ("one.json", "other.json")))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--headrace", default=str(Path(sys.executable).with_name("headrace")))
    parser.add_argument("--only", default="", help="commands that hold this text")
    asked = parser.parse_args()
    stumbles, tried, left_out = 0, 0, 0
    with TemporaryDirectory(prefix="headrace-docs-") as folder:
        for name, text in FILES.items():
            (Path(folder) / name).write_text(text)
        (Path(folder) / "demo").mkdir()
        (Path(folder) / "demo" / "heldout.txt").write_bytes((ROOT / "demo/heldout.txt").read_bytes()[:4000])
        for words in FIRST:
            stumbles += not _run(asked.headrace, words, folder, " ".join(words))
        for one in documented():
            if not one.whole or asked.only not in one.text:
                continue
            if reason := _needs(one.text):
                left_out += 1
                print(f"left out, needs {reason}: {one.where} {one.text[:90]}", flush=True)
                continue
            tried += 1
            stumbles += not _run(asked.headrace, _here(one), folder, one.where)
    print(f"{tried} tried, {left_out} left out, {stumbles} stumbles")
    raise SystemExit(int(stumbles > 0))


def _needs(text: str) -> str:
    """What a command needs that may not be here; "" where it can run."""
    caches = text.startswith("headrace generate") and "--policy" in text
    if caches and not any(without in text for without in ("simulated", "disk")):
        return "a GPU"
    return next((why for part, why in NEEDS.items() if part in f"{text} "), "")


def _here(one: Documented) -> list[str]:
    """With the demo model where a page names one of its own, and few tokens."""
    words = one.arguments
    if words[0] != "plan" and words[:2] != ["trace", "make"]:
        at = 2 if words[0] == "trace" else 1
        is_shape = "--random-weights" in words
        words = [*words[:at], *(_model(word, is_shape and word[0] != ".") for word in words[at:])]
    else:
        words = [_model(word, word[0] != "." and word != "model.gguf") for word in words]
    if words[0] == "convert":
        words[2] = "packed"
    if words[0] == "generate":
        words += ["--max-new-tokens", "8"]
    if "demo" in words:
        words = [SHORTER.get(last, word) for last, word in zip(("", *words), words, strict=False)]
    return words


def _model(word: str, stays: bool) -> str:
    return "demo" if MODEL.fullmatch(word) and not stays and not word.endswith((".json", ".txt")) else word


def _run(program: str, words: list[str], folder: str, where: str) -> bool:
    """Whether it ended well; else what it said."""
    if words[:2] == ["trace", "record"] and "-o" in words:  # what another page recorded is not written over
        (Path(folder) / words[words.index("-o") + 1]).unlink(missing_ok=True)
    try:
        done = subprocess.run(
            [program, *words],
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
        )
        said, is_slower = done.stderr or done.stdout, "--compare" in words and " SLOWER" in done.stderr
        is_right = done.returncode == 0 or is_slower or (words[0] == "plan" and TOO_LARGE in said)
        well = is_right and "Traceback" not in done.stderr
    except subprocess.TimeoutExpired:
        well, said = False, f"not done after {SECONDS} s"
    print(f"{'ok' if well else 'STUMBLE'}: {where}: headrace {' '.join(words)}", flush=True)
    if not well:
        print("   ", "\n    ".join(said.strip().splitlines()[-6:]), flush=True)
    return well


if __name__ == "__main__":
    main()
