"""From files to packed weights: the same whatever the files look like, in the bytes that packing by hand gives."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peak import PEAK
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from headrace import LLM, OptionError, SamplingParams
from headrace.kernels import FORMATS, load
from headrace.kernels.formats import KV_BF16, KV_FORMATS
from headrace.kernels.packed import Matrix, Part
from headrace.loaders.architecture import catalogue
from headrace.loaders.families import spec_of
from headrace.loaders.families.config_reader import ConfigReader
from headrace.loaders.files import read_ahead, safetensors
from headrace.loaders.weights import converted
from headrace.loaders.weights.checkpoint import LoadOptions, load_weights, open_directory
from headrace.loaders.weights.model_weights import Formats, ModelWeights, allocate
from headrace.loaders.weights.targets import targets

Checkpoints = Callable[[str], Path]
Oracle = Callable[[str], PreTrainedModel]
IDS = [5, 99, 31, 7, 120, 64, 3, 88]
TEN = SamplingParams(max_new_tokens=10, ignore_eos=True)
REFERENCE = load("reference")


def loaded(directory: Path, **options: Any) -> ModelWeights:
    return load_weights(open_directory(directory, LoadOptions(**options)), REFERENCE)


def same_bytes(one: ModelWeights, other: ModelWeights) -> bool:
    a, b = one.named(), other.named()
    return a.keys() == b.keys() and all(torch.equal(a[n].view(torch.uint8), b[n].view(torch.uint8)) for n in a)


@pytest.fixture
def copy(checkpoints: Checkpoints, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a checkpoint that a test may change."""
    return lambda variant: Path(shutil.copytree(checkpoints(variant), tmp_path / variant))


def change(directory: Path, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    """Rewrites model.safetensors."""
    path = directory / "model.safetensors"
    save_file(edit(load_file(path)), path, metadata={"format": "pt"})
    return directory


# ---- the same weights in other files


@pytest.mark.parametrize("variant", ["qwen3_moe", "granitemoe"])
def test_shards_give_the_same_as_one_file(
    variant: str, checkpoints: Checkpoints, oracle: Oracle, tmp_path: Path
) -> None:
    oracle(variant).save_pretrained(tmp_path, max_shard_size="100KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    one, many = (LLM(str(d), kernels="reference") for d in (checkpoints(variant), tmp_path))
    assert same_bytes(one.parts.weights, many.parts.weights)
    assert torch.equal(one.logits(IDS), many.logits(IDS))


def test_the_index_goes_before_a_single_file_beside_it(oracle: Oracle, tmp_path: Path) -> None:
    oracle("mixtral").save_pretrained(tmp_path, max_shard_size="100KB")
    (tmp_path / "model.safetensors").write_bytes(b"an unfinished merge of the shards")
    loaded(tmp_path)


def test_fused_experts_are_cut_where_they_belong(checkpoints: Checkpoints) -> None:
    directory = checkpoints("granitemoe")
    tensors, weights = load_file(directory / "model.safetensors"), loaded(directory)
    for i, layer in enumerate(weights.layers):
        fused = tensors[f"model.layers.{i}.block_sparse_moe.input_linear.weight"]
        down = tensors[f"model.layers.{i}.block_sparse_moe.output_linear.weight"]
        assert layer.experts is not None
        for e in range(6):
            gate, up, out = (values_of(layer.experts.matrix(e, part)) for part in ("gate", "up", "down"))
            assert torch.equal(torch.cat([gate, up]), fused[e])
            assert torch.equal(out, down[e])


def values_of(matrix: Matrix) -> torch.Tensor:
    return REFERENCE.dequantize(matrix).float()


@pytest.mark.parametrize(
    ("dtype", "format"), [(torch.float32, "f32"), (torch.bfloat16, "bf16"), (torch.float16, "f16")]
)
def test_native_is_the_type_of_the_checkpoint(
    dtype: torch.dtype, format: str, copy: Callable[[str], Path], oracle: Oracle
) -> None:
    directory = change(copy("qwen3_moe"), lambda tensors: {n: t.to(dtype) for n, t in tensors.items()})
    found = open_directory(directory, LoadOptions())
    assert {*found.formats.names.values()} == {format}
    llm = LLM(str(directory), kernels="reference")
    rounded = load_file(directory / "model.safetensors")
    name = "model.layers.0.mlp.experts.3.down_proj.weight"
    bank = llm.parts.weights.layers[0].experts
    assert bank is not None
    assert torch.equal(bank.matrix(3, "down").data.view(dtype), rounded[name])
    expected = tiny.oracle_logits(oracle("qwen3_moe"), IDS)
    error = (llm.logits(IDS) - expected).norm() / expected.norm()
    assert error < (1e-5 if dtype == torch.float32 else 0.1)  # the same model; other tests say how close


def test_checkpoint_of_mixed_types_takes_the_widest(copy: Callable[[str], Path]) -> None:
    directory = change(
        copy("qwen3_moe"),
        lambda tensors: {n: t.bfloat16() if "layers.2.mlp.experts" in n else t for n, t in tensors.items()},
    )
    assert open_directory(directory, LoadOptions()).formats.experts.name == "f32"
    loaded(directory)


@pytest.mark.parametrize("format", ["float32", "bfloat16"])
def test_dtype_overrules_the_type_of_the_checkpoint(format: str, checkpoints: Checkpoints) -> None:
    llm = LLM(str(checkpoints("qwen3_moe")), kernels="reference", dtype=format)
    expected = {"float32": "f32", "bfloat16": "bf16"}[format]
    assert {*llm.parts.checkpoint.formats.names.values()} == {expected}
    assert llm.parts.kv_format is KV_FORMATS[expected]


def test_a_model_whose_head_is_the_embedding_keeps_its_cache_in_16_bits() -> None:
    """No tensor is then of the embedding's own group."""
    with LLM("demo") as llm:
        assert llm.parts.checkpoint.formats.names == {"experts": "bf16", "dense": "bf16", "embed": "bf16"}
        assert llm.parts.kv_format is KV_BF16


# ---- what may be stored besides


def test_tied_head_with_and_without_a_stored_copy(copy: Callable[[str], Path], checkpoints: Checkpoints) -> None:
    directory = change(
        copy("granitemoe"), lambda tensors: {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    )
    with_copy, without = loaded(directory), loaded(checkpoints("granitemoe"))
    assert "lm_head.weight" not in load_file(checkpoints("granitemoe") / "model.safetensors")
    assert with_copy.head is with_copy.embed
    assert same_bytes(with_copy, without)


def test_rotary_tables_of_old_exporters_are_left_alone(copy: Callable[[str], Path], checkpoints: Checkpoints) -> None:
    tables = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(8) for i in range(3)}
    directory = change(copy("mixtral"), lambda tensors: {**tensors, **tables})
    assert same_bytes(loaded(directory), loaded(checkpoints("mixtral")))


# ---- packing


@pytest.mark.parametrize("format", list(FORMATS))
def test_packing_while_loading_is_packing_by_hand(format: str, copy: Callable[[str], Path]) -> None:
    directory = change(copy("qwen3_moe"), mix_types)
    tensors = load_file(directory / "model.safetensors")
    weights = loaded(directory, expert_format=format)
    parts: tuple[Part, ...] = ("gate", "up", "down")
    for i in (0, 2):
        bank = weights.layers[i].experts
        assert bank is not None
        for e, part in itertools.product(range(bank.experts), parts):
            values = tensors[f"model.layers.{i}.mlp.experts.{e}.{part}_proj.weight"]
            by_hand = REFERENCE.quantize(values, bank.layout.of(part))
            assert torch.equal(bank.matrix(e, part).data, by_hand), f"layer {i}, expert {e}, {part}"


def mix_types(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Most tensors in bfloat16, some experts in float32 and float16, so that every conversion is met."""
    types = {"experts.1.": torch.float32, "experts.2.": torch.float16}
    return {n: t.to(next((d for key, d in types.items() if key in n), torch.bfloat16)) for n, t in tensors.items()}


def test_both_backends_pack_alike(checkpoints: Checkpoints) -> None:
    found = open_directory(checkpoints("qwen3_moe"), LoadOptions(expert_format="q4_0", dense_format="q8_0"))
    assert same_bytes(load_weights(found, REFERENCE), load_weights(found, load("cpu")))


def test_experts_start_on_cache_lines(checkpoints: Checkpoints) -> None:
    for layer in loaded(checkpoints("olmoe"), expert_format="bf16").layers:
        assert layer.experts is not None
        assert all(one.data_ptr() % 64 == 0 for one in layer.experts.data)


# ---- converted directories


@pytest.mark.parametrize(
    ("variant", "experts", "dense"),
    [
        ("qwen3_moe", "q4_0", "q8_0"),
        ("granitemoe-bias", "bf16", "q4_0"),
        ("qwen2_moe", "native", "bf16"),
        ("glm_moe_dsa", "bf16", "bf16"),
        ("bailing_hybrid", "bf16", "f32"),
    ],
)
def test_a_converted_directory_is_the_same_model(
    variant: str, experts: str, dense: str, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    first = LLM(str(checkpoints(variant)), kernels="reference", expert_format=experts, dense_format=dense)
    converted.save(
        first.parts.checkpoint.directory, tmp_path / "packed", first.parts.weights, first.parts.checkpoint.formats
    )
    second = LLM(str(tmp_path / "packed"), kernels="reference")
    assert second.parts.checkpoint.is_converted
    assert second.parts.checkpoint.formats == first.parts.checkpoint.formats
    assert same_bytes(first.parts.weights, second.parts.weights)
    assert second.generate([IDS], TEN)[0].token_ids == first.generate([IDS], TEN)[0].token_ids


def test_a_converted_directory_keeps_its_formats(checkpoints: Checkpoints, tmp_path: Path) -> None:
    with LLM(str(checkpoints("qwen3_moe")), kernels="reference", expert_format="q4_0") as llm:
        converted.save(llm.parts.checkpoint.directory, tmp_path, llm.parts.weights, llm.parts.checkpoint.formats)
    open_directory(tmp_path, LoadOptions(expert_format="q4_0", dense_format="f32"))
    for option, asked, have in (("expert_format", "q8_0", "q4_0"), ("dense_format", "bf16", "f32")):
        with pytest.raises(OptionError) as caught:
            open_directory(tmp_path, LoadOptions(**{option: asked}))
        assert f"--{option.replace('_', '-')} {asked}" in str(caught.value)
        assert f"converted to {have}" in str(caught.value)


# ---- how loading goes


@pytest.mark.parametrize("expert_format", ["native", "q4_0"])
def test_progress_rises_to_the_total(expert_format: str, checkpoints: Checkpoints) -> None:
    seen: list[tuple[int, int]] = []
    found = open_directory(checkpoints("qwen3_moe"), LoadOptions(expert_format=expert_format))
    load_weights(found, REFERENCE, lambda done, total: seen.append((done, total)))
    done = [d for d, _ in seen]
    assert {total for _, total in seen} == {sum(e.nbytes for e in found.entries.values())}
    assert done == sorted(done)
    assert done[-1] == seen[-1][1]


def test_memory_can_be_prepared_before_it_is_filled(checkpoints: Checkpoints) -> None:
    seen: list[ModelWeights] = []
    weights = load_weights(open_directory(checkpoints("olmoe"), LoadOptions()), REFERENCE, prepare=seen.append)
    assert seen == [weights]


def test_pipeline_keeps_the_order() -> None:
    def work(i: int) -> int:
        time.sleep(0.001 * (7 * i % 5))
        return i * i

    assert list(read_ahead.in_order(range(40), work)) == [(i, i * i) for i in range(40)]
    assert list(read_ahead.in_order([], work)) == []


def test_pipeline_raises_at_its_item_and_stays_a_little_ahead() -> None:
    started: list[int] = []

    def work(i: int) -> int:
        started.append(i)
        if i == 5:
            raise ValueError("item 5")
        return i

    results = read_ahead.in_order(range(1000), work)
    for i in range(5):
        assert next(results) == (i, i)
        assert max(started) < i + read_ahead.AHEAD
    with pytest.raises(ValueError, match="item 5"):
        next(results)
    assert max(started) < 5 + read_ahead.AHEAD


# ---- memory

LOAD = f"""{PEAK}
import sys
from headrace import LLM
llm = LLM(sys.argv[1], expert_format=sys.argv[2], dense_format=sys.argv[2], max_context=64)
print(llm.parts.weights.nbytes, peak())
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer of OLMoE, every weight 0: 1.2 GB of bfloat16."""
    config = {**catalogue.find("OLMoE-1B-7B").config, "num_hidden_layers": 1}
    family, spec = spec_of(ConfigReader(config, "large"))
    plain = FORMATS["bf16"]
    weights = allocate(spec, Formats(experts=plain, dense=plain, embed=plain), "meta")
    shapes = {name: target.shape for name, target in targets(spec, family.tensors, weights).items()}
    directory = tmp_path_factory.mktemp("large")
    zeros = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    safetensors.write(directory / "model.safetensors", zeros, {})
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
@pytest.mark.parametrize("format", ["native", "q4_0"])
def test_loading_takes_little_more_memory_than_the_weights(format: str, large: Path) -> None:
    """Peak resident memory at most 1.1 * weights + 1 GB, Python and torch (about 0.3 GB) included."""
    command = [sys.executable, "-c", LOAD, str(large), format]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    weights, peak = map(int, done.stdout.split())
    assert weights > (1.2e9 if format == "native" else 0.3e9)
    assert peak <= 1.1 * weights + 1e9, f"{peak / 1e9:.2f} GB at its peak for {weights / 1e9:.2f} GB of weights"
