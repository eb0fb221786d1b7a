"""How long Python takes for one decoder layer whose kernels are launched one by one. No GPU is needed, nor used.

    python benchmarks/gpu_eager.py                         this checkout
    python benchmarks/gpu_eager.py --beside FOLDER         in turns with another one, which needs no build

Launches go to a driver that does nothing (`stub_cuda.py`), so this is what the CPU's side takes: checks, views,
results, and which variant of a kernel is meant. A real driver adds 2 to 5 us a launch. Shapes are Qwen3-30B-A3B's in
q4_0, results of a round the best of many; the last line is JSON. PYTHONPATH=build/target takes the target's Triton.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
ROUNDS, TURNS, LAYERS = 5, 40, 10
D, WIDTH, EXPERTS, TOP_K, HEADS, GROUPS, HEAD = 2048, 768, 128, 8, 32, 4, 128
LOADED = 2  # experts in memory: nothing is read, so that a bank of two does


def layer_of(tokens: int) -> Callable[[], Any]:
    """A layer of so many sequences in a decode step, on tensors of the CPU."""
    import torch

    from headrace.kernels import FORMATS, gpu
    from headrace.kernels.decoder_layer import AttentionBlock, Places, Router
    from headrace.kernels.formats import ExpertLayout
    from headrace.kernels.packed import ExpertBank, Matrix, Stacked

    def i32(*shape: int) -> torch.Tensor:
        return torch.zeros(*shape, dtype=torch.int32)

    k_PGBd, form, f32 = torch.zeros(64, GROUPS, 32, HEAD, dtype=torch.bfloat16), FORMATS["q4_0"], torch.zeros
    block = AttentionBlock(
        heads=HEADS, pre_norm=f32(D), qkv=Stacked((Matrix.empty(form, (HEADS + 2 * GROUPS) * HEAD, D),)), qkv_bias=None,
        q_norm=f32(HEAD), k_norm=f32(HEAD), o=Matrix.empty(form, D, HEADS * HEAD), o_bias=None, post_norm=f32(D),
        k_PGBd=k_PGBd, v_PGBd=k_PGBd.clone(), cos_Pr=f32(4096, HEAD // 2), sin_Pr=f32(4096, HEAD // 2), eps=1e-6,
        clip=None, scale=0.1, residual_scale=1.0,
        router=Router(
            matrix=Matrix.empty(FORMATS["f32"], EXPERTS, D), top_k=TOP_K, scoring="softmax", renormalise=True
        ),
    )  # fmt: skip
    bank = ExpertBank.empty(ExpertLayout(format=form, hidden=D, width=WIDTH), LOADED)
    places = Places(
        positions_T=i32(tokens), slots_T=i32(tokens).long(), tables_SM=i32(tokens, 40), starts_S1=i32(tokens + 1),
        contexts_S=i32(tokens),
    )  # fmt: skip
    x_TD, update_TD = f32(tokens, D), f32(tokens, D)

    def layer() -> Any:
        _, h_TD, choice = gpu.attention_block(x_TD, update_TD, block, places)
        assert choice is not None
        return gpu.experts(h_TD, *choice, bank)

    return layer


def measure() -> dict[str, float]:
    """Microseconds of a layer by sequences, and its launches: the best of this process."""
    import stub_cuda
    import torch

    stub_cuda.use()
    torch.set_num_threads(1)
    found: dict[str, float] = {}
    for tokens in (1, 4):
        layer, times = layer_of(tokens), []
        with torch.inference_mode():
            layer()  # compiles
            before = stub_cuda.Launcher.launched
            layer()
            found[f"launches, {tokens}"] = stub_cuda.Launcher.launched - before
            for _ in range(TURNS):
                start = time.perf_counter()
                for _ in range(LAYERS):
                    layer()
                times.append((time.perf_counter() - start) / LAYERS)
        found[f"us, {tokens}"] = min(times) * 1e6
    return found


def child(checkout: Path) -> dict[str, float]:
    """`measure` of a checkout, in a process of its own that finds that one's package."""
    code = (
        "import json, sys\n"
        "sys.meta_path = [f for f in sys.meta_path if 'ScikitBuild' not in type(f).__name__]\n"
        f"sys.path[:0] = [{str(checkout.resolve() / 'src')!r}, {str(ROOT / 'benchmarks')!r}]\n"
        "import gpu_eager; print(json.dumps(gpu_eager.measure()))"
    )
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"TRITON_CACHE_DIR": str(ROOT / "build" / "triton-cache")}
    done = subprocess.run([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--beside", type=Path, metavar="FOLDER", help="another checkout")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    if given.beside and not (given.beside / "src" / "headrace").is_dir():
        parser.error(f"{given.beside} is no checkout: it has no src/headrace")
    checkouts = {"here": ROOT} | ({"beside": given.beside} if given.beside else {})
    found: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    for _ in range(given.rounds):
        for name, checkout in checkouts.items():
            found[name].append(child(checkout))
    result = {
        name: {key: statistics.median(one[key] for one in rows) for key in rows[0]} for name, rows in found.items()
    }
    for name, values in result.items():
        print(name, ", ".join(f"{key}: {value:.0f}" for key, value in values.items()))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
