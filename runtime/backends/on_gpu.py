"""What the backends share that keep a world's state on the GPU.

An engine runs on the same arrays every time, so that its work can be one CUDA graph. The state is copied into these and
out of them on the GPU, which costs microseconds: a session keeps older states, so no engine may own them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np

from runtime.backends.graphs import Signature
from runtime.cuda import Cuda, Memory
from runtime.errors import WorldFileError


@dataclass(frozen=True, eq=False)
class GpuArray:
    """An array on the GPU, as much of a numpy array as a session needs; numpy copies it to the host when asked."""

    cuda: Cuda
    memory: Memory
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return self.memory.nbytes

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        array = np.empty(self.shape, self.dtype)
        self.cuda.enter()
        self.cuda.download(self.memory, array)
        self.cuda.finish()
        return array.astype(dtype or self.dtype, copy=False)


@dataclass(frozen=True)
class GpuState:
    """Where graphs.py puts a state: on the GPU."""

    cuda: Cuda

    def empty(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        return cast(np.ndarray, empty(self.cuda, shape, dtype))

    def holds(self, name: str, array: np.ndarray) -> bool:
        return isinstance(array, GpuArray)


@dataclass(frozen=True)
class GpuEngine:
    """An engine of graphs.py. program: computes `outputs` from `inputs`, which lie at fixed addresses."""

    cuda: Cuda
    inputs: Mapping[str, GpuArray]
    outputs: Mapping[str, GpuArray]
    program: Callable[[], None]

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        """Arrays may lie on the GPU or on the host."""
        self.cuda.enter()
        held = []  # until the copies are done
        for name, array in inputs.items():
            fixed = self.inputs[name].memory
            if isinstance(array, GpuArray):
                self.cuda.copy(array.memory, fixed)
            else:
                held.append(np.ascontiguousarray(array))
                self.cuda.upload(held[-1], fixed)
        self.program()
        for name, array in outputs.items():
            fixed = self.outputs[name].memory
            if isinstance(array, GpuArray):
                self.cuda.copy(fixed, array.memory)
            else:
                self.cuda.download(fixed, array)
        self.cuda.finish()


def empty(cuda: Cuda, shape: tuple[int, ...], dtype: np.dtype) -> GpuArray:
    cuda.enter()
    return GpuArray(cuda, Memory(cuda, int(np.prod(shape)) * dtype.itemsize), shape, dtype)


def fixed_arrays(cuda: Cuda, values: Signature, players: int) -> dict[str, GpuArray]:
    """An array for each of a graph's inputs or outputs, with this many players."""
    arrays = {}
    for name, (dtype, shape) in values.items():
        sizes = [size for size in shape[1:] if size is not None]
        if len(sizes) != len(shape) - 1:
            raise WorldFileError(f"{name} has no fixed size {list(shape)}: export the world again")
        arrays[name] = empty(cuda, (players, *sizes), np.dtype(dtype))
    return arrays
