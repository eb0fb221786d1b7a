"""Layouts of a checkpoint: however its tensors are named and dealt out over files, it is the same model."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from refusals import refused
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from headrace import LLM, CheckpointError
from headrace.kernels.packed import ExpertBank
from headrace.loaders.files import weight_files
from headrace.loaders.weights.checkpoint import LoadOptions, open_directory

Checkpoints = Callable[[str], Path]
Oracle = Callable[[str], PreTrainedModel]
Make = Callable[..., Path]
Tensors = dict[str, Tensor]
META = {"format": "pt"}
FAMILIES = ("qwen3_moe", "qwen2_moe", "mixtral", "olmoe", "granitemoe")
IDS = [5, 9, 31, 7, 120]


def change(directory: Path, how: Callable[[Tensors], Tensors]) -> None:
    """Writes the weights of a checkpoint under other names or in other shapes."""
    file = directory / "model.safetensors"
    save_file({k: v.contiguous() for k, v in how(load_file(file)).items()}, file, metadata=META)


def logits(directory: Path) -> Tensor:
    with LLM(str(directory), dtype="float32", kernels="reference", max_context=64) as llm:
        return llm.logits(IDS)


# ---- names


def experts_of(tensors: Tensors) -> tuple[Tensors, dict[str, list[tuple[Tensor, Tensor, Tensor]]]]:
    """The tensors without routed experts, and these by layer: gate, up and down of each."""
    rest = dict(tensors)
    found: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
    for name in list(tensors):
        if match := re.fullmatch(r"(model\.layers\.\d+\.)\w+\.experts\.(\d+)\.(?:gate_proj|w1)\.weight", name):
            parts = [("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")]
            found.setdefault(match[1], []).append(
                tuple(  # type: ignore[arg-type]
                    next(rest.pop(other) for word in pair if (other := re.sub(r"gate_proj|w1", word, name)) in rest)
                    for pair in parts
                )
            )
        elif match := re.fullmatch(r"(model\.layers\.\d+\.)\w+\.input_linear\.weight", name):
            down = rest.pop(name.replace("input", "output"))
            found[match[1]] = [(*both.chunk(2), one) for both, one in zip(rest.pop(name), down, strict=True)]
    return rest, found


def rewritten(module: str, style: str, router: str = "gate.weight") -> Callable[[Tensors], Tensors]:
    """Writes experts into another module, fused or separate."""

    def how(tensors: Tensors) -> Tensors:
        rest, layers = experts_of(tensors)
        rest = {re.sub(r"\.\w+\.(?:gate|router\.layer)\.weight$", f".{module}.{router}", n): t for n, t in rest.items()}
        for layer, experts in layers.items():
            start = f"{layer}{module}.experts."
            if style == "fused":
                rest[start + "gate_up_proj"] = torch.stack([torch.cat([gate, up]) for gate, up, _ in experts])
                rest[start + "down_proj"] = torch.stack([down for *_, down in experts])
                continue
            names = {"w": ("w1", "w3", "w2"), "proj": ("gate_proj", "up_proj", "down_proj")}[style]
            for i, parts in enumerate(experts):
                rest |= {f"{start}{i}.{word}.weight": part for word, part in zip(names, parts, strict=True)}
        return rest

    return how


@pytest.mark.parametrize("style", ["fused", "w", "proj"])
@pytest.mark.parametrize("module", ["mlp", "block_sparse_moe"])
@pytest.mark.parametrize("family", FAMILIES)
def test_experts_are_found_by_whatever_name(family: str, module: str, style: str, make: Make, oracle: Oracle) -> None:
    """Two tensors a layer or three an expert, under the names of any family: the same logits as transformers."""
    change(directory := make(family), rewritten(module, style))
    assert (logits(directory) - tiny.oracle_logits(oracle(family), IDS)).abs().max() < 1e-4


STACKED = {"gate": 0, "up": 1, "down": 2}


def in_three(place: str) -> Callable[[Tensors], Tensors]:
    """Experts as three tensors a layer: all gates, all ups, all downs."""

    def how(tensors: Tensors) -> Tensors:
        rest, layers = experts_of(tensors)
        for layer, experts in layers.items():
            for word, i in STACKED.items():
                rest[f"{layer}{place % f'{word}_proj'}"] = torch.stack([parts[i] for parts in experts])
        return rest

    return how


def by_expert(tensors: Tensors) -> Tensors:
    """Two tensors an expert: gate over up, and down."""
    rest, layers = experts_of(tensors)
    for layer, experts in layers.items():
        for i, (gate, up, down) in enumerate(experts):
            rest[f"{layer}mlp.experts.{i}.gate_up_proj.weight"] = torch.cat([gate, up])
            rest[f"{layer}mlp.experts.{i}.down_proj.weight"] = down
    return rest


def turned(tensors: Tensors) -> Tensors:
    """Two tensors a layer, as [experts, in, out]."""
    tensors = rewritten("mlp", "fused")(tensors)
    return {n: t.transpose(1, 2) if ".experts." in n else t for n, t in tensors.items()}


@pytest.mark.parametrize(
    "how",
    [
        in_three("mlp.switch_mlp.%s.weight"),  # as MLX
        in_three("mlp.experts.%s"), in_three("block_sparse_moe.experts.%s.weight"), by_expert, turned,
    ],
)  # fmt: skip
@pytest.mark.parametrize("family", ["qwen3_moe", "olmoe", "granitemoe"])
def test_experts_are_found_in_any_number_of_tensors(
    family: str, how: Callable[[Tensors], Tensors], make: Make, oracle: Oracle
) -> None:
    change(directory := make(family), how)
    assert (logits(directory) - tiny.oracle_logits(oracle(family), IDS)).abs().max() < 1e-4
    notes = open_directory(directory, LoadOptions()).notes
    assert ["[experts, in, out]" in note for note in notes] == [True] * (how is turned)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_saves_under_its_own_names(family: str, make: Make, oracle: Oracle) -> None:
    """Not those of the release, which it writes by default."""
    directory = make(family)
    oracle(family).save_pretrained(directory, save_original_format=False)
    names = load_file(directory / "model.safetensors").keys()
    assert any(name.endswith("experts.gate_up_proj") for name in names)
    assert (logits(directory) - tiny.oracle_logits(oracle(family), IDS)).abs().max() < 1e-4


def test_turned_experts_are_packed_while_loading(make: Make, checkpoints: Checkpoints) -> None:
    change(directory := make(), turned)
    packed = []
    for path in (directory, checkpoints("qwen3_moe")):
        with LLM(str(path), expert_format="q4_0", kernels="reference", max_context=64) as llm:
            banks = [layer.experts for layer in llm.parts.weights.layers if layer.experts is not None]
            packed.append(torch.cat([bank.data for bank in banks if isinstance(bank, ExpertBank)]))
    assert torch.equal(*packed)


@pytest.mark.parametrize("wrapper", ["_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"])
def test_wrappers_inside_of_names_are_read_over(wrapper: str, make: Make, checkpoints: Checkpoints) -> None:
    change(directory := make(), lambda t: {re.sub(r"(layers\.\d+)", rf"\1.{wrapper}", n): v for n, v in t.items()})
    assert torch.equal(logits(directory), logits(checkpoints("qwen3_moe")))
    assert open_directory(directory, LoadOptions()).notes == (f"{wrapper} in names of tensors is read over",)


def test_two_tensors_of_one_name_are_not_guessed_between(make: Make) -> None:
    name = "model.layers.0.mlp.gate.weight"
    change(directory := make(), lambda t: {**t, name.replace("0.", "0._orig_mod."): t[name].clone()})
    with refused(CheckpointError, "_orig_mod", f"are both '{name}'"):
        open_directory(directory, LoadOptions())


def prefixed(prefix: str, head: str) -> Callable[[Tensors], Tensors]:
    """Another start of all names than "model.", and than nothing for the head."""
    return lambda tensors: {
        head + name if name.startswith("lm_head") else prefix + name.removeprefix("model."): tensor
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize(
    ("prefix", "head"),
    [
        ("", ""), ("base_model.model.model.", "base_model.model."), ("module.model.", "module."),
        ("_orig_mod.model.", "_orig_mod."), ("model.language_model.", ""), ("language_model.model.", "language_model."),
        ("transformer.", ""),
    ],
)  # fmt: skip
def test_a_prefix_of_all_names_is_found_and_said(prefix: str, head: str, make: Make, oracle: Oracle) -> None:
    change(directory := make(), prefixed(prefix, head))
    notes = open_directory(directory, LoadOptions()).notes
    assert [f"begin with '{prefix}'" in note for note in notes] == [True]
    assert (logits(directory) - tiny.oracle_logits(oracle("qwen3_moe"), IDS)).abs().max() < 1e-4


def test_names_that_belong_to_no_family_are_shown(make: Make) -> None:
    change(directory := make(), lambda t: {n.replace("self_attn.q_proj", "attention.wq"): v for n, v in t.items()})
    with refused(CheckpointError, "lacks", "q_proj", "attention.wq"):
        open_directory(directory, LoadOptions())


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.40.mlp.gate.weight", "mtp.layers.0.x.weight",
        "model.visual.blocks.0.attn.qkv.weight", "model.layers.1.self_attn.k_scale", "vision_tower.x",
        "x.num_batches_tracked", "model.layers.0.self_attn.masked_bias",
    ],
)  # fmt: skip
def test_tensors_that_nothing_computes_with_are_read_over(name: str, make: Make, checkpoints: Checkpoints) -> None:
    change(directory := make(), lambda t: {**t, name: torch.ones(2)})
    assert torch.equal(logits(directory), logits(checkpoints("qwen3_moe")))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("rotary_emb.inv_freq", "rotary tables and masks"), ("model.layers.0.self_attn.causal_mask", "masks"),
        ("model.layers.0.self_attn.kv_scale", "8-bit cache"), ("model.nextn.0.x", "prediction"),
        ("model.embed_vision.x", "vision and audio"), ("model.layers.0.mlp._extra_state", "states of training"),
        ("v_head.summary.weight", "states of training"), ("medusa_head.0.weight", "prediction"),
    ],
)  # fmt: skip
def test_what_is_read_over_is_said_by_kind(name: str, kind: str, make: Make) -> None:
    change(directory := make(), lambda t: {**t, name: torch.ones(2)})
    (note,) = open_directory(directory, LoadOptions()).notes
    assert note.startswith("1 tensors are read over")
    assert kind in note


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.layers.0.self_attn.q_proj.lora_A.default.weight", "adapter"),
        ("model.layers.0.self_attn.q_proj.qweight", "quantised"),
        ("model.layers.0.self_attn.q_proj.weight_scale_inv", "quantised"),
        ("tok_embeddings.weight", "Mistral's"), ("blk.0.attn_q.weight", "GGUF"),
        ("embedding.word_embeddings.weight", "Megatron"),
        ("model.layers.0.self_attn.q_proj.bias", "not supported"), ("model.layers.0.self_attn.sinks", "not supported"),
    ],
)  # fmt: skip
def test_what_the_names_of_other_tensors_show_is_said(name: str, said: str, make: Make) -> None:
    change(directory := make(), lambda t: {**t, name: torch.ones(2)})
    with refused(CheckpointError, name, said):
        open_directory(directory, LoadOptions())


def test_a_config_that_counts_fewer_layers_is_refused(make: Make) -> None:
    """Layers behind the last one are left out where they are for further tokens, not where they are the decoder's."""
    directory = make(num_hidden_layers=2)
    with refused(CheckpointError, "has 3 layers", "counts 2", "--ignore-tensors 'model.layers.2.*'"):
        open_directory(directory, LoadOptions())
    assert len(open_directory(directory, LoadOptions(ignore_tensors=("model.layers.2.*",))).spec.layers) == 2

    def predicting(tensors: Tensors) -> Tensors:
        return {**tensors, "model.layers.2.eh_proj.weight": torch.ones(2), "model.layers.2.enorm.weight": torch.ones(2)}

    change(directory, predicting)
    assert "multi-token prediction" in open_directory(directory, LoadOptions()).notes[0]


def test_other_tensors_are_ignored_by_name_and_that_is_said(make: Make) -> None:
    change(directory := make(), lambda t: {**t, "model.layers.0.extra.a": torch.ones(2), "more": torch.ones(1)})
    with refused(CheckpointError, "2 tensors", "extra.a", "--ignore-tensors"):
        open_directory(directory, LoadOptions())
    with refused(CheckpointError, "1 tensors", "more"):
        open_directory(directory, LoadOptions(ignore_tensors=("*.extra.*",)))
    found = open_directory(directory, LoadOptions(ignore_tensors=("*.extra.*", "more")))
    assert "2 tensors are ignored, as model.layers.0.extra.a" in found.notes[0]


# ---- the head


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_that_is_the_embedding_is_tied(dtype: torch.dtype, make: Make) -> None:
    directory = make(tie_word_embeddings=True)
    change(directory, lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"].to(dtype).float().clone()})
    change(directory, lambda t: {**t, "model.embed_tokens.weight": t["lm_head.weight"].to(dtype).clone()})
    found = open_directory(directory, LoadOptions())
    assert (found.spec.tied_head, found.notes) == (True, ())


def test_a_stored_head_with_other_values_is_used_and_said(make: Make, oracle: Oracle) -> None:
    directory = make(tie_word_embeddings=True)
    found = open_directory(directory, LoadOptions())
    assert not found.spec.tied_head
    assert "tie_word_embeddings" in found.notes[0]
    assert (logits(directory) - tiny.oracle_logits(oracle("qwen3_moe"), IDS)).abs().max() < 1e-4


def test_a_converted_model_keeps_the_head_that_was_used(make: Make, oracle: Oracle, tmp_path: Path, run: Any) -> None:
    status, _, err = run("convert", make(tie_word_embeddings=True), tmp_path / "packed", "--expert-format", "f32")
    assert status == 0, err
    assert (logits(tmp_path / "packed") - tiny.oracle_logits(oracle("qwen3_moe"), IDS)).abs().max() < 1e-4


def test_an_untied_head_that_is_missing(make: Make) -> None:
    change(directory := make(), lambda t: {n: v for n, v in t.items() if n != "lm_head.weight"})
    with refused(CheckpointError, "has no 'lm_head.weight'", "tie_word_embeddings"):
        open_directory(directory, LoadOptions())


def test_a_tied_head_may_be_stored_alone(make: Make) -> None:
    directory = make(tie_word_embeddings=True)
    change(directory, lambda t: {n: v for n, v in t.items() if n != "lm_head.weight"})
    tied = logits(directory)
    change(directory, lambda t: {"lm_head.weight" if "embed" in n else n: v for n, v in t.items()})
    assert torch.equal(logits(directory), tied)


# ---- files


def split(directory: Path, name: str, parts: int = 2) -> list[Path]:
    """Deals the weights out over files called NAME-0000N-of-0000M.safetensors."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    paths = [directory / f"{name}-{i + 1:05d}-of-{parts:05d}.safetensors" for i in range(parts)]
    for i, path in enumerate(paths):
        save_file(dict(list(tensors.items())[i::parts]), path, metadata=META)
    return paths


def index(directory: Path, files: list[str], name: str = "model.safetensors.index.json") -> None:
    (directory / name).write_text(json.dumps({"weight_map": {f"tensor{i}": file for i, file in enumerate(files)}}))


def stale_beside_whole(directory: Path) -> None:
    index(directory, ["model-00001-of-00002.safetensors"])


def stale_beside_shards(directory: Path) -> None:
    split(directory, "model", 3)
    index(directory, ["model-00001-of-00002.safetensors"])


def shards_alone(directory: Path) -> None:
    split(directory, "model")


def other_name(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "consolidated.safetensors")


def other_shards(directory: Path) -> None:
    split(directory, "pytorch_model")


def beside_an_adapter(directory: Path) -> None:
    save_file({"a": torch.ones(1)}, directory / "adapter_model.safetensors")
    (directory / "model.safetensors").rename(directory / "model-fp16.safetensors")


def other_index(directory: Path) -> None:
    paths = split(directory, "model.fp16")
    where = {name: path.name for path in paths for name in load_file(path)}
    (directory / "model.safetensors.index.fp16.json").write_text(json.dumps({"weight_map": where}))


def links(directory: Path) -> None:
    (directory / "blobs").mkdir()
    shutil.move(directory / "model.safetensors", directory / "blobs" / "abc")
    (directory / "model.safetensors").symlink_to("blobs/abc")


@pytest.mark.parametrize(
    "layout",
    [
        stale_beside_whole, stale_beside_shards, shards_alone, other_name, other_shards, beside_an_adapter, other_index,
        links,
    ],
)  # fmt: skip
def test_weights_are_found_by_what_is_there(
    layout: Callable[[Path], None], make: Make, checkpoints: Checkpoints
) -> None:
    layout(directory := make())
    assert torch.equal(logits(directory), logits(checkpoints("qwen3_moe")))
    assert len(weight_files.headers_of(directory)) == len(weight_files.headers_of(checkpoints("qwen3_moe")))


def test_a_stale_index_is_said(make: Make) -> None:
    stale_beside_whole(directory := make())
    assert open_directory(directory, LoadOptions()).notes == (
        "model.safetensors.index.json names files that are not there: model.safetensors is read instead",
    )


def test_two_sets_of_weights_are_not_guessed_between(make: Make) -> None:
    shutil.copy((directory := make()) / "model.safetensors", directory / "a.safetensors")
    (directory / "model.safetensors").rename(directory / "b.safetensors")
    with refused(CheckpointError, "several sets", "a.safetensors", "b.safetensors"):
        open_directory(directory, LoadOptions())
