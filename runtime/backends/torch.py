"""Torch: the reference, float32, that a native world's graphs were traced from, with the weights of its file.

In bf16 it is compiled (torch.compile, weights folded in), which takes a minute and a C++ compiler: a yardstick for the
other backends, not a way to play.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from export.quantize import LOCATION, read_weights
from runtime.backends import Backend, check_precision
from runtime.errors import BackendError, WorldFileError
from runtime.prompt import check_prompt
from runtime.world import State, World
from worldmodel import tick as native
from worldmodel.errors import SpecError
from worldmodel.prompt.encoder import PromptEncoder
from worldmodel.spec import WorldSpec

Tick = Callable[..., tuple[torch.Tensor, dict[str, torch.Tensor]]]


def load(world: World, threads: int, precision: str, players: int) -> Backend:
    if "family" in (world.manifest.spec or {}):
        from runtime.backends.imported import load_family

        return load_family(world, threads, precision, players)
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    check_precision("torch", precision, ("fp32", "bf16") if compiler else ("fp32",))
    model = native_world(world)
    torch.set_num_threads(threads)
    make = compiled(model, "cpu") if precision == "bf16" else partial(native.tick, model)
    return TorchBackend(model, make, PromptEncoder.load(), threads, players, precision.replace("auto", "fp32"))


def native_world(world: World) -> native.World:
    """The module that a world file's graphs were traced from, with the file's weights."""
    if world.manifest.spec is None:
        raise BackendError(f"world {world.manifest.name!r} does not say how to build it in torch: use another backend")
    try:
        model = native.World(WorldSpec.from_json(json.dumps(world.manifest.spec)))
    except SpecError as error:
        raise WorldFileError(f"{world.path}: {error}: export the world again") from error
    shapes = {name: spec.shape for name, spec in world.manifest.state.items()}
    if shapes != {name: shape for name, (shape, _) in native.state_shapes(model.spec).items()}:
        raise BackendError(
            f"world {world.manifest.name!r} was exported by a version that laid its state out differently: play it by "
            "its graphs (onnxruntime, openvino), or export it again"
        )
    weights = {name: torch.from_numpy(array) for name, array in read_weights(world.read(LOCATION)).items()}
    tables = {name for name, _ in model.named_buffers()} - set(model.state_dict())  # computed anew, not loaded
    absent, unknown = model.load_state_dict({k: v for k, v in weights.items() if k not in tables}, strict=False)
    if absent or unknown:
        raise WorldFileError(f"{world.path}: weights missing: {absent[:3]}, unexpected: {unknown[:3]}: export it again")
    return model.eval().requires_grad_(False)


def compiled(model: native.World, device: str) -> Tick:
    """The tick in bf16 as one compiled program. device: cpu or cuda."""
    from torch._inductor import config

    config.freezing = True

    def tick(
        state: native.State, action: torch.Tensor, prompt: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, native.State]:
        with torch.autocast(device, torch.bfloat16):
            return native.tick(model, state, action, prompt, noise)

    return torch.compile(tick, dynamic=False)


@dataclass(frozen=True)
class TorchBackend:
    model: native.World
    make: Tick
    encoder: PromptEncoder
    threads: int
    players: int
    precision: str
    name: str = "torch"

    @torch.no_grad()
    def tick(
        self, state: State, action: np.ndarray, prompt: np.ndarray, noise: np.ndarray, into: State
    ) -> tuple[np.ndarray, State]:
        told, said, drawn = (torch.tensor(array) for array in (action, prompt, noise))
        frame, after = self.make(tensors(state), told, said, drawn)
        return frame.contiguous().numpy(), arrays(after)

    @torch.no_grad()
    def recache(self, state: State, prompt: np.ndarray) -> State:
        return arrays(native.recache(self.model, tensors(state), torch.from_numpy(prompt)))

    def embed(self, text: str) -> np.ndarray:
        check_prompt(text)
        return self.encoder.encode([text]).numpy()


def tensors(state: State) -> dict[str, Any]:
    return {name: torch.from_numpy(array) for name, array in state.items()}


def arrays(state: dict[str, Any]) -> State:
    return {name: tensor.contiguous().numpy() for name, tensor in state.items()}
