"""OpenVINO on the CPU: bfloat16 where the CPU has it (AMX, AVX512-BF16), float32 elsewhere. Needs no compiler.

Faster than onnxruntime by 1.3 times (AVX512-BF16) to 2.7 times (AMX); inputs and outputs are numpy's own memory.

One player has all threads. Of a batch each player is computed alone, as many at a time as there are threads: a thread
never waits for another in the middle of a tick, what it works on fits its own cache, and a player's frames are those of
playing alone on that thread, byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino.passes

from runtime.backends import Backend, check_precision
from runtime.backends.graphs import Engine, first_line, load_graphs
from runtime.errors import WorldFileError
from runtime.onnx_header import Header
from runtime.world import World

PRECISIONS = {"bf16": ov.Type.bf16, "fp32": ov.Type.f32}


def load(world: World, threads: int, precision: str, players: int) -> Backend:
    core = ov.Core()
    known = ("bf16", "fp32") if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else ("fp32",)
    check_precision("openvino", precision, known)
    return load_graphs(world, OpenVinoMaker(core, threads, known[0] if precision == "auto" else precision), players)


@dataclass(frozen=True)
class OpenVinoMaker:
    core: Any
    threads: int
    precision: str
    name: str = "openvino"

    def make(self, graph: Path, header: Header, players: int, exact: bool) -> Engine:
        streams = 1 if exact else min(players, self.threads)
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": str(streams),
            "INFERENCE_NUM_THREADS": self.threads,
            "INFERENCE_PRECISION_HINT": ov.Type.f32 if exact else PRECISIONS[self.precision],
            # By default int8 weights make openvino round activations to int8, too, whatever the precision hint says.
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
            "ENABLE_CPU_PINNING": False,  # the cores are shared with the window and with whatever else runs
        }
        try:
            model = self.core.read_model(graph)
            if not exact:
                model.reshape({name: (1, *shape[1:]) for name, (_, shape) in header.inputs.items()})
            unpack_weights(model)
            compiled = self.core.compile_model(model, "CPU", config)
        except Exception as error:  # openvino raises bare RuntimeError, and others
            raise WorldFileError(f"openvino cannot run {graph.name} ({first_line(error)})") from error
        if exact or players == 1:
            return OpenVinoEngine(compiled, compiled.create_infer_request())
        return OneByOne(compiled, tuple(compiled.create_infer_request() for _ in range(players)))


def unpack_weights(model: Any) -> None:
    """Turn stored int8 weights into numbers now: openvino keeps them packed otherwise, and every tick pays for that."""
    manager = ov.passes.Manager()
    manager.register_pass(ov.passes.ConstantFolding())
    manager.run_passes(model)


Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class OpenVinoEngine:
    """The whole of the arrays at once."""

    compiled: Any  # keeps the network alive as long as the request
    request: Any

    def run(self, inputs: Arrays, outputs: Arrays) -> None:
        bound = bind(self.request, {**inputs, **outputs})
        self.request.infer()
        del bound  # not earlier


@dataclass(frozen=True)
class OneByOne:
    """A network of one player, run for each on their part of the arrays. requests: one for each player, so that no
    thread waits for work while another is late."""

    compiled: Any
    requests: tuple[Any, ...]

    def run(self, inputs: Arrays, outputs: Arrays) -> None:
        arrays, bound = {**inputs, **outputs}, []
        try:
            for player, request in enumerate(self.requests):
                bound.append(bind(request, {name: array[player : player + 1] for name, array in arrays.items()}))
                request.start_async()
        finally:  # nothing may still write when the caller's arrays go
            for request in self.requests:
                request.wait()


def bind(request: Any, arrays: Arrays) -> list[ov.Tensor]:
    """Have the request read and write these arrays. Hold them, and what this gives, until it is done.

    A shared ov.Tensor does not keep its array alive, nor the request its tensors: let go too early, the network reads
    freed memory and gives garbage without an error. What is read-only, such as an array of a snapshot, it takes as a
    copy only.
    """
    tensors = []
    for name, array in arrays.items():
        tensors.append(ov.Tensor(array, shared_memory=array.flags.writeable))
        request.set_tensor(name, tensors[-1])
    return tensors
