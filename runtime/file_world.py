"""A world file as evaluation plays it: begun from real frames by its own `begin` graph, then ticked by a backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime

from runtime.backends import Backend, load_backend
from runtime.backends.graphs import aligned_zeros
from runtime.errors import WorldFileError
from runtime.noise import tick_noise
from runtime.onnx_header import check_graph
from runtime.world import State, World


class FileWorld:
    """What players get: the shipped graphs and weights. A `Playable` of worldmodel/train/playable.py."""

    prompted = True

    def __init__(
        self, world: World, backend: str = "auto", threads: int | None = None, precision: str = "auto"
    ) -> None:
        self.world = world
        self.backend = load_backend(world, backend, threads=threads, precision=precision)
        self.actions = world.manifest.game_actions
        self._begin, self._outputs, self.context = _begin_graph(world)

    def begin(self, frames: np.ndarray, actions: np.ndarray, prompts: Sequence[str], seed: int) -> FileGame:
        """Go on after the last of `frames`, see `Playable`."""
        states = []
        for player in range(len(frames)):
            made = self._run(frames[player : player + 1], actions[player : player + 1])
            state = {name: aligned_zeros(spec.shape, spec.dtype) for name, spec in self.world.manifest.state.items()}
            for name, value in made.items():
                if name.startswith("next."):
                    state[name[5:]][...] = value
            states.append(state)
        game = FileGame(self.backend, self.world, states, [], seed)
        game.say(prompts)
        return game

    def through_codec(self, frames: np.ndarray) -> np.ndarray:
        """Encode and decode each frame, uint8 [n, height, width, 3]."""
        still = np.zeros((1, self.context, len(self.actions)), bool)
        return np.concatenate(
            [self._run(np.repeat(frame[None, None], self.context, 1), still)["frame"] for frame in frames]
        )

    def _run(self, frames: np.ndarray, actions: np.ndarray) -> State:
        made = self._begin.run(None, {"frames": frames, "actions": pressed(self.world, actions)})
        return dict(zip(self._outputs, made, strict=True))


@dataclass
class FileGame:
    """Players of a `FileWorld`."""

    backend: Backend
    world: World
    states: list[State]
    embeddings: list[np.ndarray]
    seed: int
    ticks: int = 0

    def tick(self, held: np.ndarray) -> np.ndarray:
        """held: bool [players, actions]. Returns uint8 [players, height, width, 3]."""
        frames = []
        for player, (state, keys) in enumerate(zip(self.states, held, strict=True)):
            noise = tick_noise(self.seed + player, self.ticks, (1, *self.world.manifest.noise))
            action = pressed(self.world, keys[None])
            frame, self.states[player] = self.backend.tick(state, action, self.embeddings[player], noise, {})
            frames.append(frame[0])
        self.ticks += 1
        return np.stack(frames)

    def say(self, prompts: Sequence[str]) -> None:
        """Turn each player's world towards another text."""
        self.embeddings = [self.backend.embed(prompt) for prompt in prompts]
        told = zip(self.states, self.embeddings, strict=True)
        self.states = [self.backend.recache(state, embedding) for state, embedding in told]


def pressed(world: World, keys: np.ndarray) -> np.ndarray:
    """float32 [..., actions] of the game's own, [..., game_actions]; nothing leads a condition."""
    beside = len(world.manifest.actions) - keys.shape[-1]
    return np.pad(keys.astype(np.float32), [*[(0, 0)] * (keys.ndim - 1), (0, beside)])


def _begin_graph(world: World) -> tuple[onnxruntime.InferenceSession, list[str], int]:
    """The graph that makes a state of real frames, its outputs, and how many frames it wants."""
    manifest = world.manifest
    if "begin" not in manifest.graphs:
        raise WorldFileError(
            f"{world.path or manifest.name}: has no begin graph, so it cannot go on from real frames: export it again, "
            "or evaluate the folder of its training run"
        )
    file = manifest.graphs["begin"].file
    sizes = {name: stored.bytes for name, stored in manifest.files.items()}
    state = {f"next.{name}": (spec.dtype.name, (None, *spec.shape[1:])) for name, spec in manifest.state.items()}
    picture = (manifest.height, manifest.width, 3)
    inputs = {"frames": ("uint8", (None, None, *picture)), "actions": ("float32", (None, None, len(manifest.actions)))}
    with world.unpacked() as folder:
        check_graph((folder / file).read_bytes(), file, inputs, {"frame": ("uint8", (None, *picture)), **state}, sizes)
        session = onnxruntime.InferenceSession(str(folder / file), providers=["CPUExecutionProvider"])
    context = session.get_inputs()[0].shape[1]
    return session, [output.name for output in session.get_outputs()], int(context)
