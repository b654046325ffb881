"""A driver that sees only the picture: the same for the real game and a generated one.

It looks along the road from the car outwards, aims at a point some way along it (pure pursuit), and keeps a modest
speed that it judges from how the picture moves.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from worldmodel.train.envs import Keys
from worldmodel.train.envs.captions import Rgb
from worldmodel.train.measure import CAR, GRID, SIZE, UNITS_PER_PIXEL, Motion, Picture, motion, on_road, road_mask

_LOOK = 15  # grid cells along the road to the point that it aims at
_CRUISE = 2.0  # pixels of a 128 × 128 frame that it wants to make in a tick
_WHEELBASE = 3.24 / UNITS_PER_PIXEL * GRID / SIZE  # grid cells
_LOCK, _STEER_ON, _STEER_OFF = 0.32, 0.08, 0.12  # as the keys steer, see car_racing.py


class PixelDriver:
    """Call it once a tick with the newest frame for the keys to hold, in the order left, right, gas, brake.

    moved: the motion that brought the newest frame about, None at the first. on_road: share of road around the car.
    """

    def __init__(self, road: Rgb, grass: Rgb) -> None:
        self._road, self._grass = road, grass
        self.moved: Motion | None = None
        self.on_road = 0.0
        self._before: Picture | None = None
        self._speed = 0.0  # pixels per tick, smoothed
        self._steer = 0.0  # what its own keys have brought about
        self._side = 1.0  # where the road was last seen: -1 left, 1 right

    def __call__(self, frame: Picture) -> Keys:
        if self._before is not None:
            self.moved = motion(self._before, frame, self.moved)
            self._speed = 0.7 * self._speed + 0.3 * self.moved.forward
        self._before = frame
        mask = road_mask(frame, self._road, self._grass)
        self.on_road = on_road(mask)
        aim = aim_along(mask)
        if aim is None:
            return self._press(self._side * 0.6 * _LOCK, 0.6 * _CRUISE)
        right, ahead = aim
        bearing = math.atan2(right, ahead)
        self._side = math.copysign(1.0, bearing)
        steer = math.atan(_WHEELBASE * 2 * math.sin(bearing) / math.hypot(right, ahead))
        if abs(bearing) > 1.4:
            steer = self._side * _LOCK
        return self._press(steer, _CRUISE * (1.0 if abs(bearing) < 0.5 else 0.7))

    def _press(self, steer: float, cruise: float) -> Keys:
        key = 0.0
        if abs(steer) > 0.025 and (steer - self._steer) * steer > 0:
            key = math.copysign(1.0, steer)
        target = key * _LOCK
        change = _STEER_ON if target * (target - self._steer) > 0 else _STEER_OFF
        self._steer += float(np.clip(target - self._steer, -change, change))
        return np.array([key < 0, key > 0, self._speed < cruise, self._speed > 2 * cruise])


def aim_along(road: NDArray[np.bool_]) -> tuple[float, float] | None:
    """The point to aim at, in grid cells (right of the car, ahead of it); None when no road is in sight.

    road: bool [GRID, GRID]. Walks over the road from where the car is (or from the nearest road), never backwards past
    the car, and aims at the middle of what lies `_LOOK` cells along.
    """
    car_x, car_y = round(CAR[0]), round(CAR[1])
    road = road[: car_y + 4].copy()
    if road[car_y - 6 :, car_x - 4 : car_x + 5].mean() > 0.3:
        road[car_y - 5 :, car_x - 3 : car_x + 4] = True  # the road goes on under the car
    rows, columns = np.nonzero(road)
    if len(rows) < 10:
        return None
    away = np.hypot(rows - car_y, columns - car_x)
    first = int(away.argmin())
    if away[first] > 3:  # off the road: go for it, and a little into it
        near = away < away[first] + 7
        return float(columns[near].mean() - car_x), float(car_y - rows[near].mean())
    steps = _walk(road, (int(rows[first]), int(columns[first])))
    look = min(_LOOK, int(steps.max()) - 2)
    rows, columns = np.nonzero(np.abs(steps - look) <= 1)
    if not len(rows):
        return None
    forward = rows < car_y - 1
    if forward.any():
        rows, columns = rows[forward], columns[forward]
    return float(columns.mean() - car_x), float(car_y - rows.mean())


def _walk(road: NDArray[np.bool_], start: tuple[int, int]) -> NDArray[np.int64]:
    """Steps over the road from `start` to every cell, -1 where none lead within `_LOOK` steps and a few."""
    allowed, reached = road.astype(np.uint8), np.zeros(road.shape, np.uint8)
    reached[start] = 1
    steps = np.where(reached > 0, 0, -1)
    cross, square = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)), np.ones((3, 3), np.uint8)
    for step in range(1, round(1.2 * _LOOK) + 3):
        # Two steps of five may be diagonal: an octagon, near enough a circle.
        grown = np.asarray(cv2.dilate(reached, square if step % 5 in (1, 3) else cross), np.uint8) & allowed
        new = grown > reached
        if not new.any():
            break
        steps[new] = step
        reached = grown
    return steps
