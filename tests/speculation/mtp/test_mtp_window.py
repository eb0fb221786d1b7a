"""Layers for multi-token prediction as MiMo's: attention over a window, an MLP instead of experts, own names."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from mtp_models import Twin, stored
from mtp_runs import OPTIONS, always, check, opened, prompt, watched
from torch import Tensor, nn

from headrace import LLM, SamplingParams
from headrace.engine.bandwidth_model.machine_file import parse
from headrace.engine.memory import mtp_rows
from headrace.engine.memory.kv_budget import PageBytes
from headrace.engine.model.kv_cache import PAGE
from headrace.engine.planning.options import Options
from headrace.engine.planning.plan import make
from headrace.kernels.formats import KV_BF16
from headrace.loaders import model_source
from headrace.loaders.spec import AttentionSpec, DenseSpec
from headrace.loaders.weights.checkpoint import open_directory
from headrace.loaders.weights.chosen_formats import LoadOptions
from headrace.loaders.weights.mtp.asked import MtpAsked

VARIANT, WINDOWED, DENSE = "mimo_v2_flash", 1, 0  # layers of the tiny model
HOW = SamplingParams(max_new_tokens=12, ignore_eos=True)
AS_RELEASED = {"post_attention_layernorm.weight": "pre_mlp_layernorm.weight",
               "shared_head.norm.weight": "final_layernorm.weight"}  # fmt: skip
STORED_AS = {"self_attn.sinks": "self_attn.attention_sink_bias"}
Checkpoints = Callable[[str], Path]


def layer_tensors(directory: Path) -> dict[str, Tensor]:
    """By the names that DeepSeek-V3 has for them behind the layer's prefix."""
    random, tensors = torch.Generator().manual_seed(5), stored(directory)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    found = {}
    for number, part in ((WINDOWED, "self_attn."), (WINDOWED, "input_layernorm"), (DENSE, "mlp."),
                         (WINDOWED, "post_attention_layernorm")):  # fmt: skip
        prefix = f"model.layers.{number}."
        own = {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix + part)}
        found |= {name: one + 0.3 * one.std() * noise(*one.shape) for name, one in own.items()}
    hidden = tensors["model.norm.weight"].shape[0]
    found |= {f"{name}.weight": 1.0 + 0.2 * noise(hidden) for name in ("enorm", "hnorm", "shared_head.norm")}
    return found | {"eh_proj.weight": noise(hidden, 2 * hidden) * (2 * hidden) ** -0.5}


class WindowTwin(Twin):
    """The layer of transformers over a window, with the MLP of the dense one."""

    def __init__(self, oracle: Any, tensors: dict[str, Tensor]) -> None:
        self.start, self.oracle, self.tensors, self.eps = 0.0, oracle, tensors, oracle.config.rms_norm_eps
        model = copy.deepcopy(oracle)
        layer = model.model.layers[WINDOWED]
        layer.mlp = model.model.layers[DENSE].mlp
        layer.load_state_dict({name: tensors[STORED_AS.get(name, name)] for name in layer.state_dict()})
        layer.self_attn.layer_idx = 0
        model.model.layers, model.model.norm.weight.data = nn.ModuleList([layer]), tensors["shared_head.norm.weight"]
        model.config.num_hidden_layers = 1
        model.config.layer_types, model.config.mlp_layer_types = ["sliding_attention"], ["dense"]
        self.model = model


@pytest.fixture(scope="module")
def path(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("mimo") / "model"
    shutil.copytree(checkpoints(VARIANT), found)
    own = {f"model.mtp.layers.0.{AS_RELEASED.get(name, name)}": one
           for name, one in layer_tensors(checkpoints(VARIANT)).items()}  # fmt: skip
    more = {name.replace("layers.0.", "layers.1."): one.clone() for name, one in own.items()}  # is not read
    tensors = safetensors.torch.load_file(found / "model.safetensors") | own | more
    safetensors.torch.save_file(
        {name: one.contiguous() for name, one in tensors.items()}, found / "model.safetensors", {"format": "pt"}
    )
    return found


def test_logits_are_the_twins(path: Path, checkpoints: Checkpoints, oracle: Callable[[str], Any]) -> None:
    twin = WindowTwin(oracle(VARIANT), layer_tensors(checkpoints(VARIANT)))
    with opened(path, prefill_chunk=24) as llm:
        mtp = llm.spec.mtp
        assert mtp is not None
        assert isinstance(mtp.mixer, AttentionSpec)
        assert mtp.mixer.window
        assert isinstance(mtp.ffn, DenseSpec)
        said = watched(always(llm))
        llm.generate([prompt(101)], HOW)
        llm.generate([prompt(40, 1)], HOW)
    check(said, twin)


@pytest.mark.parametrize("where", [{}, {"device": "simulated", "cpu_moe": True, "handoff": "eager"}], ids=str)
def test_text_is_the_same(where: dict[str, Any], path: Path) -> None:
    """In a batch, with pools of pages for windows."""
    how, text = SamplingParams(max_new_tokens=40, ignore_eos=True), prompt(45)
    with LLM(str(path), **OPTIONS, **where, speculate="off") as llm:
        plain = [one.token_ids for one in llm.generate([text, text[5:]], how)]
    with opened(path, **where) as llm:
        always(llm)
        with llm.ledger.recording() as passes:
            assert [one.token_ids for one in llm.generate([text, text[5:]], how)] == plain
        assert sum(one.drafted for one in passes) > 50


def test_a_plan_has_the_engines_bytes(path: Path) -> None:
    engine = open_directory(path, LoadOptions(mtp=MtpAsked(must=True)))
    options = Options(context=64, prompt=32, batch=3, speculate="mtp")
    found = make(model_source.find(str(path)), parse("ddr5-6000-2ch, 64gb, 16cores"), options).own_drafts
    assert found is not None
    assert found.weights == mtp_rows.weight_bytes(engine.spec, engine.formats)
    without = replace(engine.spec, mtp=None)
    page = PageBytes(engine.spec, KV_BF16, 32).page - PageBytes(without, KV_BF16, 32).page
    assert found.cache == page * 64 // PAGE * 3
