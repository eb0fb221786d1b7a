"""Quantised weights become packed rows that stand for the same numbers, bit for bit, on every instruction set; and the
numbers are those of the libraries that the formats come from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from quantised_files import E2M1, KINDS, extreme, fp8, fp8_codes
from safetensors.torch import save_file
from torch import Tensor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from headrace.kernels import FORMATS, load, reference
from headrace.kernels.context import Context
from headrace.kernels.cpu import CpuOps
from headrace.kernels.isa import available_isas
from headrace.kernels.packed import Matrix
from headrace.loaders.families.config_reader import ConfigReader
from headrace.loaders.families.quantisation import Quantisation, read
from headrace.loaders.files import safetensors
from headrace.loaders.files.entry import Entry
from headrace.loaders.quantised.gather import gather

# Exponents of scales: all of float16 below overflow; of the others such that weights are normal numbers.
RANGES = {"int4_g32": (-24, 11), "int4_g128": (-24, 11), "q4_0": (-24, 11), "mxfp4": (-126, 124)}


def how_of(config: dict) -> Quantisation:
    found = read(ConfigReader({"quantization_config": config}, "config.json"))
    assert found is not None
    return found


def gathered(tensors: dict[str, Tensor], config: dict, folder: Path) -> dict[str, Entry]:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "w.safetensors")
    return gather(safetensors.read_header(folder / "w.safetensors"), how_of(config), [])


def unpacked(entry: Entry, rows: int, step: int) -> Matrix:
    """All rows, `step` of them at a time."""
    assert entry.packed is not None
    parts = [entry.packed.rows(first, min(step, rows - first)) for first in range(0, rows, step)]
    return Matrix(entry.packed.format, rows, entry.shape[-1], torch.cat(parts))


def same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.nan_to_num(nan=7e37), other.nan_to_num(nan=7e37))


@pytest.mark.parametrize("name", KINDS)
def test_rows_stand_for_the_same_numbers(name: str, tmp_path: Path) -> None:
    """With scales over all of their range, rows in any pieces."""
    kind, R, C = KINDS[name], 152, 384
    scales = extreme(*RANGES.get(kind.format, (-100, 60)))
    parts, expected = kind.write(torch.Generator().manual_seed(1), R, C, scales)
    (entry,) = gathered({f"x{end}": part for end, part in parts.items()}, kind.config, tmp_path).values()
    assert (entry.name, entry.shape, entry.blocks) == ("x.weight", (R, C), kind.format)
    matrix = unpacked(entry, R, R)
    assert matrix.nbytes == entry.nbytes == R * entry.row_bytes
    for step in (1, 5, 24, 100):
        assert torch.equal(unpacked(entry, R, step).data, matrix.data)
    for ops in (load("reference"), *(CpuOps(Context(isa=isa)) for isa in available_isas())):
        found = ops.dequantize(matrix)
        if kind.is_exact:
            assert torch.equal(found, expected)
        else:
            assert ((found - expected).abs() <= 2**-23 * expected.abs()).all()


@pytest.mark.parametrize(("R", "C"), [(1, 32), (130, 160), (256, 128), (7, 288)])
def test_fp8_with_tiles_that_are_not_full(R: int, C: int, tmp_path: Path) -> None:
    parts, expected = KINDS["fp8 tiles"].write(torch.Generator().manual_seed(2), R, C, extreme(-20, 20))
    (entry,) = gathered({f"x{end}": part for end, part in parts.items()}, KINDS["fp8 tiles"].config, tmp_path).values()
    assert torch.equal(reference.dequantize(unpacked(entry, R, 50)), expected)


def test_fp8_of_all_experts_in_one_tensor(tmp_path: Path) -> None:
    """Each expert has tiles of its own, or one scale."""
    g, E, R, C = torch.Generator().manual_seed(3), 3, 160, 288
    both = [fp8(g, R, C, extreme(-9, 9), by="tile", name="_scale_inv", dtype=torch.float32) for _ in range(E)]
    tensors = {
        "experts.gate_up_proj": torch.stack([parts[".weight"] for parts, _ in both]),
        "experts.gate_up_proj_scale_inv": torch.stack([parts["_scale_inv"] for parts, _ in both]),
        "experts.down_proj": torch.stack([fp8_codes(g, C, 64) for _ in range(E)]),
        "experts.down_proj_scale": torch.tensor([0.5, 3.0, 2.0**-9]),
    }
    found = gathered(tensors, KINDS["fp8 tiles"].config, tmp_path)
    assert set(found) == {"experts.gate_up_proj", "experts.down_proj"}
    values = reference.dequantize(unpacked(found["experts.gate_up_proj"], E * R, 100))
    assert torch.equal(values, torch.cat([expected for _, expected in both]))
    down = tensors["experts.down_proj"].float() * tensors["experts.down_proj_scale"].view(E, 1, 1)
    assert torch.equal(reference.dequantize(unpacked(found["experts.down_proj"], E * C, 1000)), down.flatten(0, 1))


@pytest.mark.parametrize("isa", available_isas())
def test_every_float_of_8_bits(isa: str) -> None:
    """Numbers below the normal ones are exact, NaN stays NaN, and what is NaN shows in its row alone."""
    codes = torch.arange(256, dtype=torch.uint8).repeat(3, 1)
    codes[1] = codes[1] & 127
    codes[2][(codes[2] & 127) == 127] = 1
    scales = torch.tensor([[1.0, 2.0**-20], [3e-30, 1e30], [1.0, 1.0]])
    data = torch.cat([scales.view(torch.uint8), torch.zeros(3, 8, dtype=torch.uint8), codes], dim=1)
    matrix = Matrix(FORMATS["fp8"], 3, 256, data)
    expected = codes.view(torch.float8_e4m3fn).float() * scales.repeat_interleave(128, 1)
    assert same(reference.dequantize(matrix), expected)
    for activations in ("int8", "bf16"):
        ops = CpuOps(Context(isa=isa, activations=activations))
        assert same(ops.dequantize(matrix), expected)
        x = torch.randn(5, 256, generator=torch.Generator().manual_seed(0)).bfloat16().float()
        y = ops.linear(x, matrix)
        assert y[:, :2].isnan().all()
        assert (y[:, 2] - x @ expected[2]).abs().max() < 1e-5 * (x.abs() @ expected[2].abs()).max()


@pytest.mark.parametrize("isa", available_isas())
def test_floats_of_8_bits_meet_activations_as_they_are(isa: str) -> None:
    """Unless activations may be rounded, products are those of float32."""
    g = torch.Generator().manual_seed(4)
    values, x = torch.randn(40, 544, generator=g), torch.randn(3, 544, generator=g)
    matrix = Matrix(FORMATS["fp8"], 40, 544, reference.quantize(values, FORMATS["fp8"]))
    expected = x.double() @ reference.dequantize(matrix).double().T
    error = (CpuOps(Context(isa=isa, activations="bf16")).linear(x, matrix) - expected).norm() / expected.norm()
    rounded = (CpuOps(Context(isa=isa)).linear(x, matrix) - expected).norm() / expected.norm()
    assert error < 1e-6
    assert rounded < 4e-3


# ---- against the libraries


@pytest.mark.parametrize("by", ["tile", "row", "tensor"])
def test_fp8_is_what_transformers_reads(by: str) -> None:
    parts, expected = fp8(
        torch.Generator().manual_seed(5), 256, 384, extreme(-40, 40), by=by, name="s", dtype=torch.float32
    )
    theirs = Fp8Dequantize(None)._dequantize_one(parts[".weight"], parts["s"], output_dtype=torch.float32)
    assert torch.equal(theirs, expected)


def test_mxfp4_as_gpt_oss_has_it_is_what_transformers_reads(tmp_path: Path) -> None:
    g, E, R, C = torch.Generator().manual_seed(6), 3, 24, 96
    blocks = torch.randint(0, 256, (E, R, C // 32, 16), generator=g, dtype=torch.uint8)
    scales = torch.randint(0, 255, (E, R, C // 32), generator=g, dtype=torch.uint8)
    tensors = {"experts.gate_up_proj_blocks": blocks, "experts.gate_up_proj_scales": scales}
    found = gathered(tensors, {"quant_method": "mxfp4"}, tmp_path)
    entry = found["experts.gate_up_proj"]
    assert (len(found), entry.shape, entry.blocks) == (1, (E, R, C), "mxfp4")
    theirs = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).transpose(1, 2)
    for ops in (load("reference"), *(CpuOps(Context(isa=isa)) for isa in available_isas())):
        assert torch.equal(ops.dequantize(unpacked(entry, E * R, 10)), theirs.reshape(E * R, C))
    assert torch.equal(E2M1, torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]))
