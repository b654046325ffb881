"""TensorRT's builder and runtime as export/tensorrt.py and the backend use them, played by onnxruntime on the CPU.

It takes the place of the package, whose libraries need a GPU. An engine is the graph itself; a run reads and writes the
addresses that it was given, which fake_gpu.py has in the host's memory.
"""

from __future__ import annotations

import ctypes
import enum
import types
from typing import Any

import numpy as np
import onnx
import onnxruntime

BROKEN = b"of another GPU"
SEVERITY = types.SimpleNamespace(name="ERROR")


class ILogger:
    def __init__(self) -> None:
        pass


class IProgressMonitor:
    def __init__(self) -> None:
        pass


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class Tensor:
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        kind = value.type.tensor_type
        self.name, self.dtype = value.name, types.SimpleNamespace(name=str(kind.elem_type))
        self.shape = [dim.dim_value or -1 for dim in kind.shape.dim]


class Network:
    def parsed(self, data: bytes) -> None:
        self.model = onnx.ModelProto.FromString(data)
        self.inputs = [Tensor(value) for value in self.model.graph.input]
        self.outputs = [Tensor(value) for value in self.model.graph.output]
        self.num_inputs, self.num_outputs, self.num_layers = len(self.inputs), len(self.outputs), 0

    def get_input(self, number: int) -> Tensor:
        return self.inputs[number]

    def get_output(self, number: int) -> Tensor:
        return self.outputs[number]


class OnnxParser:
    def __init__(self, network: Network, log: ILogger) -> None:
        self.network = network

    def parse(self, data: bytes) -> bool:
        self.network.parsed(data)
        return True


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[int]] = {}

    def set_shape(self, name: str, low: list[int], usual: list[int], high: list[int]) -> None:
        self.shapes[name] = usual


class Config:
    progress_monitor: Any = None

    def create_timing_cache(self, data: bytes) -> bytes:
        return data

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> None:
        self.timings = cache

    def get_timing_cache(self) -> Any:
        return types.SimpleNamespace(serialize=lambda: self.timings + b".")

    def add_optimization_profile(self, profile: Profile) -> None:
        self.profile = profile


class Builder:
    built = 0  # engines, by all builders

    def __init__(self, log: ILogger) -> None:
        pass

    def create_network(self, flags: int) -> Network:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return Network()

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes:
        Builder.built += 1
        config.progress_monitor.phase_start("tuning", None, 1)
        config.progress_monitor.step_complete("tuning", 0)
        config.progress_monitor.phase_finish("tuning")
        return network.model.SerializeToString()


class Runtime:
    def __init__(self, log: Any) -> None:
        self.log = log

    def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
        if data == BROKEN:
            self.log.log(SEVERITY, "engine was built for another GPU\nand more")
            return None
        return Engine(data)


class Engine:
    def __init__(self, data: bytes) -> None:
        self.session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def create_execution_context(self) -> Context:
        return Context(self.session)


class Context:
    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.names = {value.name for value in [*session.get_inputs(), *session.get_outputs()]}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return name in self.names

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.names

    def execute_async_v3(self, stream: int) -> bool:
        given = {}
        for value in self.session.get_inputs():
            like = np.empty(self.shapes[value.name], np.int64 if "int64" in value.type else np.float32)
            ctypes.memmove(like.ctypes.data, self.addresses[value.name], like.nbytes)
            given[value.name] = like
        names = [value.name for value in self.session.get_outputs()]
        for name, made in zip(names, self.session.run(names, given), strict=True):
            made = np.ascontiguousarray(made)
            ctypes.memmove(self.addresses[name], made.ctypes.data, made.nbytes)
        return True


def fake_tensorrt(version: str = "11.4.0") -> types.ModuleType:
    """The module, with all engines ever built forgotten."""
    module = types.ModuleType("tensorrt")
    vars(module).update({name: value for name, value in globals().items() if isinstance(value, type)})
    vars(module)["__version__"] = version
    Builder.built = 0
    return module
