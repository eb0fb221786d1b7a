"""Writes checkpoints of gpt-oss, DeepSeek, Qwen3-Next and Qwen3.5 as GGUF files.

What llama.cpp's converter does to their tensors is done here too, written from its behaviour and not with the code that
reads such files. Names are those of the gguf package's own table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import biased_metadata
import compressed_files
import gguf
import gguf_files
import kind_metadata
import mixer_metadata
import newest_files
import numpy as np
import recurrent_files
import safetensors.torch
import warm_metadata
from numpy.typing import NDArray

Array = NDArray[np.float32]
Named = Iterator[tuple[str, Array]]
ARCHS = {
    "gpt_oss": "gpt-oss", "deepseek_v2": "deepseek2", "deepseek_v3": "deepseek2", "kimi_k2": "deepseek2",
    "glm4_moe_lite": "deepseek2", "qwen3_next": "qwen3next", "qwen3_5_moe_text": "qwen35moe",
    "gemma4_text": "gemma4", "deepseek_v32": "deepseek32", "glm_moe_dsa": "glm-dsa", **biased_metadata.ARCHS,
    **warm_metadata.ARCHS, "kimi_linear": "kimi-linear", **kind_metadata.ARCHS,
    **recurrent_files.ARCHS, **newest_files.ARCHS, **compressed_files.ARCHS,
}  # fmt: skip
JOINED = ("kv_b_proj.weight", "in_proj_qkvz.weight")
EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(\w+\.weight)")


def read(directory: Path, *, joined: bool = False) -> tuple[dict[str, Any], dict[str, Array]]:
    """The config of a checkpoint and its tensors as float32 under their GGUF names. joined: the up-projections of
    latents, and the projections of a delta rule, stay one tensor, as in the oldest files."""
    config = json.loads((directory / "config.json").read_text())
    stored: dict[str, Array] = {}
    for path in sorted(directory.glob("*.safetensors")):
        stored |= {name: tensor.float().numpy() for name, tensor in safetensors.torch.load_file(path).items()}
    arch = ARCHS[config["model_type"]]
    if arch in compressed_files.ARCHS.values():
        return config, compressed_files.changed(_stacked(stored))
    table = _names(arch, config)
    if arch == "qwen4exp":
        stored = newest_files.with_table(config, directory, stored)
    if arch == "kimi-k3":
        stored = newest_files.fused(stored)
    change = {
        **dict.fromkeys(mixer_metadata.LATENT, _latent), "gpt-oss": _gpt_oss, "qwen3next": _delta,
        "qwen35moe": _delta_in_turns, "gemma4": _gemma4, "llama4": warm_metadata.llama4, "mistral4": _mistral4,
        "kimi-linear": _key_delta, "mimo2": _mimo2, "step35": _step35, "laguna": _laguna,
        "minimax-m3": newest_files.minimax_m3, "glm5-next": _glm5, "qwen4exp": _qwen4,
        "kimi-k3": _kimi_k3,
        **dict.fromkeys(recurrent_files.ARCHS.values(), recurrent_files.changed),
    }.get(arch, _biased)  # fmt: skip
    found: dict[str, Array] = {}
    for name, values in _stacked(stored).items():
        if joined and name.endswith(JOINED):
            changed: Named = iter([(name, values)])
        else:
            changed = change(config, name, values)
        for its_name, its_values in changed:
            placed = table.get_name(its_name, try_suffixes=(".weight", ".bias", ".scale"))
            assert placed is not None, f"no GGUF name of {its_name}"
            found[placed] = np.ascontiguousarray(its_values)
    if arch == "gemma4":
        found["rope_freqs.weight"] = _rope_factors(config)
    if arch in warm_metadata.ARCHS.values():
        found |= warm_metadata.factors(config)
    if arch == "step35":
        found["rope_freqs.weight"] = kind_metadata.stretched(config)
    return config, found


def write(
    path: Path,
    config: dict[str, Any],
    tensors: dict[str, Array],
    stored: dict[str, tuple[str, Any]] | None = None,
    *,
    older: bool = False,
    more: dict[str, Any] | None = None,
    no_vocabulary: bool = False,
    windows: object = None,
) -> None:
    """A GGUF file of float32 tensors, but for those of `stored`: (type, uint8 rows). older: sizes of heads as files
    with joined up-projections have them. more: metadata besides, by their names behind the arch. no_vocabulary: the
    file says that it has none, which llama.cpp asks for. windows: which layers see one, instead of what is right."""
    stored = stored or {}
    arch = ARCHS[config["model_type"]]
    writer = gguf.GGUFWriter(path, arch)
    mixer_metadata.add(writer, arch, config if windows is None else {**config, "windows": windows}, older)
    if no_vocabulary:
        writer.add_tokenizer_model("none")
        if arch not in mixer_metadata.LATENT:  # which have it anyway
            writer.add_vocab_size(config["vocab_size"])
    for key, value in (more or {}).items():
        writer.add_key_value(f"{arch}.{key}", value, mixer_metadata.kind(value))
    gguf_files.finish(writer, tensors, stored)


def mixed(directory: Path, path: Path, twin: Path, types: gguf_files.Types, *, joined: bool = False) -> dict[str, str]:
    """Writes the shapes of a checkpoint with tensors of the given types and random values into a GGUF file, and the
    same values as float32 into another one; returns the types by name."""
    config, tensors = read(directory, joined=joined)
    rng, stored, used = np.random.default_rng(0), {}, {}
    for name in tensors:
        used[name] = kind = types(name)
        if kind != "F32":
            rows, tensors[name] = gguf_files.random_blocks(rng, kind, tensors[name].shape)
            stored[name] = kind, rows
    write(path, config, tensors, stored, older=joined)
    write(twin, config, tensors, older=joined)
    return used


def _names(arch: str, config: dict[str, Any]) -> Any:
    """The names of an arch's tensors."""
    if arch in newest_files.ARCHS.values():
        return newest_files.Names()
    codes = {name: code for code, name in gguf.MODEL_ARCH_NAMES.items()}
    return gguf.get_tensor_name_map(codes[kind_metadata.NAMED_AS.get(arch, arch)], _layers(config))


def _glm5(config: dict[str, Any], name: str, values: Array) -> Named:
    """As `_key_delta`, but for its own."""
    return newest_files.glm5_own(name, values) or _key_delta(config, name, values)


def _kimi_k3(config: dict[str, Any], name: str, values: Array) -> Named:
    """As `_key_delta`, but for its own."""
    return newest_files.kimi_k3_own(config, name, values) or _key_delta(config, name, values)


def _qwen4(config: dict[str, Any], name: str, values: Array) -> Named:
    """As `_delta_in_turns`, but for its own."""
    return newest_files.qwen4_own(config, name, values) or _delta_in_turns(config, name, values)


def _layers(config: dict[str, Any]) -> int:
    return config.get("num_hidden_layers") or len(config["layers_block_type"])


def _stacked(stored: dict[str, Array]) -> dict[str, Array]:
    """Experts that have a tensor each, as one."""
    found: dict[str, Array] = {}
    single: dict[str, dict[int, Array]] = {}
    for name, values in stored.items():
        if its := EXPERT.fullmatch(name):
            single.setdefault(f"{its[1]}.{its[3]}", {})[int(its[2])] = values
        else:
            found[name] = values
    return found | {name: np.stack([every[e] for e in sorted(every)]) for name, every in single.items()}


def _biased(_: dict[str, Any], name: str, values: Array) -> Named:
    """The bias of a choice is a vector, and a bias by its name."""
    if name.endswith("e_score_correction_bias"):
        yield name.replace("_bias", ".bias"), values.reshape(-1)
    else:
        yield name, values


def _gpt_oss(_: dict[str, Any], name: str, values: Array) -> Named:
    """Sinks are a weight; experts lie rows first, gate and up no longer by turns."""
    if name.endswith("sinks"):
        yield name + ".weight", values
    elif name.endswith("gate_up_proj_bias"):
        yield name.replace("gate_up_proj_bias", "gate_proj.bias"), values[:, 0::2]
        yield name.replace("gate_up_proj_bias", "up_proj.bias"), values[:, 1::2]
    elif name.endswith("gate_up_proj"):
        rows = values.swapaxes(1, 2)
        yield name.replace("gate_up_proj", "gate_proj.weight"), rows[:, 0::2]
        yield name.replace("gate_up_proj", "up_proj.weight"), rows[:, 1::2]
    elif name.endswith("down_proj_bias"):
        yield name.replace("_bias", ".bias"), values
    elif name.endswith("down_proj"):
        yield name + ".weight", values.swapaxes(1, 2)
    else:
        yield name, values


def _gemma4(_: dict[str, Any], name: str, values: Array) -> Named:
    """Experts and the layer's number are weights; what a router's input and its weights are multiplied by, scales."""
    if name.endswith("router.scale"):
        yield name.replace("router.scale", "router.proj.scale"), values
    elif name.endswith("router.per_expert_scale"):
        yield name.replace("router.per_expert_scale", "experts.down_proj.scale"), values
    elif name.endswith("layer_scalar") or ".experts." in name:
        yield name + ".weight", values
    else:
        yield name, values


def _mimo2(_: dict[str, Any], name: str, values: Array) -> Named:
    """Sinks are a weight."""
    if name.endswith("attention_sink_bias"):
        yield name + ".weight", values
    else:
        yield from _biased({}, name, values)


def _step35(_: dict[str, Any], name: str, values: Array) -> Named:
    """Norms with the one that is added."""
    if name.endswith("norm.weight"):
        yield name, values + 1
    elif name.endswith("router_bias"):
        yield name + ".bias", values
    else:
        yield name, values


def _laguna(_: dict[str, Any], name: str, values: Array) -> Named:
    """Under the names that the package has for the like of it."""
    renamed = (("mlp.experts.e_score_correction_bias", "mlp.gate.e_score_correction.bias"),)
    for old, new in renamed:
        name = name.replace(old, new)
    yield name, values


def _rope_factors(config: dict[str, Any]) -> Array:
    """What frequencies of the layers that see everything are divided by."""
    pairs = mixer_metadata.full_size(config) // 2
    turned = int(2 * pairs * config["rope_parameters"]["full_attention"]["partial_rotary_factor"] / 2)
    return np.array([1.0] * turned + [1e30] * (pairs - turned), dtype=np.float32)


def _latent(config: dict[str, Any], name: str, values: Array) -> Named:
    """The up-projections apart, that of keys turned."""
    if name.endswith("e_score_correction_bias"):
        yield name.replace("_bias", ".bias"), values
    elif name.endswith("kv_b_proj.weight"):
        nope, heads = config["qk_nope_head_dim"], config["num_attention_heads"]
        by_head = values.reshape(heads, nope + config["v_head_dim"], -1)
        yield name.replace("kv_b_proj", "k_b_proj"), by_head[:, :nope].swapaxes(1, 2)
        yield name.replace("kv_b_proj", "v_b_proj"), by_head[:, nope:]
    else:
        yield name, values


def _mistral4(config: dict[str, Any], name: str, values: Array) -> Named:
    """As `_latent`; experts are weights."""
    if ".experts." in name:
        yield name + ".weight", values
    else:
        yield from _latent(config, name, values)


def _key_delta(config: dict[str, Any], name: str, values: Array) -> Named:
    """The rate itself for its logarithm, as a column; convolutions with dims of 1; the rest as of latents."""
    if name.endswith("A_log"):
        yield name, -np.exp(values).reshape(-1, 1)
    elif name.endswith("dt_bias"):
        yield name.replace("dt_bias", "dt_proj.bias"), values
    elif "_conv1d" in name:
        yield name, values.reshape(1, values.shape[0], 1, -1)
    else:
        yield from _latent(config, name, values)


def _delta(config: dict[str, Any], name: str, values: Array) -> Named:
    """Norms with the one that is added, the rate itself for its logarithm, queries, keys and values apart by heads."""
    if name.endswith("A_log"):
        yield name, -np.exp(values)
    elif name.endswith("dt_bias"):
        yield name.replace("dt_bias", "dt_proj.bias"), values
    elif "conv1d" in name:
        yield name, values[:, 0]
    elif name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
        yield name, values + 1
    elif name.endswith("shared_expert_gate.weight"):
        yield name, values[0]
    elif name.endswith("in_proj_qkvz.weight"):
        k_heads, k_dim = config["linear_num_key_heads"], config["linear_key_head_dim"]
        by_head = values.reshape(k_heads, -1, values.shape[-1])
        each = (by_head.shape[1] - 2 * k_dim) // 2
        q, k, v, z = np.split(by_head, [k_dim, 2 * k_dim, 2 * k_dim + each], axis=1)
        hidden = values.shape[-1]
        at = name.replace("in_proj_qkvz", "in_proj_{}").format
        yield at("qkv"), np.concatenate([part.reshape(-1, hidden) for part in (q, k, v)])
        yield at("z"), z.reshape(-1, hidden)
    elif name.endswith("experts.gate_up_proj"):
        half = values.shape[1] // 2
        yield name.replace("gate_up_proj", "gate_proj.weight"), values[:, :half]
        yield name.replace("gate_up_proj", "up_proj.weight"), values[:, half:]
    elif name.endswith("experts.down_proj"):
        yield name + ".weight", values
    else:
        yield name, values


def _delta_in_turns(config: dict[str, Any], name: str, values: Array) -> Named:
    """As `_delta`, and heads of values by turns of the heads of keys: first the first of each, then the second."""
    k_heads, v_heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
    k_rows, v_dim = k_heads * config["linear_key_head_dim"], config["linear_value_head_dim"]

    def turned(part: Array, size: int) -> Array:
        by_head = part.reshape(k_heads, v_heads // k_heads, size, *part.shape[1:])
        return by_head.swapaxes(0, 1).reshape(part.shape)

    if ".in_proj_qkv." in name or ".conv1d." in name:
        values = np.concatenate([values[: 2 * k_rows], turned(values[2 * k_rows :], v_dim)])
    elif ".in_proj_z." in name:
        values = turned(values, v_dim)
    elif name.endswith((".in_proj_a.weight", ".in_proj_b.weight", ".A_log", ".dt_bias")):
        values = turned(values, 1)
    elif "linear_attn.out_proj" in name:
        values = turned(values.T, v_dim).T
    yield from _delta(config, name, values)
