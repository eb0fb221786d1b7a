"""Layers for multi-token prediction with an MLP instead of experts: over a window MiMo's, K-EXAONE's and Step's, which
goes on from states in front of the final norm; ERNIE's, which sees everything."""

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
from mtp_runs import OPTIONS, always, check, opened, prompt, ran, watched
from refusals import refused
from stand_in_gpu import StandIn
from torch import Tensor, nn

from headrace import LLM, ConfigError, SamplingParams
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

# By variant the layer of the tiny model whose attention it has, and the one whose MLP.
LIKE = {"mimo_v2_flash": (1, 0), "exaone_moe": (0, 0), "ernie4_5_moe": (1, 0), "step3p5": (1, 0)}
HOW = SamplingParams(max_new_tokens=12, ignore_eos=True)
QWEN = {"fc.weight": "eh_proj.weight", "pre_fc_norm_embedding.weight": "enorm.weight",
        "pre_fc_norm_hidden.weight": "hnorm.weight", "norm.weight": "shared_head.norm.weight"}  # fmt: skip
MIMO = {"pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
        "final_layernorm.weight": "shared_head.norm.weight"}  # fmt: skip
ERNIE = {"linear_proj.0.weight": "eh_proj.weight", "emb_norm.0.weight": "enorm.weight",
         "hidden_norm.0.weight": "hnorm.weight"}  # fmt: skip
STEP = ("shared_head.norm.weight", "shared_head.output.weight")
# By variant what releases call its own tensors, and what the names of the others begin with.
AS_RELEASED: dict[str, tuple[dict[str, str], str]] = {
    "mimo_v2_flash": ({f"model.mtp.layers.0.{mine}": theirs for mine, theirs in MIMO.items()}, "model.mtp.layers.0."),
    "exaone_moe": ({f"mtp.{mine}": theirs for mine, theirs in QWEN.items()}, "mtp.layers.0."),
    "ernie4_5_moe": ({f"model.mtp_{mine}": theirs for mine, theirs in ERNIE.items()}, "model.mtp_block.0."),
    "step3p5": ({f"model.layers.5.transformer.{name}": name for name in STEP}, "model.layers.5."),
}  # fmt: skip
STORED_AS = {"self_attn.sinks": "self_attn.attention_sink_bias"}
Checkpoints = Callable[[str], Path]


def layer_tensors(variant: str, directory: Path) -> dict[str, Tensor]:
    """By the names that DeepSeek-V3 has for them behind the layer's prefix. ERNIE's norm in front of the head is the
    model's."""
    random, tensors = torch.Generator().manual_seed(5), stored(directory)
    attends, dense = LIKE[variant]

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    found = {}
    for number, part in ((attends, "self_attn."), (attends, "input_layernorm"), (dense, "mlp."),
                         (attends, "post_attention_layernorm")):  # fmt: skip
        prefix = f"model.layers.{number}."
        own = {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix + part)}
        found |= {name: one + 0.3 * one.std() * noise(*one.shape) for name, one in own.items()}
    hidden, start = tensors["model.norm.weight"].shape[0], 1.0 if variant == "step3p5" else 0.0
    found |= {f"{name}.weight": 1.0 - start + 0.2 * noise(hidden) for name in ("enorm", "hnorm", "shared_head.norm")}
    if variant == "ernie4_5_moe":
        found["shared_head.norm.weight"] = tensors["model.norm.weight"].clone()
    return found | {"eh_proj.weight": noise(hidden, 2 * hidden) * (2 * hidden) ** -0.5}


class DenseTwin(Twin):
    """The layer of transformers that attends alike, with the MLP of the dense one."""

    def __init__(self, variant: str, oracle: Any, tensors: dict[str, Tensor]) -> None:
        self.start, self.eps = 1.0 if variant == "step3p5" else 0.0, oracle.config.rms_norm_eps
        self.oracle, self.tensors, self.before_norm = oracle, tensors, variant == "step3p5"
        model, (attends, dense) = copy.deepcopy(oracle), LIKE[variant]
        layer = model.model.layers[attends]
        layer.mlp = model.model.layers[dense].mlp
        layer.load_state_dict({name: tensors[STORED_AS.get(name, name)] for name in layer.state_dict()})
        layer.self_attn.layer_idx = 0
        model.model.layers, model.model.norm.weight.data = nn.ModuleList([layer]), tensors["shared_head.norm.weight"]
        for config in {id(one): one for one in (model.config, model.model.config)}.values():
            config.num_hidden_layers = 1
            if getattr(config, "layer_types", None) is not None:
                config.layer_types = [config.layer_types[attends]]
            if hasattr(config, "mlp_layer_types"):
                config.mlp_layer_types = ["dense"]
        if self.before_norm:
            self.oracle = copy.deepcopy(oracle)
            self.oracle.get_input_embeddings = self.oracle.model.get_input_embeddings
            self.oracle.model.norm = model.model.norm = nn.Identity()
        self.model = model

    def logits(self, states_TD: Tensor) -> Tensor:
        name = "shared_head.norm.weight"
        return super().logits(self._norm(states_TD, name) if self.before_norm else states_TD)


@pytest.fixture(scope="module")
def with_layer(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """with_layer(variant) is a directory with the layer, and with a second one that is not read."""
    made: dict[str, Path] = {}

    def found(variant: str) -> Path:
        if variant not in made:
            made[variant] = tmp_path_factory.mktemp(variant) / "model"
            shutil.copytree(checkpoints(variant), made[variant])
            _add(variant, made[variant], layer_tensors(variant, checkpoints(variant)))
        return made[variant]

    return found


def _add(variant: str, directory: Path, layer: dict[str, Tensor]) -> None:
    released, prefix = AS_RELEASED[variant]
    back = {theirs: mine for mine, theirs in released.items()}
    own = {back.get(name, prefix + name): one for name, one in layer.items()}
    if variant == "ernie4_5_moe":
        del own[prefix + "shared_head.norm.weight"]
    path = directory / "model.safetensors"
    if variant == "step3p5":
        own[back["shared_head.output.weight"]] = safetensors.torch.load_file(path)["lm_head.weight"].clone()
    further = {".0.": ".1."} if variant != "step3p5" else {"layers.5.": "layers.6."}
    more = {name.replace(old, new): one.clone() for old, new in further.items() for name, one in own.items()
            if old in name}  # fmt: skip
    tensors = {name: one.contiguous() for name, one in (safetensors.torch.load_file(path) | own | more).items()}
    safetensors.torch.save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize("variant", LIKE)
def test_logits_are_the_twins(
    variant: str, with_layer: Checkpoints, checkpoints: Checkpoints, oracle: Callable[[str], Any]
) -> None:
    twin = DenseTwin(variant, oracle(variant), layer_tensors(variant, checkpoints(variant)))
    with opened(with_layer(variant), prefill_chunk=24) as llm:
        mtp = llm.spec.mtp
        assert mtp is not None
        assert isinstance(mtp.mixer, AttentionSpec)
        assert bool(mtp.mixer.window) == (variant != "ernie4_5_moe")
        assert isinstance(mtp.ffn, DenseSpec)
        said = watched(always(llm))
        llm.generate([prompt(101)], HOW)
        llm.generate([prompt(40, 1)], HOW)
    check(said, twin)


def test_a_head_of_its_own_is_refused(with_layer: Checkpoints, tmp_path: Path) -> None:
    """By itself the layer is left out; one number makes the difference."""
    shutil.copytree(with_layer("step3p5"), tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors["model.layers.5.transformer.shared_head.output.weight"][0, 0] += 1.0
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    with refused(ConfigError, "has a head of its own, which is not read"):
        opened(tmp_path / "model")


@pytest.mark.parametrize("where", [{}, {"device": "simulated", "cpu_moe": True, "handoff": "eager"}], ids=str)
@pytest.mark.parametrize("variant", LIKE)
def test_text_is_the_same(variant: str, where: dict[str, Any], with_layer: Checkpoints) -> None:
    """In a batch, with pools of pages for windows."""
    path = with_layer(variant)
    how, text = SamplingParams(max_new_tokens=40, ignore_eos=True), prompt(45)
    with LLM(str(path), **OPTIONS, **where, speculate="off") as llm:
        plain = [one.token_ids for one in llm.generate([text, text[5:]], how)]
    with opened(path, **where) as llm:
        always(llm)
        with llm.ledger.recording() as passes:
            assert [one.token_ids for one in llm.generate([text, text[5:]], how)] == plain
        assert sum(one.drafted for one in passes) > 50


@pytest.mark.parametrize("variant", ["step3p5", "exaone_moe"])
def test_captured_steps_hand_out_the_states_of_steps_by_hand(
    variant: str, gpu: StandIn, with_layer: Checkpoints
) -> None:
    found = []
    for handoff in ("eager", "memop"):
        with opened(with_layer(variant), device="simulated", cpu_moe=True, handoff=handoff) as llm:
            assert (llm.parts.graphed is None) == (handoff == "eager")
            found.append(ran(llm, [prompt(45)], 3, SamplingParams(max_new_tokens=30, ignore_eos=True)))
    by_hand, graphed = found
    assert torch.equal(torch.cat(by_hand.given), torch.cat(graphed.given))
    assert (graphed.texts, graphed.said) == (by_hand.texts, by_hand.said)
    assert gpu.recorders[-1].replays > 0


@pytest.mark.parametrize("variant", LIKE)
def test_a_plan_has_the_engines_bytes(variant: str, with_layer: Checkpoints) -> None:
    path = with_layer(variant)
    engine = open_directory(path, LoadOptions(mtp=MtpAsked(must=True)))
    options = Options(context=64, prompt=32, batch=3, speculate="mtp")
    found = make(model_source.find(str(path)), parse("ddr5-6000-2ch, 64gb, 16cores"), options).own_drafts
    assert found is not None
    assert found.weights == mtp_rows.weight_bytes(engine.spec, engine.formats)
    without = replace(engine.spec, mtp=None)
    page = PageBytes(engine.spec, KV_BF16, 32).page - PageBytes(without, KV_BF16, 32).page
    assert found.cache == page * 64 // PAGE * 3
