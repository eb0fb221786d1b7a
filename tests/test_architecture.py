"""Guard rails: who may import whom, what is public, and that files stay readable."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import headrace
import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("kernels", "loaders", "engine", "cli")  # each may import those before it, and errors
SOURCES = [p for folder in LAYERS[:3] for p in sorted((ROOT / folder).rglob("*.py"))] + [ROOT / "cli.py"]
PUBLIC = {
    "LLM", "SamplingParams", "EngineConfig", "Completion", "Chunk", "HeadraceError", "OptionError", "ConfigError",
    "CheckpointError", "TokenizerError", "HubError", "MemoryNeeded", "ContextOverflow", "DeviceError",
}  # fmt: skip


def imported_layers(path: Path) -> set[str]:
    """Top folders of ours that a file imports."""
    package = ["headrace", *path.relative_to(ROOT).with_suffix("").parts]
    if package[-1] == "__init__":
        package.append("")
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: -node.level] + (node.module or "").split(".")
            names = [base[1]] if len(base) > 1 and base[1] else [alias.name for alias in node.names]
            found.update(names)
        elif isinstance(node, ast.Import):
            assert not any(a.name.startswith("headrace") for a in node.names), f"{path}: import relatively"
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    layer = path.relative_to(ROOT).with_suffix("").parts[0]
    allowed = {*LAYERS[: LAYERS.index(layer) + 1], "errors"}
    assert imported_layers(path) <= allowed


def test_loaders_take_only_packed_weights_from_kernels() -> None:
    """A loader that called an op itself would decide where it runs."""
    for path in (ROOT / "loaders").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level and "kernels" in (node.module or ""):
                assert {a.name for a in node.names} <= {
                    "FORMATS", "ExpertBank", "ExpertLayout", "Format", "Matrix", "Mlp", "Ops", "FORMAT_OF_DTYPE"
                }  # fmt: skip


def test_the_decoder_says_no_tier_and_no_family() -> None:
    code = (ROOT / "engine" / "model.py").read_text().split('"""', 2)[2].lower()
    for word in ("qwen", "mixtral", "olmoe", "granite", "vram", "thread", "disk", "cuda"):
        assert word not in code


def test_public_names() -> None:
    assert set(headrace.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(headrace, name).__doc__, f"{name} has no docstring"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_open_with_a_docstring_and_stay_short(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a file says first what it is"
    assert len(text.splitlines()) <= 600
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{node.name} is too long"


def test_kernels_is_not_a_top_level_package() -> None:
    """`kernels` is another project's package: ours must be reachable as headrace.kernels alone."""
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('kernels') is not None)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tests", check=False)
    assert run.returncode == 0, "sys.path holds the working copy: install it with make, which takes that entry out"
