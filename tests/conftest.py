"""What test files share: tiny checkpoints, built once a session, and a cache directory that is not the user's."""

from __future__ import annotations

import dataclasses
import gc
import io
import itertools
import os
import re
import shutil
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

gc.disable()  # until all tests are collected
# Before anything imports Triton: this process runs its kernels in numpy (test_gpu_kernels.py).
os.environ["TRITON_INTERPRET"] = "1"

import cores  # noqa: F401  (from here on contexts have one thread)
import fake_cuda
import pytest
import terminal
import tiny_hub
import tiny_tokenizer
import torch
import turns
from fake_hub import FakeHub
from refusals import edit_json

from headrace.kernels import FORMATS

torch.set_num_threads(1)

import stand_in_gpu

from headrace import cli
from headrace.engine.bandwidth_model import profile as profiles
from headrace.engine.bandwidth_model.profile import Profile
from headrace.engine.cuda_graphs import signals
from headrace.engine.measure import attention_products, tile_thresholds, weight_prefetch
from headrace.engine.memory import kv_budget
from headrace.kernels.context import ISA, NEVER, THREADS, Context
from headrace.kernels.formats import BLOCK, KV_F32
from headrace.kernels.isa import kernels_digest
from headrace.loaders.weights import noise

assert THREADS == 1, "what models take that are not told how many"

if TYPE_CHECKING:  # the process that only deals out tests to others does not wait for transformers
    from transformers import PreTrainedModel

# (exit status, standard output, standard error) of a command
Run = Callable[..., tuple[int, str, str]]


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Before any test file is imported, and after pytest has found out how its own lines look."""
    if session.config.pluginmanager.has_plugin("terminalreporter"):
        writer = session.config.get_terminal_writer()
        writer.fullwidth = writer.fullwidth  # of the real terminal
    terminal.settle(os.environ)
    from headrace.engine.terminal import generate_command  # noqa: F401  (its console finds this terminal, no test's own)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # What takes a minute begins first, so that no process waits for it at the end. What runs alone comes last: before,
    # it would wait for tests of other processes to end, and these for it.
    items.sort(key=lambda item: not item.path.name.startswith(("test_gpu_compile", "test_target")))
    items.sort(key=lambda item: item.get_closest_marker("alone") is not None)
    if os.environ.get("HEADRACE_ISA") == "portable":
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason=f"{item.name} is slow with HEADRACE_ISA=portable"))


def pytest_collection_finish() -> None:
    """What was imported stays: Python need not look through it for garbage again and again, which took a sixth of the
    time. Where test files imported Triton, its interpreter is made faster."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    gc.enable()
    if "triton.runtime.interpreter" in sys.modules:
        import interpreter

        interpreter.hasten()


@pytest.fixture
def whole_model() -> Iterator[None]:
    """The interpreter of Triton for a whole model."""
    pytest.importorskip("triton", reason="the GPU kernels need Triton", exc_type=ImportError)
    import interpreter

    with interpreter.whole_model():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    with turns.turn(alone=item.get_closest_marker("alone") is not None):
        return (yield)


class Built:
    """The variants of `tiny` that were asked for so far. Tests only read these directories."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.models: dict[str, PreTrainedModel] = {}

    def directory(self, variant: str) -> Path:
        """The checkpoint of a variant."""
        self.model(variant)
        return self.base / variant

    def model(self, variant: str) -> PreTrainedModel:
        """transformers' model of the same weights."""
        import tiny

        if variant not in self.models:
            self.models[variant] = tiny.build(variant, self.base / variant)
        return self.models[variant]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="session")
def checkpoints(built: Built) -> Callable[[str], Path]:
    """checkpoints("qwen3_moe") is the directory of that variant."""
    return built.directory


@pytest.fixture(scope="session")
def oracle(built: Built) -> Callable[[str], PreTrainedModel]:
    """oracle("qwen3_moe") is transformers' model of the same weights."""
    return built.model


def contexts() -> Iterator[Context]:
    """Those that tests load models with."""
    return (Context(threads=n, activations=a) for n in {1, 2, THREADS} for a in ("int8", "bf16"))


def rounding_alike(context: Context, built_in: dict[str, int]) -> dict[str, int]:
    """Thresholds from which on tiles round what dot products round, and no tiles of formats where they do not. Tests
    hold models in one place against models in another, whose passes have other numbers of tokens: what tiles do to
    rounding is the matter of tests of kernels, and of those with `built_in_tiles`."""
    alike = {name for name, group in context.tile_groups.items() if group == BLOCK}
    return {name: least if name in alike else NEVER for name, least in built_in.items()}


@pytest.fixture
def built_in_tiles(cache_home: Path) -> None:
    """Tiles as the CPU's table has them, of all formats."""
    for context in contexts():
        if built_in := dataclasses.replace(context, tiles_from={}).tile_tokens:
            tile_thresholds.save(context, built_in)


@pytest.fixture(scope="session")
def first_start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache directory of a machine where what kernels are measured for at a first start was measured. Tests have
    links to its files, in half the time of copies: no test may write into them, only put others in their place."""
    path = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(path))
        for context in contexts():
            weight_prefetch.save(context, context.prefetch)
            attention_products.save(context, "float32")  # what bf16 does to rounding is the matter of tests of kernels
            if built_in := context.tile_tokens:
                tile_thresholds.save(context, rounding_alike(context, built_in))
    held = {file: file.read_bytes() for file in path.rglob("*.json")}
    yield path
    assert held == {file: file.read_bytes() for file in held}, "a test wrote into what all tests share"


@pytest.fixture(scope="session")
def directories(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """directories("name") is a new one. pytest's own `mktemp` reads the names of all that there are, for each: 5 ms
    at ten thousand of them."""
    base = tmp_path_factory.getbasetemp()
    numbers = itertools.count()

    def make(name: str) -> Path:
        path = base / f"{next(numbers)}-{name}"
        path.mkdir(mode=0o700)
        return path

    return make


@pytest.fixture
def tmp_path(directories: Callable[[str], Path], request: pytest.FixtureRequest) -> Path:
    """An empty directory of this test."""
    return directories(re.sub(r"\W", "_", request.node.name)[:30])


@pytest.fixture(scope="session", autouse=True)
def _cache_of_modules(first_start: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What fixtures of a module load has no user's thresholds either."""
    path = tmp_path_factory.mktemp("modules")
    shutil.copytree(first_start, path, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(path))
        yield


@pytest.fixture(autouse=True)
def cache_home(first_start: Path, directories: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Machine profiles go to a directory of the test, never to the user's. What kernels are measured for at a
    first start is not measured again for every test."""
    path = directories("cache")
    (path / "headrace").mkdir()
    for file in (first_start / "headrace").iterdir():
        os.link(file, path / "headrace" / file.name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    return path


@pytest.fixture(autouse=True)
def _small_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights are cut from pools that are made for every model."""
    monkeypatch.setattr(noise, "POOL_BYTES", 1 << 20)


@pytest.fixture
def make(checkpoints: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """make("qwen3_moe", vocab_size=99) copies that checkpoint and changes its config (ABSENT: key removed)."""

    def copy(variant: str = "qwen3_moe", **config: Any) -> Path:
        directory = tmp_path / "model"
        shutil.copytree(checkpoints(variant), directory)
        edit_json(directory / "config.json", **config)
        return directory

    return copy


@pytest.fixture(scope="session")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a tokenizer, a chat template and a long context."""
    import tiny

    directory = tmp_path_factory.mktemp("talker")
    tiny.build("qwen3_moe", directory, max_position_embeddings=1 << 16)
    tiny_tokenizer.save(directory)
    return directory


@pytest.fixture
def profile(cache_home: Path) -> Profile:
    """A saved profile of this machine, so that no command measures it: every kernel reads 10 GB/s."""
    rates = dict.fromkeys(FORMATS, 1e10)
    made = Profile(
        key=profiles.hardware_key(Context()), cpu="test", isa=ISA, threads=THREADS, memory_bytes=1, date="2000-01-01",
        stream=1e10, linear=rates, experts=rates, attention={"1": 1e10, "8": 1e10, "512": 1e10},
        batch={"4": rates, "16": rates}, crowd={"2": rates, "16": rates}, kernels=kernels_digest(),
    )  # fmt: skip
    for count in {1, THREADS, os.cpu_count() or 1}:
        key = profiles.hardware_key(Context(threads=count))
        profiles.save_profile(dataclasses.replace(made, key=key, threads=count))
    return made


@pytest.fixture
def run(profile: Profile, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""

    def command(*arguments: object, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["headrace", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        status: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code or 0
        return status, *capsys.readouterr()

    return command


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A hub on this machine that serves a tiny model."""
    yield from tiny_hub.serve(monkeypatch, tmp_path)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """An empty cache for what comes from the hub."""
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def library() -> str:
    """The driver's library whose streams are threads (`fake_cuda.py`), compiled once."""
    return str(fake_cuda.build())


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where that library writes its calls."""
    path = tmp_path / "calls"
    path.touch()
    monkeypatch.setenv("FAKE_CUDA_LOG", str(path))
    return path


@pytest.fixture
def gpu(library: str, log: Path, monkeypatch: pytest.MonkeyPatch) -> stand_in_gpu.StandIn:
    """The stand-in for a GPU, with the probe's answer known."""
    monkeypatch.setattr(signals, "probe", lambda *_: stand_in_gpu.WORKS)
    return stand_in_gpu.install(monkeypatch, library)


@pytest.fixture
def float32_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantised models keep keys and values in bfloat16, which is more than is to be seen by their logits."""
    monkeypatch.setattr(kv_budget, "kv_format", lambda *_: KV_F32)
