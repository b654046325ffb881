"""Arrays of bfloat16 on the host, which numpy does not know: the first 16 bits of float32 numbers.

For cached keys and values in the precision that they are computed in: half the memory of a kept state, and no
conversion of the whole cache in every tick.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from runtime.backends.graphs import Host, aligned_zeros


@dataclass(frozen=True, eq=False)
class Bfloat16Array:
    """As much of a numpy array of float32 as a session needs. bits: uint16, of the same shape."""

    bits: np.ndarray

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.bits.shape

    @property
    def nbytes(self) -> int:
        return self.bits.nbytes

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        wide = (self.bits.astype(np.uint32) << 16).view(np.float32)
        return wide.astype(dtype or self.dtype, copy=False)


def bits_of(array: object) -> np.ndarray:
    """An array's bfloat16 numbers, as uint16. float32 ones are rounded to the nearest, ties to even; those that are
    bfloat16 already stay what they are.
    """
    if isinstance(array, Bfloat16Array):
        return array.bits
    wide = np.ascontiguousarray(array, np.float32).view(np.uint32)
    bits = aligned_zeros(wide.shape, np.dtype(np.uint16))
    bits[...] = (wide + (0x7FFF + ((wide >> 16) & 1))) >> 16
    return bits


@dataclass(frozen=True)
class PartlyBfloat16(Host):
    """Where graphs.py puts a state of which these parts are bfloat16."""

    narrow: frozenset[str]

    def empty(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        if name not in self.narrow:
            return super().empty(name, shape, dtype)
        return cast(np.ndarray, Bfloat16Array(aligned_zeros(shape, np.dtype(np.uint16))))

    def holds(self, name: str, array: np.ndarray) -> bool:
        return isinstance(array, Bfloat16Array if name in self.narrow else np.ndarray)
