"""Quantised checkpoints that cannot be run are refused by name, before memory is taken."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import quantised_files
import tiny
import torch
from quantised_files import FP8, KINDS, compressed
from refusals import edit_json, read, refused
from safetensors.torch import load_file, save_file

from headrace import CheckpointError, ConfigError
from headrace.kernels import load
from headrace.loaders.families.config_reader import ConfigReader
from headrace.loaders.families.quantisation import Quantisation
from headrace.loaders.families.quantisation import read as quantisation_of
from headrace.loaders.weights.checkpoint import load_weights, open_directory
from headrace.loaders.weights.chosen_formats import LoadOptions

INT8 = {"num_bits": 8, "type": "int", "strategy": "channel"}
EXPERT = "model.layers.0.mlp.experts.3.up_proj"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "as bitsandbytes"),
        ({"group_size": 64, "bits": 4}, "MLX"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "awq of the version gemv"),
        ({"quant_method": "awq", "w_bit": 8}, "awq of 8 bits"),
        ({"quant_method": "gptq", "bits": 3, "group_size": 128}, "gptq of 3 bits"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "gptq in the layout marlin"),
        ({"quant_method": "gptq", "bits": 4, "is_marlin_format": True}, "gptq in the layout marlin"),
        ({"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round:x"}, "auto-round in the packing x"),
        ({**FP8, "fmt": "e5m2"}, "fp8 of the kind e5m2"),
        ({**FP8, "weight_block_size": [1, 32]}, "fp8 in tiles of 1 x 32"),
        ({**FP8, "weight_block_size": "much"}, "fp8 in tiles of 'much'"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "modelopt W4A8_AWQ"),
        (compressed("int-quantized", **INT8), "compressed-tensors int-quantized with int of 8 bits"),
        (compressed("pack-quantized", **INT8), "compressed-tensors pack-quantized with int of 8 bits"),
        ({**compressed("marlin-24", num_bits=4, type="int")}, "compressed-tensors marlin-24"),
        ({**KINDS["int4 g32"].config, "sparsity_config": {"format": "sparse-24-bitmask"}}, "weights left out"),
        ({**KINDS["nvfp4 inverse"].config, "transform_config": {"u": {"type": "hadamard"}}}, "transformed"),
        ("int4", "'int4'"),
    ],
)  # fmt: skip
def test_a_method_without_kernels(config: Any, said: str) -> None:
    with refused(ConfigError, "config.json", said, "fp8 (e4m3), awq and gptq of 4 bits", "unquantised"):
        quantisation_of(ConfigReader({"quantization_config": config}, "config.json"))


@pytest.mark.parametrize("config", [None, {}, {"bits": None}])
def test_nothing_said_is_nothing_quantised(config: Any) -> None:
    assert quantisation_of(ConfigReader({"quantization_config": config}, "config.json")) is None


def test_what_tensors_cannot_say_comes_from_the_config() -> None:
    def found(config: dict[str, Any], key: str = "quantization_config") -> Quantisation | None:
        return quantisation_of(ConfigReader({key: config}, "config.json"))

    assert found(FP8) == Quantisation(method="fp8", tile=(128, 128))
    block = compressed("float-quantized", num_bits=8, type="float", strategy="block", block_structure="128x256")
    assert found(block, "compression_config") == Quantisation(method="compressed-tensors", tile=(128, 256))
    assert found({"quant_method": "gptq", "bits": 4}) == Quantisation(method="gptq", zero=1)
    assert found({"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"}) == Quantisation(method="gptq")
    assert found({"quant_method": "awq", "bits": 4}) == Quantisation(method="awq", interleaved=True)


# ---- tensors that do not belong together


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """A checkpoint of a kind, with tensors changed."""
    tiny.build("qwen3_moe", tmp_path / "shapes", hidden_size=128, head_dim=32, moe_intermediate_size=128)

    def made(kind: str, **changes: torch.Tensor | None) -> Path:
        path = tmp_path / "model"
        quantised_files.write(tmp_path / "shapes", path, tmp_path / "twin", KINDS[kind], lambda m: ".experts." in m)
        tensors = load_file(path / "model.safetensors") | {EXPERT + end: tensor for end, tensor in changes.items()}
        save_file({n: t for n, t in tensors.items() if t is not None}, path / "model.safetensors", {"format": "pt"})
        return path

    return made


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("fp8 tiles", {".weight_scale_inv": None}, [f"no '{EXPERT}.weight_scale_inv' beside it"]),
        ("fp8 tiles", {".weight_scale_inv": torch.ones(3, 5)}, ["[3, 5] are no scales of", "[128, 128]"]),
        ("int4 g128", {".weight_scale": None}, [f"no '{EXPERT}.weight_scale' beside it"]),
        ("int4 g128", {".weight_scale": torch.ones(128, 8).half()}, ["F16 scales for 8 groups", "of a multiple of 32"]),
        ("int4 g128", {".weight_scale": torch.ones(128, 1)}, ["F32 scales for 1 groups", "F16 and BF16"]),
        ("awq", {".scales": None}, [f"no '{EXPERT}.scales' beside it"]),
        ("awq", {".qzeros": torch.ones(1, 16, dtype=torch.int64)}, [".qzeros' is I64 [1, 16]"]),
        ("nvfp4", {".weight_scale": torch.ones(128, 4).to(torch.float8_e4m3fn)}, ["[128, 4] are no scales", "for 16"]),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit(kind: str, changes: dict[str, Any], said: list[str], make: Any) -> None:
    with refused(CheckpointError, "model.safetensors", EXPERT, *said):
        read(make(kind, **changes))


def test_columns_out_of_order(make: Any) -> None:
    """desc_act: seen when the weight is loaded, since headers do not say it."""
    order = torch.arange(128).flip(0) // 64
    path = make("gptq v2", **{".g_idx": order.to(torch.int32)})
    found = open_directory(path, LoadOptions())
    with refused(CheckpointError, f"'{EXPERT}.g_idx'", "desc_act", "unquantised"):
        load_weights(found, load("reference"))


def test_quantised_tensors_without_a_word_in_the_config(make: Any) -> None:
    path = make("awq")
    edit_json(path / "config.json", quantization_config=None)
    with refused(CheckpointError, "quantised, which config.json does not say"):
        read(path)


def test_a_config_in_a_file_beside(make: Any) -> None:
    path = make("fp8 tensors")
    config = copy.deepcopy(KINDS["fp8 tensors"].config)
    del config["quant_method"]
    edit_json(path / "config.json", quantization_config=None)
    (path / "hf_quant_config.json").write_text("{}")
    edit_json(path / "hf_quant_config.json", producer={"name": "modelopt"}, quantization=config)
    assert open_directory(path, LoadOptions()).formats.experts.name == "fp8"


def test_biases_of_zeros_are_read_over(make: Any) -> None:
    path = make("gptq", **{".bias": torch.zeros(128)})
    assert any("1 biases of zeros" in note for note in open_directory(path, LoadOptions()).notes)
    tensors = load_file(path / "model.safetensors")
    tensors[EXPERT + ".bias"][5] = 1.0
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    with refused(CheckpointError, f"{EXPERT}.bias"):
        read(path)
