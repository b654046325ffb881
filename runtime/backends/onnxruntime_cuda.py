"""ONNX Runtime on an NVIDIA GPU: the state stays there, the tick is one CUDA graph where all of it can run there.

fp16 by default: every number of the graph, state and inputs keep their types. Which provider really runs is read from
the session: onnxruntime lists providers that cannot be loaded, and takes the CPU in their place without an error.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort

from runtime.backends import Backend, check_precision, notice
from runtime.backends.graphs import Engine, first_line, load_graphs
from runtime.backends.on_gpu import GpuArray, GpuEngine, GpuState, fixed_arrays
from runtime.backends.onnxruntime import OrtMaker
from runtime.cuda import Cuda, gpu
from runtime.errors import BackendError, MissingExtraError
from runtime.onnx_header import Header
from runtime.world import World

PROVIDER = "CUDAExecutionProvider"
PRECISIONS = ("fp16", "bf16", "fp32")
PLAYERS = "players"  # the open axis of exported graphs
FATAL, WARNING = 4, 2  # onnxruntime's severities
LIBRARY = "onnxruntime_providers_cuda.dll" if sys.platform == "win32" else "libonnxruntime_providers_cuda.so"

Provider = tuple[str, dict[str, str]]


def load(world: World, threads: int, precision: str, players: int) -> Backend:
    check_precision("onnxruntime-cuda", precision, PRECISIONS)
    cuda = gpu()
    maker = OrtGpuMaker(cuda, "onnxruntime-cuda", precision.replace("auto", "fp16"), threads, [cuda_provider(cuda)])
    return load_graphs(world, maker, players, GpuState(cuda))


def cuda_provider(cuda: Cuda) -> Provider:
    """fp32 means float32 here: TF32 would keep ten bits of each factor."""
    return PROVIDER, {"user_compute_stream": str(cuda.stream), "use_tf32": "0", "enable_cuda_graph": "1"}


@dataclass(frozen=True)
class OrtGpuMaker:
    """providers: the wanted one first. device: what onnxruntime calls the memory that `cuda` gives."""

    cuda: Cuda
    name: str
    precision: str
    threads: int
    providers: list[Provider]
    device: str = "cuda"
    missing: str = LIBRARY  # the library that tells why the first provider cannot be loaded

    def make(self, graph: Path, header: Header, players: int, exact: bool) -> Engine:
        if exact:  # a prompt's embedding is made once, and must be that of every other backend
            return OrtMaker(self.threads, "fp32").make(graph, header, players, exact)
        model = str(graph) if self.precision == "fp32" else narrowed(graph, self.precision)
        inputs, outputs = (fixed_arrays(self.cuda, values, players) for values in (header.inputs, header.outputs))
        try:
            return self._engine(model, players, inputs, outputs, self.providers)
        except BackendError:
            raise
        except Exception as error:  # onnxruntime's errors share no base class
            why = first_line(error)
        try:
            plain = [(name, without_graphs(options)) for name, options in self.providers]
            engine = self._engine(model, players, inputs, outputs, plain)
        except BackendError:
            raise
        except Exception as error:
            raise BackendError(f"{self.name} cannot run {graph.name}: {first_line(error)}") from error
        notice(f"{graph.name} runs without a CUDA graph on {self.name} ({why})")
        return engine

    def _engine(
        self,
        model: str | bytes,
        players: int,
        inputs: Mapping[str, GpuArray],
        outputs: Mapping[str, GpuArray],
        providers: list[Provider],
    ) -> Engine:
        """The engine after a first run, in which onnxruntime records its CUDA graph."""
        session = self._session(model, players, providers)
        binding = session.io_binding()
        for bind, arrays in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, array in arrays.items():
                bind(name, self.device, 0, array.dtype.type, array.shape, array.memory.address)

        def program() -> None:
            try:
                session.run_with_iobinding(binding)
            except Exception as error:
                raise BackendError(f"{self.name} failed: {first_line(error)}") from error

        session.run_with_iobinding(binding)
        return GpuEngine(self.cuda, inputs, outputs, program)

    def _session(self, model: str | bytes, players: int, providers: list[Provider]) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.log_severity_level = FATAL
        options.add_free_dimension_override_by_name(PLAYERS, players)
        wanted = providers[0][0]
        if wanted not in ort.get_available_providers():
            raise BackendError(
                f"backend {self.name!r}: this onnxruntime has no {wanted}; onnxruntime and onnxruntime-gpu lie in the "
                "same folder, so uninstall both, then pip install onnxruntime-gpu"
            )
        with quiet():
            if hasattr(ort, "preload_dlls"):
                ort.preload_dlls()  # CUDA's libraries where pip, or torch, has put them
            session = ort.InferenceSession(model, options, providers=providers, enable_fallback=0)
        if session.get_providers()[0] != wanted:
            raise BackendError(
                f"backend {self.name!r} would run on {session.get_providers()[0]} instead of {wanted} "
                f"({why_not(self.missing)}): pip install 'worldloop[gpu]', or use the backend onnxruntime"
            )
        return session


def narrowed(graph: Path, precision: str) -> bytes:
    """The graph with its weights inside, every number of it in this precision."""
    try:
        from export.narrow import narrow
        from export.quantize import with_weights
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"precision {precision!r} needs {error.name}: pip install {error.name}") from error
    return narrow(with_weights(graph), precision).SerializeToString()


def without_graphs(options: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in options.items() if "cuda_graph" not in key}


def why_not(library: str) -> str:
    """What keeps a provider's library from being loaded; onnxruntime only logs it."""
    found = importlib.util.find_spec("onnxruntime")
    assert found is not None and found.origin is not None, "it is imported"
    try:
        ctypes.CDLL(str(Path(found.origin).parent / "capi" / library))
    except OSError as error:
        return str(error)
    return "it does not say why"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """onnxruntime prints what it could not load, a page of it, also on standard output; our error is one line."""
    ort.set_default_logger_severity(FATAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        ort.set_default_logger_severity(WARNING)
