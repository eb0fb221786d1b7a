"""All that waits for a GPU, in parts: are the kernels right and how fast, does the hand-off work, what do models reach?

    python benchmarks/gpu_suite.py [--only PART[:NAME[:TEST]] ...] [--json FILE]

Needs a CUDA GPU, torch with CUDA (Triton comes with it) and this checkout; parts that need headrace installed with its
C++ extension say so where it is not. In this order, and what else `--only PART:NAME` chooses by a part of its name:

micro       questions of a few seconds (`gpu_micro.py`): a question
handoff     each way for a stream to hand experts to the CPU and wait for them, and pinning (`gpu_handoff.py`)
models      a model of random weights, decode and prefill, by graphs first (`gpu_models.py`): a setup, and behind
            another colon a test, as models:cpu-moe:batch 1
variants    the same in bf16, by hand, and without early copies: likewise
placements  the same under other placements: likewise
profile     which kernels a step of a model takes, and how long each (`gpu_profile.py`): a setup
table       kernels beside a copy and a large product (`gpu_table.py`): rows
checks      every case against the plain twin in float32 on the same GPU (`gpu_checks.py`): cases
same        the same tokens and logits under several placements, and by graphs (`gpu_same.py`): ways
measure     `headrace measure`: links and memory, alone and together (`gpu_measure.py`); saves the machine's profile

A part is a process of its own with a limit of time, under two minutes each once Triton has compiled the kernels. What
is found goes into one JSON file after every row, by default benchmarks/results/gpu-NAME.json; a part that fails, hangs
or is killed leaves what it had, and the last lines of its standard error. `--device simulated` runs parts that can with
RAM in the GPU's place, which shows that they work and no speed. Ends with status 1 where something failed, 2 where
there is no GPU.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parent.parent / "src"))  # serves where headrace is not installed

import gpu_child
import result_file
from gpu_child import Keep

from headrace.engine.bench import passport

Found = dict[str, Any]
NO_GPU = 2
TO_SAY_SO = 4  # seconds that a part needs to name what it had no time for, before it is killed
SKIPPED = {"skipped": "needs a GPU"}


@dataclass(frozen=True)
class Task:
    """What a part is asked for; name and test choose in it, "" all."""

    part: str
    name: str
    test: str
    args: argparse.Namespace

    @property
    def device(self) -> str:
        return str(self.args.device)


# What each part does, in its process


def micro(task: Task, keep: Keep) -> Found:
    import gpu_micro

    return gpu_micro.measure(gpu_micro.named(task.name), keep)


def handoff(task: Task, keep: Keep) -> Found:
    import gpu_handoff

    return gpu_handoff.measure(torch.device(task.device).index or 0, keep=keep) if on_gpu(task) else SKIPPED


def models(task: Task, keep: Keep) -> Found:
    import gpu_models

    args = task.args
    tests = gpu_models.Tests(prompts=tuple(args.prompts), batches=tuple(args.batches), new=args.new)
    chosen = gpu_models.named(gpu_models.setups(args.handoff)[task.part], task.name)
    seconds = min(gpu_models.SECONDS, (args.seconds or gpu_models.SECONDS) - TO_SAY_SO)
    return gpu_models.measure(
        task.device, model=args.model or gpu_models.MODEL, layers=args.layers, tests=tests.named(task.test),
        chosen=chosen, seconds=seconds, keep=keep,
    )  # fmt: skip


def profile(task: Task, keep: Keep) -> Found:
    import gpu_models
    import gpu_profile

    if not on_gpu(task):
        return SKIPPED
    args = task.args
    by_graphs = [one for one in gpu_models.setups(args.handoff)["models"] if one.handoff != "eager"]
    tests = gpu_models.Tests(prompts=tuple(args.prompts), batches=tuple(args.batches))
    chosen, layers = gpu_models.named(by_graphs, task.name), args.layers or gpu_profile.LAYERS
    return gpu_profile.measure(task.device, chosen, tests, args.model or gpu_models.MODEL, layers, keep)


def table(task: Task, keep: Keep) -> Found:
    import gpu_rows
    import gpu_table

    from headrace.kernels import load

    if not on_gpu(task):
        return SKIPPED
    device = torch.device(task.device)
    source = gpu_rows.GpuSource(torch.Generator(device).manual_seed(7))
    found = gpu_table.table(gpu_rows.groups(load("gpu"), source), device, task.args.rounds, task.name, keep)
    if not found["rows"]:
        raise ValueError(f"no row of the table is called '{task.name}'")
    return found


def checks(task: Task, keep: Keep) -> Found:
    import gpu_checks

    from headrace.kernels import load

    if not on_gpu(task):
        return SKIPPED
    return gpu_checks.checks(load("gpu"), torch.device(task.device), gpu_checks.named(task.name), keep)


def same(task: Task, keep: Keep) -> Found:
    import gpu_same

    return gpu_same.measure(task.device, name=task.name, keep=keep)


def measure(task: Task, keep: Keep) -> Found:
    import gpu_measure

    return gpu_measure.measure(task.args.quick) if on_gpu(task) else SKIPPED


def on_gpu(task: Task) -> bool:
    return task.device != "simulated"


@dataclass(frozen=True)
class Part:
    """`module` has what shows a result in lines, `show`, and what counts as failed, `failures`."""

    run: Callable[[Task, Keep], Found]
    module: str
    seconds: float


PARTS = {
    "micro": Part(micro, "gpu_micro", 90),
    "handoff": Part(handoff, "gpu_handoff", 90),
    "models": Part(models, "gpu_models", 119),
    "variants": Part(models, "gpu_models", 119),
    "placements": Part(models, "gpu_models", 119),
    "profile": Part(profile, "gpu_profile", 119),
    "table": Part(table, "gpu_table", 119),
    "checks": Part(checks, "gpu_checks", 119),
    "same": Part(same, "gpu_same", 119),
    "measure": Part(measure, "gpu_measure", 119),
}


# The parent


class Result:
    """The JSON file, whole at any moment: what was found replaces it by a rename."""

    def __init__(self, path: Path, found: Found) -> None:
        self.path, self.found = path, found
        path.parent.mkdir(parents=True, exist_ok=True)
        self.write()

    def write(self) -> None:
        beside = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        beside.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")
        beside.replace(self.path)

    def keep(self, name: str, found: Found) -> None:
        self.found[name] = found
        self.write()


def run_part(name: str, command: list[str], seconds: float, result: Result) -> list[str]:
    """Runs a part's process; what failed."""
    begin = time.monotonic()
    result.keep(name, {})
    wrong = gpu_child.run(command, lambda found: result.keep(name, found), seconds)
    found, took = result.found[name], round(time.monotonic() - begin, 1)
    result.keep(name, {**found, **({"ended": wrong} if wrong else {}), "seconds": took})
    print(f"{name}: {found.get('skipped', 'done')}, {took} s", flush=True)
    failed = [wrong["problem"]] if wrong else []
    if found and "skipped" not in found:
        failed += importlib.import_module(PARTS[name].module).failures(found)
    return [f"{name}: {line}" for line in failed]


def chosen(only: list[str] | None) -> dict[str, tuple[str, str]]:
    """By part, in their order: name and test. Raises ValueError for a part that is none."""
    if not only:
        return dict.fromkeys(PARTS, ("", ""))
    asked = {}
    for words in only:
        part, _, rest = words.partition(":")
        if part not in PARTS:
            raise ValueError(f"there is no part '{part}': take one of {', '.join(PARTS)}")
        name, _, test = rest.partition(":")
        asked[part] = (name, test)
    return {part: asked[part] for part in PARTS if part in asked}


def facts(device: str) -> Found:
    """The passport."""
    if device != "simulated":
        return passport.gpu_passport()
    return {"gpu": "simulated", **passport.host()}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="PART[:NAME[:TEST]]", help="these parts, and what of them")
    parser.add_argument("--json", type=Path, help="where the result goes")
    parser.add_argument("--seconds", type=float, help="a limit of time for each part, where its own is longer")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or simulated")
    parser.add_argument("--rounds", type=int, default=3, help="rounds a row of the table is timed in")
    parser.add_argument("--quick", action="store_true", help="measure: under 20 seconds, fewer rounds")
    parser.add_argument("--model", help="of the models: a name of the catalogue, a hub id or a config.json")
    parser.add_argument("--layers", type=int, help="so many layers of the models only")
    parser.add_argument("--handoff", default="memop", help="by which models' graphs hand over: memop, hostfunc")
    parser.add_argument("--prompts", type=int, nargs="*", default=[512, 4096], help="tokens of models' prompts")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 4], help="sequences that models decode")
    parser.add_argument("--new", type=int, default=24, help="tokens that models decode for each of them")
    parser.add_argument("--report", type=int, help=argparse.SUPPRESS)  # one part, in a child
    return parser.parse_args()


def child(args: argparse.Namespace, part: str, name: str, test: str) -> int:
    """One part: reports what it finds as it goes, and at its end."""
    keep = gpu_child.reporter(args.report)
    found = PARTS[part].run(Task(part, name, test, args), keep)
    keep(found)
    if "skipped" not in found:
        print("\n".join(importlib.import_module(PARTS[part].module).show(found)), flush=True)
    return 0


def main() -> int:
    args = options()
    try:
        parts = chosen(args.only)
    except ValueError as error:
        print(f"gpu_suite.py: {error}", file=sys.stderr)
        return NO_GPU
    if args.report is not None:
        [(part, (name, test))] = parts.items()
        return child(args, part, name, test)
    if args.device != "simulated" and not torch.cuda.is_available():
        has = "no CUDA GPU is visible" if torch.version.cuda else "this torch was built without CUDA"
        print(f"gpu_suite.py measures kernels on an NVIDIA GPU, and {has}; without one, `make test` runs them in the"
              " interpreter and compiles them", file=sys.stderr)  # fmt: skip
        return NO_GPU
    about = facts(args.device)
    print(json.dumps(about), flush=True)
    path = args.json or result_file.RESULTS / f"gpu-{result_file.slug(about['gpu'])}.json"
    result, failed = Result(path, {"passport": about}), []
    for part, (name, test) in parts.items():
        seconds = min(PARTS[part].seconds, args.seconds or PARTS[part].seconds)
        failed += run_part(part, [*same_options(), "--only", f"{part}:{name}:{test}"], seconds, result)
    result.keep("failures", failed)
    print("\n".join([*(f"FAILED {line}" for line in failed), f"written: {path.name}"]))
    return 1 if failed else 0


def same_options() -> list[str]:
    """This program with its options; a later --only counts."""
    return [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:]]


if __name__ == "__main__":
    sys.exit(main())
