"""Files whose headers lie, by the thousand: each is read or refused, by name, on one line, at once, in little memory.

    HEADRACE_MUTATIONS=20000 python -m pytest tests/mutations

tries so many in place of a few that take seconds, others each time.
"""

from __future__ import annotations

import json
import os
import resource
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from made_headers import Edit, GgufPieces, spoiled_gguf, spoiled_safetensors
from tiny_gguf import packed, small

from headrace.engine.planning.inspection import facts
from headrace.engine.terminal.inspect import inspect_report
from headrace.errors import CheckpointError, ConfigError
from headrace.loaders import model_source
from headrace.loaders.files import gguf_header, gguf_set, headers, safetensors
from headrace.loaders.gguf_weights.open_gguf import open_gguf
from headrace.loaders.weights.chosen_formats import LoadOptions
from headrace.loaders.weights.imagined import imagine

ASKED = os.environ.get("HEADRACE_MUTATIONS")
TRIES = int(ASKED or 1500)
ROOM = 100 << 20  # bytes of memory beyond the file's
SECONDS = 5.0  # of a core's time; a file takes milliseconds
LONGEST = 1000  # characters of a message, before the command line shortens it

EDITS = st.lists(
    st.builds(Edit, st.integers(0, 2**20), st.integers(0, 131), st.integers(0, 2**40)), min_size=1, max_size=4
)
PAGE = resource.getpagesize()


def tried(share: float) -> Callable[[Any], Any]:
    """Tries that part of all files; the same ones every time unless more were asked for."""
    return settings(
        max_examples=max(1, round(TRIES * share)), deadline=None, database=None, derandomize=ASKED is None,
        suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )  # fmt: skip


@contextmanager
def little_memory(nbytes: int) -> Iterator[None]:
    """The body fails with a MemoryError where it takes more than so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
    resource.setrlimit(resource.RLIMIT_AS, (now + nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def read_or_refuse(read: Callable[[], object], name: str, size: int) -> str:
    """Reads; the message if it is refused, which has to look like one."""
    said = ""
    began = time.process_time()
    with little_memory(size + ROOM):
        try:
            read()
        except (CheckpointError, ConfigError) as error:
            said = str(error)
    assert time.process_time() - began < SECONDS
    if said:
        assert name in said, said
        assert said.isprintable()
        assert len(said.replace(name, "")) < LONGEST, said
        assert ": " in said, said
    return said


def inspected(path: Path) -> None:
    """All that `headrace inspect` does with a model."""
    found = facts.make(model_source.find(str(path), dense=True))
    json.dumps(inspect_report.as_json(found))
    list(inspect_report.tables(found))


# GGUF

FILES = (GgufPieces(), GgufPieces(version=1), GgufPieces(version=2), GgufPieces(more=[("split.count", 2)]))


@tried(0.4)
@given(st.sampled_from(FILES), EDITS, st.booleans())
def test_spoiled_headers_of_gguf(file: GgufPieces, edits: list[Edit], knows_size: bool) -> None:
    data = spoiled_gguf(file, edits)
    size = len(data) if knows_size else None
    read_or_refuse(lambda: gguf_header.read(lambda at, n: data[at : at + n], "m.gguf", size), "m.gguf", len(data))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is used again and again."""
    return tmp_path_factory.mktemp("spoiled")


@tried(0.2)
@given(st.sampled_from(FILES[:3]), EDITS)
def test_spoiled_files_of_gguf_as_models(place: Path, file: GgufPieces, edits: list[Edit]) -> None:
    """Sizes, formats, tokenizer and template of what could be read."""
    path = place / "m.gguf"
    path.write_bytes(spoiled_gguf(file, edits))
    read_or_refuse(lambda: inspected(path), "m.gguf", path.stat().st_size)


@tried(0.2)
@given(st.sampled_from(FILES[:3]), EDITS)
def test_spoiled_files_of_gguf_as_a_run_reads_them(place: Path, file: GgufPieces, edits: list[Edit]) -> None:
    """As far as before the first weight: of the file, and of one like it with random weights."""
    path = place / "m.gguf"
    path.write_bytes(spoiled_gguf(file, edits))
    read_or_refuse(lambda: open_gguf(path, LoadOptions()), "m.gguf", path.stat().st_size)
    read_or_refuse(lambda: imagine(str(path), LoadOptions()), "m.gguf", path.stat().st_size)


@pytest.mark.parametrize("file", FILES[:3])
def test_a_file_that_is_not_spoiled_is_read(file: GgufPieces, place: Path) -> None:
    path = place / "m.gguf"
    path.write_bytes(spoiled_gguf(file, []))
    found = facts.make(model_source.find(str(path)))
    assert found.here.objections == ()
    assert not isinstance(found.text, str), found.text
    assert found.text.sample is not None
    assert open_gguf(path, LoadOptions()).spec == imagine(str(path), LoadOptions()).spec


@pytest.mark.parametrize(("name", "said"), [("token_embd.weight", "has [0, 64] weights"), ("", "vocabulary has 0")])
def test_a_vocabulary_of_nothing(name: str, said: str, place: Path) -> None:
    """An embedding without rows, and none at all beside a metadatum that says so."""
    metadata, tensors = small()
    path = place / "m.gguf"
    shapes = [(one, (0, 64) if one == name else shape, kind, size) for one, shape, kind, size in tensors]
    kept = [one for one in shapes if name or not one[0].startswith("token_embd")]
    path.write_bytes(packed([*metadata.items(), ("qwen3moe.vocab_size", 0)], kept))
    assert said in read_or_refuse(lambda: inspected(path), "m.gguf", path.stat().st_size)


# safetensors

CONFIG = {
    "model_type": "qwen3_moe", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 4, "vocab_size": 6, "num_experts": 2, "num_experts_per_tok": 1,
    "moe_intermediate_size": 4, "intermediate_size": 4, "decoder_sparse_step": 1, "mlp_only_layers": [],
    "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "hidden_act": "silu",
    "tie_word_embeddings": False, "norm_topk_prob": True, "torch_dtype": "float32", "attention_bias": False,
}  # fmt: skip


def header() -> tuple[dict[str, Any], int]:
    """The tensors of CONFIG, and their bytes."""
    at = "model.layers.0."
    shapes = {
        "model.embed_tokens.weight": [6, 8], "lm_head.weight": [6, 8], "model.norm.weight": [8],
        f"{at}self_attn.q_proj.weight": [8, 8], f"{at}self_attn.k_proj.weight": [4, 8],
        f"{at}self_attn.v_proj.weight": [4, 8], f"{at}self_attn.o_proj.weight": [8, 8], f"{at}mlp.gate.weight": [2, 8],
        f"{at}input_layernorm.weight": [8], f"{at}post_attention_layernorm.weight": [8],
        f"{at}self_attn.q_norm.weight": [4], f"{at}self_attn.k_norm.weight": [4],
        **{f"{at}mlp.experts.{e}.{name}_proj.weight": [8, 4] if name == "down" else [4, 8]
           for e in range(2) for name in ("gate", "up", "down")},
    }  # fmt: skip
    made: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        size = 4 * (shape[0] * shape[1] if len(shape) > 1 else shape[0])
        made[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    return made, end


HEADER, BYTES = header()


@tried(0.3)
@given(EDITS, st.booleans())
def test_spoiled_headers_of_safetensors(edits: list[Edit], knows_size: bool) -> None:
    data = spoiled_safetensors(HEADER, edits, BYTES)
    size = len(data) if knows_size else None
    read_or_refuse(
        lambda: headers.read(lambda at, n: data[at : at + n], "m.safetensors", size=size), "m.safetensors", len(data)
    )


@tried(0.1)
@given(EDITS)
def test_spoiled_files_of_safetensors_as_models(place: Path, edits: list[Edit]) -> None:
    """As a folder with a config, and as a run reads them, which compares them with the file."""
    folder = place / "m"
    folder.mkdir(exist_ok=True)
    path = folder / "model.safetensors"
    path.write_bytes(spoiled_safetensors(HEADER, edits, BYTES))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    read_or_refuse(lambda: inspected(folder), str(folder), path.stat().st_size)
    read_or_refuse(lambda: safetensors.read_header(path), "model.safetensors", path.stat().st_size)


def test_safetensors_that_are_not_spoiled_are_read(place: Path) -> None:
    folder = place / "whole"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(spoiled_safetensors(HEADER, [], BYTES))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    assert facts.make(model_source.find(str(folder))).here.objections == ()
    assert len(safetensors.read_header(folder / "model.safetensors")) == len(HEADER) - 1


# Large headers that would take many times their size in memory

LARGE = 24 << 20


def gguf_with(value: bytes) -> bytes:
    """A header with one pair; value: its type and content."""
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k" + value


def gguf_tensors() -> bytes:
    """Many tensors of no dimension."""
    many = LARGE // 32
    entries = b"".join(struct.pack("<Q8sIIQ", 8, b"%08d" % i, 0, 0, 32 * i) for i in range(many))
    return b"GGUF" + struct.pack("<IQQ", 3, many, 0) + entries


def json_of(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


BOMBS: dict[str, Callable[[], bytes]] = {
    "numbers": lambda: gguf_with(struct.pack("<IIQ", 9, 0, LARGE) + bytes(LARGE)),
    "arrays": lambda: gguf_with(struct.pack("<IIQ", 9, 9, LARGE // 12) + struct.pack("<IQ", 0, 0) * (LARGE // 12)),
    "texts": lambda: gguf_with(struct.pack("<IIQ", 9, 8, LARGE // 8) + bytes(LARGE)),
    "a wide text": lambda: gguf_with(struct.pack("<IQ", 8, LARGE) + b"\xf0\x9f\x98\x80" * (LARGE // 4)),
    "tensors": gguf_tensors,
    "objects": lambda: json_of(b'{"a":[' + b"{}," * (LARGE // 3) + b"0]}"),
    "lists": lambda: json_of(b'{"a":' + b"[[]," * (LARGE // 4) + b"]}"),
    "names": lambda: json_of(b"{" + b",".join(b'"%06d":{}' % i for i in range(LARGE // 12)) + b"}"),
    "a wide name": lambda: json_of(b'{"' + b"\xf0\x9f\x98\x80" * (LARGE // 4) + b'":0}'),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_large_header_takes_little_more_than_its_file(name: str, tmp_path: Path) -> None:
    data = BOMBS[name]()
    path = tmp_path / ("m.gguf" if data[:4] == b"GGUF" else "m.safetensors")
    path.write_bytes(data)
    of_file = gguf_set.of_file if data[:4] == b"GGUF" else headers.of_file
    del data
    read_or_refuse(lambda: of_file(path), path.name, path.stat().st_size)


@pytest.mark.parametrize("count", [2**16, 2**31 - 1, 2**63])
def test_a_number_of_parts_that_no_model_has(count: int, tmp_path: Path) -> None:
    """Under another name the parts are looked for by their numbers, up to the last."""
    path = tmp_path / "renamed.gguf"
    pair = struct.pack("<Q", 11) + b"split.count" + struct.pack("<IQ", 10, count)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pair)
    said = read_or_refuse(lambda: model_source.find(str(path)), "renamed.gguf", path.stat().st_size)
    assert f"split.count is {count}" in said
