"""A world whose picture never changes, and what tests make of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from worldmodel.train.envs.car_racing import CarRacing
from worldmodel.train.playable import Frames, Held


class Frozen:
    """A world that shows its last real frame for ever."""

    actions = CarRacing.actions
    context = 8
    prompted = True

    def begin(self, frames: np.ndarray, actions: np.ndarray, prompts: Sequence[str], seed: int) -> Frozen:
        self.frames: Frames = frames[:, -1]
        return self

    def tick(self, held: Held) -> Frames:
        return self.frames

    def say(self, prompts: Sequence[str]) -> None:
        pass

    def through_codec(self, frames: Frames) -> Frames:
        return frames
