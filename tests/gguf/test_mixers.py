"""GGUF models whose layers are more than grouped-query attention, as llama.cpp's converter writes them, against the
checkpoints they were written from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf_files
import mixer_files
import numpy as np
import pytest
import tiny
import torch
import twin_kimi_k3
from mixer_types import AS_RELEASED, MIXES

from headrace import LLM
from headrace.engine.planning.plan import sizes
from headrace.errors import CheckpointError, ConfigError
from headrace.loaders import model_source
from headrace.loaders.architecture.of_spec import of_spec
from headrace.loaders.gguf_weights.open_gguf import open_gguf
from headrace.loaders.weights.chosen_formats import LoadOptions

PROMPT = [5, 11, 3, 70, 29, 8, 8, 14, 101, 33, 2, 9, 77, 12, 150, 6, 41]
# Latents with a bias and layers without experts of Qwen3-Next have no names in GGUF files.
NOT_THERE = (
    "deepseek_v3-bias", "qwen3_next-dense", "mistral4-straight", "lfm2_moe-bias",
    "granitemoehybrid-groups", "nemotron_h-mlp",
    "qwen4_exp_text",  # of two layers with tables
)  # fmt: skip
WRAPPED = ("glm5_next",)
VARIANTS = [
    name for name in tiny.VARIANTS if name.split("-")[0] in (*mixer_files.ARCHS, *WRAPPED) and name not in NOT_THERE
]


pytestmark = pytest.mark.usefixtures("float32_cache")


def logits(model: Path, **options: object) -> torch.Tensor:
    """After every token of the prompt."""
    with LLM(model, kernels="reference", **options) as llm:
        return llm.logits(PROMPT)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Checkpoints of variants, with the values that every release has."""
    base, built = tmp_path_factory.mktemp("released"), set[str]()

    def directory(variant: str) -> Path:
        if variant not in built:
            tiny.build(variant, base / variant, **AS_RELEASED.get(variant, {}))
            built.add(variant)
        return base / variant

    return directory


def check_same(path: Path, directory: Path) -> None:
    """The file's model says what its checkpoint's does; theta, eps and factors are float32 in metadata."""
    with LLM(path, kernels="reference") as of_file, LLM(directory, kernels="reference") as of_directory:
        found, expected = of_file.logits(PROMPT), of_directory.logits(PROMPT)
        assert expected.abs().max() > 1, "logits near zero would hide mistakes"
        # Heads of values in another order are added up in another order, which a state magnifies.
        most = 1e-4 if of_file.spec.family.startswith("qwen") else 2e-5
        assert (found - expected).abs().max() < most * expected.abs().max()
        params = {"max_new_tokens": 24, "ignore_eos": True}
        said, wanted = (llm.generate([PROMPT], params)[0].token_ids for llm in (of_file, of_directory))
        assert said == wanted


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_file_says_what_its_checkpoint_says(variant: str, released: Callable[[str], Path], tmp_path: Path) -> None:
    mixer_files.write(tmp_path / "m.gguf", *mixer_files.read(released(variant)))
    check_same(tmp_path / "m.gguf", released(variant))


@pytest.mark.parametrize("config", [twin_kimi_k3.CONFIG, twin_kimi_k3.FREE], ids=["bound", "free"])
def test_kimi_k3(config: dict[str, Any], tmp_path: Path) -> None:
    """Which transformers does not have; and its plan, from the header alone."""
    twin_kimi_k3.build(tmp_path / "m", config)
    path = tmp_path / "m.gguf"
    mixer_files.write(path, *mixer_files.read(tmp_path / "m"))
    check_same(path, tmp_path / "m")
    check_plan(path)


def test_entries_of_a_long_prompt(released: Callable[[str], Path], tmp_path: Path) -> None:
    """Of 150 tokens, beyond one that stands for 128."""
    mixer_files.write(tmp_path / "m.gguf", *mixer_files.read(released("deepseek_v4")))
    with (
        LLM(tmp_path / "m.gguf", kernels="reference") as of_file,
        LLM(released("deepseek_v4"), kernels="reference") as it,
    ):
        ids = PROMPT * 9
        found, expected = of_file.logits(ids), it.logits(ids)
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize("variant", ["deepseek_v2", "deepseek_v3", "qwen3_next"])
def test_joined_projections_of_older_files(variant: str, released: Callable[[str], Path], tmp_path: Path) -> None:
    config, tensors = mixer_files.read(released(variant), joined=True)
    assert {"blk.0.attn_kv_b.weight", "blk.0.ssm_in.weight"} & {*tensors}
    mixer_files.write(tmp_path / "m.gguf", config, tensors, older=True)
    check_same(tmp_path / "m.gguf", released(variant))


def test_values_are_shared_by_several_heads(tmp_path: Path) -> None:
    """Heads of values by turns are in the order of the checkpoint only where each has its own head of keys."""
    for v_heads in (2, 6):
        tiny.build("qwen3_5_moe_text", tmp_path / "m", linear_num_value_heads=v_heads)
        mixer_files.write(tmp_path / "m.gguf", *mixer_files.read(tmp_path / "m"))
        check_same(tmp_path / "m.gguf", tmp_path / "m")


def test_layers_behind_the_last_are_left_out_with_a_note(released: Callable[[str], Path], tmp_path: Path) -> None:
    """Files with layers for multi-token prediction count them among their blocks."""
    config, tensors = mixer_files.read(released("qwen3_5_moe_text"))
    extra = {name.replace("blk.3.", "blk.4."): values for name, values in tensors.items() if name.startswith("blk.3.")}
    extra |= {"blk.4.nextn.eh_proj.weight": np.zeros((64, 128)), "blk.4.nextn.enorm.weight": np.zeros(64)}
    config = config | {"num_hidden_layers": 5, "layer_types": [*config["layer_types"], "full_attention"]}
    mixer_files.write(tmp_path / "m.gguf", config, tensors | extra, more={"nextn_predict_layers": 1})
    check_same(tmp_path / "m.gguf", released("qwen3_5_moe_text"))
    with LLM(tmp_path / "m.gguf", kernels="reference") as llm:
        assert any("layers for multi-token prediction are left out" in note for note in llm.notes)


def test_layers_behind_the_last_have_heads_in_the_lists_of_all(released: Callable[[str], Path], tmp_path: Path) -> None:
    """MiMo's files count three blocks more, and say of each how many heads it has and whether it sees a window."""
    config, tensors = mixer_files.read(released("mimo_v2_flash"))
    extra = {name.replace("blk.1.", "blk.4."): values for name, values in tensors.items() if name.startswith("blk.1.")}
    extra |= {"blk.4.nextn.eh_proj.weight": np.zeros((64, 128)), "blk.4.nextn.enorm.weight": np.zeros(64)}
    config = config | {"num_hidden_layers": 5, "layer_types": [*config["layer_types"], "sliding_attention"]}
    mixer_files.write(tmp_path / "m.gguf", config, tensors | extra, more={"nextn_predict_layers": 1})
    check_same(tmp_path / "m.gguf", released("mimo_v2_flash"))


def test_a_stretched_context_by_its_tensor(released: Callable[[str], Path], tmp_path: Path) -> None:
    """Step's layers that see everything divide frequencies by what a tensor says, which must be of their size."""
    name, (config, tensors) = "rope_freqs.weight", mixer_files.read(released("step3p5"))
    assert tensors[name].max() > 1 == tensors[name].min()
    mixer_files.write(tmp_path / "m.gguf", config, tensors | {name: tensors[name][:3]})
    with pytest.raises(CheckpointError, match=f"'{name}' must have 6 values above 0"):
        open_gguf(tmp_path / "m.gguf", LoadOptions())


REFUSED = {
    "attention.temperature_scale": (0.1, "attention.temperature_scale = 0.1"),
    "swiglu_clamp_exp": (10.0, "swiglu_clamp_exp = 10.0"),
    "attention.causal": (False, "is_causal is false, supported is True"),
    "rope.scaling.type": (
        "ntk",
        'rope_type is "ntk", supported is default, linear, llama3, yarn, proportional, longrope',
    ),
    "expert_weights_norm": (True, "norm_topk_prob is true, supported is false or null"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_metadata_that_would_change_the_result_are_refused(
    key: str, released: Callable[[str], Path], tmp_path: Path
) -> None:
    value, said = REFUSED[key]
    mixer_files.write(tmp_path / "m.gguf", *mixer_files.read(released("deepseek_v2")), more={key: value})
    with pytest.raises(ConfigError, match=said):
        open_gguf(tmp_path / "m.gguf", LoadOptions())


@pytest.mark.parametrize("mix", MIXES)
def test_mixed_types_are_their_dequantised_weights(mix: str, tmp_path: Path) -> None:
    variant, sizes, types = MIXES[mix]
    tiny.build(variant, tmp_path / "shapes", **{**sizes, **AS_RELEASED.get(variant, {})})
    path, twin = tmp_path / "mix.gguf", tmp_path / "twin.gguf"
    used = mixer_files.mixed(tmp_path / "shapes", path, twin, gguf_files.by_role(**types))
    assert {*used.values()} >= {kind for kinds in types.values() for kind in kinds.split("/")}
    found, expected = logits(path), logits(twin)
    assert expected.abs().max() > 1
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_joined_up_projections_in_blocks_are_turned_in_bfloat16(tmp_path: Path) -> None:
    """Blocks lie along the latents, and keys are wanted the other way round: they are rounded to 8 bits once."""
    _, sizes, types = MIXES["deepseek"]
    tiny.build("deepseek_v3", tmp_path / "shapes", **sizes)
    path, twin = tmp_path / "mix.gguf", tmp_path / "twin.gguf"
    kinds = gguf_files.by_role(**types, attn_kv_b="Q4_K")
    mixer_files.mixed(tmp_path / "shapes", path, twin, kinds, joined=True)
    found, expected = logits(path), logits(twin)
    error = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert 0 < error.quantile(0.5) < 2**-7
    formats = open_gguf(path, LoadOptions()).formats
    assert [formats.of(f"1.{role}", "dense").name for role in ("k_up", "v_up")] == ["bf16", "q4_k"]


@pytest.mark.parametrize(("gating", "said"), [(3, "softmax of those chosen"), (4, "square root of softplus"), (9, "9")])
def test_scores_that_no_family_has_are_refused(
    gating: int, said: str, released: Callable[[str], Path], tmp_path: Path
) -> None:
    """GLM's files alone leave out how scores are made, so that the key stands there once."""
    config, tensors = mixer_files.read(released("glm4_moe_lite"))
    mixer_files.write(tmp_path / "m.gguf", config, tensors, more={"expert_gating_func": gating})
    with pytest.raises(ConfigError, match=f"scoring_func is \"{said}\", supported is 'sigmoid'"):
        open_gguf(tmp_path / "m.gguf", LoadOptions())


def test_a_file_without_a_tensor_or_with_one_more_is_refused(released: Callable[[str], Path], tmp_path: Path) -> None:
    for variant, name in (
        ("gpt_oss", "blk.1.attn_sinks.weight"), ("gpt_oss", "blk.0.ffn_down_exps.bias"),
        ("deepseek_v3", "blk.2.attn_v_b.weight"), ("qwen3_next", "blk.0.ssm_dt.bias"),
        ("qwen3_5_moe_text", "blk.0.ssm_a"), ("gemma4_text", "blk.0.ffn_down_exps.scale"),
        ("lfm2_moe", "blk.0.shortconv.conv.weight"), ("lfm2_moe", "blk.2.exp_probs_b.bias"),
        ("granitemoehybrid", "blk.0.ssm_d"), ("nemotron_h", "blk.1.ffn_up_exps.weight"),
        ("nemotron_h", "blk.4.ssm_norm.weight"), ("gemma4_text", "blk.1.layer_output_scale.weight"),
        ("gemma4_text", "blk.2.post_ffw_norm_1.weight"), ("minimax_m3_vl_text", "blk.1.indexer.q_norm.weight"),
        ("glm5_next", "blk.1.indexer_compressor_ape.weight"), ("glm5_next", "blk.0.hc_ffn_fn.weight"),
        ("qwen4_exp_text-one", "output_hc_up.weight"), ("qwen4_exp_text-one", "blk.1.ple_norm_conv.weight"),
    ):  # fmt: skip
        config, tensors = mixer_files.read(released(variant))
        mixer_files.write(tmp_path / "m.gguf", config, {n: t for n, t in tensors.items() if n != name})
        with pytest.raises(CheckpointError, match=f"1 tensors fewer .* '{name}'"):
            open_gguf(tmp_path / "m.gguf", LoadOptions())
    config, tensors = mixer_files.read(released("deepseek_v3"))
    mixer_files.write(tmp_path / "m.gguf", config, tensors | {"blk.0.indexer.proj.weight": np.zeros((4, 64))})
    with pytest.raises(CheckpointError, match=r"does not use for 'deepseek2': blk\.0\.indexer\.proj\.weight"):
        open_gguf(tmp_path / "m.gguf", LoadOptions())


NEWEST = [name for name in VARIANTS if name.startswith(("minimax_m3", "glm5", "qwen4", "kimi_linear"))]


@pytest.mark.parametrize("variant", NEWEST)
def test_a_plan_of_the_file_is_what_the_engine_takes(
    variant: str, released: Callable[[str], Path], tmp_path: Path
) -> None:
    """Weights and states to the byte, and caches entry by entry, by the header alone."""
    mixer_files.write(tmp_path / "m.gguf", *mixer_files.read(released(variant)))
    check_plan(tmp_path / "m.gguf")


def check_plan(path: Path) -> None:
    """By the header alone what the engine takes."""
    source, opened = model_source.find(str(path)), open_gguf(path, LoadOptions())
    planned, run = source.described.architecture, of_spec(opened.spec)
    assert sizes(source, "native")[0].in_memory == opened.weight_bytes, "tables of runs of tokens stay in the file"
    assert planned.total_parameters == run.total_parameters
    assert planned.state_elements == run.state_elements == opened.spec.state_elements
    assert planned.lookup == () == run.lookup or [(p.rows, p.cols) for p in planned.lookup] == [
        (p.rows, p.cols) for p in run.lookup
    ]
    for mine, wanted in zip(planned.layers, run.layers, strict=True):
        assert mine.mixer is not None
        assert wanted.mixer is not None
        assert [replace(one, rows=()) for one in mine.mixer.caches] == [
            replace(one, rows=()) for one in wanted.mixer.caches
        ]
        assert mine.experts == wanted.experts


@pytest.mark.parametrize(
    ("variant", "more", "said"),
    [
        ("glm5_next", {"swiglu_clamp_exp": [7.0] * 5}, "clamps experts to different limits: 0.8.*, 7.0"),
        ("glm5_next", {"attention.indexer.kpool_select_tail": False}, "index_kpool_always_select_tail is false"),
        ("glm5_next", {"attention.indexer.types": [True, False] * 3}, "indexer_types is .shared., supported is full"),
        ("qwen4_exp_text-one", {"ple.layers": [1, 2]}, r"runs of tokens in layers \[1, 2\].*one layer is supported"),
        ("qwen4_exp_text-one", {"ple.head_offsets": [0, 41, 84, 130]}, "are not one head's behind the other's"),
        ("qwen4_exp_text-one", {"ple.head_vocab_sizes": [41]}, "does not say the hashes of runs of up to 2 tokens"),
        ("qwen4_exp_text-one", {"hyper_connection.low_rank": 0}, "hc_lowrank is 0, supported is a whole number"),
    ],
)
def test_what_the_newest_files_must_say(
    variant: str, more: dict[str, object], said: str, released: Callable[[str], Path], tmp_path: Path
) -> None:
    mixer_files.write(tmp_path / "m.gguf", *mixer_files.read(released(variant)), more=more)
    with pytest.raises((CheckpointError, ConfigError), match=said):
        open_gguf(tmp_path / "m.gguf", LoadOptions())


def test_turns_of_a_part_of_each_head_are_checked(released: Callable[[str], Path], tmp_path: Path) -> None:
    """A quarter of the pairs is turned, which a tensor says, and metadata do not."""
    name, path = "rope_freqs.weight", tmp_path / "m.gguf"
    config, tensors = mixer_files.read(released("gemma4_text"))
    assert tensors[name].tolist() == [1.0] * 5 + [np.float32(1e30)] * 15
    mixer_files.write(path, config, {n: t for n, t in tensors.items() if n != name})
    with pytest.raises(CheckpointError, match=f"has no '{name}', which says what is turned of a head"):
        open_gguf(path, LoadOptions())
    for turned, pairs in ((6, 20), (4, 20), (20, 20), (5, 16)):
        values = np.array([1.0] * turned + [1e30] * (pairs - turned), dtype=np.float32)
        mixer_files.write(path, config, tensors | {name: values})
        with pytest.raises(CheckpointError, match=r"supported where it has 20 values, 5 of 1 and the others 1e\+20 or"):
            open_gguf(path, LoadOptions())


@pytest.mark.parametrize("pattern", [[True] * 4, [False] * 4, [True], 2])
def test_which_layers_see_a_window_must_be_said(
    pattern: object, released: Callable[[str], Path], tmp_path: Path
) -> None:
    config, tensors = mixer_files.read(released("gemma4_text"))
    mixer_files.write(tmp_path / "m.gguf", config, tensors, windows=pattern)
    with pytest.raises(CheckpointError, match="does not say which layers see a window, and which see everything"):
        open_gguf(tmp_path / "m.gguf", LoadOptions())
