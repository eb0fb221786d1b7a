"""The few calls of the CUDA driver that torch does not offer: values written and awaited by a stream, host functions,
memory registered in place, and the graphs that a probe captures.

Through ctypes on the driver's own library, which every machine with an NVIDIA driver has: one way, that a test runs for
real against a library with the same functions. (`cuda-bindings` would be a second way to the same library, with one
more package and nothing gained.) ctypes lets go of the interpreter lock during a call. Streams and addresses are plain
integers, as torch gives them (`torch.cuda.current_stream().cuda_stream`, `Tensor.data_ptr()`).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import NamedTuple

from ...errors import DeviceError

LIBRARY = "libcuda.so.1"

# CUdevice_attribute
MEM_OPS_64, HOST_REGISTER, HOST_POINTER_IS_DEVICE_POINTER = 122, 99, 91
# CUstreamBatchMemOpType; CU_STREAM_WAIT_VALUE_GEQ and CU_STREAM_WRITE_VALUE_DEFAULT are flags 0
WAIT_64, WRITE_64 = 4, 5
PORTABLE_AND_MAPPED = 1 | 2  # CU_MEMHOSTREGISTER_PORTABLE, _DEVICEMAP
NON_BLOCKING, THREAD_LOCAL = 1, 1  # CU_STREAM_NON_BLOCKING, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL

_u32, _u64, _pointer, _int = ctypes.c_uint, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_int
_out = ctypes.POINTER
# Names in the library, with the version that this file's arguments are for.
_CALLS: dict[str, list[type]] = {
    "cuInit": [_u32],
    "cuDriverGetVersion": [_out(_int)],
    "cuDeviceGetCount": [_out(_int)],
    "cuDeviceGet": [_out(_int), _int],
    "cuDeviceGetAttribute": [_out(_int), _int, _int],
    "cuDevicePrimaryCtxRetain": [_out(_pointer), _int],
    "cuCtxSetCurrent": [_pointer],
    "cuStreamCreate": [_out(_pointer), _u32],
    "cuStreamDestroy_v2": [_pointer],
    "cuStreamSynchronize": [_pointer],
    "cuStreamWriteValue64_v2": [_pointer, _u64, _u64, _u32],
    "cuStreamWaitValue64_v2": [_pointer, _u64, _u64, _u32],
    "cuStreamBatchMemOp_v2": [_pointer, _u32, _pointer, _u32],
    "cuLaunchHostFunc": [_pointer, _pointer, _pointer],
    "cuMemHostRegister_v2": [_pointer, ctypes.c_size_t, _u32],
    "cuMemHostUnregister": [_pointer],
    "cuMemHostGetDevicePointer_v2": [_out(_u64), _pointer, _u32],
    "cuStreamBeginCapture_v2": [_pointer, _int],
    "cuStreamEndCapture": [_pointer, _out(_pointer)],
    "cuGraphInstantiateWithFlags": [_out(_pointer), _pointer, ctypes.c_ulonglong],
    "cuGraphLaunch": [_pointer, _pointer],
    "cuGraphExecDestroy": [_pointer],
    "cuGraphDestroy": [_pointer],
    "cuGetErrorName": [_int, _out(ctypes.c_char_p)],
    "cuGetErrorString": [_int, _out(ctypes.c_char_p)],
}


def take_more_queues() -> None:
    """Asks CUDA for as many hardware queues as it has (32), unless the user chose a number: with the usual 8 a stream
    that waits for the CPU may share one with a stream that copies, which then waits too. To be called before CUDA
    starts, which reads it once; processes that are started later find it."""
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")


class DriverError(DeviceError):
    """A call of the driver failed; `code` is its CUresult."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class MemOp(NamedTuple):
    """One operation of a stream on 8 bytes at a device address: WRITE_64, or WAIT_64 until the value is reached."""

    kind: int
    address: int
    value: int


class _MemOpParams(ctypes.Structure):
    """CUstreamBatchMemOpParams: 48 bytes, of which the first five fields are those of a write and of a wait."""

    _fields_ = [
        ("operation", _u32),
        ("address", _u64),
        ("value", _u64),
        ("flags", _u32),
        ("alias", _u64),
        ("unused", _u64),
    ]


class Driver:
    """The driver's library, initialised. Raises DeviceError where there is none, or a function is missing."""

    def __init__(self, path: str = LIBRARY) -> None:
        self.path = path
        take_more_queues()
        try:
            library = ctypes.CDLL(path)
        except OSError as error:
            raise DeviceError(
                f"there is no NVIDIA driver on this machine ({error}): install it, or leave the GPU out (--device cpu)"
            ) from error
        self._functions = {}
        for name, types in _CALLS.items():
            function = getattr(library, name, None)
            if function is None:
                raise DeviceError(f"the NVIDIA driver {path} is too old: it has no {name}; install 515 or newer")
            function.argtypes, function.restype = types, _int
            self._functions[name] = function
        self._call("cuInit", 0)

    def _call(self, name: str, *arguments: object) -> None:
        code = self._functions[name](*arguments)
        if code:
            words = [self._word(get, code) for get in ("cuGetErrorName", "cuGetErrorString")]
            raise DriverError(f"{name}: {words[0]} ({words[1]})", code)

    def _word(self, get: str, code: int) -> str:
        text = ctypes.c_char_p()
        failed = self._functions[get](code, ctypes.byref(text))
        return f"error {code}" if failed else (text.value or b"").decode()

    def _get(self, name: str, kind: type, *arguments: object) -> int:
        """A call that gives a number or a handle through its first argument."""
        value = kind()
        self._call(name, ctypes.byref(value), *arguments)
        return int(value.value or 0)

    # ---- devices

    @property
    def version(self) -> tuple[int, int]:
        """Of the newest CUDA that this driver runs."""
        number = self._get("cuDriverGetVersion", _int)
        return number // 1000, number % 1000 // 10

    @property
    def devices(self) -> int:
        return self._get("cuDeviceGetCount", _int)

    def attribute(self, device: int, number: int) -> int:
        return self._get("cuDeviceGetAttribute", _int, number, self._get("cuDeviceGet", _int, device))

    def make_current(self, device: int) -> None:
        """Makes the device's primary context, which is torch's too, that of this thread."""
        handle = self._get("cuDeviceGet", _int, device)
        self._call("cuCtxSetCurrent", self._get("cuDevicePrimaryCtxRetain", _pointer, handle))

    # ---- streams

    def stream(self) -> int:
        """A new stream, which the default stream does not wait for."""
        return self._get("cuStreamCreate", _pointer, NON_BLOCKING)

    def destroy_stream(self, stream: int) -> None:
        self._call("cuStreamDestroy_v2", stream)

    def synchronize(self, stream: int) -> None:
        self._call("cuStreamSynchronize", stream)

    def write(self, stream: int, address: int, value: int) -> None:
        """The stream writes 8 bytes, after all that came before in it is visible to the host."""
        self._call("cuStreamWriteValue64_v2", stream, address, value, 0)

    def wait(self, stream: int, address: int, value: int) -> None:
        """The stream goes on when the 8 bytes have reached `value`. It never gives up."""
        self._call("cuStreamWaitValue64_v2", stream, address, value, 0)

    def batch(self, stream: int, operations: Sequence[MemOp]) -> None:
        """Several writes and waits, in this order; one node of a graph."""
        params = (_MemOpParams * len(operations))(*(_MemOpParams(*op, 0, 0, 0) for op in operations))
        self._call("cuStreamBatchMemOp_v2", stream, len(operations), params, 0)

    def host_function(self, stream: int, function: int, argument: int) -> None:
        """The stream calls a C function `void (*)(void*)` on a thread of the driver, and waits for its end. It must
        make no CUDA call, and need nothing that a thread inside CUDA may hold, the interpreter lock included."""
        self._call("cuLaunchHostFunc", stream, function, argument)

    # ---- memory

    def register(self, address: int, size: int) -> None:
        """Pins memory of the process, so that GPUs read and write it by themselves."""
        self._call("cuMemHostRegister_v2", address, size, PORTABLE_AND_MAPPED)

    def unregister(self, address: int) -> None:
        self._call("cuMemHostUnregister", address)

    def device_pointer(self, address: int) -> int:
        """Where the GPU sees registered memory; not everywhere the same number."""
        return self._get("cuMemHostGetDevicePointer_v2", _u64, address, 0)

    # ---- graphs

    def begin_capture(self, stream: int) -> None:
        self._call("cuStreamBeginCapture_v2", stream, THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """The graph, ready to be launched."""
        handle = ctypes.c_void_p()
        self._call("cuStreamEndCapture", stream, ctypes.byref(handle))
        graph = int(handle.value or 0)
        try:
            return self._get("cuGraphInstantiateWithFlags", _pointer, graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)

    def launch(self, graph: int, stream: int) -> None:
        self._call("cuGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        self._call("cuGraphExecDestroy", graph)
