"""Quantisations by their numbers: bytes of what each method stores, module by module; --quant as people write it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from headrace import ConfigError, OptionError
from headrace.engine.planning.plan import sizes
from headrace.engine.planning.storage import Storage
from headrace.loaders import model_source
from headrace.loaders.architecture import catalogue
from headrace.loaders.architecture.architecture import Part
from headrace.loaders.quants import of_text
from headrace.loaders.quants.module_names import Modules
from headrace.loaders.quants.of_config import native
from headrace.loaders.quants.quant import Place

QWEN3 = catalogue.find("Qwen3-30B-A3B").config  # 48 layers, hidden 2048, 128 experts 768 wide, vocabulary 151936
EXPERTS, ATTENTION, HEAD = 28_991_029_248, 905_969_664, 311_164_928
INSIDE = Place(layer=5, layers=48, experts=128)


def planned(q: dict[str, Any] | None, key: str = "quantization_config", **config: Any) -> Storage:
    source = model_source.of_config({**QWEN3, **config, **({key: q} if q else {})}, "c", "c")
    return sizes(source, "native")[0]


def bits(storage: Storage, group: str, weights: int) -> float:
    return 8 * storage.groups[group] / weights


def one(q: dict[str, Any], rows: int, cols: int, name: str = "ffn_down") -> int:
    """Bytes of an expert's matrix [rows, cols]."""
    return native({"quantization_config": q, "num_hidden_layers": 48}, "c").stored_bytes(
        Part("experts", rows, cols, name=name), INSIDE
    )


def stored(*tensors: tuple[int, int, int]) -> int:
    """Bytes of tensors of so many rows and columns, with bytes for each element."""
    return sum(rows * cols * size for rows, cols, size in tensors)


# What is stored for a matrix of 768 rows (outputs) and 2048 columns: tensors as the tools write them.


@pytest.mark.parametrize(("width", "group"), [(2, 64), (3, 128), (4, 32), (4, -1), (8, 128)])
@pytest.mark.parametrize("sym", [True, False])
def test_gptq(width: int, group: int, sym: bool) -> None:
    """qweight and qzeros in int32, halves as scales, an int32 a column that names its group."""
    groups = 1 if group < 1 else 2048 // group
    wanted = stored((2048 * width // 32, 768, 4), (groups, 768 * width // 32, 4), (groups, 768, 2), (2048, 1, 4))
    assert one({"quant_method": "gptq", "bits": width, "group_size": group, "sym": sym}, 768, 2048) == wanted


@pytest.mark.parametrize("numbers", [{"bits": 4, "group_size": 32}, {"w_bit": 4, "q_group_size": 128}, {"bits": "4"}])
def test_awq(numbers: dict[str, Any]) -> None:
    groups = 2048 // int(numbers.get("group_size") or numbers.get("q_group_size") or 128)
    wanted = stored((2048, 768 // 8, 4), (groups, 768 // 8, 4), (groups, 768, 2))
    assert one({"quant_method": "awq", "zero_point": True, **numbers}, 768, 2048) == wanted


@pytest.mark.parametrize(("width", "group"), [(2, 64), (3, 32), (4, 64), (6, 64), (8, 128)])
def test_mlx(width: int, group: int) -> None:
    """Packed weights, and a scale and a bias of two bytes for each group."""
    wanted = stored((768, 2048 * width // 8, 1), (768, 2048 // group, 4))
    assert one({"bits": width, "group_size": group}, 768, 2048) == wanted


@pytest.mark.parametrize(
    ("q", "tensors"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, [(768, 1024, 1), (768, 32, 4)]),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True},
            [(768, 1024, 1), (768, 32, 1), (3, 32, 4)],
        ),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, [(768, 2048, 1), (768, 1, 4)]),
        (
            {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 3, "group_size": 64}}},
            [(768, 768, 1), (768, 32, 4)],
        ),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, [(768, 1024, 1), (768, 128, 1)]),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, [(768, 2048, 1), (6, 16, 4)]),
        ({"quant_method": "mxfp4"}, [(768, 1024, 1), (768, 64, 1)]),
        (
            {"quant_method": "torchao", "quant_type": "int4_weight_only", "quant_type_kwargs": {"group_size": 64}},
            [(768, 1024, 1), (768, 32, 4)],
        ),
        ({"quant_method": "intel/auto-round", "bits": 2, "group_size": 32}, [(768, 512, 1), (64, 48, 4), (64, 768, 2)]),
        ({"quant_method": "exl3", "bits": 3.0, "head_bits": 6}, [(768, 768, 1)]),
        (
            {
                "quant_method": "aqlm",
                "nbits_per_codebook": 16,
                "num_codebooks": 1,
                "in_group_size": 8,
                "out_group_size": 1,
            },
            [(768, 512, 1), (768, 1, 2)],
        ),
    ],
)
def test_other_methods(q: dict[str, Any], tensors: list[tuple[int, int, int]]) -> None:
    assert one(q, 768, 2048) == stored(*tensors)


INT4 = {"num_bits": 4, "type": "int", "strategy": "group"}


@pytest.mark.parametrize(
    ("weights", "tensors"),
    [
        ({**INT4, "group_size": 32, "symmetric": True}, [(768, 1024, 1), (768, 64, 2)]),
        ({**INT4, "group_size": 128, "symmetric": False}, [(768, 1024, 1), (768, 16, 2), (768, 8, 1)]),
        (
            {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]},
            [(768, 2048, 1), (6, 16, 4)],
        ),
        (
            {"num_bits": 4, "type": "float", "group_size": 16, "strategy": "tensor_group"},
            [(768, 1024, 1), (768, 128, 1)],
        ),
        ({"num_bits": 4, "type": "float", "group_size": 32, "strategy": "group"}, [(768, 1024, 1), (768, 64, 1)]),
        ({"num_bits": 8, "type": "int", "strategy": "channel"}, [(768, 2048, 1)]),
    ],
)
def test_compressed_tensors(weights: dict[str, Any], tensors: list[tuple[int, int, int]]) -> None:
    q = {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }
    assert one(q, 768, 2048) == stored(*tensors)


# Which modules


def test_mlx_quantises_all_but_what_it_says() -> None:
    """17.2 GB, as the repository of Qwen3-30B-A3B-4bit has."""
    plain = planned({"group_size": 64, "bits": 4}, "quantization")
    assert plain.total == pytest.approx(17.18e9, rel=2e-3)
    assert bits(plain, "head", HEAD) == bits(plain, "embedding", HEAD) == 4.5
    own = {f"model.layers.{i}.mlp.gate": {"group_size": 64, "bits": 8} for i in range(48)}
    down = {f"language_model.model.layers.{i}.mlp.switch_mlp.down_proj": {"bits": 6} for i in range(24)}
    mixed = planned({"group_size": 64, "bits": 4, "lm_head": False, **own, **down}, "quantization")
    assert bits(mixed, "head", HEAD) == 16
    assert bits(mixed, "experts", EXPERTS) == pytest.approx(4.5 + 2 / 3 / 2, rel=1e-3)
    assert mixed.groups["router"] > 1.8 * plain.groups["router"]


def test_head_and_embedding_stay_where_a_method_leaves_them() -> None:
    for method in ("gptq", "awq", "bitsandbytes", "hqq", "auto-round"):
        found = planned({"quant_method": method, "bits": 4, "group_size": 64, "load_in_4bit": True})
        assert bits(found, "head", HEAD) == bits(found, "embedding", HEAD) == 16
        assert bits(found, "experts", EXPERTS) < 5
    assert bits(planned({"quant_method": "exl2", "bits": 4.25, "head_bits": 8}), "head", HEAD) == 8
    assert bits(planned({"quant_method": "gptq", "bits": 4, "lm_head": True}), "head", HEAD) < 5


@pytest.mark.parametrize(
    "q",
    [
        {"quant_method": "gptq", "bits": 4, "dynamic": {"-:.*self_attn.*": {}}},
        {"quant_method": "awq", "bits": 4, "modules_to_not_convert": ["self_attn"]},
        {
            "quant_method": "modelopt",
            "quant_algo": "NVFP4",
            "exclude_modules": [f"model.layers.{i}.self_attn*" for i in range(48)],
        },
        {
            "quant_method": "quark",
            "global_quant_config": {"weight": {"dtype": "int4", "qscheme": "per_group", "group_size": 32}},
            "exclude": ["*self_attn.*_proj"],
        },
        {
            "quant_method": "fp8",
            "modules_to_not_convert": [f"model.layers.{i}.self_attn.{p}_proj" for i in range(48) for p in "qkvo"],
        },
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"a": {"weights": {"num_bits": 4, "group_size": 32}}},
            "ignore": ["re:.*self_attn.*"],
        },
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"a": {"targets": ["re:.*experts.*"], "weights": {"num_bits": 4, "group_size": 32}}},
        },
        {"quant_method": "auto-round", "bits": 4, "extra_config": {".*self_attn.*": {"bits": 16}}},
        {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "llm_int8_skip_modules": [f"model.layers.{i}.self_attn" for i in range(48)],
        },
    ],
    ids=lambda q: q["quant_method"],
)
def test_modules_that_are_left_out_stay_as_they_were(q: dict[str, Any]) -> None:
    found = planned(q)
    assert bits(found, "attention", ATTENTION) == 16
    assert bits(found, "experts", EXPERTS) < 9


def test_modules_have_bits_of_their_own() -> None:
    dynamic = {"+:.*down_proj": {"bits": 8, "group_size": 32}, "-:.*layers\\.0\\..*": {}}
    found = planned({"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": dynamic})
    assert bits(found, "experts", EXPERTS) == pytest.approx((2 * 4.2 + 8.75) / 3, rel=0.05)
    layers = {
        **{
            f"model.layers.{i}.mlp.experts.0.{p}_proj": {"quant_algo": "NVFP4"}
            for i in range(48)
            for p in ("gate", "up", "down")
        },
        **{f"model.layers.{i}.self_attn.{p}_proj": {"quant_algo": "FP8"} for i in range(24) for p in "qkvo"},
    }
    found = planned({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": layers})
    assert bits(found, "experts", EXPERTS) == 4.5
    assert bits(found, "attention", ATTENTION) == 12
    kinds = {"self_attn.q_proj": {"weight_quant_params": {"nbits": 8, "group_size": 64}}, "mlp.experts.0.up_proj": None}
    kinds["mlp.experts.0.up_proj"] = {"weight_quant_params": {"nbits": 2, "group_size": 16}}
    found = planned({"quant_method": "hqq", "quant_config": kinds})
    assert bits(found, "attention", ATTENTION) == 8.5


@pytest.mark.parametrize(
    ("pattern", "means"),
    [
        ("model.layers.5.self_attn", True),
        ("self_attn.q_proj", True),
        ("language_model.model.layers.5.self_attn.q_proj", True),
        ("model.language_model.layers.5.self_attn.q_proj.weight", True),
        ("*.self_attn.q*", True),
        ("re:.*q_proj$", True),
        (".*attn\\.[qk]_proj", True),
        ("model.layers.50.self_attn", False),
        ("layers.5.mlp", False),
        ("attn", False),
        ("re:.*k_proj", False),
        ("(", False),
    ],
)
def test_patterns_of_modules(pattern: str, means: bool) -> None:
    part = Part("attention", 8, 8, name="attn_q")
    assert Modules([pattern]).mean(part, INSIDE) is means


# Methods that nobody knows


def test_unknown_methods_are_read_by_their_numbers() -> None:
    for q, width in (({"weight_bits": 5, "group_size": 64}, 5.25), ({"weights": {"nbits": 3, "group_size": 32}}, 3.5)):
        source = model_source.of_config({**QWEN3, "quantization_config": {"quant_method": "magic", **q}}, "c", "c")
        found, quant = sizes(source, "native")
        assert bits(found, "experts", EXPERTS) == width
        assert "'magic' is not known" in quant.notes[0]
    named, quant = sizes(
        model_source.of_config(
            {**QWEN3, "quantization_config": {"quant_method": "quanto", "weights": "int4"}}, "c", "c"
        ),
        "native",
    )
    assert bits(named, "experts", EXPERTS) < 5
    assert "names in its config" in quant.notes[0]


@pytest.mark.parametrize("q", [{"quant_method": "magic"}, {"quant_method": "x" * 500}, {"quant_method": "gptq"}])
def test_a_method_without_numbers_needs_a_format(q: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"no bits.*--quant") as raised:
        planned(q)
    assert len(str(raised.value)) < 300


def test_values_of_another_kind_are_refused() -> None:
    for q in ({"quant_method": "gptq", "bits": 4, "dynamic": [1]}, {"quant_method": "quark", "layer_quant_config": 7}):
        with pytest.raises(ConfigError, match="another kind"):
            planned(q)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("hf_quant_config.json", {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}}),
        ("quantize_config.json", {"bits": 4, "group_size": 128, "desc_act": False}),
        ("quant_config.json", {"w_bit": 4, "q_group_size": 128, "zero_point": True}),
    ],
)
def test_a_quantisation_in_a_file_beside_the_config(tmp_path: Path, name: str, content: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN3))
    (tmp_path / name).write_text(json.dumps(content))
    found, _ = sizes(model_source.find(str(tmp_path)), "native")
    assert bits(found, "experts", EXPERTS) < 5


def test_a_wrapper_says_it_for_its_text_model() -> None:
    wrapped = {"model_type": "qwen3_vl_moe", "text_config": QWEN3, "quantization": {"bits": 4, "group_size": 64}}
    source = model_source.of_config(wrapped, "c", "c")
    assert bits(sizes(source, "native")[0], "experts", EXPERTS) == 4.5


# --quant


@pytest.mark.parametrize(
    ("model", "mix", "gigabytes"),
    [
        ("Qwen3-30B-A3B", "Q2_K", 11.26), ("Qwen3-30B-A3B", "Q3_K_M", 14.71), ("Qwen3-30B-A3B", "Q4_K_S", 17.46),
        ("Qwen3-30B-A3B", "Q4_K_M", 18.56), ("Qwen3-30B-A3B", "Q5_K_M", 21.73), ("Qwen3-30B-A3B", "Q6_K", 25.09),
        ("DeepSeek-V3", "Q2_K", 244.0), ("DeepSeek-V3", "Q4_K_M", 404.4), ("Mixtral-8x7B", "Q4_K_M", 28.45),
        ("Mixtral-8x7B", "Q6_K", 38.38),
    ],
)  # fmt: skip
def test_mixes_have_the_size_of_released_files(model: str, mix: str, gigabytes: float) -> None:
    """Files that llama-quantize made, as they lie on the hub."""
    assert sizes(model_source.find(model), mix)[0].total / 1e9 == pytest.approx(gigabytes, rel=2e-3)


def test_rows_that_no_block_divides_get_shorter_ones() -> None:
    """gpt-oss has 2880 columns, no multiple of 256."""
    source = model_source.find("gpt-oss-20b")
    model = source.described.architecture
    for mix, width in (("Q6_K", 8.5), ("Q3_K_S", 4.5), ("Q4_K_S", 5.5)):
        found = sizes(source, mix)[0]
        weights = sum(layer.experts.count * layer.experts.elements for layer in model.layers if layer.experts)
        assert bits(found, "experts", weights) == pytest.approx(width, rel=0.05)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("q4km", "q4_k_m"), ("Q4_K_M", "q4_k_m"), ("q4-k-m", "q4_k_m"), ("IQ4_XS", "iq4_xs"), ("iq3_m", "iq3_m"),
        ("Q8", "q8_0"), ("Q6", "q6_k"), ("Q4", "q4_0"), ("int4", "int4-g128"), ("4bit", "int4-g128"),
        ("4-bit", "int4-g128"), ("8bit", "int8"), ("INT8", "int8"), ("FP8", "fp8"), ("fp16", "f16"), ("BF16", "bf16"),
        ("nf4", "nf4"), ("awq", "int4-g128"), ("GPTQ", "int4-g128"), ("MXFP4", "mxfp4"), ("nvfp4", "nvfp4"),
        ("int3-g64", "int3-g64"), ("w4g32", "int4-g32"), ("3 bits", "int3-g128"), ("4.5bpw", "4.5bpw"),
        ("4.5 BPW", "4.5bpw"), ("mlx-4bit", "mlx4-g64"), ("MXFP4_MOE", "mxfp4_moe"),
    ],
)  # fmt: skip
def test_names_as_people_write_them(text: str, name: str) -> None:
    assert of_text.parse(text, native({}, "")).name == name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("q4_k_x", "q4_k_m"), ("int5x", "int4"), ("nvfp5", "nvfp4"), ("UD-Q4_K_XL", "made by hand"),
        ("experts=q4,rest=q8", "no group 'rest'"), ("x" * 900, "bits go too"), ("0bpw", "above 0"),
    ],
)  # fmt: skip
def test_other_names_are_refused_in_few_words(text: str, said: str) -> None:
    with pytest.raises(OptionError, match=said) as raised:
        of_text.parse(text, native({}, ""))
    assert len(str(raised.value)) < 300


def test_every_bits_of_a_format_are_its_tables() -> None:
    """A block of 256 weights of each GGUF type, by the library's sizes."""
    gguf = pytest.importorskip("gguf")
    for name, encoding in of_text.ENCODINGS.items():
        kind = getattr(gguf.GGMLQuantizationType, name.upper(), None)
        if kind is not None and name != "nvfp4":  # that of checkpoints, not of GGUF
            block, size = gguf.GGML_QUANT_SIZES[kind]
            assert encoding.stored_bytes(3, 512) == 3 * math.ceil(512 / block) * size, name
