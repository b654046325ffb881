"""TensorRT on an NVIDIA GPU: engines made by export/tensorrt.py, the state on the GPU, the tick as one CUDA graph.

Two packages, one backend each: `tensorrt` tunes its engines on the GPU that it builds for; `tensorrt-rtx`, for GeForce
and workstation cards, builds in seconds and finishes on the GPU when an engine is loaded. Engines are kept by world,
GPU, version, precision and players.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.backends import Backend, check_precision, notice
from runtime.backends.graphs import Engine, load_graphs
from runtime.backends.on_gpu import GpuEngine, GpuState, fixed_arrays
from runtime.backends.onnxruntime import OrtMaker
from runtime.cuda import Cuda, gpu
from runtime.engines import engine_of, engines_folder
from runtime.errors import BackendError
from runtime.onnx_header import Header
from runtime.world import World

PRECISIONS = ("fp16", "bf16")


def load(world: World, threads: int, precision: str, players: int) -> Backend:
    return load_engines(world, "tensorrt", threads, precision, players)


def load_rtx(world: World, threads: int, precision: str, players: int) -> Backend:
    return load_engines(world, "tensorrt-rtx", threads, precision, players)


def load_engines(world: World, package: str, threads: int, precision: str, players: int) -> Backend:
    from export.tensorrt import load_package

    check_precision(package, precision, PRECISIONS)
    cuda, version, chosen = gpu(), load_package(package).__version__, precision.replace("auto", "fp16")
    maker = TensorRtMaker(cuda, package, version, world.hash, chosen, threads, engines_folder())
    return load_graphs(world, maker, players, GpuState(cuda))


@dataclass(frozen=True)
class TensorRtMaker:
    """name: the package that builds and runs."""

    cuda: Cuda
    name: str
    version: str
    world_hash: str
    precision: str
    threads: int
    folder: Path

    def make(self, graph: Path, header: Header, players: int, exact: bool) -> Engine:
        if exact:  # a prompt's embedding is made once, and must be that of every other backend
            return OrtMaker(self.threads, "fp32").make(graph, header, players, exact)
        context = self._engine(graph, players).create_execution_context()
        if context is None:
            raise BackendError(f"{self.name} cannot make {graph.stem} ready: too little memory on {self.cuda.name}?")
        inputs, outputs = (fixed_arrays(self.cuda, values, players) for values in (header.inputs, header.outputs))
        for name, array in [*inputs.items(), *outputs.items()]:
            fits = name in outputs or context.set_input_shape(name, array.shape)
            if not fits or not context.set_tensor_address(name, array.memory.address):
                raise BackendError(f"{self.name}: the engine of {graph.stem} does not take {name} {list(array.shape)}")

        def work() -> None:
            if not context.execute_async_v3(self.cuda.stream):
                raise BackendError(f"{self.name} failed to run {graph.stem} on {self.cuda.name}")

        self.cuda.enter()
        work()  # once as it is: kernels are loaded, and with tensorrt-rtx made, in the first run
        self.cuda.finish()
        try:
            return GpuEngine(self.cuda, inputs, outputs, self.cuda.capture(work))
        except BackendError as error:
            notice(f"{graph.name} runs without a CUDA graph on {self.name} ({error})")
            return GpuEngine(self.cuda, inputs, outputs, work)

    def _engine(self, graph: Path, players: int) -> Any:
        """The package's engine; one that does not load here is built again, once."""
        from export.tensorrt import About, EngineError, load

        # What tensorrt-rtx builds is for every GPU; tensorrt measures on this one.
        where = self.cuda.name if self.name == "tensorrt" else ""
        about = About(self.world_hash, graph.stem, self.precision, players, self.name, self.version, where)
        file = self.folder / about.file_name
        if file.exists():
            try:
                return load(file)
            except EngineError as error:
                notice(f"building {graph.stem} again: {error}")
                file.unlink()
        elif self.name == "tensorrt":
            notice(f"building the engine of {graph.stem} for {self.cuda.name}, once: this may take minutes")
        return load(engine_of(about, graph, self.folder)[0])
