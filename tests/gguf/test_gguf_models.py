"""GGUF models against the same model as safetensors: the same float32 logits, and with block formats those of the
dequantised weights, within what arithmetic may lose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf_files
import numpy as np
import pytest
import tiny
import torch
from refusals import refused

from headrace import LLM
from headrace.engine.ledger.pass_bytes import EXPERTS
from headrace.engine.ledger.passes import CPU_DRAM
from headrace.errors import CheckpointError, ConfigError
from headrace.kernels.blocks.ggml import FILE_BLOCKS
from headrace.loaders.gguf.runnable import READABLE
from headrace.loaders.gguf_weights.open_gguf import open_gguf
from headrace.loaders.weights.chosen_formats import LoadOptions

PROMPT = [5, 11, 3, 70, 29, 8, 8, 14, 101, 33, 2, 9]
# mixtral-llama3: whose turns a file holds as factors; other mixers than attention: test_mixers.py.
PLAIN = [name for name in tiny.VARIANTS if name != "mixtral-llama3" and name.split("-")[0] in gguf_files.ARCHS]


pytestmark = pytest.mark.usefixtures("float32_cache")


def logits(model: Path, **options: object) -> torch.Tensor:
    """After every token of the prompt."""
    with LLM(model, **options) as llm:
        return llm.logits(PROMPT)


@pytest.mark.parametrize("variant", PLAIN)
def test_a_file_says_what_its_checkpoint_says(variant: str, checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    directory, path = checkpoints(variant), tmp_path / "model.gguf"
    gguf_files.write(path, *gguf_files.read(directory))
    with LLM(path, kernels="reference") as of_file, LLM(directory, kernels="reference") as of_directory:
        params = {"max_new_tokens": 24, "ignore_eos": True}
        text, expected = (llm.generate([PROMPT], params)[0].token_ids for llm in (of_file, of_directory))
        assert text == expected
        assert torch.equal(of_file.logits(PROMPT), of_directory.logits(PROMPT))


def per_expert(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each expert's matrices on their own, as older converters wrote them."""
    found: dict[str, np.ndarray] = {}
    for name, values in tensors.items():
        if name.endswith("_exps.weight"):
            stem = name.removesuffix("_exps.weight")
            found |= {f"{stem}.{e}.weight": matrix for e, matrix in enumerate(values)}
        else:
            found[name] = values
    return found


def fused(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gate and up in one tensor, gate first."""
    found = dict(tensors)
    for name in tensors:
        if name.endswith("ffn_gate_exps.weight"):
            up = name.replace("gate", "up")
            both = np.concatenate([found.pop(name), found.pop(up)], axis=1)
            found[name.replace("gate", "gate_up")] = both
    return found


@pytest.mark.parametrize("layout", [per_expert, fused])
def test_experts_however_they_are_stored(
    layout: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]],
    checkpoints: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    config, tensors = gguf_files.read(checkpoints("mixtral"))
    gguf_files.write(tmp_path / "m.gguf", config, layout(tensors))
    assert torch.equal(
        logits(tmp_path / "m.gguf", kernels="reference"), logits(checkpoints("mixtral"), kernels="reference")
    )


# As llama-quantize mixes them, and as dynamic mixes do; rows that are no multiple of 256 in the types that stand in.
MIXES = {
    "q4_k_m": (
        {"hidden_size": 256, "head_dim": 64, "moe_intermediate_size": 256, "intermediate_size": 512},
        gguf_files.by_role(
            token_embd="Q4_K", output="Q6_K", attn_q="Q4_K", attn_k="Q4_K", attn_v="Q6_K/Q4_K", attn_output="Q4_K",
            ffn_gate_exps="Q4_K", ffn_up_exps="Q4_K", ffn_down_exps="Q6_K/Q4_K", ffn_gate="Q4_K", ffn_up="Q4_K",
            ffn_down="Q6_K",
        ),
    ),
    "dynamic": (
        {"hidden_size": 256, "head_dim": 64, "moe_intermediate_size": 512, "intermediate_size": 256},
        gguf_files.by_role(
            token_embd="Q2_K", output="Q5_K", attn_q="IQ4_XS", attn_k="Q5_K", attn_v="Q8_0", attn_output="Q6_K/IQ4_XS",
            ffn_gate_exps="Q2_K/Q3_K", ffn_up_exps="Q3_K/IQ4_XS", ffn_down_exps="Q3_K/Q4_K/Q5_K", ffn_gate="Q5_K",
            ffn_up="Q4_K", ffn_down="Q6_K",
        ),
    ),
    "other rows": (
        {"hidden_size": 320, "moe_intermediate_size": 704, "intermediate_size": 96},
        gguf_files.by_role(
            token_embd="Q5_1", output="Q8_0", attn_q="Q5_0", attn_k="Q5_1", attn_v="Q8_0", ffn_gate_exps="Q5_0/IQ4_NL",
            ffn_up_exps="Q5_0/MXFP4", ffn_down_exps="Q8_0/Q4_1/Q5_1", ffn_gate="Q4_0", ffn_up="Q4_1", ffn_down="IQ4_NL",
        ),
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=list(MIXES))
def mix(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, str]]:
    """A file of mixed types, the same model in float32, and the types."""
    sizes, types = MIXES[request.param]
    base = tmp_path_factory.mktemp("mix")
    tiny.build("qwen3_moe", base / "shapes", **sizes)
    used = gguf_files.mixed(base / "shapes", base / "mix.gguf", base / "twin", types)
    return base / "mix.gguf", base / "twin", used


def test_mixed_types_are_their_dequantised_weights(mix: tuple[Path, Path, dict[str, str]]) -> None:
    path, twin, _ = mix
    assert torch.equal(logits(path, kernels="reference"), logits(twin, kernels="reference"))
    exact, expected = logits(path, cpu_activations="bf16", deterministic=True), logits(twin)
    assert (exact - expected).abs().max() < 2e-4 * expected.abs().max()


def test_mixed_types_with_activations_as_int8(mix: tuple[Path, Path, dict[str, str]]) -> None:
    path, twin, _ = mix
    """A token that goes to another expert differs by more, and so do those that see it."""
    found, expected = logits(path), logits(twin)
    assert ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).quantile(0.25) < 0.03
    assert found.argmax(-1).eq(expected.argmax(-1)).float().mean() > 0.7


def test_every_tensor_has_the_format_of_the_file(mix: tuple[Path, Path, dict[str, str]]) -> None:
    path, _, used = mix
    formats = open_gguf(path, LoadOptions()).formats
    roles = {"q": "attn_q", "v": "attn_v", "o": "attn_output", "gate": "ffn_gate_exps", "up": "ffn_up_exps",
             "down": "ffn_down_exps"}  # fmt: skip
    for layer in (0, 2):  # number 1 is dense
        for role, name in roles.items():
            group = "experts" if role in ("gate", "up", "down") else "dense"
            assert formats.of(f"{layer}.{role}", group).name == used[f"blk.{layer}.{name}.weight"].lower()
    assert formats.of("head", "dense").name == used["output.weight"].lower()


def test_other_formats_can_be_asked_for(mix: tuple[Path, Path, dict[str, str]]) -> None:
    path, twin, _ = mix
    with LLM(path, expert_format="q8_0", dense_format="f32") as llm:
        assert llm.parts.checkpoint.formats.names == {"experts": "q8_0", "dense": "f32", "embed": llm_embed(llm)}
        assert (llm.logits(PROMPT) - logits(twin)).norm() < 0.05 * logits(twin).norm()


def llm_embed(llm: LLM) -> str:
    return llm.parts.checkpoint.formats.embed.name


def test_bytes_in_the_ledger_are_those_of_the_file(mix: tuple[Path, Path, dict[str, str]]) -> None:
    """Experts of one token: gate, up and down of the chosen ones, in each layer's own formats."""
    path, _, _ = mix
    with LLM(path) as llm:
        llm.generate([PROMPT], {"max_new_tokens": 3, "ignore_eos": True})
        spec, passes = llm.spec, [p for p in llm.ledger.passes if p.phase == "decode"]
        sizes = llm.parts.checkpoint.formats
        expected = sum(
            spec.moe.top_k * sizes.layout(spec, layer).bytes for layer in range(len(spec.layers)) if spec.is_moe[layer]
        )
        assert passes
        assert all(p.bytes[CPU_DRAM][EXPERTS] == expected for p in passes)


def test_a_split_model_is_one(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    config, tensors = gguf_files.read(checkpoints("qwen3_moe"))
    whole = tmp_path / "whole.gguf"
    gguf_files.write(whole, config, tensors)
    for number in range(2):
        part = {name: values for i, (name, values) in enumerate(tensors.items()) if i % 2 == number}
        gguf_files.write(tmp_path / f"m-{number + 1:05d}-of-00002.gguf", config, part, split=(number, 2, len(tensors)))
    expected = logits(whole)
    for number in (1, 2):
        assert torch.equal(logits(tmp_path / f"m-{number:05d}-of-00002.gguf"), expected)


def test_what_cannot_run_is_refused_by_name(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    config, tensors = gguf_files.read(checkpoints("qwen3_moe"))
    path = tmp_path / "m.gguf"
    gguf_files.write(path, config, tensors | {"blk.0.attn_sinks.weight": np.zeros(4, np.float32)})
    with pytest.raises(CheckpointError, match=r"does not use for 'qwen3moe': blk\.0\.attn_sinks\.weight"):
        open_gguf(path, LoadOptions())
    open_gguf(path, LoadOptions(ignore_tensors=["*.attn_sinks.weight"]))
    gguf_files.write(path, config, {n: v for n, v in tensors.items() if n != "blk.2.attn_v.weight"})
    with pytest.raises(CheckpointError, match=r"1 tensors fewer .* 'blk\.2\.attn_v\.weight'"):
        open_gguf(path, LoadOptions())
    for name in ("blk. .attn_q.weight", f"blk.{'1' * 5000}.attn_q.weight", "blk.7"):
        gguf_files.write(path, config, tensors | {name: np.zeros(4, np.float32)})
        with pytest.raises(CheckpointError, match="has tensors that the engine does not use for 'qwen3moe': blk"):
            open_gguf(path, LoadOptions())
    raw = np.zeros((160, 54), dtype=np.uint8)  # 54 bytes for 256 weights
    gguf_files.write(path, config, tensors, {"token_embd.weight": ("TQ1_0", raw)})
    with pytest.raises(CheckpointError, match=r"'token_embd\.weight' is TQ1_0, which cannot be computed with"):
        open_gguf(path, LoadOptions())
    gguf_files.write(path, config, tensors, arch="mamba")
    with pytest.raises(ConfigError, match="the engine does not run"):
        open_gguf(path, LoadOptions())


def test_gate_and_up_that_no_kernel_takes_together(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    config, tensors = gguf_files.read(checkpoints("qwen3_moe"))
    path = tmp_path / "m.gguf"
    stored = gguf_files.quantised(tensors, gguf_files.by_role(ffn_up_exps="Q8_0", ffn_down_exps="Q8_0"))
    gguf_files.write(path, config, tensors, stored)
    with refused(CheckpointError, f"{path}: experts of layer 0 have gate in f32 and up in q8_0", "--expert-format"):
        open_gguf(path, LoadOptions())
    open_gguf(path, LoadOptions(expert_format="q8_0"))


def test_the_types_that_plans_call_runnable_are_those_that_are_read() -> None:
    assert {name.lower() for name in READABLE} == {*FILE_BLOCKS, "f32", "f16", "bf16"}
