"""The parts of `benchmarks/gpu_kit.py` that take seconds: what is listed, compiled without torch, and packed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import target_versions
from busy import HANG_S

pytest.importorskip("triton", reason="the GPU kernels need Triton", exc_type=ImportError)
import gpu_kit

from headrace.kernels.gpu import launch


@pytest.fixture(scope="module")
def launches() -> list[dict[str, Any]]:
    before = launch.multiprocessors
    try:
        return gpu_kit.listed({"Qwen3-30B-A3B": gpu_kit.FORMATS_TAKEN}, with_checks=False)
    finally:
        launch.multiprocessors = before


def test_a_list_has_every_kernel_of_a_model_once(launches: list[dict[str, Any]]) -> None:
    assert len({json.dumps(one) for one in launches}) == len(launches)
    names = {one["name"] for one in launches}
    assert names >= {"_norm_linear", "_norm_route", "_linear_one", "_linear_few", "_linear_many", "_decode_placed",
                     "_prefill", "_place_qkv", "_gate_up", "_down", "_gate_up_few", "_down_few", "_count", "_place",
                     "_unpack_experts", "_combine", "_route", "_pack", "_best",
                     "_unpack_rows"}  # fmt: skip
    formats = {one["constants"]["FORMAT"] for one in launches if "FORMAT" in one["constants"]}
    assert formats == {"f32", *gpu_kit.FORMATS_TAKEN}


@pytest.mark.parametrize(
    ("model", "kernels"),
    [("DeepSeek-V2-Lite", {"_latent", "_merge", "_by_head_few", "_by_head_many", "_rotate"}),
     ("Qwen3-Next-80B-A3B",
      {"_delta_rule", "_short_conv", "_keep_inputs", "_decode_placed", "_prefill"})],
)  # fmt: skip
def test_newer_families_have_theirs(model: str, kernels: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kit, "TOKENS", 17)
    monkeypatch.setattr(gpu_kit, "SEQUENCES", 2)
    monkeypatch.setattr(launch, "multiprocessors", launch.multiprocessors)  # put back what `listed` changes
    found = {one["name"] for one in gpu_kit.listed({model: ("q4_0",)}, with_checks=False)}
    assert kernels <= found


def test_kernels_are_compiled_without_torch(launches: list[dict[str, Any]], tmp_path: Path) -> None:
    """And their launchers are built, so that the target needs no compiler of C."""
    folders = [gpu_kit.ROOT / "benchmarks", gpu_kit.ROOT / "src", target_versions.folder()]
    env = {**gpu_kit.environment(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(map(str, folders))}
    chosen = [next(one for one in launches if one["name"] == name) for name in ("_add_rmsnorm", "_route")]
    code = "import json, sys, gpu_kit; gpu_kit.fill(json.load(sys.stdin))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, input=json.dumps(chosen), capture_output=True, text=True, timeout=HANG_S
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[0] == "2"
    kept = {path.name.split(".")[0] for path in gpu_kit.kept_files(tmp_path / "cache") if path.suffix == ".cubin"}
    assert kept == {"_add_rmsnorm", "_route"}
    assert any(path.name.startswith("__triton_launcher") for path in gpu_kit.kept_files(tmp_path / "cache"))


def test_a_kit_has_what_a_launch_needs_and_can_be_carried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kit, "KIT", tmp_path)
    wheel, cache, kit = tmp_path / "headrace-0.whl", tmp_path / "cache", tmp_path / "kit.tar.gz"
    wheel.write_bytes(os.urandom(2000))
    (cache / "KEY").mkdir(parents=True)
    for name in ("k.cubin", "k.json", "k.ptx", "k.ttir", "__triton_launcher.so"):
        (cache / "KEY" / name).write_text(name)
    assert gpu_kit.pack_kit(wheel, cache, kit) == kit.stat().st_size
    with tarfile.open(kit) as tar:
        inside = set(tar.getnames())
    assert inside == {
        "headrace-0.whl", "USE.txt", "cache/KEY/k.cubin", "cache/KEY/k.json", "cache/KEY/__triton_launcher.so",
    }  # fmt: skip
    monkeypatch.setattr(gpu_kit, "MOST_BYTES", 1000)
    with pytest.raises(SystemExit, match=r"the kit has 0\.0 MiB, more than 0"):
        gpu_kit.pack_kit(wheel, cache, kit)


def test_another_python_is_refused() -> None:
    with pytest.raises(SystemExit, match=r"there is no Python 3\.12, which the target has: --python"):
        gpu_kit.find_python("/nowhere/python")
