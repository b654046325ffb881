"""Torch on an NVIDIA GPU: the reference tick in bf16, compiled, replayed as one CUDA graph; the state stays on the GPU.

Compiling takes a minute. Imported worlds, whose ticks differ from each other, run as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor

from runtime.backends import Backend, check_precision, notice
from runtime.backends.graphs import first_line
from runtime.backends.imported import Kept, load_family
from runtime.backends.torch import Tick, compiled, native_world
from runtime.errors import BackendError
from runtime.prompt import check_prompt
from runtime.world import State, World
from worldmodel import tick as native
from worldmodel.prompt.encoder import PromptEncoder

WARM_UP = 3  # runs before a graph is recorded: libraries choose their kernels in the first ones

Program = Callable[..., tuple[Tensor, ...]]


def load(world: World, threads: int, precision: str, players: int) -> Backend:
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU"
        raise BackendError(
            f"torch {torch.__version__}, {built}, finds no NVIDIA GPU here: use the backend torch, or another torch"
        )
    device = torch.device("cuda")
    if "family" in (world.manifest.spec or {}):
        return load_family(world, threads, precision, players, device)
    check_precision("torch-cuda", precision, ("bf16", "fp32"))
    chosen = precision.replace("auto", "bf16")
    model = native_world(world).to(device)
    tick = compiled(model, "cuda") if chosen == "bf16" else partial(native.tick, model)
    return TorchGpuBackend(model, device, tick, PromptEncoder.load(), threads, players, chosen, Recorded)


class Recorded:
    """A function of tensors as one CUDA graph. Its inputs are copied to fixed places, its results are copies."""

    def __init__(self, function: Program, arguments: tuple[Tensor, ...]) -> None:
        self._fixed = [argument.clone() for argument in arguments]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                function(*self._fixed)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._made = function(*self._fixed)

    def __call__(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        for fixed, argument in zip(self._fixed, arguments, strict=True):
            fixed.copy_(argument)
        self._graph.replay()
        return tuple(made.clone() for made in self._made)


@dataclass
class TorchGpuBackend:
    """record: makes a faster program of a function and the arguments of its first call; None runs it as it is."""

    model: native.World
    device: torch.device
    make: Tick
    encoder: PromptEncoder
    threads: int
    players: int
    precision: str
    record: Callable[[Program, tuple[Tensor, ...]], Program] | None = None
    name: str = "torch-cuda"
    _program: Program | None = field(default=None, repr=False)

    @torch.no_grad()
    def tick(
        self, state: State, action: np.ndarray, prompt: np.ndarray, noise: np.ndarray, into: State
    ) -> tuple[np.ndarray, State]:
        arguments = tuple(
            self._tensor(array) for array in (action, prompt, noise, *(state[name] for name in self._names))
        )
        if self._program is None:
            self._program = self._recorded(arguments)
        frame, *parts = self._program(*arguments)
        return frame.cpu().numpy(), outside(dict(zip(self._names, parts, strict=True)))

    def _recorded(self, arguments: tuple[Tensor, ...]) -> Program:
        if self.record is None:
            return self._flat
        try:
            return self.record(self._flat, arguments)
        except RuntimeError as error:  # something in it waits for the GPU, or brings numbers from the host
            notice(f"the tick runs without a CUDA graph on {self.name} ({first_line(error)})")
            return self._flat

    def _flat(self, *given: Tensor) -> tuple[Tensor, ...]:
        """The tick over a flat list of tensors."""
        action, prompt, noise, *state = given
        frame, after = self.make(dict(zip(self._names, state, strict=True)), action, prompt, noise)
        return frame, *(after[name] for name in self._names)

    @property
    def _names(self) -> list[str]:
        return list(native.state_shapes(self.model.spec))

    @torch.no_grad()
    def recache(self, state: State, prompt: np.ndarray) -> State:
        return outside(native.recache(self.model, self._inside(state), self._tensor(prompt)))

    @torch.no_grad()
    def embed(self, text: str) -> np.ndarray:
        check_prompt(text)
        return self.encoder.encode([text]).numpy()

    def _inside(self, state: State) -> dict[str, Tensor]:
        return {name: self._tensor(array) for name, array in state.items()}

    def _tensor(self, array: object) -> Tensor:
        return (array.tensor if isinstance(array, Kept) else torch.from_numpy(np.array(array))).to(self.device)


def outside(state: dict[str, Tensor]) -> State:
    return cast(State, {name: Kept(tensor) for name, tensor in state.items()})
