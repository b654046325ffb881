"""A world as a Gymnasium environment, alone or many players in one batch. Needs the train extra.

    env = WorldEnv("racer", render_mode="human")
    observation, info = env.reset(seed=7)

An action is what is pressed, one 0 or 1 for each action of the world; an observation is the frame. A world has rewards
and ends only if it was trained to tell them ('worldloop train heads'): state tensors named `reward` (float32) and
`terminated` (uint8 or bool). Without them the reward is 0, and an episode ends by `max_ticks` alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backends import load_backend
from runtime.backends.graphs import aligned_zeros
from runtime.errors import MissingExtraError, UsageError
from runtime.governor import Wishes, choose_for_all
from runtime.noise import tick_noise
from runtime.session import Session, graphs_of, noise_shape, tick_by
from runtime.world import DEFAULT_WORLD, State, World

try:
    import gymnasium
    from gymnasium.spaces import Box, MultiBinary
    from gymnasium.vector import AutoresetMode, VectorEnv
    from gymnasium.vector.utils import batch_space
except ModuleNotFoundError as error:
    raise MissingExtraError("WorldEnv needs gymnasium, which is not installed: pip install gymnasium") from error

SEEDS = 1 << 62


class WorldEnv(gymnasium.Env):
    """One player. render_mode: "rgb_array" gives the frame, "human" shows it in a window at the world's rate.

    When the player leaves the window (Esc or the close button), it closes, the episode is truncated and `info["left"]`
    is true.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "human"], "render_fps": 30}  # noqa: RUF012, as Env declares it

    def __init__(
        self,
        world: str | Path | World = DEFAULT_WORLD,
        *,
        render_mode: str | None = None,
        max_ticks: int | None = None,
        start: str | None = None,
        prompt: str | None = None,
        backend: str = "auto",
        threads: int | None = None,
        precision: str = "auto",
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise UsageError(f"render_mode must be rgb_array, human or None: got {render_mode!r}")
        opened = world if isinstance(world, World) else World.open(world)
        self.session = Session(
            opened, start=start, prompt=prompt, backend=backend, threads=threads, precision=precision
        )
        self.render_mode, self.max_ticks = render_mode, max_ticks
        self.metadata = {**self.metadata, "render_fps": opened.manifest.tick_hz}
        self.observation_space, self.action_space = _spaces(opened)
        self._screen: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin again: without a seed with another random one. options: `start` and `prompt` of this episode.

        The first observation is the frame after one tick with nothing pressed.
        """
        super().reset(seed=seed)
        options = options or {}
        self.session.restart(
            seed=int(self.np_random.integers(SEEDS)) if seed is None else seed,
            start=options.get("start"),
            prompt=options.get("prompt"),
        )
        frame = self.session.tick()
        self._show()
        return frame, self._info()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        names = self.session.world.manifest.action_names
        frame = self.session.tick([name for name, pressed in zip(names, action, strict=True) if pressed])
        state = self.session.peek()
        self._show()
        left = self._screen is not None and not self._screen.is_open
        if left:
            self.close()
        truncated = left or (self.max_ticks is not None and self.session.tick_number > self.max_ticks)
        return frame, float(_reward(state)[0]), bool(_terminated(state)[0]), truncated, self._info() | {"left": left}

    def render(self) -> np.ndarray | None:
        return self.session.frame.copy() if self.render_mode == "rgb_array" and self.session.frame is not None else None

    def close(self) -> None:
        if self._screen is not None:
            self._screen.close()
            self._screen = None

    def _info(self) -> dict:
        return {"tick": self.session.tick_number, "prompt": self.session.prompt}

    def _show(self) -> None:
        if self.render_mode == "human":
            if self._screen is None:
                self._screen = _Screen(self.session.world)
            self._screen.show(self.session.frame)


class WorldVectorEnv(VectorEnv):
    """Many players of one world in one batch: one call of the network ticks them all.

    A player whose episode ended begins again in the next step (Gymnasium's NEXT_STEP). Player i of seed s plays what
    a WorldEnv of seed s + i would. starts: names of the world's starts, of which each episode draws one; by default
    all begin at the world's default start.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        world: str | Path | World = DEFAULT_WORLD,
        num_envs: int = 2,
        *,
        max_ticks: int | None = None,
        starts: Sequence[str] = (),
        backend: str = "auto",
        threads: int | None = None,
        precision: str = "auto",
    ) -> None:
        self.world = world if isinstance(world, World) else World.open(world)
        self.num_envs, self.max_ticks = num_envs, max_ticks
        self.starts = tuple(starts)
        self.single_observation_space, self.single_action_space = _spaces(self.world)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._many = load_backend(self.world, backend, threads=threads, precision=precision, players=num_envs)
        self._one = load_backend(self.world, backend, threads=threads, precision=precision)
        manifest = self.world.manifest
        self._state: State = {
            name: aligned_zeros((num_envs, *spec.shape[1:]), spec.dtype) for name, spec in manifest.state.items()
        }
        self._prompts = np.zeros((num_envs, *manifest.prompt), np.float32)
        self._pressed = np.zeros((num_envs, len(manifest.actions)), np.float32)  # in the latest tick
        self._seeds, self._ticks = [0] * num_envs, np.zeros(num_envs, np.int64)
        self._over = np.zeros(num_envs, bool)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed if isinstance(seed, int) else None)
        given = (
            [None if seed is None else seed + i for i in range(self.num_envs)] if not isinstance(seed, list) else seed
        )
        for player, own in enumerate(given):
            self._restart(player, int(self.np_random.integers(SEEDS)) if own is None else own)
        self._over[:] = False
        frames = self._tick(np.zeros((self.num_envs, len(self.world.manifest.actions)), np.float32))
        return frames, {"tick": self._ticks.copy()}

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        pressed = np.array(actions, np.float32)
        begun = self._over.copy()
        for player in np.flatnonzero(begun):
            self._restart(int(player), int(self.np_random.integers(SEEDS)))
            pressed[player] = 0
        frames = self._tick(pressed)
        terminated = _terminated(self._state) & ~begun
        rewards = np.where(begun, 0.0, _reward(self._state))
        truncated = np.zeros(self.num_envs, bool) if self.max_ticks is None else self._ticks > self.max_ticks
        self._over = terminated | truncated
        return frames, rewards, terminated, truncated, {"tick": self._ticks.copy()}

    def _restart(self, player: int, seed: int) -> None:
        """Put a fresh start into this player's place of the batch."""
        manifest = self.world.manifest
        start = self.starts[int(self.np_random.integers(len(self.starts)))] if self.starts else None
        chosen = manifest.start(start)
        embedding = self._one.embed(chosen.prompt if chosen else manifest.default_prompt)
        state = {name: aligned_zeros(spec.shape, spec.dtype) for name, spec in manifest.state.items()}
        for name, tensor in self.world.start_state(start).items():
            state[name][...] = tensor
        self._state = {name: np.array(array) for name, array in self._state.items()}  # a tick may share what stays
        for name, array in self._one.recache(state, embedding).items():
            self._state[name][player] = np.asarray(array)[0]
        self._prompts[player], self._seeds[player], self._ticks[player] = embedding[0], seed, 0
        self._pressed[player] = 0

    def _tick(self, pressed: np.ndarray) -> np.ndarray:
        """One call of the network, two if frames in flight must be made again for some."""
        changed = (pressed != self._pressed).any(1).tolist()
        chosen = choose_for_all(dict.fromkeys(graphs_of(self._many), 0.0), math.inf, changed, Wishes())
        calls = {graph: self._call(graph, pressed) for graph in dict.fromkeys(chosen)}
        frames, self._state = calls.pop(chosen[0])
        for graph, (other_frames, other_state) in calls.items():
            players = np.array([name == graph for name in chosen])
            frames[players] = other_frames[players]
            self._state = {
                name: np.where(players.reshape(-1, *[1] * (len(array.shape) - 1)), other_state[name], array)
                for name, array in self._state.items()
            }
        self._pressed, self._ticks = pressed.copy(), self._ticks + 1
        return frames

    def _call(self, graph: str, pressed: np.ndarray) -> tuple[np.ndarray, State]:
        shape = (1, *noise_shape(self.world, graph))
        noise = np.concatenate(
            [tick_noise(seed, int(tick), shape) for seed, tick in zip(self._seeds, self._ticks, strict=True)]
        )
        return tick_by(self._many, graph, self._state, pressed, self._prompts, noise, {})


class _Screen:
    """A plain window at the world's rate."""

    def __init__(self, world: World) -> None:
        from runtime.bindings import Controls
        from runtime.clock import Clock
        from runtime.window import Window

        manifest = world.manifest
        self._clock = Clock(manifest.tick_hz)
        size = manifest.width, manifest.height
        self._window = Window(manifest.title, size, Controls([]), [], self._clock.now)

    @property
    def is_open(self) -> bool:
        return self._window.is_open

    def show(self, frame: np.ndarray) -> None:
        self._clock.wait()
        self._window.requests()
        self._window.picture(frame)

    def close(self) -> None:
        self._window.__exit__()


def _spaces(world: World) -> tuple[Box, MultiBinary]:
    manifest = world.manifest
    return Box(0, 255, (manifest.height, manifest.width, 3), np.uint8), MultiBinary(len(manifest.actions))


def _reward(state: State) -> np.ndarray:
    """float64 [players]"""
    players = len(next(iter(state.values())))
    return (
        np.asarray(state["reward"], np.float64).reshape(players, -1)[:, 0] if "reward" in state else np.zeros(players)
    )


def _terminated(state: State) -> np.ndarray:
    """bool [players]"""
    players = len(next(iter(state.values())))
    if "terminated" not in state:
        return np.zeros(players, bool)
    return np.asarray(state["terminated"]).reshape(players, -1)[:, 0].astype(bool)
