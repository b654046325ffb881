"""The tick as an engine for NVIDIA GPUs, built ahead of time.

One module for two packages whose builders are the same: `tensorrt-rtx` builds without a GPU, so tests do it;
`tensorrt` tunes on the GPU that it builds for, and its libraries come from NVIDIA's own package index.

    engine file:  one line of JSON (`About`), then what the package serialized
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from export.narrow import narrow
from worldmodel.errors import MissingExtraError, WorldloopError

PACKAGES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}  # on the package index: imported as
SAYS = ("INTERNAL_ERROR", "ERROR")  # severities that end up in our error
SUFFIX = ".engine"


class EngineError(WorldloopError):
    """An engine cannot be built, or not be used here."""


@dataclass(frozen=True)
class About:
    """What an engine was built from, by and for. gpu: "" where it was not built for one GPU."""

    world_hash: str
    graph: str
    precision: str
    players: int
    package: str
    version: str
    gpu: str = ""

    @property
    def file_name(self) -> str:
        """Everything that makes another engine is in its name."""
        parts = (self.world_hash[:16], self.graph, self.precision, f"{self.players}p", self._builder)
        return "-".join(parts) + SUFFIX

    @property
    def timings_name(self) -> str:
        """Of the file that engines of one builder and GPU share."""
        return f"timings-{self._builder}"

    @property
    def _builder(self) -> str:
        gpu = re.sub(r"\W+", "_", self.gpu)
        return "-".join(filter(None, (self.package, self.version, gpu)))


@dataclass(frozen=True)
class Engine:
    """types: layers by the type of their first result, as the builder sees the graph."""

    about: About
    data: bytes
    inputs: dict[str, str]  # name: type and shape
    outputs: dict[str, str]
    types: dict[str, int]


def build(
    model: onnx.ModelProto | Path,
    about: About,
    progress: Callable[[str, int, int], None] = lambda phase, at, of: None,
    timings: Path | None = None,
) -> Engine:
    """Parse and build, strongly typed. The model's weights lie inside it; it is float32, and made `about.precision`.
    A graph's file is taken as it is, its weights lying beside it.

    progress: is told the phase, the step and how many steps it has. timings: a file of what was measured while earlier
    engines were tuned for this GPU; it is read, and written anew.
    """
    trt = load_package(about.package)
    log = _logger(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if isinstance(model, Path):
        parsed = parser.parse_from_file(str(model))
    else:
        parsed = parser.parse(narrow(model, about.precision).SerializeToString())
    if not parsed:
        raise EngineError(f"{about.package} cannot read the {about.graph} graph: {parser.get_error(0).desc()}")
    config = builder.create_builder_config()
    config.progress_monitor = _monitor(trt, progress)
    if timings:
        config.set_timing_cache(
            config.create_timing_cache(timings.read_bytes() if timings.exists() else b""), ignore_mismatch=True
        )
    profile = builder.create_optimization_profile()
    for tensor in _tensors(network.num_inputs, network.get_input):
        shape = [about.players if size < 0 else size for size in tensor.shape]
        profile.set_shape(tensor.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    layers = [network.get_layer(number) for number in range(network.num_layers)]
    types = Counter(layer.get_output_type(0).name for layer in layers if layer.num_outputs)
    inputs = _described(_tensors(network.num_inputs, network.get_input))
    outputs = _described(_tensors(network.num_outputs, network.get_output))
    data = builder.build_serialized_network(network, config)
    if data is None:
        raise EngineError(f"{about.package} cannot build the {about.graph} graph: {log.worst or 'it does not say why'}")
    if timings:
        _write(timings, bytes(config.get_timing_cache().serialize()))
    return Engine(about, bytes(data), inputs, outputs, dict(types))


def cached(about: About, folder: Path, make: Callable[[], Engine]) -> tuple[Path, Engine | None]:
    """The engine's file in the folder; built, if it is not there, and then given too."""
    path = folder / about.file_name
    if path.exists():
        return path, None
    engine = make()
    _write(path, json.dumps(dataclasses.asdict(about)).encode() + b"\n" + engine.data)
    return path, engine


def load(path: Path) -> Any:
    """The package's own engine object, on the GPU of this machine."""
    try:
        head, _, data = path.read_bytes().partition(b"\n")
        about = About(**json.loads(head))
    except (OSError, ValueError, TypeError) as error:
        raise EngineError(f"{path} is not an engine file ({error}): build it again") from error
    trt = load_package(about.package)
    if trt.__version__ != about.version:
        raise EngineError(
            f"{path} was built by {about.package} {about.version}, here is {trt.__version__}: build it again"
        )
    log = _logger(trt)
    engine = trt.Runtime(log).deserialize_cuda_engine(data)
    if engine is None:
        raise EngineError(f"{path} cannot run here: {log.worst or 'no NVIDIA GPU or driver that it fits'}")
    return engine


def load_package(package: str) -> Any:
    """The module; it imports without driver and GPU."""
    try:
        return importlib.import_module(PACKAGES[package])
    except KeyError:
        raise EngineError(f"no package {package!r} builds engines; there are: {', '.join(PACKAGES)}") from None
    except ImportError as error:
        where = ", from NVIDIA's own package index" if package == "tensorrt" else ""
        raise MissingExtraError(
            f"{package} is not installed, or lacks its libraries ({error}): pip install {package}{where}"
        ) from error


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_bytes(data)
    os.replace(unfinished, path)


def _logger(trt: Any) -> Any:
    class Log(trt.ILogger):
        """Keeps the first error, which names the cause, instead of printing."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.worst = ""

        def log(self, severity: Any, message: str) -> None:
            if severity.name in SAYS:
                self.worst = self.worst or message

    return Log()


def _monitor(trt: Any, progress: Callable[[str, int, int], None]) -> Any:
    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress(phase_name, step, self.steps[phase_name])
            return True

        def phase_finish(self, phase_name: str) -> None:
            del self.steps[phase_name]

    return Monitor()


def _tensors(count: int, get: Callable[[int], Any]) -> list[Any]:
    return [get(number) for number in range(count)]


def _described(tensors: list[Any]) -> dict[str, str]:
    return {tensor.name: f"{tensor.dtype.name.lower()} {list(tensor.shape)}" for tensor in tensors}
