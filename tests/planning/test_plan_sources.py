"""What MODEL may be: bytes of headers equal those of the files; the hub is asked for headers alone."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_hub
from fake_hub import FakeHub
from refusals import edit_json, refused
from tiny_gguf import write_gguf

from headrace import LLM, CheckpointError, ConfigError, HubError
from headrace.engine.planning.inspection import facts
from headrace.engine.planning.of_headers import of_headers
from headrace.engine.planning.plan import sizes
from headrace.loaders import model_source
from headrace.loaders.architecture.tensor_names import place
from headrace.loaders.files import gguf_header, headers, weight_files
from headrace.loaders.files.headers import Stored
from headrace.loaders.weights import converted


def file_bytes(directory: Path) -> int:
    """Bytes of the tensors in the safetensors files of a directory."""
    total = 0
    for path in directory.glob("*.safetensors"):
        total += path.stat().st_size - 8 - struct.unpack("<Q", path.read_bytes()[:8])[0]
    return total


@pytest.mark.parametrize("variant", ["qwen3_moe", "qwen2_moe", "mixtral", "olmoe", "granitemoe"])
def test_bytes_of_a_checkpoint_are_those_of_its_file(variant: str, checkpoints: Callable[[str], Path]) -> None:
    """And group by group those computed from the architecture in the stored type."""
    directory = checkpoints(variant)
    source = model_source.find(str(directory))
    found, _ = sizes(source, "native")
    assert found.from_headers
    assert found.total == file_bytes(directory)
    computed, _ = sizes(source, "experts=f32,dense=f32,embed=f32")
    assert found.groups == computed.groups
    assert [layer.common for layer in found.layers] == [layer.common for layer in computed.layers]
    assert found.common == computed.common


def test_a_config_file_alone(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    config = tmp_path / "some.json"
    config.write_bytes((checkpoints("qwen3_moe") / "config.json").read_bytes())
    assert model_source.find(str(config)).tensors is None
    alone = tmp_path / "model"
    alone.mkdir()
    (alone / "config.json").write_bytes(config.read_bytes())
    assert model_source.find(str(alone)).tensors is None


def test_weights_of_another_model_are_refused(make: Callable[..., Path]) -> None:
    source = model_source.find(str(make("qwen3_moe", mlp_only_layers=[0, 1])))
    with refused(CheckpointError, "config and weights do not belong together"):
        sizes(source, "native")


@pytest.mark.parametrize(
    ("variant", "formats"),
    [
        ("qwen3_moe", {"expert_format": "q4_0"}),
        ("qwen3_moe", {"expert_format": "q8_0", "dense_format": "q4_0"}),
        ("qwen2_moe", {"expert_format": "q4_k_m", "dense_format": "q4_k_m"}),
        ("mixtral", {"expert_format": "bf16", "dense_format": "q8_0"}),
        ("deepseek_v3", {"expert_format": "f32"}),
        ("demo", {"expert_format": "q4_k_m", "dense_format": "q4_k_m"}),
    ],
    ids=lambda one: one if isinstance(one, str) else "-".join(one.values()),
)
def test_a_conversion_has_the_bytes_of_its_file(
    variant: str, formats: dict[str, str], checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    """Its config.json is still that of the model it was made from."""
    model = variant if variant == "demo" else str(checkpoints(variant))
    with LLM(model, **formats, max_context=16, speculate="off", no_measure=True) as llm:
        parts = llm.parts
        converted.save(parts.checkpoint.directory, tmp_path / "to", parts.weights, parts.checkpoint.formats)
    source = model_source.find(str(tmp_path / "to"))
    assert sizes(source, "native")[0].in_memory == file_bytes(tmp_path / "to")
    assert source.notes[-1].startswith("headrace convert wrote it")
    runs = facts.make(source).runs
    assert {run.format for run in runs if run.group == "experts"} == {
        *parts.checkpoint.formats.names["experts"].split("/")
    }


def test_a_damaged_conversion_is_refused(make: Callable[..., Path]) -> None:
    (directory := make("qwen3_moe")).joinpath("headrace.json").write_text(
        '{"version": 1, "formats": {"experts": "q9"}}'
    )
    with refused(ConfigError, "is damaged", "convert the model again"):
        sizes(model_source.find(str(directory)), "native")


def test_unknown_keys_and_what_stops_a_run_are_said(make: Callable[..., Path]) -> None:
    directory = make("mixtral", scoring_func="sigmoid", surprising_heads=2, surprising_key=2)
    described = model_source.find(str(directory)).described
    assert described.unknown_keys == ("surprising_heads",)
    assert "scoring_func is" in described.objections[0]


@pytest.mark.parametrize(("model", "said"), [("Qwen3-30B-A3C", "Qwen3-30B-A3B"), ("./nowhere", "no directory")])
def test_models_that_are_not_there(model: str, said: str) -> None:
    with refused(ConfigError, said):
        model_source.find(model)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"x")
    with refused(ConfigError, "neither a directory nor a .gguf nor a config.json"):
        model_source.find(str(path))


# Names


@pytest.mark.parametrize(
    ("name", "layer", "group"),
    [
        ("model.layers.3.mlp.experts.17.gate_proj.weight", 3, "experts"),
        ("model.layers.3.mlp.gate.e_score_correction_bias", 3, "router"),
        ("model.layers.3.mlp.gate_proj.weight_scale_inv", 3, "dense"),
        ("model.layers.3.mlp.shared_experts.up_proj.weight", 3, "shared"),
        ("model.layers.3.mlp.shared_expert_gate.weight", 3, "router"),
        ("model.layers.3.self_attn.kv_a_layernorm.weight", 3, "norms"),
        ("model.layers.3.self_attn.kv_b_proj.weight", 3, "attention"),
        ("model.layers.3.linear_attn.in_proj_qkvz.weight", 3, "attention"),
        ("model.layers.2.block_sparse_moe.input_linear.weight", 2, "experts"),
        ("model.layers.2.mlp.experts.gate_up_proj_blocks", 2, "experts"),
        ("layers.5.ffn.experts.3.w1.scale", 5, "experts"),
        ("layers.5.ffn.gate.tid2eid", 5, "tables"),
        ("head.weight", None, "head"),
        ("embed.weight", None, "embedding"),
        ("model.language_model.embed_tokens.weight", None, "embedding"),
        ("model.norm.weight", None, "norms"),
        ("model.layers.61.eh_proj.weight", None, "multi-token prediction"),
        ("model.layers.61.mlp.experts.0.up_proj.weight", None, "multi-token prediction"),
        ("mtp.0.attn.wkv.weight", None, "multi-token prediction"),
        ("model.visual.blocks.0.attn.qkv.weight", None, "vision and audio"),
        ("backbone.layers.4.mixer.experts.9.up_proj.weight", 4, "experts"),
        ("backbone.layers.4.mixer.in_proj.weight", 4, "attention"),
        ("blk.7.ffn_gate_exps.weight", 7, "experts"),
        ("blk.7.ffn_gate_inp.weight", 7, "router"),
        ("blk.7.ffn_gate_inp_shexp.weight", 7, "router"),
        ("blk.7.ffn_up_shexp.weight", 7, "shared"),
        ("blk.7.ffn_down.weight", 7, "dense"),
        ("blk.7.ffn_down.3.weight", 7, "experts"),
        ("blk.7.ffn_norm.weight", 7, "norms"),
        ("blk.7.exp_probs_b.bias", 7, "router"),
        ("blk.7.attn_kv_a_mqa.weight", 7, "attention"),
        ("blk.60.nextn.eh_proj.weight", None, "multi-token prediction"),
        ("output.weight", None, "head"),
        ("output_norm.weight", None, "norms"),
        ("token_embd.weight", None, "embedding"),
    ],
)
def test_where_a_tensor_belongs(name: str, layer: int | None, group: str) -> None:
    assert place(name, 61) == (layer, group)


# The hub


def repo_files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def sharded(tensors: dict[str, tuple[str, tuple[int, ...]]], shards: int, body: int) -> dict[str, bytes]:
    """A checkpoint of `shards` files with so many bytes behind each header."""
    names = list(tensors)
    files, where = {}, {}
    for n in range(shards):
        file = f"model-{n + 1:05d}-of-{shards:05d}.safetensors"
        header, at = {}, 0
        for name in names[n::shards]:
            dtype, shape = tensors[name]
            size = int(np.prod(shape)) * 4
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
            where[name], at = file, at + size
        blob = json.dumps(header).encode()
        files[file] = struct.pack("<Q", len(blob)) + blob + b"\0" * body
    return {**files, "model.safetensors.index.json": json.dumps({"weight_map": where}).encode()}


def test_a_hub_id_downloads_headers_only(hub: FakeHub, cache: Path, checkpoints: Callable[[str], Path]) -> None:
    """Config, index and headers: a few kilobytes of each shard, however large it is."""
    directory = checkpoints("qwen3_moe")
    local = weight_files.headers_of(directory)
    body = 8 << 20
    files = sharded({t.name: (t.dtype, t.shape) for t in local}, 3, body)
    hub.add("org/large", {"config.json": (directory / "config.json").read_bytes(), **files})
    start = time.process_time()  # the hub's threads included
    source = model_source.find("org/large", cache_dir=cache)
    assert time.process_time() - start < 10
    assert source.tensors is not None
    assert sorted(source.tensors, key=lambda t: t.name) == sorted(local, key=lambda t: t.name)
    shards = [name for name in files if name.endswith(".safetensors")]
    assert {name for name, _ in hub.ranges} == set(shards)
    assert sum(hub.sent[name] for name in shards) <= len(shards) * headers.FIRST
    assert sum(hub.sent.values()) < body / 8
    assert sizes(source, "native")[0].total == sum(t.nbytes for t in local)


def test_a_header_longer_than_the_first_piece(
    hub: FakeHub, cache: Path, checkpoints: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headers, "FIRST", 100)
    hub.add("org/tiny", repo_files(checkpoints("mixtral")))
    source = model_source.find("org/tiny", cache_dir=cache)
    assert source.tensors == weight_files.headers_of(checkpoints("mixtral"))
    assert len(hub.ranges) == 2


def test_a_server_that_ignores_ranges_is_not_read_to_the_end(
    hub: FakeHub, cache: Path, checkpoints: Callable[[str], Path]
) -> None:
    files = repo_files(checkpoints("mixtral"))
    files["model.safetensors"] += b"\0" * (64 << 20)
    hub.add("org/tiny", files)
    hub.ignores_ranges = True
    source = model_source.find("org/tiny", cache_dir=cache)
    assert source.tensors == weight_files.headers_of(checkpoints("mixtral"))


def test_a_gguf_on_the_hub(hub: FakeHub, cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    written = write_gguf(path)
    hub.add("org/quantised", {"model-q8.gguf": path.read_bytes() + b"\0" * (4 << 20), "README.md": b"x"})
    source = model_source.find("org/quantised/model-q8.gguf", cache_dir=cache)
    assert source.tensors is not None
    assert [(t.name, t.nbytes) for t in source.tensors] == written
    assert hub.sent["model-q8.gguf"] <= gguf_header.STEP
    alone = model_source.find("org/quantised", cache_dir=cache)
    assert (alone.name, alone.tensors) == ("org/quantised/model-q8.gguf", source.tensors)
    with refused(HubError, "no file other.gguf", "model-q8.gguf"):
        model_source.find("org/quantised/other.gguf", cache_dir=cache)


def test_a_split_gguf_on_the_hub(hub: FakeHub, cache: Path, tmp_path: Path) -> None:
    """Each part has a header of its own; the first has the metadata."""
    path = tmp_path / "model.gguf"
    written = write_gguf(path)
    blob = path.read_bytes()
    pairs = struct.unpack_from("<Q", blob, 16)[0]
    key = b"split.count"
    extra = struct.pack("<Q", len(key)) + key + struct.pack("<IH", 2, 2)
    first = blob[:16] + struct.pack("<Q", pairs + 1) + extra + blob[24:]
    second = (
        blob[:4] + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", 5) + b"extra" + struct.pack("<IQIQ", 1, 8, 0, 0)
    )
    hub.add("org/split", {"q4/m-00001-of-00002.gguf": first, "q4/m-00002-of-00002.gguf": second})
    source = model_source.find("org/split/q4/m-00001-of-00002.gguf", cache_dir=cache)
    assert source.tensors is not None
    assert len(source.tensors) == len(written) + 1


def test_a_hub_that_cannot_be_reached_leaves_the_catalogue(hub: FakeHub, cache: Path) -> None:
    source = model_source.find("moonshotai/Kimi-K2-Instruct", cache_dir=cache)
    assert "could not be read from the hub" in source.notes[0]
    assert source.described.architecture.total_parameters == pytest.approx(1026.408e9, rel=1e-6)
    with pytest.raises(HubError, match="has no model"):
        model_source.find("nobody/knows-this", cache_dir=cache)


def test_offline_takes_what_is_in_the_cache(hub: FakeHub, cache: Path, checkpoints: Callable[[str], Path]) -> None:
    hub.add("org/tiny", repo_files(checkpoints("mixtral")))
    tiny_hub.fetch(cache, "org/tiny")
    hub.forget()
    source = model_source.find("org/tiny", cache_dir=cache, offline=True)
    assert source.tensors == weight_files.headers_of(checkpoints("mixtral"))
    assert not hub.requests
    with pytest.raises(HubError, match="not in the cache"):
        model_source.find("org/other", cache_dir=cache, offline=True)


def test_damaged_headers_are_refused(make: Callable[..., Path]) -> None:
    directory = make("mixtral")
    path = directory / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 40) + path.read_bytes()[8:])
    with refused(CheckpointError, "no safetensors file"):
        model_source.find(str(directory))
    edit_json(directory / "config.json", hidden_size=0)
    with refused(ConfigError, "hidden_size is 0"):
        model_source.find(str(directory / "config.json"))


def test_storage_of_left_out_parts(checkpoints: Callable[[str], Path]) -> None:
    """Layers for multi-token prediction are part of a download and of no token."""
    source = model_source.find(str(checkpoints("qwen3_moe")))
    assert source.tensors is not None
    more = [*source.tensors, Stored("mtp.fc.weight", "BF16", (8, 8), 128)]
    found = of_headers(source.described.architecture, more, "x")
    assert found.left_out == {"multi-token prediction": 128}
    assert found.total == sum(t.nbytes for t in source.tensors)


def test_files_that_hold_another_number_of_parameters(checkpoints: Callable[[str], Path]) -> None:
    """Counted where an element is a weight: a plan says when the two differ."""
    source = model_source.find(str(checkpoints("qwen3_moe")))
    assert source.tensors is not None
    model = source.described.architecture
    assert of_headers(model, source.tensors, "x").counted == model.total_parameters
    more = [*source.tensors, Stored("model.layers.0.self_attn.extra.weight", "F32", (99, 9), 4 * 891)]
    assert of_headers(model, more, "x").counted == model.total_parameters + 891
    packed = [*source.tensors, Stored("model.layers.0.self_attn.extra.weight", "U8", (99, 9), 891)]
    assert of_headers(model, packed, "x").counted is None
