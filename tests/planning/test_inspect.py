"""`headrace inspect`: what a model is, from headers alone, of every kind of source."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import vocabularies
from fake_hub import FakeHub
from terminal import folded
from tiny_gguf import SIZES, metadata_of, packed, small, split, tensors_of, write_gguf
from tiny_hub import fetch
from vocabulary_metadata import of_bpe

from headrace.engine.planning.inspection import facts, stored
from headrace.engine.planning.inspection.facts import Facts
from headrace.engine.planning.inspection.text import Text
from headrace.kernels import FORMATS
from headrace.loaders import model_source
from headrace.loaders.files import headers
from headrace.loaders.files.gguf_header import TYPES, Header
from headrace.loaders.files.headers import Stored

Run = Callable[..., tuple[int, str, str]]
CODE_OF = {name: code for code, (name, _, _) in TYPES.items()}
HOLE = 1 << 36  # bytes of weights in a sparse file: whoever reads them reads for minutes


def facts_of(model: object) -> Facts:
    return facts.make(model_source.find(str(model), dense=True))


def shown(found: Facts) -> dict[tuple[str, str, str], tuple[str, ...]]:
    """(group, format, layers) -> names."""
    return {(run.group, run.format, run.layers): run.tensors for run in found.runs}


def folder(place: Path, config: dict[str, Any], tensors: dict[str, tuple[str, tuple[int, ...], int]]) -> Path:
    """A model of a config and a safetensors header (name -> type, shape, bytes of an element) over a hole."""
    place.mkdir()
    (place / "config.json").write_text(json.dumps(config))
    header, at = {}, 0
    for name, (dtype, shape, width) in tensors.items():
        size = width
        for n in shape:
            size *= n
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    blob = json.dumps(header).encode()
    with (place / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(blob)) + blob)
        file.truncate(8 + len(blob) + max(at, HOLE))
    return place


# GGUF

LARGER = {**SIZES, "hidden": 256, "width": 256, "size": 64}  # rows that blocks of 256 fit


def mixed(kinds: Callable[[str, int], str], arch: str = "qwen3moe") -> tuple[dict[str, Any], list[Stored]]:
    """The small model with a type for each matrix: kinds(name, layer)."""
    tensors = []
    for name, shape in tensors_of(LARGER).items():
        layer = int(name.split(".")[1]) if name.startswith("blk") else -1
        kind = kinds(name, layer) if len(shape) > 1 and "gate_inp" not in name else "F32"
        _, block, size = TYPES[CODE_OF[kind]]
        number = 1
        for n in shape:
            number *= n
        tensors.append(Stored(name, kind, shape, number // block * size))
    return metadata_of(LARGER, arch), tensors


def test_a_mixed_gguf_by_group_and_layer() -> None:
    """As Q4_K_M mixes: `down` of some layers in q6_k, the head too."""

    def kind(name: str, layer: int) -> str:
        more = layer in (0, 2, 3) and ("down" in name or "attn_v" in name)
        return "Q6_K" if more or name == "output.weight" else "Q4_K"

    metadata, tensors = mixed(kind)
    found = facts.make(model_source.of_gguf(Header(metadata, tuple(tensors), 0), "m.gguf"))
    assert shown(found) == {
        ("experts", "q4_k", "0-3"): ("ffn_gate_exps", "ffn_up_exps"),
        ("experts", "q6_k", "0, 2-3"): ("ffn_down_exps",),
        ("experts", "q4_k", "1"): ("ffn_down_exps",),
        ("attention", "q4_k", "0-3"): ("attn_q", "attn_k", "attn_output"),
        ("attention", "q6_k", "0, 2-3"): ("attn_v",),
        ("attention", "q4_k", "1"): ("attn_v",),
        ("router", "f32", "0-3"): ("ffn_gate_inp",),
        ("norms", "f32", "0-3"): ("attn_norm", "ffn_norm", "attn_q_norm", "attn_k_norm"),
        ("norms", "f32", ""): ("output_norm",),
        ("head", "q6_k", ""): ("output",),
        ("embedding", "q4_k", ""): ("token_embd",),
    }
    assert sum(run.nbytes for run in found.runs) == found.storage.total == sum(t.nbytes for t in tensors)

    def held(many: list[Stored]) -> int:
        """Bytes in memory, where a row is packed for itself."""
        return sum(math.prod(t.shape[:-1]) * FORMATS[t.dtype.lower()].row_bytes(t.shape[-1]) for t in many)

    experts = [t for t in tensors if "exps" in t.name]
    common = [t for t in tensors if "exps" not in t.name and "token_embd" not in t.name]
    row = held([t for t in tensors if "token_embd" in t.name]) // SIZES["vocab"]
    assert found.active_bytes == held(common) + held(experts) * 2 // SIZES["experts"] + row
    assert found.cache_bytes == 2 * 2 * LARGER["layers"] * LARGER["kv"] * LARGER["size"]
    assert found.here.objections == ()
    assert set(found.here.formats) == {"q4_k", "q6_k", "f32"}


@pytest.mark.parametrize(
    ("kind", "arch", "said"),
    [
        ("TQ2_0", "qwen3moe", ["no kernels for tq2_0; there are those for f32", "q4_k", "mxfp4"]),
        ("F64", "qwen3moe", ["no kernels for f64; there are those for f32"]),
        ("NVFP4", "qwen3moe", ["no kernels for nvfp4; there are those for f32"]),
        ("Q4_K", "grok", ["the engine does not run grok yet: it runs granitemoe, llama, olmoe, qwen2moe, qwen3moe"]),
    ],
)
def test_what_cannot_run_says_why_and_what_can(kind: str, arch: str, said: list[str], run: Run, tmp_path: Path) -> None:
    metadata, tensors = mixed(lambda name, layer: kind, arch)
    path = tmp_path / "m.gguf"
    path.write_bytes(packed(list(metadata.items()), [(t.name, t.shape, CODE_OF[t.dtype], t.nbytes) for t in tensors]))
    status, out, err = run("inspect", path)
    assert status == 0, err
    assert "runs here:" not in out
    assert [text for text in said if text not in folded(out)] == []
    found = json.loads(run("inspect", path, "--json")[1])
    assert not found["runs"]
    assert said[0] in " ".join(found["here"]["objections"])


def test_a_type_without_a_name_is_no_reason_to_stop(tmp_path: Path) -> None:
    metadata, tensors = small(kind=144)
    path = tmp_path / "m.gguf"
    path.write_bytes(packed(list(metadata.items()), tensors))
    found = facts_of(path)
    assert any("no kernels for type 144" in objection for objection in found.here.objections)


def test_any_part_of_a_split_one_and_a_folder_with_it(tmp_path: Path) -> None:
    paths = split(tmp_path, 3)
    whole = facts_of(tmp_path)
    assert whole.storage.total == sum(size for *_, size in small()[1])
    assert [facts_of(path).runs for path in paths] == [whole.runs] * 3


def test_the_text_side_of_a_gguf() -> None:
    metadata, tensors = mixed(lambda name, layer: "Q4_K")
    core = vocabularies.byte_level()
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    words = of_bpe(core, **{"tokenizer.ggml.pre": "qwen2", "tokenizer.chat_template": template})
    found = facts.make(model_source.of_gguf(Header({**metadata, **words}, tuple(tensors), 0), "m.gguf")).text
    assert isinstance(found, Text)
    assert (found.kind, found.named) == ("byte-level BPE", ("gpt2", "qwen2"))
    assert found.vocabulary == core.get_vocab_size(with_added_tokens=True)
    assert found.special["eos_token"] == "</s>"
    assert {text for _, text in found.ends} == {"</s>", "<|im_end|>"}
    assert found.sample is not None
    assert found.sample.startswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi.<|im_end|>")
    words["tokenizer.chat_template"] = "{{ raise_exception('roles') }}"
    refused = facts.make(model_source.of_gguf(Header({**metadata, **words}, tuple(tensors), 0), "m.gguf")).text
    assert isinstance(refused, Text)
    assert (refused.sample, "the chat template of m.gguf failed: roles" in refused.refusal) == (None, True)
    words["tokenizer.ggml.pre"] = "nobody-knows"
    unknown = facts.make(model_source.of_gguf(Header({**metadata, **words}, tuple(tensors), 0), "m.gguf")).text
    assert isinstance(unknown, str)
    assert "nobody-knows" in unknown


def test_a_dense_model_is_shown_and_does_not_run(run: Run, tmp_path: Path) -> None:
    metadata, tensors = small(arch="llama")
    dense = [one for one in tensors if "exps" not in one[0] and "gate_inp" not in one[0]]
    dense += [(f"blk.{i}.ffn_up.weight", (96, 64), 0, 4 * 96 * 64) for i in range(SIZES["layers"])]
    path = tmp_path / "model.gguf"
    path.write_bytes(packed(list(metadata.items()), dense))
    config = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    config |= {"vocab_size": 96, "intermediate_size": 96, "num_key_value_heads": 2, "max_position_embeddings": 99}
    (tmp_path / "dense.json").write_text(json.dumps(config))
    for model, said in ((path, "llama is dense here"), (tmp_path / "dense.json", "the engine does not run llama yet")):
        status, out, err = run("inspect", model)
        assert status == 0, err
        assert "4 dense (0-3)" in out
        assert said in folded(out)
        assert run("plan", model)[0] == 1


# safetensors

TINY = {
    "model_type": "qwen3_moe", "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 96, "num_experts": 2, "num_experts_per_tok": 1,
    "moe_intermediate_size": 128, "intermediate_size": 256, "decoder_sparse_step": 1, "mlp_only_layers": [1],
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "hidden_act": "silu",
    "tie_word_embeddings": False, "norm_topk_prob": True, "torch_dtype": "bfloat16",
}  # fmt: skip
Weight = Callable[[str, int, int], dict[str, tuple[str, tuple[int, ...], int]]]


def tensors_with(weight: Weight, plain: str = "BF16") -> dict[str, tuple[str, tuple[int, ...], int]]:
    """The tensors of TINY, its linear layers as a scheme stores them."""
    found = {
        "model.embed_tokens.weight": (plain, (96, 128), 2), "lm_head.weight": (plain, (96, 128), 2),
        "model.norm.weight": (plain, (128,), 2),
    }  # fmt: skip
    for i in range(3):
        at = f"model.layers.{i}."
        for name, rows in (("q", 128), ("k", 64), ("v", 64), ("o", 128)):
            found |= weight(f"{at}self_attn.{name}_proj", rows, 128)
        found |= {f"{at}{name}.weight": (plain, (128,), 2) for name in ("input_layernorm", "post_attention_layernorm")}
        found |= {f"{at}self_attn.{name}_norm.weight": (plain, (32,), 2) for name in "qk"}
        if i == 1:
            for name in ("gate", "up", "down"):
                found |= weight(f"{at}mlp.{name}_proj", *((128, 256) if name == "down" else (256, 128)))
            continue
        found[f"{at}mlp.gate.weight"] = (plain, (2, 128), 2)
        for expert in range(2):
            for name in ("gate", "up", "down"):
                found |= weight(f"{at}mlp.experts.{expert}.{name}_proj", 128, 128)
    return found


def fp8(name: str, rows: int, cols: int) -> dict[str, tuple[str, tuple[int, ...], int]]:
    return {f"{name}.weight": ("F8_E4M3", (rows, cols), 1), f"{name}.weight_scale_inv": ("F32", (1, 1), 4)}


def gptq(name: str, rows: int, cols: int) -> dict[str, tuple[str, tuple[int, ...], int]]:
    return {
        f"{name}.qweight": ("I32", (cols // 8, rows), 4), f"{name}.qzeros": ("I32", (1, rows // 8), 4),
        f"{name}.scales": ("F16", (1, rows), 2), f"{name}.g_idx": ("I32", (cols,), 4),
    }  # fmt: skip


def awq(name: str, rows: int, cols: int) -> dict[str, tuple[str, tuple[int, ...], int]]:
    return {
        f"{name}.qweight": ("I32", (cols, rows // 8), 4), f"{name}.qzeros": ("I32", (1, rows // 8), 4),
        f"{name}.scales": ("F16", (1, rows), 2),
    }  # fmt: skip


def compressed(name: str, rows: int, cols: int) -> dict[str, tuple[str, tuple[int, ...], int]]:
    return {
        f"{name}.weight_packed": ("I32", (rows, cols // 8), 4), f"{name}.weight_scale": ("BF16", (rows, cols // 32), 2),
        f"{name}.weight_shape": ("I64", (2,), 8),
    }  # fmt: skip


SCHEMES: list[tuple[str, Weight, dict[str, Any], str]] = [
    ("fp8", fp8, {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3"}, "fp8"),
    ("gptq", gptq, {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": True}, "int4-g128"),
    ("awq", awq, {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
     "int4-g128"),
    ("compressed", compressed,
     {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
      "config_groups": {"group_0": {"targets": ["Linear"], "weights":
                                    {"num_bits": 4, "group_size": 32, "symmetric": True, "type": "int",
                                     "strategy": "group"}}}}, "int4-g32"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "weight", "scheme", "format"), SCHEMES, ids=[one[0] for one in SCHEMES])
def test_quantised_safetensors(name: str, weight: Weight, scheme: dict[str, Any], format: str, tmp_path: Path) -> None:
    """A weight and what belongs to it are one entry, by the name that its config gives it; nothing of 64 GB is read."""
    tensors = tensors_with(weight)
    place = folder(tmp_path / name, {**TINY, "quantization_config": scheme}, tensors)
    found = facts_of(place)
    groups = {(run.group, run.layers): run.format for run in found.runs}
    assert groups == {
        ("experts", "0, 2"): format, ("attention", "0-2"): format, ("dense", "1"): format, ("router", "0, 2"): "bf16",
        ("norms", "0-2"): "bf16", ("norms", ""): "bf16", ("head", ""): "bf16", ("embedding", ""): "bf16",
    }  # fmt: skip
    experts = next(run for run in found.runs if run.group == "experts")
    assert experts.tensors == tuple(f"mlp.experts.*.{which}_proj" for which in ("gate", "up", "down"))
    assert found.model.moe_layers == (0, 2)
    assert found.here.objections, "quantised safetensors do not run"


def test_mxfp4_of_gpt_oss(tmp_path: Path) -> None:
    source = model_source.find("gpt-oss-20b")
    config = {**source.config, "num_hidden_layers": 1, "layer_types": ["full_attention"]}
    hidden, experts = config["hidden_size"], config["num_local_experts"]
    at = "model.layers.0."
    tensors = {
        "model.embed_tokens.weight": ("BF16", (config["vocab_size"], hidden), 2),
        "lm_head.weight": ("BF16", (config["vocab_size"], hidden), 2), "model.norm.weight": ("BF16", (hidden,), 2),
        f"{at}mlp.experts.gate_up_proj_blocks": ("U8", (experts, 2 * hidden, hidden // 32, 16), 1),
        f"{at}mlp.experts.gate_up_proj_scales": ("U8", (experts, 2 * hidden, hidden // 32), 1),
        f"{at}mlp.experts.gate_up_proj_bias": ("BF16", (experts, 2 * hidden), 2),
        f"{at}mlp.experts.down_proj_blocks": ("U8", (experts, hidden, hidden // 32, 16), 1),
        f"{at}mlp.experts.down_proj_scales": ("U8", (experts, hidden, hidden // 32), 1),
        f"{at}self_attn.q_proj.weight": ("BF16", (4096, hidden), 2),
    }  # fmt: skip
    found = shown(facts_of(folder(tmp_path / "oss", config, tensors)))
    assert found["experts", "mxfp4", "0"] == ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
    assert found["experts", "bf16", "0"] == ("mlp.experts.gate_up_proj_bias",)
    assert found["attention", "bf16", "0"] == ("self_attn.q_proj",)


def test_plain_safetensors_and_a_config_alone_say_the_same(checkpoints: Callable[[str], Path]) -> None:
    directory = checkpoints("qwen3_moe")
    whole, alone = facts_of(directory), facts_of(directory / "config.json")
    assert whole.here.objections == alone.here.objections == ()
    experts = whole.model.layers[0].experts
    assert experts is not None
    idle = experts.count - experts.top_k
    unread = sum(idle * layer.expert for layer in whole.storage.layers) + whole.storage.held - whole.storage.rows
    assert whole.active_bytes == whole.storage.total - unread
    assert (whole.cache_bytes, whole.model.moe_layers) == (alone.cache_bytes, alone.model.moe_layers)
    assert isinstance(alone.text, str)
    assert "no tokenizer files beside the config" in alone.text


@pytest.mark.parametrize("name", ["DeepSeek-V3", "gpt-oss-120b", "Qwen3-30B-A3B", "Kimi-K2", "GLM-4.5-Air"])
def test_formats_of_a_config_are_all_of_its_bytes(name: str) -> None:
    found = facts_of(name)
    assert sum(run.nbytes for run in found.runs) == pytest.approx(found.storage.total, rel=1e-4)


def test_files_that_are_not_whole_do_not_run(run: Run, tmp_path: Path) -> None:
    """What is said is why a run would be refused."""
    write_gguf(path := tmp_path / "m.gguf")
    assert "runs here:" in run("inspect", path)[1]
    os.truncate(path, path.stat().st_size - 10_000)
    out = folded(run("inspect", path)[1])
    assert "runs here:" not in out
    problem = f"does not run here: {path} is truncated: it has {path.stat().st_size} bytes"
    assert problem in out
    assert problem in folded(run("plan", path, "--hardware", "ddr5-6000-2ch,64gb,8cores")[1])
    place = tmp_path / "model"
    tiny.build("qwen3_moe", place)
    assert not facts_of(place).here.objections
    weights = place / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1000)
    assert f"{weights} is truncated" in facts_of(place).here.objections[0]
    weights.rename(place / "model-00001-of-00002.safetensors")
    assert "1 of 2 shards" in facts_of(place).here.objections[0]
    (place / "model-00001-of-00002.safetensors").unlink()
    assert not facts_of(place).here.objections  # a config alone


def test_layers_in_few_words() -> None:
    assert stored.spans([]) == ""
    assert stored.spans([3]) == "3"
    assert stored.spans([5, 0, 1, 2, 7, 8]) == "0-2, 5, 7-8"


# What is printed


def test_the_demo_on_one_screen(run: Run) -> None:
    status, out, err = run("inspect", "demo")
    assert status == 0, err
    for said in (
        "qwen3_moe, 7 layers", "7 routed (0-6)", "16 a layer, a token takes 4", "3.6 kB a token", "1024 tokens",
        "mlp.experts.*.down_proj", "read for a token", "byte-level BPE, from tokenizer.json", "2048 tokens",
        "ends an answer <|endoftext|> (0)", "a chat becomes Hello\\nHi.\\nHow are you?\\n",
        "runs here: the CPU's kernels",
    ):  # fmt: skip
        assert said in folded(out), said
    found = json.loads(run("inspect", "demo", "--json")[1])
    assert (found["runs"], found["family"], found["layers"]["routed"]) == (True, "qwen3_moe", list(range(7)))
    assert found["text"]["ends"] == [[0, "<|endoftext|>"]]
    assert found["bytes"]["total"] == sum(size for group, size in found["bytes"].items() if group != "total")


def test_several_models_are_shown_as_a_table(run: Run, tmp_path: Path) -> None:
    for name in ("m-Q4_K_M.gguf", "m-Q8_0.gguf"):
        write_gguf(tmp_path / name)
    status, out, err = run("inspect", tmp_path)
    assert status == 0, err
    assert "2 GGUF models: name one" in folded(out)
    assert json.loads(run("inspect", tmp_path, "--json")[1]) == {
        "models": [
            {"name": str(tmp_path / name), "bytes": (tmp_path / name).stat().st_size}
            for name in ("m-Q4_K_M.gguf", "m-Q8_0.gguf")
        ]
    }


# The hub


def test_a_repo_by_headers_and_its_small_files(hub: FakeHub, cache: Path, talker: Path, run: Run) -> None:
    files = {path.name: path.read_bytes() for path in talker.iterdir()}
    body = 8 << 20
    files["model.safetensors"] += bytes(body)
    hub.add("org/m", {**files, "original.bin": b"x" * body})
    status, out, err = run("inspect", "org/m", "--cache-dir", cache, "--json")
    assert status == 0, err
    found, here = json.loads(out), json.loads(run("inspect", talker, "--json")[1])
    assert {**found, "model": 0, "here": 0} == {**here, "model": 0, "here": 0}
    assert found["text"]["templates"] == ["default"]
    assert hub.sent["model.safetensors"] <= headers.FIRST
    assert sum(hub.sent.values()) < body
    fetch(cache, "org/m")
    hub.forget()
    assert json.loads(run("inspect", "org/m", "--cache-dir", cache, "--offline", "--json")[1])["text"] == found["text"]
    assert not hub.requests


def test_a_gguf_of_the_hub_and_a_list_of_several(hub: FakeHub, cache: Path, tmp_path: Path, run: Run) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path)
    hub.add("org/q", {"m-Q8_0.gguf": path.read_bytes() + bytes(4 << 20), "m-Q4_0.gguf": b"x"})
    status, out, err = run("inspect", "org/q:q8_0", "--cache-dir", cache, "--json")
    assert status == 0, err
    assert json.loads(out)["model"] == "org/q/m-Q8_0.gguf"
    assert hub.sent.total() <= 1 << 20
    status, out, _ = run("inspect", "org/q", "--cache-dir", cache)
    assert status == 0
    assert "org/q:Q8_0" in folded(out)
    assert "4.4" in out


@pytest.mark.alone
def test_it_needs_no_torch_and_answers_at_once(cache_home: Path, tmp_path: Path) -> None:
    """Of the demo with its tokenizer, and of a GGUF, as commands of their own: 2 s of a core's time."""
    write_gguf(tmp_path / "m.gguf")
    code = (
        "import sys; from headrace import cli; sys.argv = ['headrace', 'inspect', *sys.argv[1:]]\n"
        "try: cli.main()\nexcept SystemExit as end: status = end.code or 0\n"
        "sys.exit(status or (3 if 'torch' in sys.modules else 0))"
    )
    took = []
    for model in ("demo", tmp_path / "m.gguf"):
        before = os.times()
        done = subprocess.run([sys.executable, "-c", code, str(model)], capture_output=True, text=True)
        now = os.times()
        took.append(now.children_user - before.children_user + now.children_system - before.children_system)
        assert done.returncode == 0, done.stderr or "torch was imported"
    assert min(took) < 2
