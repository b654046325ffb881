"""How many multiplications and additions this machine's matrix products reach: the yardstick for a tick's speed.

Measured with a chain of products of one square matrix, on the backend, precision and threads that the tick runs on.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np

from runtime.backends.graphs import Engine, EngineMaker
from runtime.onnx_header import read_header

SIDES = (512, 1024)
CHAIN = 8  # products in one run, so that converting the input does not count
RUNS = 5


def peak_flops(maker: EngineMaker, now: Callable[[], float] = time.perf_counter) -> float:
    """Floating point operations per second, the best of a few sizes and runs."""
    return max(_flops(maker, side, now) for side in SIDES)


def _flops(maker: EngineMaker, side: int, now: Callable[[], float]) -> float:
    engine = _engine(maker, side)
    x, y = np.ones((1, side, side), np.float32), np.empty((1, side, side), np.float32)
    fastest = float("inf")
    for _ in range(RUNS):
        begun = now()
        engine.run({"x": x}, {"y": y})
        fastest = min(fastest, now() - begun)
    return CHAIN * 2 * side**3 / fastest


def _engine(maker: EngineMaker, side: int) -> Engine:
    graph = chain_graph(side)
    with tempfile.TemporaryDirectory(prefix="worldloop-", ignore_cleanup_errors=True) as folder:
        file = Path(folder, "matmul.onnx")
        file.write_bytes(graph)
        return maker.make(file, read_header(graph, "matmul.onnx"), players=1, exact=False)


def chain_graph(side: int) -> bytes:
    """y = x · w · w · …, an ONNX model by hand: playing must not need the onnx package. Numbers: onnx.proto.

    x, y: float32 [1, side, side]; axis 0 is the players here, too.
    """
    weights = np.full((side, side), 1.0 / side, np.float32)
    names = ["x", *(f"x{i}" for i in range(1, CHAIN)), "y"]
    nodes = b"".join(
        _field(1, _field(1, a) + _field(1, "w") + _field(2, b) + _field(4, "MatMul")) for a, b in pairwise(names)
    )
    tensor = _field(1, side) * 2 + _field(2, 1) + _field(8, "w") + _field(9, weights.tobytes())
    ends = _field(11, _value("x", side)) + _field(12, _value("y", side))
    graph = nodes + _field(2, "peak") + _field(5, tensor) + ends
    return _field(1, 8) + _field(7, graph) + _field(8, _field(2, 17))


def _value(name: str, side: int) -> bytes:
    dimensions = b"".join(_field(1, _field(1, size)) for size in (1, side, side))
    return _field(1, name) + _field(2, _field(1, _field(1, 1) + _field(2, dimensions)))


def _field(number: int, value: int | str | bytes) -> bytes:
    """One protobuf field."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
