"""GGUF files: bytes and parameters are those of the file, any part stands for all, odd and damaged ones are named."""

from __future__ import annotations

import math
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from refusals import refused
from tiny_gguf import SIZES, gguf, packed, small, split, write_gguf

from headrace import CheckpointError, ConfigError
from headrace.engine.bench.random_weights import RandomWeights
from headrace.engine.config import EngineConfig
from headrace.engine.devices.device import ram
from headrace.engine.placement.placement import Tier
from headrace.engine.planning.plan import sizes
from headrace.errors import SeveralModels
from headrace.kernels import reference
from headrace.loaders import model_source
from headrace.loaders.architecture.architecture import Architecture
from headrace.loaders.files import gguf_header
from headrace.loaders.files.gguf_header import Header
from headrace.loaders.files.headers import Stored
from headrace.loaders.gguf_weights.open_gguf import open_gguf
from headrace.loaders.weights.chosen_formats import LoadOptions


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "BF16"])
def test_bytes_of_a_gguf_are_those_of_its_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.gguf"
    written = write_gguf(path, kind=gguf.GGMLQuantizationType[kind])
    source = model_source.find(str(path))
    assert source.tensors is not None
    assert [(t.name, t.nbytes) for t in source.tensors] == written
    found, _ = sizes(source, "native")
    assert found.total == sum(size for _, size in written)
    assert found.expert_format == kind.lower()
    model = source.described.architecture
    assert model.family == "qwen3_moe"
    assert model.total_parameters == sum(math.prod(t.shape) for t in source.tensors)
    assert source.described.objections == () == source.described.unknown_keys


def test_every_type_is_the_librarys() -> None:
    for code, (name, block, size) in gguf_header.TYPES.items():
        kind = gguf.GGMLQuantizationType(code)
        assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == (name, (block, size))


def test_only_the_header_of_a_gguf_is_read(tmp_path: Path) -> None:
    """A file of which nothing but the header is there: 400 GB of weights that nobody downloaded."""
    path = tmp_path / "model.gguf"
    written = write_gguf(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - sum(size for _, size in written)])
    source = model_source.find(str(path))
    assert source.tensors is not None
    assert sum(t.nbytes for t in source.tensors) == sum(size for _, size in written)


def test_a_file_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    """ollama keeps models under digests."""
    path = tmp_path / "sha256-0123456789abcdef"
    write_gguf(path)
    assert model_source.find(str(path)).described.architecture.family == "qwen3_moe"


# Damaged and odd headers


def read(blob: bytes, size: int | None = None) -> Header:
    return gguf_header.read(lambda start, length: blob[start : start + length], "x.gguf", size)


@pytest.mark.parametrize("cut", [0, 3, 8, 20, 200, 2000])
def test_a_broken_gguf_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match=r"ends inside its header|no GGUF file"):
        model_source.find(str(path))


def test_a_damaged_gguf_is_refused() -> None:
    with refused(CheckpointError, "damaged header"):
        read(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", 1 << 60))
    with refused(CheckpointError, "version 99"):
        read(b"GGUF" + struct.pack("<IQQ", 99, 0, 0))


@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_version_is_read_and_big_endian_ones_are_named(version: int) -> None:
    metadata, tensors = small()
    pairs = list(metadata.items())
    found = read(packed(pairs, tensors, version=version))
    assert (found.metadata, len(found.tensors)) == (metadata, len(tensors))
    assert [t.shape for t in found.tensors] == [shape for _, shape, _, _ in tensors]
    with refused(CheckpointError, "is big-endian"):
        read(packed(pairs, tensors, version=version, order=">"))


@pytest.mark.parametrize("key", ["general.name", "qwen3moe.block_count", "tokenizer.ggml.model"])
def test_a_key_that_stands_twice_is_refused(key: str) -> None:
    with refused(CheckpointError, f"key '{key}' twice"):
        read(packed([(key, "a"), ("general.type", "model"), (key, "b")], []))


def test_a_tensor_that_stands_twice_is_refused() -> None:
    metadata, tensors = small()
    with refused(CheckpointError, "tensor 'output.weight' twice"):
        read(packed(list(metadata.items()), [*tensors, tensors[2]]))


def test_arrays_of_arrays_are_read_over() -> None:
    inner = struct.pack("<IQ3I", 4, 3, 1, 2, 3)
    words = struct.pack("<IQ", 8, 2) + struct.pack("<Q", 1) + b"a" + struct.pack("<Q", 2) + b"bc"
    array = struct.pack("<I", 9)
    pairs = [
        ("of.numbers", array + struct.pack("<IQ", 9, 2) + inner + inner),
        ("of.words", array + struct.pack("<IQ", 9, 1) + words),
        ("of.both", array + struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 9, 1) + inner),
        ("last", 7),
    ]
    assert read(packed(pairs, [])).metadata["last"] == 7
    endless = array + struct.pack("<IQ", 9, 1) * 40
    with refused(CheckpointError, "damaged header"):
        read(packed([("deep", endless)], []))


# Types that the table does not have


def test_bytes_of_unknown_types_follow_from_offsets(tmp_path: Path) -> None:
    """Two in a row, and the last tensor of the file: it ends where the file does."""
    metadata, tensors = small()
    other = [(name, shape, 144 if "exps" in name else kind, size) for name, shape, kind, size in tensors]
    path = tmp_path / "model.gguf"
    path.write_bytes(packed(list(metadata.items()), other))
    source = model_source.find(str(path))
    assert source.tensors is not None
    assert [t.nbytes for t in source.tensors] == [size for _, _, _, size in tensors]
    found, _ = sizes(source, "native")
    assert (found.total, found.expert_format) == (sum(size for *_, size in tensors), "type 144")
    assert found.counted == source.described.architecture.total_parameters
    assert any("type 144" in note for note in source.notes)


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_offsets_count_from_the_aligned_end_of_the_header(alignment: int) -> None:
    pairs = [("general.alignment", alignment)]
    blob = packed(pairs, [("a", (4, 8), 233, 40), ("b", (2, 8), 0, 64), ("c", (3, 8), 300, 100)], alignment=alignment)
    found = read(blob, len(blob)).tensors
    assert [t.nbytes for t in found] == [
        math.ceil(40 / alignment) * alignment,
        64,
        math.ceil(100 / alignment) * alignment,
    ]


def test_a_last_tensor_takes_as_many_bits_as_its_like() -> None:
    """Where the file's size is not known, or nothing but its header is there."""
    blob = packed([], [("a", (64, 64), 144, 2048), ("b", (32, 64), 144, 1024)])
    assert [t.nbytes for t in read(blob).tensors] == [2048, 1024]
    with refused(CheckpointError, "nothing says where its bytes end"):
        read(packed([], [("a", (64, 64), 0, 16384), ("b", (32, 64), 144, 1024)]))


# Parts


@pytest.mark.parametrize("names", [None, ["one.gguf", "zwei.gguf", "trois.gguf"], ["c.gguf", "b.gguf", "a.gguf"]])
def test_any_part_stands_for_all(tmp_path: Path, names: list[str] | None) -> None:
    """Also where somebody gave the parts other names."""
    _, tensors = small()
    for path in split(tmp_path, 3, names):
        source = model_source.find(str(path))
        assert source.tensors is not None
        assert {t.name for t in source.tensors} == {name for name, *_ in tensors}
        assert source.described.architecture.hidden == SIZES["hidden"]


@pytest.mark.parametrize("names", [None, ["a.gguf", "b.gguf", "c.gguf"]])
def test_a_part_that_is_missing_is_named(tmp_path: Path, names: list[str] | None) -> None:
    paths = split(tmp_path, 3, names)
    paths[1].unlink()
    with refused(CheckpointError, "one of 3 parts", "m-00002-of-00003.gguf" if names is None else "part 2"):
        model_source.find(str(paths[2]))


def test_parts_of_different_models_are_refused(tmp_path: Path) -> None:
    paths = split(tmp_path, 2, **{"split.tensors.count": 99})
    with refused(CheckpointError, "parts are not of one model"):
        model_source.find(str(paths[0]))
    first, second = split(tmp_path, 2)
    second.write_bytes(first.read_bytes().replace(b"split.no\x04\0\0\0\0", b"split.no\x04\0\0\0\1"))
    with refused(CheckpointError, "twice"):
        model_source.find(str(first))


def test_a_folder_of_gguf_files(tmp_path: Path) -> None:
    """One model is taken, in parts or not; several are named."""
    split(tmp_path, 2)
    write_gguf(tmp_path / "mmproj-model.gguf")
    assert model_source.find(str(tmp_path)).described.architecture.hidden == SIZES["hidden"]
    write_gguf(tmp_path / "other.gguf")
    with refused(
        SeveralModels, "2 GGUF models", "other.gguf 0.0", f"headrace generate {tmp_path}/m-00001-of-00002.gguf"
    ):
        model_source.find(str(tmp_path))


# What is no model


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (
            {"general.type": "adapter", "general.architecture": "llama", "general.base_model.0.name": "Qwen3"},
            "LoRA.*Qwen3",
        ),
        ({"general.type": "mmproj", "general.architecture": "clip"}, "vision projector"),
        ({"general.architecture": "clip"}, "vision projector"),
        ({"general.type": "imatrix"}, "importance matrix"),
        ({"general.architecture": "qwen3moe", "tokenizer.ggml.model": "gpt2"}, "vocabulary"),
        ({"general.architecture": "controlvector"}, "control vector"),
    ],
)
def test_files_of_other_kinds_are_called_what_they_are(metadata: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"is an? {said}.* give the model's own file"):
        model_source.of_gguf(Header(metadata, (), 0), "x.gguf")


def test_metadata_that_make_no_model_are_refused() -> None:
    tensor = Stored("token_embd.weight", "F32", (8, 8), 256)
    _, tensors = small()
    stored_ones = tuple(Stored(name, "F32", shape, size) for name, shape, _, size in tensors)
    no_heads = {key: value for key, value in small()[0].items() if "head_count" not in key}
    with refused(CheckpointError, "attention.head_count says no heads"):
        model_source.of_gguf(Header(no_heads, stored_ones, 0), "x.gguf")
    for metadata in ({"qwen3moe.block_count": "many"}, {"qwen3moe.block_count": 4}, {}):
        header = Header({"general.architecture": "qwen3moe", **metadata}, (tensor,), 0)
        with refused(CheckpointError, "metadata that make no model"):
            model_source.of_gguf(header, "x.gguf")
    with refused(CheckpointError, "no general.architecture"):
        model_source.of_gguf(Header({"a": 1}, (tensor,), 0), "x.gguf")


# Archs: by the tensors, whatever they are called


def stored(shapes: dict[str, tuple[int, ...]]) -> tuple[Stored, ...]:
    return tuple(Stored(name, "F32", shape, 4 * math.prod(shape)) for name, shape in shapes.items())


def model_of(arch: str, meta: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> Architecture:
    metadata = {"general.architecture": arch, **{f"{arch}.{key}": value for key, value in meta.items()}}
    source = model_source.of_gguf(Header(metadata, stored(shapes), 0), "x.gguf")
    model = source.described.architecture
    assert model.total_parameters == sum(map(math.prod, shapes.values()))
    assert sizes(source, "native")[0].total == 4 * model.total_parameters
    return model


def released(name: str) -> tuple[Architecture, dict[str, Any]]:
    source = model_source.find(name)
    return source.described.architecture, source.config


def grouped(config: dict[str, Any], real: Architecture) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Metadata and tensors of a released model with grouped-query attention, as converters write them."""
    hidden, heads, kv = real.hidden, config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or hidden // heads
    last = real.layers[-1].experts
    assert last is not None
    meta = {
        "block_count": len(real.layers), "context_length": real.context, "embedding_length": hidden,
        "attention.head_count": heads, "attention.head_count_kv": kv, "attention.key_length": size,
        "attention.value_length": size, "expert_count": last.count, "expert_used_count": last.top_k,
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (real.vocab, hidden), "output_norm.weight": (hidden,)}
    shapes |= {} if real.tied_head else {"output.weight": (real.vocab, hidden)}
    for i, layer in enumerate(real.layers):
        found: dict[str, tuple[int, ...]] = {
            "attn_q.weight": (heads * size, hidden), "attn_k.weight": (kv * size, hidden),
            "attn_v.weight": (kv * size, hidden), "attn_output.weight": (hidden, heads * size),
            "attn_norm.weight": (hidden,), "ffn_norm.weight": (hidden,),
        }  # fmt: skip
        if layer.experts is not None:
            e = layer.experts
            found |= {"ffn_gate_inp.weight": (e.count, hidden), "ffn_down_exps.weight": (e.count, hidden, e.width)}
            found |= {f"ffn_{part}_exps.weight": (e.count, e.width, hidden) for part in ("gate", "up")}
        shapes |= {f"blk.{i}.{key}": shape for key, shape in found.items()}
    return meta, shapes


@pytest.mark.parametrize(
    ("arch", "name"),
    [
        ("qwen3moe", "Qwen3-30B-A3B"),
        ("llama", "Mixtral-8x7B"),
        ("olmoe", "OLMoE-1B-7B"),
        ("granitemoe", "Granite-3.1-3b-a800m"),
        ("an-arch-of-2027", "Qwen3-235B-A22B"),
    ],
)
def test_released_models_from_a_gguf(arch: str, name: str) -> None:
    real, config = released(name)
    found = model_of(arch, *grouped(config, real))
    small_vectors = real.total_parameters - found.total_parameters  # norms of queries and keys are left out here
    assert 0 <= small_vectors < 1e-5 * real.total_parameters
    assert (found.routed_parameters, found.routed_per_token) == (real.routed_parameters, real.routed_per_token)
    assert found.cache_elements(4096) == real.cache_elements(4096)
    mixers = [(layer.mixer.pair_flops, len(layer.mixer.caches)) for layer in found.layers if layer.mixer]
    assert mixers == [(layer.mixer.pair_flops, len(layer.mixer.caches)) for layer in real.layers if layer.mixer]


@pytest.mark.parametrize("arch", ["qwen3moe", "grok"])
def test_experts_in_two_tensors_or_in_one_each(arch: str) -> None:
    """Gate and up as one, and the oldest files: a tensor an expert."""
    real, config = released("Mixtral-8x7B")
    meta, shapes = grouped(config, real)
    plain = model_of(arch, meta, shapes)
    fused, single = dict(shapes), dict(shapes)
    for i, layer in enumerate(real.layers):
        e = layer.experts
        assert e is not None
        for part in ("gate", "up", "down"):
            shape = single.pop(f"blk.{i}.ffn_{part}_exps.weight")[1:]
            single |= {f"blk.{i}.ffn_{part}.{n}.weight": shape for n in range(e.count)}
        for part in ("gate", "up"):
            del fused[f"blk.{i}.ffn_{part}_exps.weight"]
        fused[f"blk.{i}.ffn_gate_up_exps.weight"] = (e.count, 2 * e.width, real.hidden)
    assert model_of(arch, meta, fused).layers[3].experts == plain.layers[3].experts
    assert model_of(arch, meta, single).layers[3].experts == plain.layers[3].experts


def test_latent_attention_from_a_gguf() -> None:
    """A layer of DeepSeek-V3 as converters write it, and one for multi-token prediction behind it."""
    real, _ = released("DeepSeek-V3")
    hidden, heads = 7168, 128
    meta = {
        "block_count": 2, "context_length": 163840, "embedding_length": hidden, "attention.head_count": heads,
        "attention.head_count_kv": 1, "attention.key_length": 576, "attention.value_length": 512,
        "attention.q_lora_rank": 1536, "attention.kv_lora_rank": 512, "attention.key_length_mla": 192,
        "attention.value_length_mla": 128, "rope.dimension_count": 64, "expert_count": 256, "expert_used_count": 8,
        "nextn_predict_layers": 1,
    }  # fmt: skip
    layer = {
        "attn_norm": (hidden,), "ffn_norm": (hidden,), "attn_q_a": (1536, hidden), "attn_q_a_norm": (1536,),
        "attn_q_b": (heads * 192, 1536), "attn_kv_a_mqa": (576, hidden), "attn_kv_a_norm": (512,),
        "attn_k_b": (heads, 512, 128), "attn_v_b": (heads, 128, 512), "attn_output": (hidden, heads * 128),
        "ffn_gate_inp": (256, hidden), "exp_probs_b": (256,), "ffn_gate_exps": (256, 2048, hidden),
        "ffn_up_exps": (256, 2048, hidden), "ffn_down_exps": (256, hidden, 2048), "ffn_gate_shexp": (2048, hidden),
        "ffn_up_shexp": (2048, hidden), "ffn_down_shexp": (hidden, 2048),
    }  # fmt: skip
    shapes = {"token_embd.weight": (1000, hidden), "output_norm.weight": (hidden,), "output.weight": (1000, hidden)}
    shapes |= {f"blk.0.{name}.weight": shape for name, shape in layer.items()}  # type: ignore[misc]
    found = model_of("deepseek2", meta, shapes)
    wanted = real.layers[3]
    assert len(found.layers) == 1
    assert sum(p.elements for p in found.layers[0].parts) == sum(p.elements for p in wanted.parts)
    assert found.layers[0].experts == wanted.experts
    assert wanted.mixer is not None
    assert found.layers[0].mixer == replace(wanted.mixer, parts=())


def test_windows_and_states_by_the_metadata() -> None:
    """gpt-oss looks back 128 tokens in every second layer; Qwen3-Next has a state in three layers of four."""
    real, config = released("gpt-oss-20b")
    meta, shapes = grouped(config, real)
    found = model_of("gpt-oss", {**meta, "attention.sliding_window": 128}, shapes)
    assert found.cache_elements(4096) == real.cache_elements(4096)
    listed = [i % 2 == 0 for i in range(len(real.layers))]
    swa = {"attention.sliding_window": 128, "attention.sliding_window_pattern": listed}
    assert model_of("mimo2", {**meta, **swa}, shapes).cache_elements(4096) == real.cache_elements(4096)
    real, config = released("Qwen3-Next-80B-A3B")
    meta, shapes = grouped(config, real)
    for i, layer in enumerate(real.layers):
        if layer.mixer is not None and layer.mixer.state:
            for name in ("q", "k", "v", "output"):
                del shapes[f"blk.{i}.attn_{name}.weight"]
            shapes[f"blk.{i}.ssm_ba.weight"] = (64, real.hidden)
    keys = {"conv_kernel": 4, "state_size": 128, "group_count": 16, "time_step_rank": 32, "inner_size": 4096}
    found = model_of("qwen3next", {**meta, **{f"ssm.{key}": value for key, value in keys.items()}}, shapes)
    assert found.state_elements == real.state_elements
    assert found.cache_elements(4096) == real.cache_elements(4096)


def test_counts_that_differ_by_layer() -> None:
    """Arrays in the metadata: key-value heads of each layer, 0 where one does not attend."""
    real, config = released("Mixtral-8x7B")
    meta, shapes = grouped(config, real)
    counts = [8, 4] * 16
    for i, count in enumerate(counts):
        shapes |= {f"blk.{i}.attn_{part}.weight": (count * 128, real.hidden) for part in ("k", "v")}
    meta |= {"attention.head_count_kv": counts, "feed_forward_length": [14336] * 32}
    found = model_of("deci", meta, shapes)
    assert found.cache_elements(100) == 16 * (8 + 4) * 2 * 128 * 100


def test_a_dense_model_is_called_one(tmp_path: Path) -> None:
    metadata, tensors = small(arch="llama")
    dense = [one for one in tensors if "exps" not in one[0] and "gate_inp" not in one[0]]
    dense += [(f"blk.{i}.ffn_up.weight", (96, 64), 0, 4 * 96 * 64) for i in range(SIZES["layers"])]
    path = tmp_path / "model.gguf"
    path.write_bytes(packed(list(metadata.items()), dense))
    with refused(ConfigError, "dense model of the family 'llama'"):
        model_source.find(str(path))
    model = model_source.find(str(path), dense=True).described
    assert model.architecture.moe_layers == ()
    assert model.objections == ("llama is dense here: the engine runs mixture-of-experts models",)
    with refused(ConfigError, str(path), "dense model of the family 'llama'", "headrace inspect"):
        open_gguf(path, LoadOptions())  # as a run does


# Runs of random weights


@pytest.mark.parametrize("arch", ["qwen3moe", "qwen2moe", "llama", "olmoe", "granitemoe"])
def test_random_weights_take_the_shape_of_a_gguf(tmp_path: Path, arch: str) -> None:
    metadata, tensors = small(arch=arch)
    if arch == "qwen2moe":
        shared = {"gate": (48, 64), "up": (48, 64), "down": (64, 48)}
        for i in range(SIZES["layers"]):
            tensors += [(f"blk.{i}.ffn_{part}_shexp.weight", shape, 0, 4 * 48 * 64) for part, shape in shared.items()]
    path = tmp_path / "model.gguf"
    path.write_bytes(packed(list(metadata.items()), tensors))
    weights = RandomWeights(str(path))
    config = EngineConfig()
    weights.open(config, {Tier.CPU: ram(reference, "reference", config)}, False)
    spec, plan = weights.whole, model_source.find(str(path)).described
    assert (len(spec.layers), spec.hidden, spec.moe.experts) == (SIZES["layers"], SIZES["hidden"], SIZES["experts"])
    assert (spec.mixers[0].k_rows, spec.moe.width) == (SIZES["kv"] * SIZES["size"], SIZES["width"])
    assert (spec.family, plan.objections) == (plan.architecture.family, ())
