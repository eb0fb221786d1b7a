"""The commands on a GGUF file, as somebody uses them who has one: the demo model, with its tokenizer in the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf_files
import pytest

from headrace import LLM
from headrace.loaders.hub.local import DEMO_DIRECTORY

HELDOUT = Path(__file__).parents[2] / "demo" / "heldout.txt"
Run = Callable[..., tuple[int, str, str]]


def types(name: str) -> str:
    """Norms and routers stay as they are."""
    return "F32" if "norm" in name or "ffn_gate_inp" in name else "Q8_0"


@pytest.fixture(scope="module")
def demo_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "demo-Q8_0.gguf"
    config, tensors = gguf_files.read(DEMO_DIRECTORY)
    gguf_files.write(path, config, tensors, gguf_files.quantised(tensors, types), tokenizer=DEMO_DIRECTORY)
    return path


def test_generate_says_what_the_same_weights_say(demo_file: Path, run: Run) -> None:
    """Q8_0 is what loading to q8_0 rounds to, so that the text is the same."""
    wanted = ["In the beginning", "--max-new-tokens", "40", "--temperature", "0"]
    code, text, _ = run("generate", str(demo_file), *wanted)
    assert code == 0
    with LLM("demo", expert_format="q8_0", dense_format="q8_0") as llm:
        assert llm.generate("In the beginning", {"max_new_tokens": 40})[0].text.strip() in text


def test_chat_uses_the_template_of_the_file(demo_file: Path) -> None:
    with LLM(demo_file) as llm:
        assert llm.tokenizer is not None
        assert llm.tokenizer.decode(llm.chat_prompt([{"role": "user", "content": "And God said"}])) == "And God said\n"


def test_perplexity_is_that_of_the_same_weights(demo_file: Path, run: Run, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(HELDOUT.read_text()[:4000])
    code, out, _ = run("perplexity", str(demo_file), str(text), "--json")
    same, expected, _ = run(
        "perplexity", "demo", str(text), "--json", "--expert-format", "q8_0", "--dense-format", "q8_0"
    )
    assert code == same == 0
    # The file has the embedding in Q8_0 too, and int8 activations round what comes of it: 0.11 % at most so far.
    assert json.loads(out)["value"] == pytest.approx(json.loads(expected)["value"], rel=3e-3)


def test_convert_says_that_a_file_is_packed_already(demo_file: Path, run: Run, tmp_path: Path) -> None:
    code, _, error = run("convert", str(demo_file), str(tmp_path / "out"))
    assert code != 0
    assert "a GGUF file holds packed weights already" in error
