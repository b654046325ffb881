"""Environment adapters: each turns one environment into frames, named keys, facts, captions and a driver.

`ADAPTERS` maps a name to the module and class that implement it; the module is imported only when asked for.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from worldmodel.errors import DatasetError

Frame = NDArray[np.uint8]  # [height, width, 3]
Keys = NDArray[np.bool_]  # [actions]
Motion = NDArray[np.float16]  # [rows, columns, 2] of cells of MOTION_CELL pixels: pixels down and right

MOTION_CELL = 8


class Outcome(NamedTuple):
    """What the environment makes of a step. terminated: lost or won, not merely cut off."""

    reward: float
    terminated: bool


BEGUN = Outcome(0.0, False)


class Adapter(Protocol):
    """One environment, seen as a game: keys in, antialiased frames out."""

    @property
    def env_id(self) -> str: ...
    @property
    def tick_hz(self) -> float: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def actions(self) -> tuple[str, ...]: ...
    @property
    def keys(self) -> dict[str, list[str]]: ...  # action -> keyboard keys that a player uses for it
    @property
    def mirror(self) -> list[tuple[str, str]]: ...  # actions that swap in a mirrored picture; empty: no symmetry
    @property
    def facts(self) -> tuple[str, ...]: ...

    def reset(self, seed: int) -> Frame:
        """Begin an episode; equal seeds begin equal episodes."""

    def step(self, action: Keys) -> tuple[Frame, bool]:
        """Live one tick with these keys held. Returns the frame and whether the episode is over."""

    def scene(self) -> dict[str, Any]:
        """{"captions": [...], …} of what the frame shows; a new dict object when the scene changes."""

    def read_facts(self) -> NDArray[np.float32]:
        """The true state, float32 [facts]."""

    def outcome(self) -> Outcome:
        """Of the latest step; BEGUN before the first."""

    def motion(self) -> Motion | None:
        """How far what the frame shows amid each cell came since the frame before, NaN where it cannot be known; None
        where the environment cannot tell, or its facts do.
        """

    def policy(self, rng: np.random.Generator) -> Callable[[], Keys]:
        """A driver for this episode that may see the state."""

    def close(self) -> None:
        """End whatever the adapter runs."""


ADAPTERS: dict[str, tuple[str, str]] = {
    "car_racing": ("worldmodel.train.envs.car_racing", "CarRacing"),
    "vizdoom": ("worldmodel.train.envs.vizdoom", "VizDoom"),
    "crafter": ("worldmodel.train.envs.crafter_env", "Crafter"),
    "gymnasium": ("worldmodel.train.envs.gymnasium_env", "GymnasiumEnv"),
}


def adapter_class(name: str) -> Callable[..., Adapter]:
    """The class behind an adapter's name."""
    if name not in ADAPTERS:
        raise DatasetError(f"unknown adapter {name!r}: known are {', '.join(ADAPTERS)}")
    module, cls = ADAPTERS[name]
    found: Callable[..., Adapter] = getattr(importlib.import_module(module), cls)
    return found


def make_adapter_for(name: str, width: int, env_id: str | None = None) -> Adapter:
    """Make the adapter called `name` with frames of a world's width, where its size is free to choose.

    env_id: the environment, where the adapter is one for many.
    """
    free = inspect.signature(adapter_class(name)).parameters
    return make_adapter(name, **{key: value for key, value in (("size", width), ("env_id", env_id)) if key in free})


def make_adapter(name: str, **options: Any) -> Adapter:
    """Make the adapter called `name`; `options` go to its constructor."""
    return adapter_class(name)(**options)
