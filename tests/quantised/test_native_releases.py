"""Releases that are quantised from the start, each in its own layout, against the same numbers in float32: gpt-oss,
DeepSeek-V3 and V4, Kimi-K2-Thinking, Qwen3.6-FP8, MiMo-V2-Flash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import quantised_files
import tiny
import torch
from quantised_files import KINDS
from safetensors.torch import load_file, save_file

from headrace import LLM, kernels
from headrace.engine.memory.deciding import storage_of
from headrace.engine.planning.plan import sizes
from headrace.kernels.context import Context
from headrace.loaders import model_source
from headrace.loaders.weights.checkpoint import open_directory
from headrace.loaders.weights.chosen_formats import LoadOptions

PROMPT = [5, 11, 3, 70, 29, 8, 8, 14, 101, 33, 2, 9]
# What FP8 releases leave alone: routers, and what decides on a change of a delta rule.
ALONE = ("mlp.gate", "shared_expert_gate", "in_proj_a", "in_proj_b", "lm_head", "embed_tokens")
SIZES: dict[str, dict[str, int]] = {
    "gpt_oss": dict(hidden_size=128, head_dim=32, intermediate_size=96),
    "deepseek_v3": dict(
        hidden_size=256, q_lora_rank=128, kv_lora_rank=128, qk_nope_head_dim=24, qk_rope_head_dim=16, v_head_dim=32,
        moe_intermediate_size=128, intermediate_size=384,
    ),
    "deepseek_v4": dict(
        hidden_size=160, head_dim=32, q_lora_rank=96, o_lora_rank=32, moe_intermediate_size=96, index_head_dim=20,
    ),
    "qwen3_5_moe_text": dict(
        hidden_size=256, head_dim=64, moe_intermediate_size=128, shared_expert_intermediate_size=256,
        linear_key_head_dim=16, linear_value_head_dim=32,
    ),
    "mimo_v2_flash": dict(
        hidden_size=256, head_dim=96, v_head_dim=40, moe_intermediate_size=128, intermediate_size=384,
    ),
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("float32_cache")


def logits(model: Path) -> torch.Tensor:
    """After every token of the prompt."""
    with LLM(model, kernels="reference") as llm:
        found = llm.logits(PROMPT)
    assert found.abs().max() > 0.1
    return found


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# ---- gpt-oss: MXFP4


def write_gpt_oss(base: Path) -> None:
    """Experts as the release has them, rows of gate and up by turns and rows first, into base / model; in bf16 as
    transformers has them, turned, into base / twin."""
    tiny.build("gpt_oss", base / "shapes", **SIZES["gpt_oss"])
    g, stored, values = torch.Generator().manual_seed(1), {}, {}
    for name, tensor in load_file(base / "shapes" / "model.safetensors").items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            stored[name] = tensor.bfloat16()
            values[name] = stored[name].float()
            continue
        experts, cols, rows = tensor.shape
        codes = torch.randint(0, 16, (experts, rows, cols), generator=g)
        powers = torch.randint(-7, -4, (experts, rows, cols // 32), generator=g)
        blocks = (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8)
        stored[name + "_blocks"] = blocks.reshape(experts, rows, cols // 32, 16)
        stored[name + "_scales"] = (powers + 127).to(torch.uint8)
        numbers = quantised_files.E2M1[codes] * torch.exp2(powers.float()).repeat_interleave(32, 2)
        values[name] = numbers.transpose(1, 2).contiguous()
    for folder, tensors in (("model", stored), ("twin", values)):
        (base / folder).mkdir()
        (base / folder / "config.json").write_bytes((base / "shapes" / "config.json").read_bytes())
        save_file(tensors, base / folder / "model.safetensors", {"format": "pt"})
    edit(base / "model" / "config.json", quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": []})


def test_gpt_oss(tmp_path: Path) -> None:
    write_gpt_oss(tmp_path)
    assert torch.equal(logits(tmp_path / "model"), logits(tmp_path / "twin"))
    formats = open_directory(tmp_path / "model", LoadOptions()).formats
    assert [formats.of(f"0.{part}", "experts").name for part in ("gate", "up", "down")] == ["mxfp4"] * 3
    assert formats.of("0.q", "dense").name == "bf16"


# ---- DeepSeek and Qwen: FP8 in tiles of 128 x 128


def write_fp8(variant: str, base: Path) -> list[str]:
    tiny.build(variant, base / "shapes", **SIZES[variant])
    is_quantised = lambda module: not any(one in module for one in (*ALONE, "conv1d"))  # noqa: E731
    return quantised_files.write(base / "shapes", base / "model", base / "twin", KINDS["fp8 tiles f32"], is_quantised)


def test_deepseek_v3(tmp_path: Path) -> None:
    """Keys of kv_b are turned while loading, which rounds them to bfloat16 once; the rest are the same numbers."""
    modules = write_fp8("deepseek_v3", tmp_path)
    assert {"model.layers.0.self_attn.kv_b_proj", "model.layers.1.mlp.shared_experts.up_proj"} <= {*modules}
    exact, turned = tmp_path / "twin", tmp_path / "turned"
    found, expected = logits(tmp_path / "model"), logits(exact)
    assert not torch.equal(found, expected)
    turned.mkdir()
    tensors = load_file(exact / "model.safetensors")
    for name, tensor in tensors.items():
        if "kv_b_proj" in name:
            by_head = tensor.reshape(4, 24 + 32, -1)
            by_head[:, :24] = by_head[:, :24].bfloat16().float()
    save_file(tensors, turned / "model.safetensors", {"format": "pt"})
    (turned / "config.json").write_bytes((exact / "config.json").read_bytes())
    assert torch.equal(found, logits(turned))
    formats = open_directory(tmp_path / "model", LoadOptions()).formats
    roles = {
        role: formats.of(f"1.{role}", "dense").name for role in ("q_a", "q", "kv_a", "k_up", "v_up", "o", "mlp_up")
    }
    assert roles == {**dict.fromkeys(roles, "fp8"), "k_up": "bf16"}
    assert formats.of("1.down", "experts").name == "fp8"


def test_the_layer_for_further_tokens_of_deepseek_v3_is_left_out(tmp_path: Path) -> None:
    """It is quantised as the others, and lies behind the last one."""
    write_fp8("deepseek_v3", tmp_path)
    expected, file = logits(tmp_path / "model"), tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    more = {name.replace("layers.2.", "layers.3."): t.clone() for name, t in tensors.items() if "layers.2." in name}
    more |= {
        "model.layers.3.eh_proj.weight": torch.ones(256, 512),
        "model.layers.3.shared_head.norm.weight": torch.ones(256),
    }
    save_file({**tensors, **more}, file, {"format": "pt"})
    assert torch.equal(logits(tmp_path / "model"), expected)
    assert any("multi-token prediction" in note for note in open_directory(tmp_path / "model", LoadOptions()).notes)


def test_the_layer_for_further_tokens_of_deepseek_v3_drafts_as_its_twin(tmp_path: Path) -> None:
    """Its weights are tiles of fp8, as the others; the twin has the same numbers as they are."""
    write_fp8("deepseek_v3", tmp_path)
    random, said = torch.Generator().manual_seed(3), []
    glue = {
        "eh_proj": torch.randn(256, 512, generator=random) / 16,
        **dict.fromkeys(("enorm", "hnorm"), torch.ones(256)),
    }
    glue["shared_head.norm"] = torch.ones(256)
    for name in ("model", "twin"):
        file = tmp_path / name / "model.safetensors"
        tensors = load_file(file)
        more = {one.replace("layers.2.", "layers.3."): t.clone() for one, t in tensors.items() if "layers.2." in one}
        more |= {f"model.layers.3.{one}.weight": t.clone() for one, t in glue.items()}
        save_file({**tensors, **more}, file, {"format": "pt"})
        with LLM(str(tmp_path / name), speculate="mtp", max_context=96, no_measure=True, kv_format="f32") as llm:
            layer = llm.parts.weights.mtp
            assert layer is not None
            assert layer.layer.experts is not None
            said.append((layer.layer.experts.matrix(1, "down"), layer.layer.experts.layout.down_format))
    (packed, format), (plain, _) = said
    assert format is not None
    assert format.name == "fp8"
    ops = kernels.load("reference", Context())
    torch.testing.assert_close(ops.dequantize(packed), ops.dequantize(plain))


def test_qwen_fp8(tmp_path: Path) -> None:
    modules = write_fp8("qwen3_5_moe_text", tmp_path)
    assert "model.layers.0.linear_attn.in_proj_qkv" in modules
    assert torch.equal(logits(tmp_path / "model"), logits(tmp_path / "twin"))
    formats = open_directory(tmp_path / "model", LoadOptions()).formats
    assert [formats.of(f"0.{role}", "dense").name for role in ("delta_qkv", "z", "delta_o")] == ["fp8"] * 3


# ---- Kimi: int4 in groups of 32, of routed experts alone


def test_kimi_k2_thinking(tmp_path: Path) -> None:
    tiny.build("deepseek_v3-bias", tmp_path / "shapes", **SIZES["deepseek_v3"], attention_bias=False)
    quantised_files.write(
        tmp_path / "shapes", tmp_path / "model", tmp_path / "twin", KINDS["int4 g32"],
        lambda module: ".mlp.experts." in module,
    )  # fmt: skip
    for folder in ("model", "twin"):
        edit(tmp_path / folder / "config.json", model_type="kimi_k2")
    assert torch.equal(logits(tmp_path / "model"), logits(tmp_path / "twin"))
    formats = open_directory(tmp_path / "model", LoadOptions()).formats
    assert [formats.of(f"1.{part}", "experts").name for part in ("gate", "up", "down")] == ["q4_0_bf16"] * 3
    assert {formats.of(f"1.{role}", "dense").name for role in ("q_a", "k_up", "mlp_up", "o")} == {"bf16"}


# ---- MiMo-V2-Flash: FP8 in tiles, but for what is projected back


def test_mimo_in_tiles_that_heads_do_not_fill(tmp_path: Path) -> None:
    """Queries, keys and values apart: 768, 192 or 384, and 80 or 160 rows of tiles of 128."""
    tiny.build("mimo_v2_flash", tmp_path / "shapes", **SIZES["mimo_v2_flash"])
    alone = (*ALONE, "self_attn.o_proj")
    modules = quantised_files.write(
        tmp_path / "shapes", tmp_path / "model", tmp_path / "twin", KINDS["fp8 tiles f32"],
        lambda module: not module.endswith(alone),
    )  # fmt: skip
    assert "model.layers.1.self_attn.v_proj" in modules
    edit(
        tmp_path / "model" / "config.json", quantization_config={**KINDS["fp8 tiles f32"].config, "ignored_layers": []}
    )
    found, expected = logits(tmp_path / "model"), logits(tmp_path / "twin")
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    formats = open_directory(tmp_path / "model", LoadOptions()).formats
    assert [formats.of(f"1.{role}", "dense").name for role in ("q", "k", "v", "o")] == ["fp8"] * 3 + ["bf16"]


# ---- DeepSeek-V4: FP8 in tiles whose scales are powers of two, experts of 4 bits


def write_deepseek_v4(base: Path) -> None:
    """As the release has it, into base / model; the same numbers in float32 into base / twin."""
    tiny.build("deepseek_v4", base / "shapes", **SIZES["deepseek_v4"])
    g, stored, values = torch.Generator().manual_seed(1), {}, {}
    plain = ("norm", "compressor", "weights_proj", "ffn.gate.", "embed", "head", "hc_", "attn_sink")
    for name, tensor in load_file(base / "shapes" / "model.safetensors").items():
        if any(part in name for part in plain):
            stored[name] = tensor.bfloat16() if name.endswith("proj.weight") else tensor
            values[name] = stored[name].float() if tensor.is_floating_point() else tensor
            continue
        (R, C), scale = tensor.shape, name.removesuffix("weight") + "scale"
        if ".experts." in name:
            codes, powers = (
                torch.randint(0, 16, (R, C), generator=g),
                torch.randint(-6, -4, (R, C // 32), generator=g),
            )
            stored[name] = quantised_files.pairs(codes).view(torch.int8)
            numbers, sizes = quantised_files.E2M1[codes], (1, 32)
        else:
            stored[name] = quantised_files.fp8_codes(g, R, C)
            numbers, sizes = stored[name].float(), (128, 128)
            powers = torch.randint(-11, -9, (-(-R // 128), -(-C // 128)), generator=g)
        stored[scale] = (powers + 127).to(torch.uint8).view(torch.float8_e8m0fnu)
        all_over = torch.exp2(powers.float()).repeat_interleave(sizes[0], 0)[:R].repeat_interleave(sizes[1], 1)[:, :C]
        values[name] = numbers * all_over
    for folder, tensors in (("model", stored), ("twin", values)):
        (base / folder).mkdir()
        (base / folder / "config.json").write_bytes((base / "shapes" / "config.json").read_bytes())
        save_file(tensors, base / folder / "model.safetensors", {"format": "pt"})
    config = {**quantised_files.FP8, "scale_fmt": "ue8m0"}
    edit(base / "model" / "config.json", quantization_config=config, expert_dtype="fp4")


def test_deepseek_v4(tmp_path: Path) -> None:
    write_deepseek_v4(tmp_path)
    assert torch.equal(logits(tmp_path / "model"), logits(tmp_path / "twin"))
    formats = open_directory(tmp_path / "model", LoadOptions()).formats
    assert [formats.of(f"1.{part}", "experts").name for part in ("gate", "up", "down")] == ["mxfp4"] * 3
    assert {formats.of(f"1.{role}", "dense").name for role in ("q_a", "q", "k", "o_a", "o", "index_q", "mlp_up")} == {
        "fp8"
    }


def test_a_plan_of_deepseek_v4_says_what_lies_in_memory(tmp_path: Path) -> None:
    """Tables of experts too, which are whole numbers in the file."""
    write_deepseek_v4(tmp_path)
    for folder in ("model", "twin"):
        checkpoint, source = open_directory(tmp_path / folder, LoadOptions()), model_source.find(str(tmp_path / folder))
        found, engine = sizes(source, "native")[0], storage_of(checkpoint.spec, checkpoint.formats)
        assert (found.in_memory, found.held) == (checkpoint.weight_bytes, engine.held)
        assert source.tensors is not None
        assert found.total == sum(tensor.nbytes for tensor in source.tensors)
