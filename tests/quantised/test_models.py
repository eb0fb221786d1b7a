"""Models with quantised weights against the same model in float32: the same logits with plain kernels, and within what
arithmetic may lose with fast ones."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path

import pytest
import quantised_files
import tiny
import torch
from quantised_files import KINDS, Kind
from safetensors.torch import save_file

from headrace import LLM
from headrace.engine.ledger.pass_bytes import EXPERTS
from headrace.engine.ledger.passes import CPU_DRAM
from headrace.engine.memory.deciding import storage_of
from headrace.engine.planning import plan
from headrace.loaders import model_source
from headrace.loaders.weights import converted
from headrace.loaders.weights.checkpoint import open_directory
from headrace.loaders.weights.chosen_formats import LoadOptions

PROMPT = [5, 11, 3, 70, 29, 8, 8, 14, 101, 33, 2, 9]
ATTENTION = tuple(f"self_attn.{role}_proj" for role in "qkvo")
# Each family with sizes that are whole groups, and what of it is quantised: by the end or a part of a module's name.
MODELS = {
    "qwen3_moe": (
        dict(hidden_size=256, head_dim=64, moe_intermediate_size=128, intermediate_size=384), ("mlp.experts.",),
    ),
    "qwen2_moe": (
        dict(hidden_size=128, moe_intermediate_size=256, shared_expert_intermediate_size=384, intermediate_size=128),
        ("mlp.experts.", "mlp.shared_expert.", *ATTENTION),
    ),
    "mixtral": (dict(hidden_size=128, intermediate_size=256), (".experts.", *ATTENTION)),
    "olmoe": (dict(hidden_size=256, intermediate_size=128), ("mlp.experts.", *ATTENTION)),
}  # fmt: skip
# Which family a kind is tried with: each several times.
FAMILY = {kind: list(MODELS)[i % len(MODELS)] for i, kind in enumerate(KINDS)}


pytestmark = pytest.mark.usefixtures("float32_cache")


def logits(model: Path, **options: object) -> torch.Tensor:
    """After every token of the prompt."""
    with LLM(model, **options) as llm:
        return llm.logits(PROMPT)


def far(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """How far most tokens are, as a share."""
    return ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).median()


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A float checkpoint of each family."""
    base = tmp_path_factory.mktemp("shapes")
    for family, (sizes, _) in MODELS.items():
        tiny.build(family, base / family, **sizes)
    return {family: base / family for family in MODELS}


@pytest.fixture(scope="module", params=list(KINDS))
def model(
    request: pytest.FixtureRequest, shapes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Kind, Path, Path]:
    """A kind, a checkpoint of it, and the same model in float32."""
    kind, family = KINDS[request.param], FAMILY[request.param]
    base, ends = tmp_path_factory.mktemp("model"), MODELS[family][1]
    quantised_files.write(
        shapes[family], base / "model", base / "twin", kind, lambda module: any(end in module for end in ends)
    )
    return kind, base / "model", base / "twin"


def test_logits_are_those_of_the_same_numbers(model: tuple[Kind, Path, Path]) -> None:
    kind, path, twin = model
    found, expected = logits(path, kernels="reference"), logits(twin, kernels="reference")
    if kind.is_exact:
        assert torch.equal(found, expected)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_fast_kernels_are_near(model: tuple[Kind, Path, Path]) -> None:
    """As they are, activations lose what float32 does; rounded, most tokens are near: one that goes to another expert
    differs by more."""
    _, path, twin = model
    exact, expected = logits(path, cpu_activations="bf16", deterministic=True), logits(twin)
    assert (exact - expected).abs().max() < 2e-4 * expected.abs().max()
    assert far(logits(path), expected) < 0.05


def test_weights_have_the_format_of_the_file(model: tuple[Kind, Path, Path]) -> None:
    """What is not quantised stays as it is stored."""
    kind, path, _ = model
    checkpoint = open_directory(path, LoadOptions())
    formats, layer = checkpoint.formats, checkpoint.spec.is_moe.index(True)
    assert all(formats.of(f"{layer}.{part}", "experts").name == kind.format for part in ("gate", "up", "down"))
    has_attention = any("self_attn" in end for end in MODELS[checkpoint.spec.family][1])
    assert formats.of(f"{layer}.q", "dense").name == (kind.format if has_attention else "bf16")
    assert formats.of("head", "dense").name == "bf16"
    assert any("scales of activations" in note for note in checkpoint.notes) == kind.activations


def test_a_plan_says_what_lies_in_memory(model: tuple[Kind, Path, Path]) -> None:
    """From headers alone, by format and layer; the bytes of the files are others."""
    _, path, _ = model
    checkpoint, source = open_directory(path, LoadOptions()), model_source.find(str(path))
    found, _ = plan.sizes(source, "native")
    engine = storage_of(checkpoint.spec, checkpoint.formats)
    for one, other in zip(found.layers, engine.layers, strict=True):
        assert dict(one.common_in.parts) == dict(other.common_in.parts)
        assert dict(one.expert_in.parts) == dict(other.expert_in.parts)
    assert (found.in_memory, found.held) == (engine.in_memory, engine.held) == (checkpoint.weight_bytes, engine.held)
    assert source.tensors is not None
    assert found.total + sum(found.left_out.values()) == sum(tensor.nbytes for tensor in source.tensors)


def test_bytes_in_the_ledger_are_those_of_packed_rows(model: tuple[Kind, Path, Path]) -> None:
    _, path, _ = model
    with LLM(path) as llm:
        llm.generate([PROMPT], {"max_new_tokens": 2, "ignore_eos": True})
        spec, formats = llm.spec, llm.parts.checkpoint.formats
        layers = [layer for layer in range(len(spec.layers)) if spec.is_moe[layer]]
        expected = sum(spec.moe.top_k * formats.layout(spec, layer).bytes for layer in layers)
        passes = [p for p in llm.ledger.passes if p.phase == "decode"]
        assert passes
        assert all(p.bytes[CPU_DRAM][EXPERTS] == expected for p in passes)


def test_another_format_can_be_asked_for(model: tuple[Kind, Path, Path]) -> None:
    _, path, twin = model
    with LLM(path, expert_format="q8_0", dense_format="f32") as llm:
        assert llm.parts.checkpoint.formats.names["experts"] == "q8_0"
        assert far(llm.logits(PROMPT), logits(twin)) < 0.05


@pytest.mark.parametrize("family", ["granitemoe", "qwen3_moe"])
def test_experts_in_one_tensor(family: str, tmp_path: Path) -> None:
    """fp8 of all experts of a layer, under a module's name or as transformers 5 calls them."""
    tiny.build(
        family,
        tmp_path / "shapes",
        intermediate_size=96,
        **({"moe_intermediate_size": 96} if family == "qwen3_moe" else {}),
    )
    g, stored, values = torch.Generator().manual_seed(0), {}, {}
    tensors = quantised_files.load(tmp_path / "shapes")
    config = json.loads((tmp_path / "shapes" / "config.json").read_text())
    if family == "qwen3_moe":
        tensors = fused(tensors, len(fnmatch.filter(tensors, "model.layers.0.mlp.experts.*.down_proj.weight")))
    for name, tensor in tensors.items():
        values[name] = tensor.bfloat16().float()
        stored[name] = tensor.bfloat16()
        if tensor.dim() == 3:
            each = [
                quantised_files.fp8(
                    g, *tensor.shape[1:], quantised_files.usual(120), by="tile", name="s", dtype=torch.float32
                )
                for _ in tensor
            ]
            stored[name] = torch.stack([parts[".weight"] for parts, _ in each])
            stored[name + "_scale_inv"] = torch.stack([parts["s"] for parts, _ in each])
            values[name] = torch.stack([expected for _, expected in each])
    for folder, all_, more in (("model", stored, {"quantization_config": quantised_files.FP8}), ("twin", values, {})):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps({**config, **more}))
        save_file(all_, tmp_path / folder / "model.safetensors", {"format": "pt"})
    found, expected = (logits(tmp_path / folder, kernels="reference") for folder in ("model", "twin"))
    assert torch.equal(found, expected)
    assert open_directory(tmp_path / "model", LoadOptions()).formats.experts.name == "fp8"


def fused(tensors: dict[str, torch.Tensor], experts: int) -> dict[str, torch.Tensor]:
    """Experts of a layer as two tensors."""
    found = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for layer in {name.split(".experts.")[0] for name in tensors if ".experts." in name}:
        each = [[tensors[f"{layer}.experts.{e}.{part}_proj.weight"] for part in ("gate", "up")] for e in range(experts)]
        down = [tensors[f"{layer}.experts.{e}.down_proj.weight"] for e in range(experts)]
        found[f"{layer}.experts.gate_up_proj"] = torch.stack([torch.cat(pair) for pair in each])
        found[f"{layer}.experts.down_proj"] = torch.stack(down)
    return found


@pytest.mark.parametrize("name", ["fp8 tensors", "int4 g128 zeros"])
def test_a_conversion_is_the_same_model(name: str, shapes: dict[str, Path], tmp_path: Path) -> None:
    quantised_files.write(
        shapes["qwen3_moe"], tmp_path / "model", tmp_path / "twin", KINDS[name], lambda module: ".experts." in module
    )
    with LLM(tmp_path / "model") as llm:
        parts, expected = llm.parts, llm.logits(PROMPT)
        converted.save(tmp_path / "model", tmp_path / "packed", parts.weights, parts.checkpoint.formats)
    assert torch.equal(logits(tmp_path / "packed"), expected)
