"""NVIDIA's driver through ctypes: memory, copies and CUDA graphs for the backends that keep a state on the GPU.

No package is needed, and nothing is loaded before a GPU is asked for. All work goes to one stream, in order.
"""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from runtime.errors import BackendError

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_…
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL


class Memory:
    """Bytes on the GPU, zero at first, given back when nobody holds this any more."""

    def __init__(self, cuda: Cuda, nbytes: int) -> None:
        pointer, self.nbytes = ctypes.c_uint64(), nbytes
        cuda.call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(nbytes))
        self.address = pointer.value
        weakref.finalize(self, cuda.free, self.address)
        cuda.clear(self)


class Cuda:
    """One GPU. name: the driver's. capability: as (9, 0). stream: the address of the stream that all work goes to."""

    def __init__(self, driver: Any, number: int = 0) -> None:
        """driver: the library, with its functions as attributes; see `gpu`."""
        self._driver = driver
        self.call("cuInit", ctypes.c_uint(0))
        device, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(number))
        name = ctypes.create_string_buffer(128)
        self.call("cuDeviceGetName", name, ctypes.c_int(len(name)), device)
        self.name = name.value.decode(errors="replace")
        self.capability = self._attribute(MAJOR, device), self._attribute(MINOR, device)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)  # the one that CUDA's runtime uses, too
        self._context = context
        self.enter()
        self.call("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(NON_BLOCKING))
        self._stream = stream
        self.stream: int = stream.value or 0

    def enter(self) -> None:
        """Make the GPU the calling thread's. A session may tick in any thread."""
        self.call("cuCtxSetCurrent", self._context)

    def upload(self, array: np.ndarray, to: Memory) -> None:
        """The array must be contiguous, and live until `finish`."""
        self.call("cuMemcpyHtoDAsync_v2", _at(to.address), _host(array), ctypes.c_size_t(array.nbytes), self._stream)

    def download(self, source: Memory, array: np.ndarray) -> None:
        """The array is filled at `finish`."""
        self.call(
            "cuMemcpyDtoHAsync_v2", _host(array), _at(source.address), ctypes.c_size_t(array.nbytes), self._stream
        )

    def copy(self, source: Memory, to: Memory) -> None:
        nbytes = ctypes.c_size_t(source.nbytes)
        self.call("cuMemcpyDtoDAsync_v2", _at(to.address), _at(source.address), nbytes, self._stream)

    def clear(self, memory: Memory) -> None:
        self.call(
            "cuMemsetD8Async", _at(memory.address), ctypes.c_ubyte(0), ctypes.c_size_t(memory.nbytes), self._stream
        )

    def finish(self) -> None:
        """Wait until all work is done."""
        self.call("cuStreamSynchronize", self._stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """What `work` asks of the stream, as one CUDA graph: the function that asks for all of it again."""
        graph, program = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuStreamBeginCapture_v2", self._stream, ctypes.c_int(THREAD_LOCAL))
        try:
            work()
        finally:
            self.call("cuStreamEndCapture", self._stream, ctypes.byref(graph))
        self.call("cuGraphInstantiateWithFlags", ctypes.byref(program), graph, ctypes.c_ulonglong(0))
        self.call("cuGraphDestroy", graph)
        return lambda: self.call("cuGraphLaunch", program, self._stream)

    def used_mb(self) -> float:
        """Memory of the GPU that is taken now, by whomever, in MB."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return round((total.value - free.value) / (1 << 20), 1)

    def free(self, address: int) -> None:
        # Any thread may collect garbage, and at exit the driver may be gone: nobody asks for the results.
        self._driver.cuCtxSetCurrent(self._context)
        self._driver.cuMemFree_v2(_at(address))

    def call(self, function: str, *arguments: Any) -> None:
        """One function of the driver; anything but success is an error."""
        code = getattr(self._driver, function)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(ctypes.c_int(code), ctypes.byref(text))
            said = (text.value or b"it does not say why").decode(errors="replace")
            raise BackendError(f"the NVIDIA driver refuses {function.removesuffix('_v2')}: {said} (error {code})")

    def _attribute(self, which: int, device: ctypes.c_int) -> int:
        value = ctypes.c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(which), device)
        return value.value


@cache
def gpu() -> Cuda:
    """The first GPU that this process may use (CUDA_VISIBLE_DEVICES)."""
    try:
        driver = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise BackendError(f"no NVIDIA driver here ({error})") from error
    return Cuda(driver)


def gpu_name() -> str | None:
    """The GPU, or None where there is none, or no driver for it."""
    try:
        return gpu().name
    except BackendError:
        return None


def _at(address: int) -> ctypes.c_uint64:
    return ctypes.c_uint64(address)


def _host(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
