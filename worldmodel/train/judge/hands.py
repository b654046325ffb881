"""Which keys were held? An inverse-dynamics model: it sees how frames move, before and after, and names the keys.

A key is felt for some ticks (steering comes over four, gas shows as a growing speed), so nine ticks are looked at, as
in VPT (arXiv:2206.11795), whose labeller sees the future, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from worldmodel.train import measure
from worldmodel.train.measure import Motion, Picture

BEFORE, AFTER = 4, 5  # movements seen before and after the one that the keys led to
GRID = 6  # cells across and down in which optical flow is averaged
WIDTH = 96

Moves = NDArray[np.float32]  # [ticks, players, numbers]: how each frame differs from the one before


class Hands(nn.Module):
    """Movements of BEFORE + 1 + AFTER ticks to one number per key, above 0 where it was held."""

    typical: Tensor
    spread: Tensor

    def __init__(self, numbers: int, keys: int) -> None:
        """numbers: that describe one movement."""
        super().__init__()
        self.register_buffer("typical", torch.zeros(numbers))
        self.register_buffer("spread", torch.ones(numbers))
        self.layers = nn.Sequential(
            nn.Linear((BEFORE + 1 + AFTER) * numbers, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU(),
            nn.Linear(WIDTH, keys),
        )  # fmt: skip

    def forward(self, windows: Tensor) -> Tensor:
        """[batch, BEFORE + 1 + AFTER, numbers] to [batch, keys]."""
        around = (windows - self.typical) / self.spread
        return self.layers(around.clamp(-8, 8).flatten(1))


def windows(moves: Moves) -> NDArray[np.float32]:
    """The movements around every tick that has enough of them: [ticks - BEFORE - AFTER, players, window, numbers].

    Row i is about the keys that led to movement i + BEFORE.
    """
    seen = np.lib.stride_tricks.sliding_window_view(moves, BEFORE + 1 + AFTER, axis=0)
    return np.ascontiguousarray(np.moveaxis(seen, -1, 2))


def movements(adapter: str, frames: Sequence[Picture]) -> NDArray[np.float32]:
    """How each frame of an environment differs from the one before, in numbers: [frames - 1, numbers]."""
    if adapter == "car_racing":
        return car_movements(frames)
    return np.array([flow_grid(a, b) for a, b in itertools.pairwise(frames)], np.float32)


def car_movements(frames: Sequence[Picture]) -> NDArray[np.float32]:
    """Turn, forward and sideways motion of the car, see measure.py: [frames - 1, 3]."""
    found: list[Motion] = []
    for before, after in itertools.pairwise(frames):
        found.append(measure.motion(before, after, found[-1] if found else None))
    return np.array([[move.rotation, move.forward, move.sideways] for move in found], np.float32)


def flow_grid(before: Picture, after: Picture) -> list[float]:
    """Optical flow, and how much the picture changed otherwise, in GRID × GRID cells."""
    shifts = cv2.resize(flow(before, after), (GRID, GRID), interpolation=cv2.INTER_AREA)
    change = cv2.absdiff(before, after).mean(-1).astype(np.float32)
    flicker = cv2.resize(change, (GRID, GRID), interpolation=cv2.INTER_AREA)
    return [*shifts.ravel().tolist(), *flicker.ravel().tolist()]


def flow(before: Picture, after: Picture) -> NDArray[np.float32]:
    """Optical flow in pixels, float32 [height, width, (right, down)], by dense inverse search (arXiv:1603.03590)."""
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    first, second = (cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in (before, after))
    return np.asarray(search.calc(first, second, np.zeros((*first.shape, 2), np.float32)), np.float32)


def flow_strength(before: Picture, after: Picture) -> float:
    """Mean length of the optical flow, in pixels."""
    return float(np.linalg.norm(flow(before, after), axis=-1).mean())


def balanced_accuracy(held: NDArray[np.bool_], said: NDArray[np.bool_]) -> NDArray[np.float64]:
    """For each key the mean of the shares told right where it was held and where not: 0.5 is guessing, 1 is perfect.

    bool [n, keys] both. NaN for a key that was always or never held.
    """
    held, said = held.reshape(-1, held.shape[-1]), said.reshape(-1, said.shape[-1])
    right = said == held
    with np.errstate(invalid="ignore"):
        return ((right & held).sum(0) / held.sum(0) + (right & ~held).sum(0) / (~held).sum(0)) / 2
