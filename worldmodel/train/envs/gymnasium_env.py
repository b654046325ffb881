"""Any Gymnasium environment that can draw itself, as a game with named buttons and a random, sticky-fingered driver."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import cv2
import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from worldmodel.errors import DatasetError
from worldmodel.train.envs import Frame, Keys

_KEYBOARD = ("left", "right", "up", "down", "space", *"zxcvbnasdfghqwertyuiop")  # handed out in the buttons' order


class GymnasiumEnv:
    """`env_id` drawn by its own rgb_array rendering and averaged down to a square of `size` pixels.

    Buttons by action space: Discrete, one per action except a no-op (several held: the first; none: the no-op, or else
    the action before). MultiBinary, one per bit. MultiDiscrete, one per value but 0 of each part. Box, one for each end
    of each axis that is not its resting value.
    """

    facts = ()

    def __init__(self, env_id: str, size: int = 128) -> None:
        cv2.setNumThreads(1)
        self.env_id = env_id
        self.height = self.width = size
        try:
            self._env = gymnasium.make(env_id, render_mode="rgb_array")
        except gymnasium.error.Error as error:
            raise DatasetError(f"{env_id}: Gymnasium cannot make it: {error}") from None
        self.tick_hz = float(self._env.metadata.get("render_fps", 30))
        self.actions, self._to_action = buttons(self._env)
        self.keys = {name: [_KEYBOARD[i]] if i < len(_KEYBOARD) else [] for i, name in enumerate(self.actions)}
        self.mirror: list[tuple[str, str]] = []
        words = " ".join(re.findall(r"[A-Z]+[a-z]*|[a-z]+|\d+", env_id.split("/")[-1].rsplit("-v", 1)[0])).lower()
        self._scene = {"captions": [words]}

    def reset(self, seed: int) -> Frame:
        """Begin an episode."""
        self._env.reset(seed=seed)
        return self._draw()

    def step(self, action: Keys) -> tuple[Frame, bool]:
        """Hold these buttons for one of the environment's steps."""
        _, _, terminated, truncated, _ = self._env.step(self._to_action(action))
        return self._draw(), bool(terminated or truncated)

    def scene(self) -> dict[str, Any]:
        """The environment's name in words: all that is known of its look."""
        return self._scene

    def read_facts(self) -> NDArray[np.float32]:
        """No facts."""
        return np.empty(0, np.float32)

    def policy(self, rng: np.random.Generator) -> Callable[[], Keys]:
        """Random buttons, each choice held for 3 to 15 ticks; one tick in four with nothing held."""
        held, left = np.zeros(len(self.actions), bool), 0

        def drive() -> Keys:
            nonlocal held, left
            if left == 0:
                left = int(rng.integers(3, 16))
                held = rng.random(len(self.actions)) < 1.5 / len(self.actions)
                held &= rng.random() > 0.25
            left -= 1
            return held

        return drive

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _draw(self) -> Frame:
        picture = np.asarray(self._env.render(), np.uint8)
        return np.asarray(cv2.resize(picture, (self.width, self.height), interpolation=cv2.INTER_AREA), np.uint8)


def buttons(env: gymnasium.Env) -> tuple[tuple[str, ...], Callable[[Keys], Any]]:
    """Name an environment's buttons; the function turns held buttons, bool [buttons], into its action."""
    space = env.action_space
    if isinstance(space, spaces.Discrete):
        return _of_discrete(env, space)
    if isinstance(space, spaces.MultiBinary) and len(space.shape) == 1:
        return tuple(f"button_{i}" for i in range(space.shape[0])), lambda held: held.astype(np.int8)
    if isinstance(space, spaces.MultiDiscrete) and len(space.shape) == 1:
        return _of_multi_discrete(space)
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return _of_box(space)
    raise DatasetError(f"{env.spec.id if env.spec else env}: its actions, {space}, cannot be put on buttons")


def _of_discrete(env: gymnasium.Env, space: spaces.Discrete) -> tuple[tuple[str, ...], Callable[[Keys], Any]]:
    count, first = int(space.n), int(space.start)
    meanings = getattr(env.unwrapped, "get_action_meanings", lambda: [f"action_{i}" for i in range(count)])()
    names = [meaning.lower() for meaning in meanings]
    chosen = [i for i in range(count) if names[i] != "noop"]
    last = first + (names.index("noop") if "noop" in names else 0)
    stays = "noop" not in names

    def to_action(held: Keys) -> int:
        nonlocal last
        pressed = np.flatnonzero(held)
        if not len(pressed):
            return last
        action = first + chosen[int(pressed[0])]
        if stays:
            last = action
        return action

    return tuple(names[i] for i in chosen), to_action


def _of_multi_discrete(space: spaces.MultiDiscrete) -> tuple[tuple[str, ...], Callable[[Keys], Any]]:
    values = [(part, value) for part, count in enumerate(space.nvec) for value in range(1, int(count))]

    def to_action(held: Keys) -> NDArray[np.int64]:
        action = np.array(space.start, np.int64)
        for (part, value), pressed in zip(values, held, strict=True):
            if pressed and action[part] == space.start[part]:
                action[part] += value
        return action

    return tuple(f"part_{part}_{value}" for part, value in values), to_action


def _of_box(space: spaces.Box) -> tuple[tuple[str, ...], Callable[[Keys], Any]]:
    low, high = np.maximum(space.low, -1.0), np.minimum(space.high, 1.0)  # unbounded axes: one unit each way
    rest = np.clip(0.0, low, high)
    ends = [(axis, end) for axis in range(len(rest)) for end in (low[axis], high[axis]) if end != rest[axis]]

    def to_action(held: Keys) -> NDArray[np.float32]:
        action = rest.astype(np.float64).copy()
        for (axis, end), pressed in zip(ends, held, strict=True):
            if pressed:
                action[axis] += end - rest[axis]
        return np.clip(action, low, high).astype(space.dtype)

    return tuple(f"axis_{axis}_{'down' if end < rest[axis] else 'up'}" for axis, end in ends), to_action
