"""Small models of every arch of GGUF whose layers are more than grouped-query attention: headrace, llama.cpp and
transformers on the same numbers.

    python benchmarks/same_as_llama.py --llama-python PYTHON

PYTHON has llama-cpp-python. Each checkpoint is made by transformers and written as a GGUF file as llama.cpp's converter
does it (`tests/gguf`). All three say 48 tokens after the same prompt, the likeliest each; heads are scaled up, so that
the likeliest is it by far. A line gives the tokens that agree with transformers', and by how much logits differ from
its, as a share of the largest. transformers decides who is right. Exits with 1 where headrace is not, but for the case
that files cannot tell: whether gpt-oss's range of stretched frequencies is rounded. Of released models it is not.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

# The small models are those of the tests, in as many folders as these have.
sys.path.extend(
    str(Path(__file__).parents[1] / "tests" / name)
    for name in ("helpers", "fakes", "generation/families", "gguf", "gguf/metadata")
)

import mixer_files
import tiny

from headrace import LLM

PROMPT = [5, 11, 3, 70, 29, 8, 8, 14, 101, 33, 2, 9, 77, 12, 150, 6, 41]
COUNT, HEAD = 48, 8.0
SMALL = 2e-4  # of the largest logit: what float32 sums in another order may differ by over a few layers
NOT_IN_FILES = "gpt-oss, range rounded"
# Of each case: the variant of `tiny`, what llama.cpp asks of it besides, and whether up-projections are joined.
CASES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "gpt-oss": ("gpt_oss", {"swiglu_limit": 7.0, "head_dim": 32, "intermediate_size": 64}, False),
    NOT_IN_FILES: (
        "gpt_oss",
        {"swiglu_limit": 7.0, "head_dim": 32, "intermediate_size": 64,
         "rope_parameters": {**tiny.YARN, "truncate": True, "beta_fast": 32.0, "beta_slow": 1.0}},
        False,
    ),
    "deepseek2, V3": ("deepseek_v3", {}, False),
    "deepseek2, V3, joined": ("deepseek_v3", {}, True),
    "deepseek2, V2": ("deepseek_v2-groups", {}, False),
    "deepseek2, V2, one group": ("deepseek_v2-groups", {"n_group": 1, "topk_group": 1}, False),
    "deepseek2, V2-Lite": ("deepseek_v2", {"num_hidden_layers": 26}, False),
    "deepseek2, GLM-4.7-Flash": ("glm4_moe_lite", {}, False),
    "deepseek2, GLM-4.7-Flash, eps 1e-6": ("glm4_moe_lite", {"rms_norm_eps": 1e-6}, False),
    "qwen3next": ("qwen3_next", {"linear_key_head_dim": 32, "linear_value_head_dim": 32}, False),
    "qwen35moe": ("qwen3_5_moe_text", {"linear_key_head_dim": 32, "linear_value_head_dim": 32}, False),
    "qwen35moe, 3 heads to a key": (
        "qwen3_5_moe_text",
        {"linear_key_head_dim": 32, "linear_value_head_dim": 32, "linear_num_value_heads": 6},
        False,
    ),
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-python", default=sys.executable, metavar="PYTHON", help="that has llama-cpp-python")
    parser.add_argument("--only", metavar="WORD", default="", help="cases whose name has it")
    options = parser.parse_args()
    torch.set_num_threads(1)  # tensors are tiny
    wrong = 0
    print(f"{'case':36} {'headrace':>18} {'llama.cpp':>18} {'margin':>8}")
    for name, case in CASES.items():
        if options.only in name:
            wrong += not compare(name, *case, options.llama_python) and name != NOT_IN_FILES
    return int(wrong > 0)


def compare(name: str, variant: str, changes: dict[str, Any], joined: bool, python: str) -> bool:
    """Prints a line of one case; returns whether headrace says what transformers says."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        model = tiny.build(variant, base / "m", **changes)
        with torch.no_grad():
            model.lm_head.weight.mul_(HEAD)
        model.save_pretrained(base / "m")
        config, tensors = mixer_files.read(base / "m", joined=joined)
        more = {"expert_gating_func": 2} if variant.startswith("glm") else {}
        mixer_files.write(base / "m.gguf", config, tensors, older=joined, more=more, no_vocabulary=True)
        ids = said_by_transformers(model)
        wanted = tiny.oracle_logits(model, ids[:-1]).numpy()
        ours, said = of_headrace(base / "m.gguf", ids)
        theirs = of_llama(python, base / "m.gguf", base / "out.npy")
    top = np.sort(wanted[len(PROMPT) - 1 :], axis=1)
    margin = float((top[:, -1] - top[:, -2]).min() / abs(wanted).max())
    right = said == ids[len(PROMPT) :]
    print(
        f"{name:36} {line(said, ours, ids, wanted):>18} "
        f"{theirs if isinstance(theirs, str) else line(greedy(theirs), theirs, ids, wanted):>18} {margin:8.1e}",
        flush=True,
    )
    return right and off(ours, wanted) < SMALL


def said_by_transformers(model: Any) -> list[int]:
    """The prompt and what is likeliest after it, token by token."""
    ids = list(PROMPT)
    for _ in range(COUNT):
        ids.append(int(tiny.oracle_logits(model, ids)[-1].argmax()))
    return ids


def of_headrace(path: Path, ids: list[int]) -> tuple[NDArray[np.float32], list[int]]:
    """Logits after every token but the last, and the tokens said after the prompt."""
    with LLM(path, kernels="reference", dtype="float32") as llm:
        said = llm.generate([PROMPT], {"max_new_tokens": COUNT, "ignore_eos": True})[0].token_ids
        return llm.logits(ids[:-1]).numpy(), said


def of_llama(python: str, path: Path, out: Path) -> NDArray[np.float32] | str:
    """Logits after the prompt's tokens and its own, or why there are none."""
    child = Path(__file__).with_name("llama_logits.py")
    prompt = ",".join(map(str, PROMPT))
    ran = subprocess.run(
        [python, str(child), str(path), str(out), prompt, str(COUNT - 1)], capture_output=True, text=True, check=False
    )
    if ran.returncode:
        reason = [one for one in ran.stderr.splitlines() if "error" in one.lower() or "assert" in one.lower()]
        return (reason or ran.stderr.splitlines() or ["it ended"])[0][-200:]
    found: NDArray[np.float32] = np.load(out)
    return found


def greedy(logits: NDArray[np.float32]) -> list[int]:
    """The likeliest token after the prompt and after each later one."""
    return [int(one) for one in logits[len(PROMPT) - 1 :].argmax(1)]


def line(said: list[int], logits: NDArray[np.float32], ids: list[int], wanted: NDArray[np.float32]) -> str:
    """Tokens up to the first other one, of all, and the difference of logits up to there."""
    expected = ids[len(PROMPT) :]
    same = next((i for i, (a, b) in enumerate(zip(said, expected, strict=True)) if a != b), COUNT)
    until = min(len(PROMPT) + same, len(wanted))
    return f"{same} of {COUNT}, {off(logits[:until], wanted[:until]):.1e}"


def off(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """The largest difference, as a share of the largest logit."""
    return float(abs(found - wanted).max() / abs(wanted).max())


if __name__ == "__main__":
    sys.exit(main())
