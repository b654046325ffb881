"""ONNX Runtime on the CPU: the portable backend. Inputs and outputs are numpy's own memory, no copies.

float32, or int8 where the world file has a calibrated graph for it (`worldloop export WORLD --to int8`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from runtime.backends import Backend, check_precision
from runtime.backends.graphs import Engine, first_line, load_graphs
from runtime.errors import WorldFileError
from runtime.machine import multiplies_int8
from runtime.onnx_header import Header
from runtime.world import World


def load(world: World, threads: int, precision: str, players: int) -> Backend:
    known = ("int8", "fp32") if "tick_int8" in world.manifest.graphs and multiplies_int8() else ("fp32",)
    check_precision("onnxruntime", precision, known)
    return load_graphs(world, OrtMaker(threads, known[0] if precision == "auto" else precision), players)


@dataclass(frozen=True)
class OrtMaker:
    threads: int
    precision: str
    name: str = "onnxruntime"

    def make(self, graph: Path, header: Header, players: int, exact: bool) -> Engine:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors only
        options.add_session_config_entry(
            "session.intra_op.allow_spinning", "0"
        )  # between ticks the cores belong to others
        if self.precision != "int8":
            options.add_session_config_entry("session.disable_quant_qdq", "1")  # unpack weights once, while loading
        try:
            session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no base class
            raise WorldFileError(f"onnxruntime cannot run {graph.name} ({first_line(error)})") from error
        return OrtEngine(session)


@dataclass(frozen=True)
class OrtEngine:
    session: ort.InferenceSession

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        binding = self.session.io_binding()
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        self.session.run_with_iobinding(binding)
