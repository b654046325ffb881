"""ONNX Runtime on the CPU, float32: the portable backend. Inputs and outputs are numpy's own memory, no copies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from runtime.backends import Backend, check_precision
from runtime.backends.graphs import Engine, first_line, load_graphs
from runtime.errors import WorldFileError
from runtime.onnx_header import Header
from runtime.world import World


def load(world: World, threads: int, precision: str, players: int) -> Backend:
    check_precision("onnxruntime", precision, ("fp32",))
    return load_graphs(world, OrtMaker(threads), players)


@dataclass(frozen=True)
class OrtMaker:
    threads: int
    name: str = "onnxruntime"
    precision: str = "fp32"

    def make(self, graph: Path, header: Header, players: int, exact: bool) -> Engine:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors only
        options.add_session_config_entry(
            "session.intra_op.allow_spinning", "0"
        )  # between ticks the cores belong to others
        options.add_session_config_entry("session.disable_quant_qdq", "1")  # unpack stored weights once, while loading
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
