"""Guard rails: who may import whom, what is public, and that files stay readable."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import headrace

ROOT = Path(__file__).parent.parent
LAYERS = ("kernels", "loaders", "engine", "cli")  # each may import those before it, and errors
SOURCES = [p for folder in LAYERS[:3] for p in sorted((ROOT / folder).rglob("*.py"))] + [ROOT / "cli.py"]
PUBLIC = {
    "LLM", "SamplingParams", "EngineConfig", "ChatCompletion", "Completion", "Chunk", "HeadraceError", "OptionError",
    "ConfigError", "CheckpointError", "TokenizerError", "HubError", "MemoryNeeded", "ContextOverflow", "DeviceError",
}  # fmt: skip


# Rooms from the bottom up: each may import those before it in its line, never one behind.
ROOMS = {
    "engine": "units writable placement policies coerce option sizes ranges drafts_asked config devices ledger "
    "bandwidth_model experts traces planning model cuda_graphs generation speculation memory measure hosts core llm "
    "bench server terminal",
    "loaders": "regular files memory recurrences residuals choosers turns compressed grams spec families architecture "
    "gguf quants hub model_source quantised weights gguf_weights tokens",
    "kernels": "_cpu scratch recipes formats blocks isa limits context packed passes residual decoder_layer sparse "
    "mixers compressed grams recurrent reference cpu gpu cases",
}
MOST_FILES, MOST_LINES, MOST_OF_A_FUNCTION = 12, 400, 50


def imports_of(path: Path) -> set[tuple[str, ...]]:
    """What a file imports of ours: ("engine", "ledger", "passes"), ..."""
    package = ["headrace", *path.relative_to(ROOT).with_suffix("").parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: -node.level], *(node.module or "").split(".")]
            base = [part for part in base[1:] if part]
            found.update({tuple(base)} if len(base) > 1 else {(*base, alias.name) for alias in node.names})
        elif isinstance(node, ast.Import):
            assert not any(a.name.startswith("headrace") for a in node.names), f"{path}: import relatively"
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    layer = path.relative_to(ROOT).with_suffix("").parts[0]
    allowed = {*LAYERS[: LAYERS.index(layer) + 1], "errors"}
    assert {target[0] for target in imports_of(path)} <= allowed


@pytest.mark.parametrize("top", ROOMS)
def test_no_room_imports_one_above_it(top: str) -> None:
    floors = {room: floor for floor, room in enumerate(ROOMS[top].split())}
    for path in (ROOT / top).rglob("*.py"):
        room = path.relative_to(ROOT / top).with_suffix("").parts[0]
        if path == ROOT / top / "__init__.py":
            continue
        for target in imports_of(path):
            if target[0] == top and len(target) > 1 and target[1] in floors:  # else a name of the package itself
                assert floors[target[1]] <= floors[room], f"{path.relative_to(ROOT)} imports {'.'.join(target)}"


def test_every_room_is_on_a_floor() -> None:
    for top, line in ROOMS.items():
        there = {p.stem for p in (ROOT / top).iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
        assert there - {"__init__"} <= set(line.split()), top


def test_the_tree_in_the_docs_has_every_room_on_its_floor() -> None:
    tree = (ROOT / "docs" / "architecture.md").read_text().split("```\n")[1]
    for top, line in ROOMS.items():
        rows = tree.split(f"\n{top}/\n")[1].split("\n")
        rows = rows[: next(i for i, row in enumerate(rows) if not row.startswith("  "))]
        names = [name for row in rows for name in re.match(r"  ([\w./]+(?:, [\w./]+)*)", row)[1].split(", ")]
        rooms = [name.removesuffix("/").removesuffix(".py") for name in names]
        assert rooms == [room for room in reversed(line.split()) if room != "_cpu"]


def test_folders_are_taken_in_at_a_glance() -> None:
    """A dozen files at most; families are a list."""
    for folder in ("engine", "loaders", "kernels", "tests"):
        for place in [ROOT / folder, *(ROOT / folder).rglob("*/")]:
            files = [p for p in place.iterdir() if p.suffix in (".py", ".cpp", ".h")]
            assert len(files) <= MOST_FILES or place.name == "families", f"{place} has {len(files)} files"


def test_loaders_take_only_packed_weights_from_kernels() -> None:
    """A loader that called an op itself would decide where it runs."""
    for path in (ROOT / "loaders").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level and "kernels" in (node.module or ""):
                assert {a.name for a in node.names} <= {
                    "FORMATS", "ExpertBank", "ExpertLayout", "Format", "Matrix", "Mlp", "Ops", "FORMAT_OF_DTYPE",
                    "limits", "blocks", "FILE_BLOCKS", "PARTS", "Part", "Stacked", "BLOCK", "Activation",
                    "GroupScore", "SWIGLU", "GEGLU", "SQUARED_RELU", "Scoring", "Tail",
                    "GatedMixing", "Mixing", "Around", "Fitting",
                }  # fmt: skip


def test_the_decoder_says_no_tier_and_no_family() -> None:
    code = (ROOT / "engine" / "model" / "decoder.py").read_text().split('"""', 2)[2].lower()
    for word in ("qwen", "mixtral", "olmoe", "granite", "tier", "vram", "thread", "disk", "cuda"):
        assert word not in code, word


@pytest.mark.parametrize("path", sorted((ROOT / "engine" / "model").glob("*.py")), ids=lambda p: p.name)
def test_the_forward_pass_says_no_family(path: Path) -> None:
    """What models differ in is data, in `loaders/spec.py`."""
    code = path.read_text().lower()
    for word in ("qwen", "mixtral", "olmoe", "granite", "deepseek", "kimi", "gpt", "glm", "moonlight"):
        assert word not in code, word


def test_public_names() -> None:
    assert set(headrace.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(headrace, name).__doc__, f"{name} has no docstring"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_open_with_a_docstring_and_stay_short(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a file says first what it is"
    assert len(text.splitlines()) <= MOST_LINES
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < MOST_OF_A_FUNCTION, f"{node.name} is too long"


def test_kernels_is_not_a_top_level_package() -> None:
    """`kernels` is another project's package: ours must be reachable as headrace.kernels alone."""
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('kernels') is not None)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "docs", check=False)
    assert run.returncode == 0, "sys.path holds the working copy: install it with make, which takes that entry out"


def test_a_name_that_is_at_the_top_too_is_a_link_to_it() -> None:
    """A copy would be edited without effect."""
    for path in (ROOT / "src" / "headrace").iterdir():
        if (ROOT / path.name).exists():
            assert path.is_symlink() or path.name == "demo", path


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "demo" / "model" / "README.md"]
ENDINGS = r"(?:py|pyi|cpp|h|md|json|toml|svg|txt)"


@cache
def files_of_the_repository() -> list[str]:
    """Paths from the top; what is installed or built there has tens of thousands more, which nobody walks through."""
    found = []
    for at, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in (".git", ".venv", "build", "node_modules")]
        found += [str((Path(at) / name).relative_to(ROOT)) for name in files]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_that_the_docs_name_are_there(page: Path) -> None:
    """By their path from the top, or by their name alone; not what a user writes: NAME.json, run.jsonl."""
    there = files_of_the_repository()
    elsewhere = {
        "cuda.h", "headrace.json", "config.json", "tokenizer.json", "generation_config.json", "tokenizer_config.json",
        "special_tokens_map.json", "chat_template.json", "model.safetensors.index.json", "hf_quant_config.json",
        "adapter_config.json", "quantize_config.json", "quant_config.json",
    }  # fmt: skip
    for name in set(re.findall(rf"`((?:[\w.-]+/)*[\w.-]+\.{ENDINGS})`", page.read_text())):
        if name not in elsewhere and not any(part.isupper() for part in Path(name).stem.split("-")):
            assert any(f"/{path}".endswith(f"/{name}") for path in there), f"{page.name} names {name}"


@pytest.mark.parametrize("path", [p for p in SOURCES if "json.loads" in p.read_text()], ids=lambda p: p.stem)
def test_json_may_be_nested_too_deeply(path: Path) -> None:
    """What takes damaged JSON for such also takes what is nested so deeply that Python gives up."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Try) and any("json.loads(" in ast.unparse(part) for part in node.body):
            caught = " ".join(ast.unparse(handler.type) for handler in node.handlers if handler.type)
            assert "ValueError" not in caught or "RecursionError" in caught, f"{path}:{node.lineno}"
