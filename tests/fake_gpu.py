"""A GPU for machines without one: the driver's functions on the host's own memory.

The backends' code runs as it is, addresses and all; what it cannot show is that a real driver agrees.
"""

from __future__ import annotations

import ctypes
from typing import Any

from runtime.cuda import MAJOR, Cuda

NAME = b"Fake GPU"


class FakeDriver:
    """held: allocated bytes by address. copies: what was copied, by direction. launches: of captured work."""

    def __init__(self) -> None:
        self.held: dict[int, Any] = {}
        self.copies: list[str] = []
        self.launches = 0

    def cuMemAlloc_v2(self, pointer: Any, nbytes: Any) -> int:
        block = ctypes.create_string_buffer(nbytes.value + 63)
        address = -(-ctypes.addressof(block) // 64) * 64
        self.held[address] = block
        pointer._obj.value = address
        return 0

    def cuMemFree_v2(self, address: Any) -> int:
        del self.held[address.value]
        return 0

    def cuMemsetD8Async(self, address: Any, value: Any, nbytes: Any, stream: Any) -> int:
        ctypes.memset(address.value, value.value, nbytes.value)
        return 0

    def cuMemcpyHtoDAsync_v2(self, to: Any, source: Any, nbytes: Any, stream: Any) -> int:
        return self._copy("up", to, source, nbytes)

    def cuMemcpyDtoHAsync_v2(self, to: Any, source: Any, nbytes: Any, stream: Any) -> int:
        return self._copy("down", to, source, nbytes)

    def cuMemcpyDtoDAsync_v2(self, to: Any, source: Any, nbytes: Any, stream: Any) -> int:
        return self._copy("inside", to, source, nbytes)

    def _copy(self, way: str, to: Any, source: Any, nbytes: Any) -> int:
        self.copies.append(way)
        ctypes.memmove(to.value, source.value, nbytes.value)
        return 0

    def cuStreamCreate(self, stream: Any, flags: Any) -> int:
        stream._obj.value = 7
        return 0

    def cuDeviceGetName(self, name: Any, size: Any, device: Any) -> int:
        name.value = NAME
        return 0

    def cuDeviceGetAttribute(self, value: Any, which: Any, device: Any) -> int:
        value._obj.value = 9 if which.value == MAJOR else 0
        return 0

    def cuGraphLaunch(self, program: Any, stream: Any) -> int:
        self.launches += 1
        return 0

    def cuMemGetInfo_v2(self, free: Any, total: Any) -> int:
        free._obj.value, total._obj.value = 1 << 30, 3 << 30
        return 0

    def cuGetErrorString(self, code: Any, text: Any) -> int:
        text._obj.value = b"out of memory"
        return 0

    def __getattr__(self, name: str) -> Any:
        """Whatever else a driver is asked, it does at once."""
        if not name.startswith("cu"):
            raise AttributeError(name)
        return lambda *arguments: 0


def fake_gpu() -> tuple[Cuda, FakeDriver]:
    driver = FakeDriver()
    return Cuda(driver), driver
