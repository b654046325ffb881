"""What all backends share that run a world's ONNX graphs: arrays in, arrays out, checked against the manifest.

An engine runs one graph on given arrays. This file knows which arrays: the state contract of a world file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from runtime.errors import BackendError, PromptError, WorldFileError
from runtime.manifest import Manifest
from runtime.onnx_header import Header, Shape, check_graph
from runtime.prompt import Tokenizer
from runtime.world import State, World

Signature = dict[str, tuple[str, Shape]]
TICKS = ("tick", "reprime", "tick_fast")  # graphs that give a frame, see runtime/governor.py
LATER = ("tick_fast",)  # compiled when first used: most games never do
ALIGNMENT = 64  # bytes; vector units read aligned arrays without a copy


class Engine(Protocol):
    """One compiled graph."""

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        """Fill every output. All arrays are contiguous and have the shapes and types of the graph."""


class EngineMaker(Protocol):
    """name, precision and threads say what the engines run on."""

    @property
    def name(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def threads(self) -> int: ...

    def make(self, graph: Path, header: Header, players: int, exact: bool) -> Engine:
        """Compile a graph. exact: in float32, whatever the precision of the others (the prompt's)."""


class Place(Protocol):
    """Where a state's arrays lie."""

    def empty(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array there, zeros, for the state's part of this name; what numpy asks of it is enough."""

    def holds(self, name: str, array: np.ndarray) -> bool:
        """Whether this array is one that `empty` gives for that name."""


class Host:
    """In the machine's own memory."""

    def empty(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        return aligned_zeros(shape, dtype)

    def holds(self, name: str, array: np.ndarray) -> bool:
        return isinstance(array, np.ndarray)


@dataclass(frozen=True)
class GraphBackend:
    """A world file's graphs on some engine. make: compiles a graph. engines: those that it has compiled."""

    manifest: Manifest
    maker: EngineMaker
    players: int
    headers: Mapping[str, Header]
    make: Callable[[str], Engine]
    engines: dict[str, Engine]
    tokenizer: Tokenizer | None
    place: Place

    @property
    def name(self) -> str:
        return self.maker.name

    @property
    def precision(self) -> str:
        return self.maker.precision

    @property
    def threads(self) -> int:
        return self.maker.threads

    def tick(
        self, state: State, action: np.ndarray, prompt: np.ndarray, noise: np.ndarray, into: State
    ) -> tuple[np.ndarray, State]:
        return self.tick_by("tick", state, action, prompt, noise, into)

    def tick_by(
        self, graph: str, state: State, action: np.ndarray, prompt: np.ndarray, noise: np.ndarray, into: State
    ) -> tuple[np.ndarray, State]:
        """`tick` by another graph of the world: `reprime` or `tick_fast`, with noise of that graph's shape."""
        frame = np.empty((self.players, self.manifest.height, self.manifest.width, 3), np.uint8)
        after = self._run(graph, state, {"action": action, "prompt": prompt, "noise": noise}, into, {"frame": frame})
        return frame, after

    def recache(self, state: State, prompt: np.ndarray) -> State:
        if "recache" not in self.headers:
            return state
        return self._run("recache", state, {"prompt": prompt}, {}, {})

    def embed(self, text: str) -> np.ndarray:
        if self.tokenizer is None:
            raise PromptError(f"world {self.manifest.name!r} does not read prompts")
        ids, mask = self.tokenizer(text)
        prompt = aligned_zeros((1, *self.manifest.prompt), np.dtype(np.float32))
        self.engines["prompt"].run({"ids": ids, "mask": mask}, {"prompt": prompt})
        return prompt

    def _run(
        self, graph: str, state: State, given: Mapping[str, np.ndarray], into: State, extra: Mapping[str, np.ndarray]
    ) -> State:
        """Run a graph that takes the state and gives the next."""
        header = self.headers[graph]
        inputs = {name: state[name[6:]] if name.startswith("state.") else given[name] for name in header.inputs}
        changed = {}
        for name in header.outputs:
            if name.startswith("next."):
                key = name[5:]
                usable = key in into and self.place.holds(key, into[key])
                changed[key] = into[key] if usable else self.place.empty(key, state[key].shape, state[key].dtype)
        outputs = {**extra, **{f"next.{key}": array for key, array in changed.items()}}
        if graph not in self.engines:
            self.engines[graph] = self.make(graph)
        self.engines[graph].run(inputs, outputs)
        return {**state, **changed}


def load_graphs(world: World, maker: EngineMaker, players: int, place: Place | None = None) -> GraphBackend:
    """Check every graph, then compile it. place: of the state, by default the host."""
    manifest = world.manifest
    if "tick" not in manifest.graphs:
        raise WorldFileError(f"{world.path}: has no tick graph: export the world again")
    sizes = {name: stored.bytes for name, stored in manifest.files.items()}
    headers: dict[str, Header] = {}

    def compiled(name: str, folder: Path) -> Engine:
        file = folder / graph_file(manifest, name, maker.precision)
        return maker.make(file, headers[name], players, exact=name == "prompt")

    def compiled_later(name: str) -> Engine:
        with world.unpacked() as folder:
            return compiled(name, folder)

    with world.unpacked() as folder:
        for name in (*TICKS, "recache", "prompt"):
            if name not in manifest.graphs:
                continue
            file = graph_file(manifest, name, maker.precision)
            inputs, outputs = signature(manifest, name)
            headers[name] = check_graph((folder / file).read_bytes(), file, inputs, outputs, sizes)
            if name in TICKS and "frame" not in headers[name].outputs:
                raise WorldFileError(f"{world.path}: {file} gives no frame: export the world again")
            if players > 1 and name != "prompt" and not batched(headers[name]):
                raise BackendError(f"world {manifest.name!r} was exported for one player; export it again for more")
        engines = {name: compiled(name, folder) for name in headers if name not in LATER}
    tokenizer = Tokenizer.of(world) if "prompt" in headers else None
    return GraphBackend(manifest, maker, players, headers, compiled_later, engines, tokenizer, place or Host())


def graph_file(manifest: Manifest, name: str, precision: str) -> str:
    """Where a graph lies; in int8 some have a file of their own."""
    own = manifest.graphs.get(f"{name}_int8") if precision == "int8" else None
    return (own or manifest.graphs[name]).file


def signature(manifest: Manifest, graph: str) -> tuple[Signature, Signature]:
    """What a graph of this name may take and give: name → (dtype, shape); None on axis 0 stands for the players."""
    if graph == "prompt":
        text: tuple[str, Shape] = ("int64", (None, None))
        return {"ids": text, "mask": text}, {"prompt": ("float32", (None, *manifest.prompt))}
    state = {name: (spec.dtype.name, (None, *spec.shape[1:])) for name, spec in manifest.state.items()}
    inputs: Signature = {f"state.{name}": kind for name, kind in state.items()}
    outputs: Signature = {f"next.{name}": kind for name, kind in state.items()}
    inputs["prompt"] = ("float32", (None, *manifest.prompt))
    if graph != "recache":
        inputs["action"] = ("float32", (None, len(manifest.actions)))
        inputs["noise"] = ("float32", (None, *(manifest.graphs[graph].noise or manifest.noise)))
        outputs["frame"] = ("uint8", (None, manifest.height, manifest.width, 3))
    return inputs, outputs


def batched(header: Header) -> bool:
    """Whether the graph takes any number of players."""
    return all(shape and shape[0] is None for _, shape in header.inputs.values())


def aligned_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros that start at a multiple of ALIGNMENT."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    offset = -raw.ctypes.data % ALIGNMENT
    return raw[offset : offset + size].view(dtype).reshape(shape)


def first_line(error: Exception) -> str:
    """What a backend complains about, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
