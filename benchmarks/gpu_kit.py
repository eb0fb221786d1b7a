"""Packs what a machine with a GPU would lose minutes with: a wheel of headrace, and a cache of compiled Triton kernels.

    python benchmarks/gpu_kit.py [--python FILE] [--checks] [--models NAME ...]        (make gpu-kit)

Here there is no GPU, and no torch for the target's Python. So this Python, which has torch, asks the ops what they
launch (on tensors without memory, as a load does: `engine/core/compile_ahead.py`), and a Python of the target's version
with the target's Triton compiles it for sm_90 and builds the launchers, against a driver that does nothing. In Triton's
keys are its own files and the source of the kernels, not where headrace is installed: that is tried at the end.
--checks adds what the op list's cases launch. The kit is build/headrace-gpu-kit.tar.gz, and says how it is used.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parent.parent
KIT = ROOT / "build" / "kit"
PACKED = ROOT / "build" / "headrace-gpu-kit.tar.gz"
MOST_BYTES = 40 << 20
FORMATS_TAKEN = ("q4_0", "q8_0", "bf16")  # of a model that is named
MODELS: dict[str, tuple[str, ...]] = {  # with every kind of mixer, router and activation, and their formats
    "Qwen3-30B-A3B": FORMATS_TAKEN, "gpt-oss-20b": ("mxfp4",), "DeepSeek-V2-Lite": ("q4_0",),
    "GLM-4.7-Flash": ("q4_0",), "Qwen3-Next-80B-A3B": ("q4_0",), "demo": ("bf16",),
}  # fmt: skip
LAYERS = 4  # as many as have every kind of a model's
TOKENS, SEQUENCES, CONTEXT, PAGES = 4096, 16, 1 << 17, 64  # of the largest pass; pages of the cache do not matter
VERSION = "3.12"  # of the target's Python
DRIVER_FUNCTIONS = (
    "cuCtxGetCurrent", "cuCtxGetDevice", "cuCtxSetCurrent", "cuCtxSetLimit", "cuCtxGetLimit", "cuDeviceGet",
    "cuDeviceGetAttribute", "cuDevicePrimaryCtxRetain", "cuFuncGetAttribute", "cuFuncSetAttribute",
    "cuFuncSetCacheConfig", "cuGetErrorString", "cuInit", "cuLaunchKernelEx", "cuModuleGetFunction", "cuModuleLoadData",
    "cuOccupancyMaxActiveClusters", "cuPointerGetAttribute", "cuTensorMapEncodeTiled",
)  # fmt: skip
MULTIPROCESSORS = 132  # of an H100 or H200
JOBS = os.cpu_count() or 1
USE = """On the machine with the GPU, in the folder of the unpacked kit:
    pip install --no-index --no-deps headrace-*.whl
    mkdir -p ~/.triton && cp -rn cache ~/.triton/
Kernels that are not in the cache, or of another commit or Triton, are compiled as usual.
"""


# ---- what is launched: with torch


def listed(models: Mapping[str, tuple[str, ...]], with_checks: bool) -> list[dict[str, Any]]:
    """Every variant once of models in formats, as JSON: module and name of the kernel, its arguments, its constants."""
    import torch

    from headrace.kernels.gpu import ahead, launch

    launch.multiprocessors = lambda _device: MULTIPROCESSORS  # type: ignore[assignment]
    with torch.inference_mode():
        found = ahead.wanted(
            call for name, forms in models.items() for form in forms for call in model_calls(name, form)
        )
        if with_checks:
            found += ahead.wanted(check_calls())
    unique = {json.dumps(written(*launch)): None for launch in found}
    return [json.loads(text) for text in unique]


def written(kernel: Any, args: tuple[Any, ...], constants: dict[str, Any]) -> dict[str, Any]:
    def one(value: Any) -> Any:
        if not hasattr(value, "data_ptr"):
            return value
        return {"dtype": str(value.dtype).removeprefix("torch."), "offset": value.data_ptr() % 16}

    module = kernel.function.fn.__module__
    return {"module": module, "name": kernel.__name__, "args": [one(a) for a in args], "constants": constants}


def model_calls(name: str, form: str) -> Iterator[Any]:
    """What loading a model of this shape on a GPU compiles: all in one format, as `gpu_models.py` has it, with a ring
    for copied experts and jobs for the mailbox."""
    import torch

    from headrace import EngineConfig
    from headrace.engine.core import compile_ahead
    from headrace.engine.core.weight_source import load_options
    from headrace.engine.experts.streaming import piece_of
    from headrace.engine.model.kv_cache import KVCache, pages_for
    from headrace.engine.model.prepare import make_stack
    from headrace.engine.placement.placement import Tier
    from headrace.kernels import gpu
    from headrace.kernels.formats import KV_BF16
    from headrace.kernels.gpu.pack import pack
    from headrace.loaders.weights import imagined
    from headrace.loaders.weights.model_weights import allocate

    config = EngineConfig(expert_format=form, dense_format=form)
    whole = imagined.cut(imagined.imagine(name, load_options(config)), LAYERS)
    spec, place = whole.spec, torch.device("meta")
    weights, cache = allocate(spec, whole.formats, "meta"), KVCache(spec, PAGES, KV_BF16, place)
    device = SimpleNamespace(ops=gpu, tier=Tier.GPU0)
    banks = [layer.experts for layer in weights.layers if layer.experts is not None]
    bank: Any = banks[0]
    ring = SimpleNamespace(layout=bank.layout, buffers=[bank.data], piece=piece_of(bank.experts, bank.layout.bytes))
    splits = [SimpleNamespace(banks={Tier.GPU0.value: one}) for one in banks]
    decoder: Any = SimpleNamespace(
        spec=spec, weights=weights,
        stack=make_stack(spec, weights, cache, 4096, lambda t: t.to(place), may_make_keys=False),
        device_inputs=SimpleNamespace(table=device, device=device),
    )  # fmt: skip
    tiered: Any = SimpleNamespace(banks=splits, ring=ring, main=device)
    sizes = compile_ahead.Sizes(tokens=TOKENS, sequences=SEQUENCES, pages=pages_for(CONTEXT))
    yield from compile_ahead.calls(decoder, tiered, device, sizes)  # type: ignore[arg-type]
    K, D, i32 = spec.moe.top_k, spec.hidden, torch.int32
    for local in (None, torch.empty(spec.moe.experts, dtype=i32, device="meta")):
        for dtype in (torch.float32, torch.bfloat16):
            ids, w, x = (torch.empty(4, n, dtype=t, device="meta") for n, t in ((K, i32), (K, None), (D, None)))
            yield partial(pack, (ids, w, x.to(dtype)), x, ids, w, local, ids[:, 0].bool())


def check_calls() -> Iterator[Any]:
    """What the cases of every op launch, but for those that are for measuring."""
    from headrace.kernels import gpu
    from headrace.kernels.cases.all import CASES
    from headrace.kernels.cases.families import FAMILY_CASES
    from headrace.kernels.cases.recurrent import RECURRENT_CASES

    def call(case: Any) -> None:
        try:
            case.call(gpu, case.inputs())
        except (RuntimeError, IndexError):  # ids that no kernel wrote
            return

    for case in (*CASES, *FAMILY_CASES, *RECURRENT_CASES):
        if not case.bench:
            yield lambda case=case: call(case)


# ---- compiling: the target's Python, without torch


def fill(launches: list[dict[str, Any]]) -> None:
    """Compiles launches for sm_90 and builds their launchers into Triton's cache; prints how many."""
    import no_torch

    no_torch.use()
    import importlib

    import stub_cuda
    from triton.backends.nvidia import driver as nvidia

    stub_cuda.use(nvidia.CudaLauncher)
    try:
        nvidia.CudaUtils()
    except (ImportError, OSError) as error:  # built and kept, even where it cannot be loaded here
        print("utilities of the driver:", error, file=sys.stderr)
    for one in launches:
        kernel = getattr(importlib.import_module(one["module"]), one["name"])
        args = tuple(no_torch.Pointer(**a) if isinstance(a, dict) else a for a in one["args"])
        kernel.compile(args, one["constants"])
    print(len(launches))


def compile_into(cache: Path, python: Path, launches: list[dict[str, Any]], site: Path | None = None) -> float:
    """Fills a cache by several processes; the seconds it took. site: a folder that has headrace, else python's own."""
    start, env = time.monotonic(), environment(cache)
    folders = [ROOT / "benchmarks", *([] if site is None else [site])]
    env["PYTHONPATH"] = os.pathsep.join(map(str, folders))
    code = "import json, sys, gpu_kit; gpu_kit.fill(json.load(sys.stdin))"
    running = []
    for job in range(JOBS):
        process = subprocess.Popen(
            [python, "-c", code], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(launches[job::JOBS]))
        process.stdin.close()
        running.append(process)
    for process in running:
        if process.wait():
            raise SystemExit("a kernel could not be compiled: its error stands above")
    return time.monotonic() - start


def environment(cache: Path) -> dict[str, str]:
    """That of a process which compiles into `cache`, against the driver that does nothing. Launchers are loaded here,
    too, as the target will."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON_", "PYTHON"))}
    stub = str(stub_library().parent)
    more = {"TRITON_CACHE_DIR": str(cache), "TRITON_LIBCUDA_PATH": stub, "LD_LIBRARY_PATH": stub, "PYTHONSAFEPATH": "1"}
    return env | more


def stub_library() -> Path:
    """A libcuda.so.1 that launchers are linked with: it has the functions that they call, so that the linker notes that
    they need it, and every one of them fails."""
    path, source = KIT / "stub" / "libcuda.so.1", KIT / "stub" / "stub.c"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        source.write_text("".join(f"int {name}(void) {{ return 1; }}\n" for name in DRIVER_FUNCTIONS))
        flags = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
        subprocess.run(["gcc", *flags, str(source), "-o", str(path)], check=True)
    return path


# ---- the kit


def run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True, cwd=ROOT)


def find_python(asked: str | None) -> str:
    """A Python of the target's version that starts. Ends the program where there is none."""
    pyenv = sorted(str(path) for path in Path.home().glob(f".pyenv/versions/{VERSION}.*/bin/python"))
    for python in [asked] if asked else [f"python{VERSION}", *pyenv]:
        code = "import sys; print('.'.join(map(str, sys.version_info[:2])))"
        try:
            said = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False).stdout.strip()
        except OSError:
            continue
        if said == VERSION:
            return python
    raise SystemExit(f"there is no Python {VERSION}, which the target has: --python says where one is")


def build_wheel(python: str) -> Path:
    """The wheel for a Python. The build folder is kept, and so is the Python that builds, whose paths are in it: a
    second wheel takes as long as what changed."""
    for old in KIT.glob("headrace-*.whl"):
        old.unlink()
    folder = KIT / "builder"
    if not (folder / "bin" / "python").exists():
        (needs,) = re.findall(r"^requires = (\[.*\])$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
        run(python, "-m", "venv", folder)
        run(folder / "bin" / "pip", "install", "-q", *json.loads(needs), "cmake", "ninja")
    run(folder / "bin" / "python", "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", KIT, ".")
    return next(KIT.glob("headrace-*.whl"))


def target_python(python: str, wheel: Path) -> Path:
    """A Python of the target's version that has the target's Triton and the wheel, and nothing else."""
    folder = KIT / "python"
    if not (folder / "bin" / "python").exists():
        run(python, "-m", "venv", folder)
        run(folder / "bin" / "pip", "install", "-q", "--no-deps", *triton_line())
    run(folder / "bin" / "pip", "install", "-q", "--no-deps", "--force-reinstall", wheel)
    return folder / "bin" / "python"


def triton_line() -> list[str]:
    """The target's Triton, as `target.txt` has it."""
    return [line for line in (ROOT / "target.txt").read_text().splitlines() if line.startswith("triton")]


def kept_files(cache: Path) -> list[Path]:
    """What a launch needs of a cache: machine code, what is known of it, launchers."""
    return [path for path in sorted(cache.rglob("*")) if path.suffix in (".cubin", ".json", ".so")]


def pack_kit(wheel: Path, cache: Path, into: Path) -> int:
    """Writes the kit; its bytes. Ends the program where it is too large to be carried."""
    with tarfile.open(into, "w:gz") as tar:
        tar.add(wheel, wheel.name)
        for path in kept_files(cache):
            tar.add(path, Path("cache") / path.relative_to(cache))
        how = KIT / "USE.txt"
        how.write_text(USE)
        tar.add(how, how.name)
    size = into.stat().st_size
    if size > MOST_BYTES:
        raise SystemExit(
            f"the kit has {size / 2**20:.1f} MiB, more than {MOST_BYTES >> 20}: leave out --checks or models"
        )
    return size


def compiled_anew(python: Path, wheel: Path, launches: list[dict[str, Any]]) -> tuple[int, float]:
    """How many files of the packed cache, kernels and launchers, are made again by headrace in another folder, and the
    seconds of it."""
    site, unpacked = KIT / "elsewhere", KIT / "unpacked"
    for folder in (site, unpacked):
        shutil.rmtree(folder, ignore_errors=True)
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel)
    with tarfile.open(PACKED) as tar:
        tar.extractall(unpacked, filter="data")
    before = written_at(unpacked)
    took = compile_into(unpacked / "cache", python, launches, site)
    return len(written_at(unpacked) - before), took


def written_at(cache: Path) -> set[tuple[Path, int]]:
    """Machine code and launchers of a cache, and when each was written."""
    return {(path, path.stat().st_mtime_ns) for path in kept_files(cache) if path.suffix != ".json"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--python", help="one of the target's version; default: python3.12, here or of pyenv")
    forms, usual = ", ".join(FORMATS_TAKEN), " ".join(MODELS)
    parser.add_argument("--models", nargs="*", help=f"shapes, in {forms}; default {usual}")
    parser.add_argument("--checks", action="store_true", help="also what the op list's cases launch")
    given = parser.parse_args()
    wanted = find_python(given.python)
    KIT.mkdir(parents=True, exist_ok=True)
    wheel = build_wheel(wanted)
    print(f"wheel: {wheel.name}, {wheel.stat().st_size / 2**20:.1f} MiB")
    python, cache = target_python(wanted, wheel), KIT / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    launches = listed(dict.fromkeys(given.models, FORMATS_TAKEN) if given.models else MODELS, given.checks)
    took = compile_into(cache, python, launches)
    files = kept_files(cache)
    kernels, size = sum(path.suffix == ".cubin" for path in files), sum(path.stat().st_size for path in files)
    print(f"cache: {kernels} kernels for {len(launches)} variants, {size / 2**20:.1f} MiB, compiled in {took:.0f} s")
    print(f"kit: {PACKED.relative_to(ROOT)}, {pack_kit(wheel, cache, PACKED) / 2**20:.1f} MiB")
    anew, took = compiled_anew(python, wheel, launches)
    if anew:
        raise SystemExit(f"{anew} of its files are made again where headrace lies in another folder")
    print(f"from another folder: none compiled again, loaded in {took:.0f} s\n{USE}")


if __name__ == "__main__":
    main()
