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
from worldmodel.train.measure import CAR, UNITS_PER_PIXEL, Picture, motion, road_mask

_LOOK = 30  # pixels along the road to the point that it aims at
_CRUISE = 2.0  # pixels per tick that it wants to make
_WHEELBASE = 3.24 / UNITS_PER_PIXEL  # pixels
_LOCK, _STEER_ON, _STEER_OFF = 0.32, 0.08, 0.12  # as the keys steer, see car_racing.py


class PixelDriver:
    """Call it once a tick with the newest frame for the keys to hold, in the order left, right, gas, brake."""

    def __init__(self, road: Rgb, grass: Rgb) -> None:
        self.repaint(road, grass)
        self._before: Picture | None = None
        self._speed = 0.0  # pixels per tick
        self._steer = 0.0  # what its own keys have brought about
        self._side = 1.0  # where the road was last seen: -1 left, 1 right

    def repaint(self, road: Rgb, grass: Rgb) -> None:
        """Look for these colours from now on."""
        self._road, self._grass = road, grass

    def __call__(self, frame: Picture) -> Keys:
        if self._before is not None:
            self._speed = 0.7 * self._speed + 0.3 * motion(self._before, frame).forward
        self._before = frame
        aim = aim_along(road_mask(frame, self._road, self._grass))
        if aim is None:
            wanted, cruise = self._side * 0.6 * _LOCK, 0.6 * _CRUISE
        else:
            right, ahead = aim
            bearing = math.atan2(right, ahead)
            self._side = math.copysign(1.0, bearing)
            wanted = math.atan(_WHEELBASE * 2 * math.sin(bearing) / math.hypot(right, ahead))
            if abs(bearing) > 1.4:
                wanted = self._side * _LOCK
            cruise = _CRUISE * (1.0 if abs(bearing) < 0.5 else 0.7)
        return self._press(wanted, cruise)

    def _press(self, wanted: float, cruise: float) -> Keys:
        key = 0.0
        if abs(wanted) > 0.025 and (wanted - self._steer) * wanted > 0:
            key = math.copysign(1.0, wanted)
        target = key * _LOCK
        change = _STEER_ON if target * (target - self._steer) > 0 else _STEER_OFF
        self._steer += float(np.clip(target - self._steer, -change, change))
        return np.array([key < 0, key > 0, self._speed < cruise, self._speed > 2 * cruise])


def aim_along(road: NDArray[np.bool_]) -> tuple[float, float] | None:
    """The point to aim at, in pixels (right of the car, ahead of it); None when no road is in sight.

    road: bool [128, 128]. Walks over the road from where the car is (or from the nearest road), never backwards past
    the car, and aims at the middle of what lies `_LOOK` pixels along.
    """
    car_x, car_y = round(CAR[0]), round(CAR[1])
    road = road.copy()
    road[car_y - 9 : car_y + 10, car_x - 5 : car_x + 6] |= _touches_car(road)
    rows, columns = np.nonzero(road[: car_y + 8])
    if len(rows) < 40:
        return None
    away = np.hypot(rows - car_y, columns - car_x)
    first = int(away.argmin())
    if away[first] > 6:  # off the road: go for it, and a little into it
        near = away < away[first] + 14
        return float(columns[near].mean() - car_x), float(car_y - rows[near].mean())
    distance = _walk(road[: car_y + 6], (int(rows[first]), int(columns[first])))
    look = min(_LOOK, float(distance[np.isfinite(distance)].max()) - 3)
    ring = (distance >= look - 2) & (distance <= look + 2)
    if not ring.any():
        return None
    ring_rows, ring_columns = np.nonzero(ring)
    forward = ring_rows < car_y - 2
    if forward.any():
        ring_rows, ring_columns = ring_rows[forward], ring_columns[forward]
    return float(ring_columns.mean() - car_x), float(car_y - ring_rows.mean())


def _touches_car(road: NDArray[np.bool_]) -> bool:
    """Whether the pixels around the car, which hides what is under it, are mostly road."""
    x, y = round(CAR[0]), round(CAR[1])
    return bool(road[y - 12 : y + 13, x - 8 : x + 9].mean() > 0.3)


def _walk(road: NDArray[np.bool_], start: tuple[int, int]) -> NDArray[np.float64]:
    """Walking distance over the road from `start` to every pixel, infinite off the road."""
    distance = np.full(road.shape, np.inf)
    reached = np.zeros(road.shape, np.uint8)
    reached[start] = 1
    allowed = road.astype(np.uint8)
    cross, square = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)), np.ones((3, 3), np.uint8)
    steps = 0.0
    distance[start] = 0
    while steps < 1.2 * _LOOK + 3:
        diagonal = round(steps) % 5 in (1, 3)  # 2 steps of 5 diagonal: an octagon, near enough a circle
        grown = np.asarray(cv2.dilate(reached, square if diagonal else cross), np.uint8) & allowed
        steps += 1
        new = (grown > 0) & (reached == 0)
        if not new.any():
            break
        distance[new] = steps
        reached = grown
    return distance
