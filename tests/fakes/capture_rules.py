"""What torch 2.11 and Triton refuse while a graph is captured, without a GPU.

Tensors of the `meta` device stand for the GPU's: they have shapes and no memory, so that an op which needs a value
fails, as nothing is computed in a capture either. Memory of the host is real, and registered with the fake driver or
not. `Cuda` is what `TorchRecorder` takes in place of torch.cuda: its streams are the fake driver's, which records what
is posted and awaited. Rules, each with a test in `tests/graphs/test_capture.py`:

    copies        between host and device: the first byte of the host's storage must be registered (pytorch#172156),
                  and they must not be waited for (non_blocking); torch.tensor(device=...) is one too
    values        item, tolist, bool, and ops whose shape is a value (nonzero, unique, a mask as an index)
    pinned memory none is taken (its allocator asks events)
    waiting       no stream, event or device is synchronised, no event asked
    nodes         of a graph, in their order (`Cuda.captured`): kernels, ours and torch's, what is posted and awaited
    launches      each kernel ran before as it is captured: a first launch compiles and loads it; and memory of the
                  host that a kernel is given must be registered, always (Triton's launcher asks the driver)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from headrace.engine.devices.cuda_driver import Driver
from headrace.errors import DeviceError

NOT_PINNED = "Cannot copy between CPU and CUDA tensors during CUDA graph capture unless the CPU tensor is pinned."
NOT_PERMITTED = "CUDA error: operation not permitted when stream is capturing"
aten = torch.ops.aten
ASKS_VALUES = {
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.unique_dim, aten._unique2, aten._unique,
    aten.unique_consecutive, aten.repeat_interleave, aten.bincount, aten.equal, aten.is_nonzero,
}  # fmt: skip
MAKES_ROOM = {
    aten.empty, aten.empty_like, aten.new_empty, aten.empty_strided, aten.new_empty_strided, aten._unsafe_view,
    aten.detach, aten.alias, aten._reshape_alias,
}  # fmt: skip
ASKS_VALUES_IN_PYTHON = {Tensor.tolist, Tensor.item, Tensor.numpy, Tensor.__bool__, Tensor.__int__, Tensor.__float__}
MAKES_FROM_VALUES = {torch.tensor, torch.as_tensor}


class Registered:
    """Asks the driver about memory, as torch and Triton do."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    def __call__(self, address: int) -> bool:
        try:
            self.driver.device_pointer(address)
        except DeviceError:
            return False
        return True


def _is_device(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_meta


class _Ops(TorchDispatchMode):
    """Sees every op of torch in a stream."""

    def __init__(self, cuda: Cuda, counts: bool) -> None:
        """counts: those that are nodes of a graph."""
        super().__init__()
        self.cuda, self.counts = cuda, counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        op = func.overloadpacket
        if self.cuda.capturing:
            self._check(op, args, kwargs)
            if (
                self.counts
                and not func.is_view
                and op not in MAKES_ROOM
                and any(map(_is_device, tree_leaves((args, kwargs))))
            ):
                self.cuda.nodes.append(op.__name__)
        is_down = op is aten.copy_ and args[1].is_meta and not args[0].is_meta
        return args[0] if is_down else func(*args, **kwargs)  # torch copies nothing out of `meta`

    def _check(self, op: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs.get("pin_memory") or op is aten._pin_memory:
            raise RuntimeError(NOT_PERMITTED)
        if op in ASKS_VALUES and any(map(_is_device, args)):
            raise RuntimeError(NOT_PERMITTED)
        masks = args[1] if op in (aten.index, aten.index_put_) else ()
        if any(isinstance(i, Tensor) and i.dtype == torch.bool for i in masks) and _is_device(args[0]):
            raise RuntimeError(NOT_PERMITTED)
        if op is aten.copy_:
            self._copy(args[0].is_meta, args[1], args[0], args[2] if len(args) > 2 else kwargs.get("non_blocking"))
        if op is aten._to_copy and kwargs.get("device") is not None:
            self._copy(torch.device(kwargs["device"]).type == "meta", args[0], None, kwargs.get("non_blocking"))

    def _copy(self, is_to_device: bool, source: Tensor, target: Tensor | None, non_blocking: object) -> None:
        """target: None where torch would make it, in memory that is not pinned or not yet."""
        if is_to_device == source.is_meta:
            return
        host = source if is_to_device else target
        if host is None or not self.cuda.registered(host.untyped_storage().data_ptr()):
            raise RuntimeError(NOT_PINNED)
        if not non_blocking:
            raise RuntimeError(NOT_PERMITTED)


class _Functions(TorchFunctionMode):
    """Sees what is no op: values that are read by Python, and tensors that are made of Python's values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in ASKS_VALUES_IN_PYTHON and _is_device(args[0]):
            raise RuntimeError(NOT_PERMITTED)
        if func in MAKES_FROM_VALUES and torch.device(kwargs.get("device") or "cpu").type == "meta":
            raise RuntimeError(NOT_PINNED)
        return func(*args, **kwargs)


class Launches:
    """In the place of Triton's launcher: no kernel runs. While `capturing`, only kernels that ran before."""

    def __init__(self, registered: Registered, nodes: list[str]) -> None:
        self.registered, self.seen, self.capturing, self.names = registered, set[Any](), False, list[str]()
        self.nodes = nodes  # of the graph that is captured

    def __call__(self, kernel: Any, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> None:
        for number, x in enumerate(args):
            if isinstance(x, Tensor) and not x.is_meta and not self.registered(x.data_ptr()):
                raise ValueError(f"Pointer argument (at {number}) cannot be accessed from Triton (cpu tensor?)")
        key = kernel.fn.__name__, *(str(x.dtype) if isinstance(x, Tensor) else x for x in args), *kwargs.items()
        if self.capturing and key not in self.seen:
            raise RuntimeError(f"{kernel.fn.__name__} is launched for the first time: {NOT_PERMITTED}")
        self.seen.add(key)
        self.names.append(kernel.fn.__name__)
        if self.capturing:
            self.nodes.append(kernel.fn.__name__)


class Cuda:
    """The part of torch.cuda that `TorchRecorder` uses, over the fake driver, with the rules in force in a capture."""

    def __init__(self, driver: Driver) -> None:
        self.driver, self.registered, self.capturing = driver, Registered(driver), False
        self.nodes: list[str] = []
        self.captured: list[list[str]] = []  # of each graph that was captured
        self.launches = Launches(self.registered, self.nodes)
        for call in ("write", "wait", "batch", "host_function"):
            setattr(driver, call, self._noted(call, getattr(driver, call)))
        cuda = self

        class Stream:
            def __init__(self, device: torch.device | None = None) -> None:
                self.cuda_stream = driver.stream()

            def synchronize(self) -> None:
                cuda.refuse()
                driver.synchronize(self.cuda_stream)

            def wait_stream(self, other: object) -> None:
                return None

        class Event:
            def __init__(self, blocking: bool = False) -> None:
                self.stream: Stream | None = None

            def record(self, stream: Stream) -> None:
                self.stream = stream

            def query(self) -> bool:
                cuda.refuse()
                return True

            def synchronize(self) -> None:
                cuda.refuse()
                if self.stream is not None:
                    self.stream.synchronize()

        class CUDAGraph:
            handle = 0

            def replay(self) -> None:
                driver.launch(self.handle, cuda.current.cuda_stream)

        self.Stream, self.Event, self.CUDAGraph = Stream, Event, CUDAGraph
        self.current = Stream()

    def _noted(self, name: str, call: Callable[..., None]) -> Callable[..., None]:
        """The driver's call, which is a node in a capture."""

        def noted(*args: Any) -> None:
            call(*args)
            if self.capturing:
                self.nodes.append(name)

        return noted

    def refuse(self) -> None:
        if self.capturing:
            raise RuntimeError(NOT_PERMITTED)

    def synchronize(self) -> None:
        self.refuse()

    def current_stream(self, device: torch.device) -> Any:
        return self.current

    def graph_pool_handle(self) -> str:
        return "pool"

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            with _Ops(self, counts=False):
                yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph: Any, *, pool: object, stream: Any, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local", "pinning beside it would end the capture"
        with self.stream(stream), self.rules():
            self.nodes.clear()
            self.driver.begin_capture(stream.cuda_stream)
            try:
                yield
            finally:
                graph.handle = self.driver.end_capture(stream.cuda_stream)
                self.captured.append(list(self.nodes))

    @contextmanager
    def rules(self) -> Iterator[None]:
        """In force until the end of the block."""
        self.capturing = self.launches.capturing = True
        try:
            with ExitStack() as modes:
                modes.enter_context(_Functions())
                modes.enter_context(_Ops(self, counts=True))
                yield
        finally:
            self.capturing = self.launches.capturing = False


def refused(work: Callable[[], object], cuda: Cuda) -> str:
    """What is said of work in a capture; "" where it may be done."""
    with cuda.rules():
        try:
            work()
        except (RuntimeError, ValueError) as error:
            return str(error)
    return ""
