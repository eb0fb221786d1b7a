"""docs/models.md: every family of the catalogue and of the engine, and whether it runs, or what it lacks.

    python benchmarks/models_table.py > docs/models.md

What runs is read from the families' literals, the archs of GGUF files and the catalogue; a test holds the page to it.
What the others lack is said here, a line each.
"""

from __future__ import annotations

import sys

from headrace.loaders.architecture import catalogue
from headrace.loaders.families import FAMILIES
from headrace.loaders.gguf.runnable import ARCHS
from headrace.loaders.tokens.dialects.choose import FAMILIES as DIALECTS

# Of one arch several families are told apart by what is in the file.
SEVERAL = {
    "granitemoe": ("granitemoeshared",), "deepseek2": ("deepseek_v2", "kimi_k2", "glm4_moe_lite"),
    "step35": ("step3p7",),
}  # fmt: skip
# Models of families that no entry of the catalogue is of.
OTHERS = {
    "granitemoeshared": "moe-7b-1b-active-shared-experts", "exaone_moe": "K-EXAONE-236B-A23B",
    "step3p7": "Step-3.7-Flash",
}  # fmt: skip
HEAD = """# Models

Written by `benchmarks/models_table.py` from the code. What runs is held to transformers in float32, on small random
models of each family in which no value is left at zero or one: the same 48 likeliest tokens, logits within 1e-4 (2e-4
with a delta rule or a state space), a prompt as a whole, in chunks, token by token and in a batch alike
(`tests/generation/test_families.py`). A model of a GGUF file says what its safetensors say (`tests/gguf`), and a plan
has the bytes that the engine takes (`tests/planning/test_plan.py`).

## What runs

Safetensors in F32, F16, BF16, and quantised as [checkpoints.md](checkpoints.md#quantised-weights) says, of every
family; GGUF files of the archs that stand there. How a model writes calls and reasoning says its chat template
([chat.md](chat.md#dialects)); where a model has none, the dialect that stands there is taken.

| family | models | GGUF | dialect |
|---|---|---|---|"""
BETWEEN = """
Of `mistral_large4` llama.cpp has no arch, and so there are no files. `kimi_k3`, which
transformers does not have, is held to a twin in plain torch; its names are those that llama.cpp's converter reads.
Layers for multi-token prediction draft where [speculation.md](speculation.md) says so; elsewhere they are left out, and
a line says so."""


def models_of(family: str) -> str:
    """The models of the catalogue of that family."""
    entries = {name: str(catalogue.find(name).config["model_type"]).removesuffix("_text") for name in catalogue.names()}
    found = [name for name, kind in entries.items() if kind == family]
    return ", ".join(found) or OTHERS.get(family, "")


def archs_of(family: str) -> str:
    """The archs of its GGUF files."""
    found = [arch for arch, kind in ARCHS.items() if kind == family or family in SEVERAL.get(arch, ())]
    return ", ".join(f"`{arch}`" for arch in found) or "none"


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    for family in sorted(FAMILIES):
        dialect = f"`{DIALECTS[family].name}`" if family in DIALECTS else ""
        lines.append(f"| `{family}` | {models_of(family)} | {archs_of(family)} | {dialect} |")
    lines.append(BETWEEN)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
