"""What a plan says of a GGUF file: in memory what the engine allocates, on the disk what the file has, to the byte."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import gguf
import gguf_files
import mixer_files
import mixer_types
import numpy as np
import pytest
import tiny
from refusals import refused

from headrace.engine.bandwidth_model.hardware import parse
from headrace.engine.bench.random_weights import random_llm
from headrace.engine.ledger.passes import CPU_DRAM
from headrace.engine.memory.deciding import storage_of
from headrace.engine.planning import of_headers
from headrace.engine.planning.inspection import facts
from headrace.engine.planning.options import Options
from headrace.engine.planning.plan import make, sizes
from headrace.engine.planning.storage import Storage
from headrace.errors import CheckpointError
from headrace.loaders import model_source
from headrace.loaders.architecture.architecture import Cache
from headrace.loaders.architecture.of_spec import of_spec
from headrace.loaders.files.headers import Stored
from headrace.loaders.gguf_weights.open_gguf import open_gguf
from headrace.loaders.model_source import Source
from headrace.loaders.spec import CompressedSpec, MixerSpec, ModelSpec
from headrace.loaders.weights.checkpoint import open_directory
from headrace.loaders.weights.chosen_formats import LoadOptions
from headrace.loaders.weights.imagined import imagine

SIZES = {"hidden_size": 256, "head_dim": 64, "moe_intermediate_size": 512, "intermediate_size": 256}


MIXES = {
    "q4_k_m": gguf_files.by_role(
        token_embd="Q4_K", output="Q6_K", attn_q="Q4_K", attn_k="Q4_K", attn_v="Q6_K/Q4_K", attn_output="Q4_K",
        ffn_gate_exps="Q4_K", ffn_up_exps="Q4_K", ffn_down_exps="Q6_K/Q4_K/Q4_K", ffn_gate="Q4_K", ffn_up="Q4_K",
        ffn_down="Q6_K",
    ),
    "padded": gguf_files.by_role(
        token_embd="Q3_K", output="IQ4_XS", attn_q="IQ4_XS", attn_k="Q3_K", attn_v="Q5_0", attn_output="Q3_K",
        ffn_gate_exps="Q3_K/IQ4_XS", ffn_up_exps="Q3_K/Q5_1", ffn_down_exps="Q2_K/IQ4_XS/MXFP4", ffn_gate="Q8_0",
    ),
    "plain": gguf_files.by_role(
        token_embd="F16", attn_q="F16", ffn_gate_exps="F16", ffn_up_exps="F16", ffn_down_exps="F16"
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=list(MIXES))
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("mix")
    tiny.build("qwen3_moe", base / "shapes", **SIZES)
    write(base / "shapes", base / "mix.gguf", MIXES[request.param])
    return base / "mix.gguf"


def write(directory: Path, to: Path, of: gguf_files.Types) -> None:
    config, tensors = gguf_files.read(directory)
    rng = np.random.default_rng(0)
    stored: dict[str, tuple[str, Any]] = {}
    for name, values in tensors.items():
        kind = of(name)
        if kind == "F16":
            stored[name] = kind, values.astype(np.float16)
        elif kind != "F32":
            stored[name] = kind, gguf_files.random_blocks(rng, kind, values.shape)[0]
    gguf_files.write(to, config, tensors, stored)


def planned(source: Source) -> Storage:
    return sizes(source, "native")[0]


def same(found: Storage, engine: Storage) -> None:
    """In every part, and of every format, by layer."""
    for one, other in zip(found.layers, engine.layers, strict=True):
        assert one.experts == other.experts
        for part in ("common_in", "shared_in", "expert_in"):
            assert dict(getattr(one, part).parts) == dict(getattr(other, part).parts), part
    for part in ("outside_in", "head_in", "row_in"):
        assert dict(getattr(found, part).parts) == dict(getattr(engine, part).parts), part
    assert (found.held, found.in_memory) == (engine.held, engine.in_memory)


def test_memory_is_what_the_engine_allocates_and_the_disk_what_the_file_has(path: Path) -> None:
    checkpoint, source = open_gguf(path, LoadOptions()), model_source.find(str(path))
    found = planned(source)
    same(found, storage_of(checkpoint.spec, checkpoint.formats))
    assert found.in_memory == checkpoint.weight_bytes
    assert found.total == sum(entry.nbytes for entry in checkpoint.entries.values())
    assert source.tensors is not None
    assert found.in_memory != found.total


def test_a_plan_of_it_says_both(path: Path) -> None:
    checkpoint, source = open_gguf(path, LoadOptions()), model_source.find(str(path))
    found = make(source, parse("ddr5-6000-2ch, 64gb, 8cores"), Options(context=64, prompt=32, placement="cpu"))
    assert found.best is not None
    needed = found.best.memory["ram"].needed
    assert sum(needed.get(what, 0) for what in ("common weights", "experts", "embedding")) == checkpoint.weight_bytes
    assert found.best.memory["disk"].total == sum(tensor.nbytes for tensor in source.tensors or ())
    spec = checkpoint.spec
    layouts = [checkpoint.formats.layout(spec, i) for i, is_moe in enumerate(spec.is_moe) if is_moe]
    assert found.bytes_per_token[CPU_DRAM]["experts"] == sum(spec.moe.top_k * layout.bytes for layout in layouts)


def test_formats_that_are_shown_are_those_that_gguf_reads(path: Path) -> None:
    """Bytes by type, of the file."""
    read: Counter[str] = Counter()
    for tensor in gguf.GGUFReader(path).tensors:
        read[tensor.tensor_type.name.lower()] += int(tensor.n_bytes)
    shown: Counter[str] = Counter()
    for run in facts.make(model_source.find(str(path))).runs:
        shown[run.format] += run.nbytes
    assert shown == read


def test_random_weights_of_a_file_have_its_types(path: Path) -> None:
    """Tensor by tensor, unless others are asked for."""
    random = imagine(str(path), LoadOptions())
    assert random.formats == open_gguf(path, LoadOptions()).formats
    assert imagine(str(path), LoadOptions(expert_format="q4_0")).formats.experts.name == "q4_0"
    with random_llm(str(path), kernels="reference", max_context=64) as llm:
        assert llm.parts.checkpoint.formats == random.formats
        assert len(llm.generate([[1, 2, 3]], {"max_new_tokens": 2, "ignore_eos": True})[0].token_ids) == 2


def test_random_weights_of_what_cannot_run_are_refused(tmp_path: Path) -> None:
    tiny.build("qwen3_moe", tmp_path / "shapes", **SIZES)
    config, tensors = gguf_files.read(tmp_path / "shapes")
    name = "blk.0.ffn_up_exps.weight"
    raw = np.zeros((*tensors[name].shape[:-1], 66), dtype=np.uint8)
    gguf_files.write(tmp_path / "m.gguf", config, tensors, {name: ("TQ2_0", raw)})
    with refused(CheckpointError, "m.gguf", f"'{name}' is TQ2_0", "Q4_K"):
        imagine(str(tmp_path / "m.gguf"), LoadOptions())
    gguf_files.write(tmp_path / "m.gguf", config, {n: t for n, t in tensors.items() if n != "blk.2.attn_v.weight"})
    with refused(CheckpointError, "m.gguf has no tensor 'blk.2.attn_v.weight'"):
        imagine(str(tmp_path / "m.gguf"), LoadOptions())


def test_types_without_kernels_keep_the_bytes_of_the_file(tmp_path: Path) -> None:
    """tq2_0 takes 66 bytes for 256 weights; all else of the expert is packed."""
    tiny.build("qwen3_moe", tmp_path / "shapes", **SIZES)
    config, tensors = gguf_files.read(tmp_path / "shapes")
    name = "blk.0.ffn_up_exps.weight"
    raw = np.zeros((*tensors[name].shape[:-1], 66), dtype=np.uint8)
    gguf_files.write(tmp_path / "m.gguf", config, tensors, {name: ("TQ2_0", raw)})
    found = planned(model_source.find(str(tmp_path / "m.gguf")))
    assert dict(found.layers[0].expert_in.parts) == {"f32": 2 * 4 * 256 * 512, "tq2_0": 512 * 66}


def caches_of(spec: ModelSpec, mixer: MixerSpec) -> tuple[Cache, ...]:
    """Those of a mixer, by the architecture of the model's spec."""
    layer = next(i for i, one in enumerate(spec.layers) if one.mixer == mixer)
    found = of_spec(spec).layers[layer].mixer
    assert found is not None
    return found.caches


@pytest.mark.parametrize(("mix", "joined"), [*((mix, False) for mix in mixer_types.MIXES), ("deepseek", True)])
def test_the_same_of_other_mixers(mix: str, joined: bool, tmp_path: Path) -> None:
    """Blocks of keys' up-projections that are turned, small matrices that become float32, states instead of a cache."""
    variant, changed, roles = mixer_types.MIXES[mix]
    tiny.build(variant, tmp_path / "shapes", **changed)
    of = gguf_files.by_role(**roles, attn_kv_b="Q4_K")
    mixer_files.mixed(tmp_path / "shapes", tmp_path / "m.gguf", tmp_path / "twin.gguf", of, joined=joined)
    for path in (tmp_path / "m.gguf", tmp_path / "twin.gguf"):
        checkpoint, source = open_gguf(path, LoadOptions()), model_source.find(str(path))
        found = planned(source)
        same(found, storage_of(checkpoint.spec, checkpoint.formats))
        assert found.in_memory == checkpoint.weight_bytes
        turns = [tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == "rope_freqs.weight"]  # no weight
        beside = sum(int(tensor.n_elements) for tensor in turns)
        assert found.total == sum(entry.nbytes for entry in checkpoint.entries.values()) + 4 * beside
        assert source.described.objections == ()
        model = source.described.architecture
        assert model.total_parameters == sum(np.prod(e.shape) for e in checkpoint.entries.values()) + beside
        for one, layer in zip(model.layers, checkpoint.spec.layers, strict=True):
            assert (one.mixer is None) == (layer.mixer is None)
            if one.mixer is None:
                continue
            if isinstance(layer.mixer, CompressedSpec):
                assert one.mixer.caches == caches_of(checkpoint.spec, layer.mixer)
                assert one.mixer.state == layer.mixer.state
                continue
            assert sum(cache.width for cache in one.mixer.caches) == layer.mixer.cached
            assert {cache.window for cache in one.mixer.caches} <= {layer.mixer.window}
            assert one.mixer.state == layer.mixer.state + checkpoint.spec.grams_state(layer)


@pytest.mark.parametrize(
    "variant",
    ["qwen3_moe", "qwen2_moe", "granitemoe", "gpt_oss", "deepseek_v2", "deepseek_v3-bias", "qwen3_next-dense",
     "qwen3_5_moe_text", "lfm2_moe-bias", "granitemoehybrid-groups", "nemotron_h-mlp", "deepseek_v4"],
)  # fmt: skip
def test_the_same_of_a_checkpoint_of_bfloat16(variant: str, tmp_path: Path, checkpoints: Any) -> None:
    """Routers, norms and biases are float32 in memory, whatever the file has."""
    checkpoint = open_directory(checkpoints(variant), LoadOptions())
    same(planned(model_source.find(str(checkpoints(variant)))), storage_of(checkpoint.spec, checkpoint.formats))


def test_weights_that_are_packed_several_to_an_element_are_counted_as_stored() -> None:
    source = model_source.find("Qwen3-30B-A3B")
    model = source.described.architecture
    tensors = [
        Stored(f"model.layers.{i}.mlp.experts.0.up_proj.qweight", "I32", (96, 2048), 4 * 96 * 2048) for i in range(48)
    ]
    norms = [Stored(f"model.layers.{i}.input_layernorm.weight", "BF16", (2048,), 4096) for i in range(48)]
    found = of_headers.of_headers(model, [*tensors, *norms], "x")
    assert found.in_memory == found.total == 48 * (4 * 96 * 2048 + 4096)
