"""The demo model's layer for multi-token prediction: its file is of the model's shapes, and it drafts what the model
says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from headrace.loaders.hub.local import DEMO_DIRECTORY

ROOT = Path(__file__).parents[2]
MEASURED = re.compile(r"being so: ([\d.]+)%, ([\d.]+)%, ([\d.]+)% of (\d+) places")


def test_its_tensors_have_the_shapes_of_the_config() -> None:
    config = json.loads((DEMO_DIRECTORY / "config.json").read_text())
    assert config["mtp_num_hidden_layers"] == 1
    hidden, head, width = config["hidden_size"], config["head_dim"], config["moe_intermediate_size"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    wanted = {
        "fc": (hidden, 2 * hidden), "pre_fc_norm_embedding": (hidden,), "pre_fc_norm_hidden": (hidden,),
        "norm": (hidden,),
    }  # fmt: skip
    layer = {
        "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,), "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden), "self_attn.v_proj": (keys, hidden), "self_attn.o_proj": (hidden, queries),
        "self_attn.q_norm": (head,), "self_attn.k_norm": (head,), "mlp.gate": (config["num_experts"], hidden),
    }  # fmt: skip
    for expert in range(config["num_experts"]):
        layer |= {f"mlp.experts.{expert}.{part}_proj": (width, hidden) for part in ("gate", "up")}
        layer[f"mlp.experts.{expert}.down_proj"] = (hidden, width)
    wanted |= {f"layers.0.{name}": shape for name, shape in layer.items()}
    found = load_file(DEMO_DIRECTORY / "mtp.safetensors")
    assert {name: tuple(t.shape) for name, t in found.items()} == {f"mtp.{n}.weight": s for n, s in wanted.items()}
    assert {t.dtype for t in found.values()} == {torch.bfloat16}
    assert all(t.isfinite().all() and t.any() for t in found.values())


def test_the_layer_is_that_of_the_decoder() -> None:
    """Its decoder layer has the names and shapes of the model's own."""
    of_model, mine = load_file(DEMO_DIRECTORY / "model.safetensors"), load_file(DEMO_DIRECTORY / "mtp.safetensors")
    first, own = "model.layers.0.", "mtp.layers.0."
    assert {name.removeprefix(first): t.shape for name, t in of_model.items() if name.startswith(first)} == {
        name.removeprefix(own): t.shape for name, t in mine.items() if name.startswith(own)
    }


def measured(*more: str) -> tuple[list[float], int]:
    """How often each of three drafted tokens is right, those before it being so, and of how many places."""
    command = [
        sys.executable, "demo/evaluate_mtp.py", "--model", "demo/model", "--text", "demo/heldout.txt", "--threads", "1",
        *more,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = MEASURED.search(done.stdout)
    assert found, done.stdout
    *rates, places = found.groups()
    return [float(one) for one in rates], int(places)


def test_it_drafts_what_the_model_says() -> None:
    rates, places = measured("--most", "1")
    assert places == 511
    assert min(rates) > 30


@pytest.mark.slow
def test_the_card_states_what_is_measured() -> None:
    card = re.sub(r"\s+", " ", (DEMO_DIRECTORY / "README.md").read_text(encoding="utf-8"))
    stated = re.search(r"right in ([\d.]+) %, ([\d.]+) % and ([\d.]+) %", card)
    assert stated, card
    rates, places = measured("--most", "16")  # of 52 windows: all take half a minute
    assert places == 16 * 511
    assert [float(one) for one in stated.groups()] == pytest.approx(rates, abs=2.0)
