"""llama.cpp as a side of a comparison, in a process and, if need be, a virtual environment of its own.

`--llama-python` names the Python that has llama-cpp-python; without it this one must. `llama_child.py` runs there.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHILD = Path(__file__).with_name("llama_child.py")
MAX_CONTEXT = 1024
GET = (
    "llama.cpp is left out: {python} has no llama-cpp-python. pip install llama-cpp-python, here or in an environment\n"
    "    that --llama-python names. Built for the machine it may crash in AMX code on some CPUs, so there build it as\n"
    "    CMAKE_ARGS='-DGGML_NATIVE=OFF -DGGML_AVX512=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON "
    "-DGGML_AVX512_VBMI=ON' \\\n        pip install llama-cpp-python"
)


def add_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--llama-python", default=sys.executable, metavar="PYTHON", help="that has llama-cpp-python")


def available(python: str) -> bool:
    """Whether that Python has llama.cpp; says how to get it if not."""
    if python == sys.executable:
        found = importlib.util.find_spec("llama_cpp") is not None
    else:
        look = "import importlib.util as i, sys; sys.exit(i.find_spec('llama_cpp') is None)"
        found = subprocess.run([python, "-c", look], check=False).returncode == 0
    if not found:
        print(GET.format(python=python))
    return found


class Llama:
    """A process with llama.cpp. Calls are those of `llama_child.Child`; one that fails there raises RuntimeError."""

    def __init__(self, python: str) -> None:
        self.process = subprocess.Popen(
            [python, str(CHILD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.cpu_s = 0.0  # that it has used

    def call(self, name: str, **arguments: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: nothing will be read
            self.process.stdin.write(json.dumps({"call": name, **arguments}) + "\n")
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"llama.cpp ended with status {self.process.wait()} in {name}")
        answer: dict[str, Any] = json.loads(line)
        self.cpu_s = answer.pop("cpu_s")
        if "error" in answer:
            raise RuntimeError(f"llama.cpp, {name}: {answer['error']}")
        return answer

    def load(self, path: Path, threads: int, context: int = MAX_CONTEXT, **how: Any) -> int:
        """Loads a GGUF file in place of one that is there; how large its vocabulary is."""
        return int(self.call("load", path=str(path), threads=threads, context=context, **how)["vocab"])

    def token_times(self, prompt: list[int], count: int) -> list[float]:
        """Seconds until the first token (the prefill), then of each of `count` more, measured there."""
        return list(map(float, self.call("times", prompt=prompt, count=count)["seconds"]))

    def times_behind(self, count: int) -> list[float]:
        """Seconds of each of `count` tokens behind those that `fill` was called with."""
        return list(map(float, self.call("go_on", count=count)["seconds"]))

    def greedy(self, prompt: list[int], count: int, scratch: Path) -> tuple[list[int], NDArray[np.float32]]:
        """The likeliest tokens after a prompt, and the logits that each was chosen from."""
        ids = self.call("greedy", prompt=prompt, count=count, logits=str(scratch))["ids"]
        return ids, np.load(scratch)

    def logits(self, ids: list[int], scratch: Path) -> NDArray[np.float32]:
        """Logits after every token."""
        self.call("logits", ids=ids, to=str(scratch))
        return np.asarray(np.load(scratch))

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
