"""Crafter (Danijar Hafner, MIT; arXiv:2109.06780) as a game: its own world and rewards, a button for every action.

It has no clock of its own: a step of it is a tick, ten a second. One thing differs from the package: creatures are kept
in an order, without which equal seeds would not be equal games.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from worldmodel.errors import MissingExtraError
from worldmodel.train.envs import BEGUN, Frame, Keys, Outcome

try:
    import crafter
    from crafter import constants
except ModuleNotFoundError as error:
    raise MissingExtraError("Crafter needs crafter, which is not installed: pip install '.[games]'") from error

CELLS = 9  # a side of the picture, its two rows of belongings included
NIGHT = 0.4  # daylight below which it is night in the captions
CAPTIONS = {
    "day": ("crafter by day", "a land of grass, trees and water in the daylight", "bright day in a world of blocks"),
    "night": ("crafter by night", "a land of grass, trees and water in the dark", "deep night in a world of blocks"),
}
_ARROWS = {"move_left": ["left", "a"], "move_right": ["right", "d"], "move_up": ["up", "w"], "move_down": ["down", "s"]}
_MOVES = tuple(_ARROWS)
_WORTH_IT = ("tree", "stone", "coal", "iron", "diamond", "water")  # to be faced and worked on
_MAKING = tuple(name for name in constants.actions if name.startswith(("place", "make")))


class _InOrder(crafter.Env):
    """The environment with its creatures in order of their place; a set has them in another one in every process."""

    def _balance_object(self, chunk: Any, objs: Iterable[Any], *rest: Any) -> None:
        super()._balance_object(chunk, sorted(objs, key=lambda creature: tuple(creature.pos)), *rest)


class Crafter:
    """Crafter with its sixteen actions as buttons; of several that are held the first in their order counts."""

    env_id = "Crafter"
    tick_hz = 10.0
    actions = tuple(name for name in constants.actions if name != "noop")
    keys: ClassVar = {
        **_ARROWS,
        "do": ["space"],
        "sleep": ["z"],
        **{name: [key] for name, key in zip(_MAKING, "1234567890", strict=True)},
    }
    mirror: ClassVar[list[tuple[str, str]]] = []
    facts = ("health", "food", "drink", "energy", "daylight", "x", "y")

    def __init__(self, size: int = 96) -> None:
        cv2.setNumThreads(1)
        self.height = self.width = size
        drawn = -(-size // CELLS) * CELLS  # whole pixels a cell, or the picture would have a black rim
        self._env = _InOrder(size=(drawn, drawn), length=None, seed=0)

    def reset(self, seed: int) -> Frame:
        """Another land, in the morning."""
        self._env._seed, self._env._episode = seed, 0
        self._outcome, self._scene = BEGUN, self._describe("day")
        return self._shown(self._env.reset())

    def step(self, action: Keys) -> tuple[Frame, bool]:
        """One step of the environment. The episode is over where the player dies."""
        pressed = np.flatnonzero(action)
        name = self.actions[pressed[0]] if len(pressed) else "noop"
        picture, reward, _, info = self._env.step(constants.actions.index(name))
        self._outcome = Outcome(float(reward), info["discount"] == 0)
        time = "night" if self._env._world.daylight < NIGHT else "day"
        if time != self._scene["time"]:
            self._scene = self._describe(time)
        return self._shown(picture), self._outcome.terminated

    def outcome(self) -> Outcome:
        """1 for each thing achieved for the first time, a tenth for health gained or lost."""
        return self._outcome

    def motion(self) -> None:
        """Not known."""

    def scene(self) -> dict[str, Any]:
        """Day or night."""
        return self._scene

    def read_facts(self) -> NDArray[np.float32]:
        """See `facts`."""
        player = self._env._player
        needs = (player.inventory[name] for name in self.facts[:4])
        return np.array([*needs, self._env._world.daylight, *player.pos], np.float32)

    def policy(self, rng: np.random.Generator) -> Callable[[], Keys]:
        """Walks about, works on what it faces, makes things of what it has, and sleeps when it is tired."""

        plan: list[str] = []

        def drive() -> Keys:
            return np.isin(self.actions, plan.pop() if plan else self._wish(rng, plan))

        return drive

    def close(self) -> None:
        """Nothing runs beside this object."""

    def _wish(self, rng: np.random.Generator, plan: list[str]) -> str:
        """What to do now; what shall follow goes into `plan`."""
        player, world = self._env._player, self._env._world
        material, creature = world[player.pos + np.array(player.facing)]
        if player.sleeping or (player.inventory["energy"] < 3 and rng.random() < 0.5):
            return "sleep"
        if (material in _WORTH_IT or creature is not None) and rng.random() < 0.7:
            plan += ["do"] * int(rng.integers(0, 5))
            return "do"
        if rng.random() < 0.1:
            return str(rng.choice(_MAKING))
        if rng.random() < 0.1:
            return str(rng.choice(["noop", "do"]))  # on grass: a sapling, with luck
        way = str(rng.choice(_MOVES))
        plan += [way] * int(rng.integers(0, 8))
        return way

    def _shown(self, picture: NDArray[np.uint8]) -> Frame:
        return np.asarray(cv2.resize(picture, (self.width, self.height), interpolation=cv2.INTER_AREA), np.uint8)

    def _describe(self, time: str) -> dict[str, Any]:
        return {"captions": list(CAPTIONS[time]), "time": time}
