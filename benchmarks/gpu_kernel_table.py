"""What compilers make of the Triton kernels: a table of kernels and launches, by version of Triton. No GPU is needed.

    python benchmarks/gpu_kernel_table.py                         the Triton that is installed, for sm_90
    python benchmarks/gpu_kernel_table.py build/target            beside it the one in that folder
    python benchmarks/gpu_kernel_table.py --formats               of the formats that are left out otherwise
    python benchmarks/gpu_kernel_table.py --save FILE / --before FILE      keep what was found / show it too
    python benchmarks/gpu_kernel_table.py build/target --keep     what tests look at into machine_code.jsonl

`build/target` is what `make target` fills: the versions of the machine that the kernels are meant for. In a cell:
barriers in the inner loop that has most, instructions of the longest inner loop for each weight, registers of a thread
(and bytes of stack, if any), bytes of shared memory of a program. Prints markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
KEPT = Path(__file__).with_name("machine_code.jsonl")
TARGETS = (80, 89, 90, 120)
OTHERS = tuple(target for target in TARGETS if target != 90)
Row = dict[str, Any]
Rows = dict[tuple[str, str], dict[str, Row]]  # by kernel and launch, then by version


def compile_all(
    folder: str | None, jobs: str = "all", targets: tuple[int, ...] = (90,), is_anew: bool = False
) -> list[Row]:
    """Facts of every launch from the Triton in a folder, or the installed one, in a process of its own; is_anew:
    also of those that are kept. Raises RuntimeError with the end of what that process says."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"TRITON_CACHE_DIR": str(ROOT / "build" / "triton-cache"), "TRITON_DEFAULT_FP_FUSION": "1"}
    if folder is not None:
        env["PYTHONPATH"] = str(Path(folder).resolve())
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_compile.py"), jobs, *map(str, targets)]
    command += ["--anew"] if is_anew else []
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return [json.loads(line) for line in done.stdout.splitlines()]


def rows_for_tests(folder: str | None) -> list[Row]:
    """What the tests look at: everything by the target's Triton, which is in a folder; by the installed one what
    differs in more than the format, and for other GPUs one launch of every kernel."""
    jobs = (("all", (90,)),) if folder is not None else (("core", (90,)), ("each", OTHERS))
    return [row for job in jobs for row in compile_all(folder, *job)]


def keep(folder: str) -> int:
    """Writes what the tests look at, and nothing else, for whoever does not change it; how many launches."""
    with ThreadPoolExecutor() as pool:
        rows = {row["key"]: row for found in pool.map(rows_for_tests, (folder, None)) for row in found}
    lines = [json.dumps(rows[key], separators=(",", ":"), sort_keys=True) for key in sorted(rows)]
    KEPT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(rows)


def weights_of_a_step(row: Row) -> int:
    """Weights that a program multiplies or unpacks in one turn of its loop, 0 for kernels that do neither."""
    known = row["constants"]
    if {"COLUMNS", "FORMAT"} <= known.keys():
        return int(known["ROWS"] * known["COLUMNS"])
    loops = 2 if known.get("UP_FORMAT", known.get("FORMAT")) != known.get("FORMAT") else 1  # gate's rows, then up's
    if "GRANULES" in known:
        return int(known["ROWS"] * known["GRANULES"] * known["WIDTH"]) // loops
    if "BLOCK_K" in known:
        return int(known["BLOCK_N"] * known["BLOCK_K"]) // loops
    return 0


def instructions_a_weight(row: Row) -> float | None:
    """Instructions of all threads of a program for each weight of a step."""
    weights = weights_of_a_step(row)
    if not weights or not row["loops"]:
        return None
    loops = [loop for loop in row["loops"] if loop["barriers"]] or row["loops"]  # not those that add up parts
    return float(max(loop["instructions"] for loop in loops) * 32 * row["warps"] / weights)


def barriers(row: Row) -> int:
    """In the inner loop that has most of them."""
    return max((loop["barriers"] for loop in row["loops"]), default=0)


def cell(row: Row | None) -> str:
    if row is None:
        return ""
    each, stack = instructions_a_weight(row), f" + {row['stack']} B" if row["stack"] else ""
    return f"{barriers(row)}, {'-' if each is None else f'{each:.1f}'}, {row['reg']}{stack}, {row['shared']}"


def markdown(rows: Rows, versions: list[str]) -> str:
    """The table, a column for each version."""
    lines = [f"| kernel | launch | {' | '.join(versions)} |", "|---|---|" + "---|" * len(versions)]
    for (kernel, label), found in rows.items():
        lines.append(f"| `{kernel}` | {label} | " + " | ".join(cell(found.get(v)) for v in versions) + " |")
    return "\n".join(lines)


def by_launch(facts: list[Row], name: str, into: Rows) -> None:
    """Sorts facts in, under the name of a column."""
    for row in facts:
        into.setdefault((row["kernel"], row["label"]), {})[name] = row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folders", nargs="*", help="folders with other versions of Triton")
    parser.add_argument("--save", type=Path, metavar="FILE", help="keep what was found")
    parser.add_argument("--before", type=Path, metavar="FILE", help="show what was kept beside it")
    parser.add_argument("--formats", action="store_true", help="the formats that are left out otherwise")
    parser.add_argument("--keep", action="store_true", help="write machine_code.jsonl anew")
    given = parser.parse_args()
    if given.keep:
        print(f"{keep(*given.folders)} launches are kept in {KEPT.name}")
        return
    jobs = "formats" if given.formats else "all"
    rows: Rows = {}
    found = {facts[0]["triton"]: facts for facts in (compile_all(folder, jobs) for folder in [None, *given.folders])}
    if given.save:
        given.save.write_text(json.dumps(found))
    before = json.loads(given.before.read_text()) if given.before else {}
    for version, facts in found.items():
        for when, which in (("before", before.get(version, [])), ("now", facts)):
            by_launch(which, f"{version} {when}" if before else version, rows)
    names = [f"{v} {when}" if before else v for v in found for when in (("before", "now") if before else ("",))]
    print(markdown(rows, names))


if __name__ == "__main__":
    main()
