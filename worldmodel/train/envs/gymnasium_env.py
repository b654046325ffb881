"""Any Gymnasium environment that can draw itself, as a game with named buttons and a random, sticky-fingered driver."""

from __future__ import annotations

import importlib
import itertools
import re
from collections.abc import Callable
from typing import Any

import cv2
import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from worldmodel.errors import DatasetError, MissingExtraError
from worldmodel.train.envs import BEGUN, Frame, Keys, Outcome

_OWN_KEYS = {"left": "left", "right": "right", "up": "up", "down": "down", "fire": "space"}  # by a button's name
_KEYBOARD = ("left", "right", "up", "down", "space", *"zxcvbnasdfgqwetyuio")  # handed out in the order of the others
_PARTS = re.compile("left|right|up|down|fire")  # of which Atari's joystick names its actions: uprightfire
_BROUGHT_BY = {"ALE": "ale_py"}  # namespace: the package that registers its environments when it is imported
_STEP_HZ = {"ALE": 15.0}  # four of the console's frames are a step, which its render_fps does not say


class GymnasiumEnv:
    """`env_id` drawn by its own rgb_array rendering and averaged down to a square of `size` pixels.

    Buttons by action space: Discrete, one per action except a no-op and except such as are two others at once (several
    held: that action, if there is one, else the first; none: the no-op, or else the action before). MultiBinary, one
    per bit. MultiDiscrete, one per value but 0 of each part. Box, one for each end of each axis that is not its resting
    value.
    """

    facts = ()

    def __init__(self, env_id: str, size: int = 128) -> None:
        cv2.setNumThreads(1)
        self.env_id = env_id
        self.height = self.width = size
        namespace = env_id.rpartition("/")[0]
        if namespace in _BROUGHT_BY:
            _import(_BROUGHT_BY[namespace], env_id)
        try:
            self._env = gymnasium.make(env_id, render_mode="rgb_array")
        except gymnasium.error.Error as error:
            raise DatasetError(f"{env_id}: Gymnasium cannot make it: {error}") from None
        self.tick_hz = _STEP_HZ.get(namespace, float(self._env.metadata.get("render_fps", 30)))
        self.actions, self._to_action = buttons(self._env)
        self.keys = keys_of(self.actions)
        self.mirror: list[tuple[str, str]] = []
        words = " ".join(re.findall(r"[A-Z]+[a-z]*|[a-z]+|\d+", env_id.split("/")[-1].rsplit("-v", 1)[0])).lower()
        self._scene = {"captions": [words]}

    def reset(self, seed: int) -> Frame:
        """Begin an episode."""
        self._env.reset(seed=seed)
        self._outcome = BEGUN
        return self._draw()

    def step(self, action: Keys) -> tuple[Frame, bool]:
        """Hold these buttons for one of the environment's steps."""
        _, reward, terminated, truncated, _ = self._env.step(self._to_action(action))
        self._outcome = Outcome(float(reward), bool(terminated))
        return self._draw(), bool(terminated or truncated)

    def scene(self) -> dict[str, Any]:
        """The environment's name in words: all that is known of its look."""
        return self._scene

    def read_facts(self) -> NDArray[np.float32]:
        """No facts."""
        return np.empty(0, np.float32)

    def outcome(self) -> Outcome:
        """The environment's own reward and end."""
        return self._outcome

    def motion(self) -> None:
        """Not known."""

    def policy(self, rng: np.random.Generator) -> Callable[[], Keys]:
        """Random buttons, each choice held for 3 to 15 ticks; one tick in four with nothing held.

        Every episode has its favourites, or no game would be gone far into that wants one button most of the time.
        """
        held, left = np.zeros(len(self.actions), bool), 0
        liked = rng.dirichlet(np.full(len(self.actions), 0.5))

        def drive() -> Keys:
            nonlocal held, left
            if left == 0:
                left = int(rng.integers(3, 16))
                held = rng.random(len(self.actions)) < 1.5 * liked
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


def keys_of(names: tuple[str, ...]) -> dict[str, list[str]]:
    """A key of the keyboard for every button: its own where its name has one, else the next that is left."""
    own = {name: _OWN_KEYS[name] for name in names if name in _OWN_KEYS}
    rest = (key for key in _KEYBOARD if key not in own.values())
    return {name: [own[name]] if name in own else list(itertools.islice(rest, 1)) for name in names}


def _import(package: str, env_id: str) -> None:
    try:
        importlib.import_module(package)
    except ModuleNotFoundError:
        raise MissingExtraError(f"{env_id} needs {package}, which is not installed: pip install '.[games]'") from None


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
    parts = [frozenset(_PARTS.findall(name)) if not _PARTS.sub("", name) else frozenset({name}) for name in names]
    single = {part for held in parts if len(held) == 1 for part in held}
    chosen = [i for i in range(count) if names[i] != "noop" and (len(parts[i]) == 1 or not parts[i] <= single)]
    last = first + (names.index("noop") if "noop" in names else 0)
    stays = "noop" not in names

    def to_action(held: Keys) -> int:
        nonlocal last
        pressed = np.flatnonzero(held)
        if not len(pressed):
            return last
        together = frozenset().union(*(parts[chosen[i]] for i in pressed))
        action = first + (parts.index(together) if together in parts else chosen[int(pressed[0])])
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
