"""OpenVINO on the CPU: bfloat16 where the CPU has it (AMX, AVX512-BF16), float32 elsewhere. Needs no compiler.

Faster than onnxruntime by 1.3 times (AVX512-BF16) to 2.7 times (AMX); inputs and outputs are numpy's own memory.

One player has all threads. A batch is split into groups, each of a fixed size and on a thread of its own: threads never
wait for each other in the middle of a tick, and graphs of a fixed size are faster (measured: one for any number of
players, on all threads, takes 1.2 times as long).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino.passes
import openvino.preprocess

from runtime.backends import Backend, check_precision
from runtime.backends.bfloat16 import PartlyBfloat16, bits_of
from runtime.backends.graphs import Engine, first_line, load_graphs
from runtime.errors import WorldFileError
from runtime.onnx_header import Header
from runtime.world import World

PRECISIONS = {"bf16": ov.Type.bf16, "fp32": ov.Type.f32}
LARGEST = 4  # players of a group; more gain nothing, and leave the second level of a core's cache


def load(world: World, threads: int, precision: str, players: int) -> Backend:
    core = ov.Core()
    known = precisions(core)
    check_precision("openvino", precision, known)
    chosen = known[0] if precision == "auto" else precision
    state = world.manifest.state.items() if chosen == "bf16" else ()
    narrow = frozenset(name for name, part in state if part.carried and part.dtype == np.float32)
    return load_graphs(world, OpenVinoMaker(core, threads, chosen, narrow), players, PartlyBfloat16(narrow))


def precisions(core: Any) -> tuple[str, ...]:
    """What this CPU multiplies in, the fastest first."""
    return ("bf16", "fp32") if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else ("fp32",)


@dataclass(frozen=True)
class OpenVinoMaker:
    """narrow: parts of the state that come and go as bfloat16."""

    core: Any
    threads: int
    precision: str
    narrow: frozenset[str] = frozenset()
    name: str = "openvino"

    def make(self, graph: Path, header: Header, players: int, exact: bool) -> Engine:
        sizes = [1] if exact else groups(players, self.threads)
        ends = (*header.inputs, *header.outputs)
        narrow = frozenset(name for name in ends if name.partition(".")[2] in self.narrow)  # state.NAME and next.NAME
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": str(min(len(sizes), self.threads)),
            "INFERENCE_NUM_THREADS": self.threads,
            "INFERENCE_PRECISION_HINT": ov.Type.f32 if exact else PRECISIONS[self.precision],
            # By default int8 weights make openvino round activations to int8, too, whatever the precision hint says.
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
            "ENABLE_CPU_PINNING": False,  # the cores are shared with the window and with whatever else runs
        }
        try:
            players_of = {size: None if exact else size for size in sizes}
            compiled = {size: self._compile(graph, of, header, narrow, config) for size, of in players_of.items()}
        except Exception as error:  # openvino raises bare RuntimeError, and others
            raise WorldFileError(f"openvino cannot run {graph.name} ({first_line(error)})") from error
        requests = [compiled[size].create_infer_request() for size in sizes]
        places = [slice(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]
        return OpenVinoEngine(tuple(compiled.values()), tuple(zip(requests, places, strict=True)), narrow)

    def _compile(
        self, graph: Path, players: int | None, header: Header, narrow: frozenset[str], config: dict[str, Any]
    ) -> Any:
        """players: as many as the network is for; None leaves the graph's open sizes open. narrow: inputs and outputs
        that come and go as bfloat16.
        """
        model = self.core.read_model(graph)
        if players:
            model.reshape({name: (players, *shape[1:]) for name, (_, shape) in header.inputs.items()})
        unpack_weights(model)
        if narrow:
            ends = openvino.preprocess.PrePostProcessor(model)
            for name in narrow:
                end = ends.input(name) if name in header.inputs else ends.output(name)
                end.tensor().set_element_type(ov.Type.bf16)
            model = ends.build()
        return self.core.compile_model(model, "CPU", config)


def groups(players: int, threads: int) -> list[int]:
    """Players of each group, none above LARGEST: as even as can be, as many groups for each thread."""
    streams = min(players, threads)
    count = min(streams * math.ceil(players / (streams * LARGEST)), players)
    return [players // count + (number < players % count) for number in range(count)]


def unpack_weights(model: Any) -> None:
    """Turn stored int8 weights into numbers now: openvino keeps them packed otherwise, and every tick pays for that."""
    manager = ov.passes.Manager()
    manager.register_pass(ov.passes.ConstantFolding())
    manager.run_passes(model)


Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class OpenVinoEngine:
    """parts: a request for each group of players, and where they stand on axis 0 of the arrays. narrow: names of the
    arrays that are bfloat16.
    """

    compiled: tuple[Any, ...]  # keeps the networks alive as long as the requests
    parts: tuple[tuple[Any, slice], ...]
    narrow: frozenset[str]

    def run(self, inputs: Arrays, outputs: Arrays) -> None:
        arrays, bound = {**inputs, **outputs}, []
        arrays |= {name: bits_of(arrays[name]) for name in self.narrow}
        try:
            for request, players in self.parts:
                bound.append(self._bind(request, {name: array[players] for name, array in arrays.items()}))
                request.start_async()
        finally:  # nothing may still write when the caller's arrays go
            for request, _ in self.parts:
                request.wait()
        del bound  # not earlier

    def _bind(self, request: Any, arrays: Arrays) -> list[ov.Tensor]:
        """Have the request read and write these arrays. Hold them, and what this gives, until it is done.

        A shared ov.Tensor does not keep its array alive, nor the request its tensors: let go too early, the network
        reads freed memory and gives garbage without an error. What is read-only, such as an array of a snapshot, it
        takes as a copy only.
        """
        tensors = []
        for name, array in arrays.items():
            if name in self.narrow:
                tensors.append(ov.Tensor(array, array.shape, ov.Type.bf16))
            else:
                tensors.append(ov.Tensor(array, shared_memory=array.flags.writeable))
            request.set_tensor(name, tensors[-1])
        return tensors
